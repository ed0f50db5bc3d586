// The densities' formulas in core/gaussian.h against their definitions in long double: gradients against differences.
#pragma once

#include <limits>

#include "check.h"
#include "core/gaussian.h"
#include "core_accuracy.h"
#include "points.h"

namespace illia {
namespace base {
namespace {

// One element in long double, with moderate numbers that all types hold.
struct Element {
  long double x, mu, rho, mu_prior, std_prior, grad, eps;

  static Element make(uint64_t i) {
    const auto draw = [&](int k, double low) {  // multiples of 1/64 in [low, low + 4)
      return static_cast<long double>(low + static_cast<double>(scattered(8 * i + k) % 256) / 64);
    };
    return {draw(0, -2), draw(1, -2), draw(2, -3), draw(3, -2), draw(4, 0.25), draw(5, -2), draw(6, -2)};
  }

  long double sigma() const { return exact_softplus(rho); }
  long double log_q() const { return -std::log(sigma()) - (x - mu) * (x - mu) / (2 * sigma() * sigma()); }
  long double log_p() const {
    return -std::log(std_prior) - (x - mu_prior) * (x - mu_prior) / (2 * std_prior * std_prior);
  }
  long double kl_divergence() const {
    const long double variance = std_prior * std_prior, distance = mu - mu_prior;
    return std::log(std_prior / sigma()) + (sigma() * sigma() + distance * distance) / (2 * variance) - 0.5L;
  }
};

// d function / d member by a central difference: it errs by 2^-40 / 6 of the third derivative, which is below 4e5 here
// (of the prior's z^2 / 2 to std_prior: 12 8 / 0.25^5), so by 6e-8; rounding adds 2^-63 / 2^-20 of some hundred.
template <typename function_t>
long double derivative(Element element, long double Element::* member, function_t function) {
  constexpr long double kStep = 0x1p-20L;
  const long double center = element.*member;
  element.*member = center + kStep;
  const long double above = function(element);
  element.*member = center - kStep;
  return (above - function(element)) / (2 * kStep);
}

// A gradient has at most 8 roundings of terms that are below 4000 here (a quotient by sigma^2 >= 0.048^2); so in float
// below 8 2^-24 4000 = 2e-3, in double 4e-12, below the difference's own error.
template <typename acc_t>
void test_gradients() {
  const double tolerance = sizeof(acc_t) == sizeof(float) ? 2e-3 : 1e-7;
  for (uint64_t i = 0; i < 300; ++i) {
    const Element e = Element::make(i);
    const acc_t x = e.x, mu = e.mu, rho = e.rho, mu_prior = e.mu_prior, std_prior = e.std_prior, grad = e.grad;
    const Softplus<acc_t> s = softplus(rho);
    const acc_t sigma = s.sigma, h = log_sigma_derivative(s), dsigma = sigmoid(rho, sigma, h);
    const auto prior = Prior<acc_t>::make(mu_prior, std_prior);
    const acc_t scale = prior.scale(grad);
    const auto log_prob = [](const Element& at) { return at.grad * (at.log_q() - at.log_p()); };
    const auto minus_log_p = [](const Element& at) { return -at.grad * at.log_p(); };
    const auto kl = [](const Element& at) { return at.grad * at.kl_divergence(); };

    const GaussianGrads<acc_t> grads = gaussian_log_prob_grads(grad, x, mu, sigma, prior, scale);
    ILLIA_CHECK_NEAR(grads.x, derivative(e, &Element::x, log_prob), tolerance);
    ILLIA_CHECK_NEAR(grads.mu, derivative(e, &Element::mu, log_prob), tolerance);
    ILLIA_CHECK_NEAR(grads.rho * h, derivative(e, &Element::rho, log_prob), tolerance);

    const GaussianGrads<acc_t> of_kl = gaussian_kl_divergence_grads(grad, mu, sigma, dsigma, h, prior, scale);
    ILLIA_CHECK_EQUAL(of_kl.x, 0);
    ILLIA_CHECK_NEAR(of_kl.mu, derivative(e, &Element::mu, kl), tolerance);
    ILLIA_CHECK_NEAR(of_kl.rho, derivative(e, &Element::rho, kl), tolerance);

    const long double of_x = derivative(e, &Element::x, minus_log_p);
    ILLIA_CHECK_NEAR(gaussian_sample_grad(acc_t(1.5), x, prior, scale), 1.5 + of_x, tolerance);

    // which lack the factor 1 / std_prior
    const acc_t z_p = prior_score(x, prior), z_mu = prior_score(mu, prior), z_sigma = sigma / std_prior;
    const ElementPriorGrads<acc_t> to_prior = element_prior_grads(grad, z_p, z_p * z_p);
    ILLIA_CHECK_NEAR(to_prior.mu / std_prior, derivative(e, &Element::mu_prior, minus_log_p), tolerance);
    ILLIA_CHECK_NEAR(to_prior.std / std_prior, derivative(e, &Element::std_prior, minus_log_p), tolerance);
    const ElementPriorGrads<acc_t> kl_to_prior = element_prior_grads(grad, z_mu, z_mu * z_mu + z_sigma * z_sigma);
    ILLIA_CHECK_NEAR(kl_to_prior.mu / std_prior, derivative(e, &Element::mu_prior, kl), tolerance);
    ILLIA_CHECK_NEAR(kl_to_prior.std / std_prior, derivative(e, &Element::std_prior, kl), tolerance);
  }
}

// Energies and slopes, far out and where the components of a mixture are alike. Both are sums of terms of at most 3e6
// here (decay z^2, z^2 / 2), a few roundings each; a slope is as far off as its own size, or as odds are: 3 2^-24 of
// them, times 2 decay z.
template <typename acc_t>
void test_families() {
  constexpr double kEpsilon = std::numeric_limits<acc_t>::epsilon();
  const auto near = [&](const auto& family, acc_t z, long double energy, long double slope, double size) {
    const acc_t z_squared = z * z, sum = 3;
    ILLIA_CHECK_NEAR(family.add_twice(z, sum), 3 + 2 * energy, 4 * kEpsilon * (3 + z_squared + 2 * std::fabs(energy)));
    ILLIA_CHECK_NEAR(family.slope(z), slope, 4 * kEpsilon * size);
    const auto prior = ElementPrior<acc_t>::make(acc_t(0.5), acc_t(2));  // whose z is exact at x = 2 z + 0.5
    if (std::fabs(z) < 100 && !std::is_same_v<std::decay_t<decltype(family)>, NormalFamily<acc_t>>)
      ILLIA_CHECK_EQUAL(sample_grad(acc_t(0.25), acc_t(2) * z + acc_t(0.5), prior, acc_t(3), family),
                        std::fma(family.slope(z), acc_t(3), acc_t(0.25)));
  };
  for (int i = -40; i <= 40; ++i) {
    const acc_t z = acc_t(i) / 8 + (i % 3 ? 0 : acc_t(i) * 100);
    const long double exact_z = z, size = std::fabs(exact_z);
    near(NormalFamily<acc_t>{}, z, exact_z * exact_z / 2, exact_z, static_cast<double>(size));
    near(FlatFamily<acc_t>{}, z, 0, 0, 0);
    near(LaplaceFamily<acc_t>{}, z, size, i > 0 ? 1 : i < 0 ? -1 : 0, 0);
    for (const acc_t log_odds : {acc_t(-2), acc_t(6)})
      for (const acc_t decay : {acc_t(0), acc_t(1.5), acc_t(8e4)}) {
        const long double odds = log_odds - decay * exact_z * exact_z;
        const long double softplus = (odds > 0 ? odds : 0) + std::log1p(std::exp(-std::fabs(odds)));
        const long double sigmoid = 1 / (1 + std::exp(-odds));
        const ScaleMixtureFamily<acc_t> mixture{log_odds, decay};
        const double off = 1 + static_cast<double>(std::fabs(odds) < 100 ? std::fabs(odds) + 6 : 0);
        const double slope_size = static_cast<double>(size * (1 + 2 * decay * sigmoid * off));
        near(mixture, z, exact_z * exact_z / 2 - softplus, exact_z * (1 + 2 * decay * sigmoid), slope_size);
        PriorFamily prior{Family::kScaleMixture};
        prior.log_odds = log_odds, prior.decay = decay;
        ILLIA_CHECK_EQUAL(AnyFamily<acc_t>::make(prior).slope(z), mixture.slope(z));
        const auto one = ElementPrior<acc_t>::make(acc_t(0.5), acc_t(2));
        const AnyFamily<acc_t> any = AnyFamily<acc_t>::make(prior);
        ILLIA_CHECK_EQUAL(sample_grad(acc_t(0.25), z, one, acc_t(3), any),
                          sample_grad(acc_t(0.25), z, one, acc_t(3), mixture));
      }
  }
  const acc_t nan = std::numeric_limits<acc_t>::quiet_NaN();
  ILLIA_CHECK_EQUAL(std::isnan(LaplaceFamily<acc_t>{}.slope(nan)), true);
  ILLIA_CHECK_EQUAL(std::isnan(ScaleMixtureFamily<acc_t>{1, 1}.slope(nan)), true);
}

// By their definitions, within 4 roundings, or as many times std_prior's.
template <typename acc_t>
void test_scores() {
  constexpr double kEpsilon = std::numeric_limits<acc_t>::epsilon();
  for (uint64_t i = 0; i < 300; ++i) {
    const Element e = Element::make(i);
    const auto near = [&](acc_t actual, long double expected, const char* what, int line) {
      check_near(actual, expected, 2 * kEpsilon * static_cast<double>(std::fabs(expected)), what, __FILE__, line);
    };
    const acc_t sigma = softplus(acc_t(e.rho)).sigma, x = e.x, mu = e.mu, eps = e.eps, grad = e.grad;
    const auto prior = Prior<acc_t>::make(e.mu_prior, e.std_prior);
    const auto each = ElementPrior<acc_t>::make(e.mu_prior, e.std_prior);
    ILLIA_CHECK_NEAR(gaussian_sample(mu, sigma, eps), e.mu + sigma * e.eps, 8 * kEpsilon);  // |x| < 8: 1 ulp
    near(posterior_score(x, mu, sigma), (e.x - e.mu) / sigma, "posterior_score", __LINE__);
    near(prior_score(x, prior), (e.x - e.mu_prior) / e.std_prior, "prior_score", __LINE__);
    near(prior_score(x, each), (e.x - e.mu_prior) / e.std_prior, "prior_score of an element", __LINE__);
    near(prior.mu, e.mu_prior, "mu of a prior", __LINE__);
    near(each.mu, e.mu_prior, "mu of an element's prior", __LINE__);
    near(prior.inverse_std, 1 / e.std_prior, "inverse_std", __LINE__);
    near(prior.exact_inverse_std, 1 / e.std_prior, "exact_inverse_std", __LINE__);
    ILLIA_CHECK_NEAR(prior.log_std, std::log(e.std_prior), 0x1p-51);  // 1.3 ulp of at most 2
    near(prior.scale(grad), e.grad / e.std_prior, "scale", __LINE__);
    near(each.scale(grad), e.grad / e.std_prior, "scale of an element's prior", __LINE__);
    const HeldFixedGrads<acc_t> held = held_fixed_grads(grad, eps, sigma);
    near(held.mu, e.grad * e.eps / sigma, "mu held fixed", __LINE__);
    near(held.h_scale, e.grad * e.eps * e.eps, "h_scale", __LINE__);
  }
}

// Quotients that leave the range, and where a gradient of 0 meets them.
template <typename acc_t>
void test_ranges() {
  using Limits = std::numeric_limits<acc_t>;
  const acc_t infinity = Limits::infinity(), largest = Limits::max(), nan = Limits::quiet_NaN();
  for (acc_t sign : {acc_t{1}, acc_t{-1}}) {
    ILLIA_CHECK_EQUAL(limit(sign * infinity), sign * largest);
    ILLIA_CHECK_EQUAL(limit(sign * largest), sign * largest);
    ILLIA_CHECK_EQUAL(limit(sign * acc_t(0.75)), sign * acc_t(0.75));
    const HeldFixedGrads<acc_t> held = held_fixed_grads(acc_t{0}, sign, acc_t{0});
    ILLIA_CHECK_EQUAL(held.mu, 0);
    ILLIA_CHECK_EQUAL(held_fixed_grads(acc_t{1}, sign, acc_t{0}).mu, sign * largest);
  }
  ILLIA_CHECK_EQUAL(std::isnan(limit(nan)), true);
  for (double std : {1e-300, 1e-320}) {  // 1 / std leaves float; of the second also double
    const auto prior = Prior<acc_t>::make(0.5, std);
    const double inverse = std::fmin(1 / std, std::numeric_limits<double>::max());
    ILLIA_CHECK_EQUAL(prior.inverse_std, std::fmin(inverse, static_cast<double>(largest)));
    ILLIA_CHECK_EQUAL(prior.exact_inverse_std, inverse);
    ILLIA_CHECK_EQUAL(prior.scale(0), 0);
    ILLIA_CHECK_EQUAL(prior.scale(2), std::fmin(2 * inverse, static_cast<double>(largest)));
    ILLIA_CHECK_EQUAL(prior.scale(-2), -prior.scale(2));
    ILLIA_CHECK_EQUAL(prior_score(acc_t(0.5), prior), 0);
  }
  ILLIA_CHECK_EQUAL(Prior<acc_t>::make(0, HUGE_VAL).inverse_std, 0);
  ILLIA_CHECK_EQUAL(Prior<acc_t>::make(0, 0).inverse_std, infinity);  // no positive std_prior: nothing is kept finite
  ILLIA_CHECK_EQUAL(Prior<acc_t>::make(0, -0x1p-4).inverse_std, -16);
  ILLIA_CHECK_EQUAL(Prior<acc_t>::make(0, -1e-320).inverse_std, -infinity);
  ILLIA_CHECK_EQUAL(std::isnan(Prior<acc_t>::make(0, nan).inverse_std), true);
  ILLIA_CHECK_EQUAL(ElementPrior<acc_t>::make(0, 0).inverse_std, infinity);
  ILLIA_CHECK_EQUAL(ElementPrior<acc_t>::make(0, acc_t(-0x1p-4)).inverse_std, -16);
  ILLIA_CHECK_EQUAL(ElementPrior<acc_t>::make(0, Limits::denorm_min()).inverse_std, largest);
  ILLIA_CHECK_EQUAL(ElementPrior<acc_t>::make(0, -Limits::denorm_min()).inverse_std, -infinity);
  for (acc_t rho : {infinity, largest, acc_t{3}, acc_t{0}, acc_t{-3}, -largest, -infinity}) {
    const acc_t expected = rho > 0 && rho < infinity ? 0 : rho;
    ILLIA_CHECK_EQUAL(linear_log_sigma(rho), expected);
  }
}

template <typename acc_t>
void test_formulas() {
  test_gradients<acc_t>();
  test_scores<acc_t>();
  test_families<acc_t>();
  test_ranges<acc_t>();
}

}  // namespace
}  // namespace base
}  // namespace illia
