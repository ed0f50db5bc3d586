// The mean-field Gaussian q = N(mu, sigma^2), sigma = softplus(rho), against the prior p = N(mu_prior, std_prior^2),
// element by element. Every kernel, on every device, is a loop over these lines.
//
// Densities come without their constants: log q = -log sigma - z^2 / 2 and log p = -log std_prior - z_p^2 / 2 up to
// the same -log(2 pi) / 2, where z = (x - mu) / sigma and z_p = (x - mu_prior) / std_prior. A prior of another family
// has another energy(z_p) in place of z_p^2 / 2.
#pragma once

#include "core/family.h"
#include "core/softplus.h"

ILLIA_NAMESPACE_BEGIN

// Of a positive std_prior however small a quotient by it stays finite: (x - mu_prior) * quotient is 0 at x = mu_prior,
// and grad * quotient where grad is 0. A quotient by std_prior^2, which leaves the range where the gradient does not,
// is never formed: gradients are divided twice.
template <typename quotient_t>
ILLIA_FUNCTION quotient_t in_range(double quotient, double positive) {
  constexpr double kMax = Constants<quotient_t>::kMax;
  if (!(positive > 0)) return static_cast<quotient_t>(quotient);
  return static_cast<quotient_t>(quotient > kMax ? kMax : quotient < -kMax ? -kMax : quotient);
}

// One prior for all elements. Quotients are formed in double before rounding.
template <typename acc_t>
struct Prior {
  acc_t mu;
  acc_t inverse_std;
  double exact_inverse_std;
  double log_std;

  ILLIA_FUNCTION static Prior make(double mu, double std) {
    return {static_cast<acc_t>(mu), in_range<acc_t>(1 / std, std), in_range<double>(1 / std, std), log_any(std)};
  }

  // grad / std_prior
  ILLIA_FUNCTION acc_t scale(double grad) const { return in_range<acc_t>(grad * exact_inverse_std, exact_inverse_std); }
};

// A quotient that leaves the range becomes the largest number; NaN stays.
template <typename acc_t>
ILLIA_FUNCTION acc_t limit(acc_t quotient) {
  constexpr acc_t kMax = Constants<acc_t>::kMax;
  return quotient > kMax ? kMax : quotient < -kMax ? -kMax : quotient;
}

// The prior of one element, which exists in acc_t only: what leaves its range becomes 0 or the largest number.
template <typename acc_t>
struct ElementPrior {
  acc_t mu, inverse_std;

  ILLIA_FUNCTION static ElementPrior make(acc_t mu, acc_t std) {
    const acc_t inverse_std = acc_t{1} / std;
    return {mu, std > 0 ? limit(inverse_std) : inverse_std};
  }

  // grad / std_prior
  ILLIA_FUNCTION acc_t scale(acc_t grad) const { return limit(grad * inverse_std); }
};

// log std_prior = linear + log(factor), for a sum of many logarithms as in core/softplus.h: split_mantissa and
// log_normal read `factor`, which is normal for every std_prior. `linear` is NaN below 0 and of NaN, -inf at 0.
template <typename acc_t>
struct LogStd {
  acc_t factor, linear;
};

template <typename acc_t>
ILLIA_FUNCTION LogStd<acc_t> log_std_parts(acc_t std) {
  using K = Constants<acc_t>;
  // selections, each by one comparison: what joins comparisons does not vectorise
  const acc_t scaled = std < K::kMinNormal ? std / K::kSubnormalScale : std;
  const acc_t shift = std < K::kMinNormal ? -K::kSubnormalShift * K::kLn2 : acc_t{0};
  const acc_t beyond = std > 0 ? K::kInfinity : std == 0 ? -K::kInfinity : K::kInfinity - K::kInfinity;
  const acc_t factor = scaled > 0 ? scaled : acc_t{1};
  const acc_t linear = scaled > 0 ? shift : beyond;
  return {factor <= K::kMax ? factor : acc_t{1}, factor <= K::kMax ? linear : beyond};
}

// Gradients of one element. In the sums over samples `rho` collects the factor of sigmoid(rho) or of h.
template <typename acc_t>
struct GaussianGrads {
  acc_t x, mu, rho;
};

// Gradients of one element to its prior, which lack the factor 1 / std_prior.
template <typename acc_t>
struct ElementPriorGrads {
  acc_t mu, std;
};

// The families of priors: twice the energy, added to a sum, and the energy's derivative. The Gaussian's:
template <typename acc_t>
struct NormalFamily {
  ILLIA_FUNCTION acc_t add_twice(acc_t z, acc_t sum) const { return std::fma(z, z, sum); }
  ILLIA_FUNCTION acc_t slope(acc_t z) const { return z; }
};

// The prior left out.
template <typename acc_t>
struct FlatFamily {
  ILLIA_FUNCTION acc_t add_twice(acc_t, acc_t sum) const { return sum; }
  ILLIA_FUNCTION acc_t slope(acc_t) const { return 0; }
};

// |z|; its slope at 0 is 0.
template <typename acc_t>
struct LaplaceFamily {
  ILLIA_FUNCTION acc_t add_twice(acc_t z, acc_t sum) const { return std::fma(acc_t{2}, std::fabs(z), sum); }
  ILLIA_FUNCTION acc_t slope(acc_t z) const { return z > 0 ? acc_t{1} : z < 0 ? acc_t(-1) : z; }
};

// z^2 / 2 - softplus(log_odds - decay z^2): two Gaussians about one mean, of which std_prior is the wide one's. Both
// tails are finite, for softplus is.
template <typename acc_t>
struct ScaleMixtureFamily {
  acc_t log_odds, decay;

  // Below -80 the narrow component adds nothing, and subnormal numbers would take ten times as long.
  ILLIA_FUNCTION acc_t odds(acc_t z) const { return at_least(acc_t(-80), std::fma(-decay * z, z, log_odds)); }

  ILLIA_FUNCTION acc_t add_twice(acc_t z, acc_t sum) const {
    return std::fma(acc_t(-2), softplus(odds(z)).sigma, std::fma(z, z, sum));
  }

  // z (1 + 2 decay sigmoid(odds))
  ILLIA_FUNCTION acc_t slope(acc_t z) const {
    const acc_t log_odds_z = odds(z), t = exp_nonpositive(-std::fabs(log_odds_z));
    const acc_t sigmoid = (log_odds_z < 0 ? t : acc_t{1}) * reciprocal(acc_t{1} + t);
    return std::fma(acc_t{2} * decay * sigmoid, z, z);
  }
};

// A family that is known at run time alone.
template <typename acc_t>
struct AnyFamily {
  Family family;
  ScaleMixtureFamily<acc_t> mixture;

  ILLIA_FUNCTION static AnyFamily make(const PriorFamily& prior) {
    return {prior.family, {static_cast<acc_t>(prior.log_odds), static_cast<acc_t>(prior.decay)}};
  }

  // function(one of the above)
  template <typename function_t>
  ILLIA_FUNCTION auto visit(function_t function) const {
    switch (family) {
      case Family::kFlat:
        return function(FlatFamily<acc_t>{});
      case Family::kLaplace:
        return function(LaplaceFamily<acc_t>{});
      case Family::kScaleMixture:
        return function(mixture);
      default:
        return function(NormalFamily<acc_t>{});
    }
  }

  ILLIA_FUNCTION acc_t add_twice(acc_t z, acc_t sum) const {
    return visit([&](const auto& one) { return one.add_twice(z, sum); });
  }
  ILLIA_FUNCTION acc_t slope(acc_t z) const {
    return visit([&](const auto& one) { return one.slope(z); });
  }
};

// What stick_the_landing changes in those of one element and sample.
template <typename acc_t>
struct HeldFixedGrads {
  acc_t mu;       // to be taken from grad_mu
  acc_t h_scale;  // the factor of -h, without it grad_log_prob
};

// x = mu + sigma eps
template <typename acc_t>
ILLIA_FUNCTION acc_t gaussian_sample(acc_t mu, acc_t sigma, acc_t eps) {
  return std::fma(sigma, eps, mu);
}

// z_p = (x - mu_prior) / std_prior
template <typename acc_t, typename prior_t>
ILLIA_FUNCTION acc_t prior_score(acc_t x, const prior_t& prior) {
  return (x - prior.mu) * prior.inverse_std;
}

// d (grad_x x - grad_log_prob log p(x)) / dx; prior_scale = grad_log_prob / std_prior.
template <typename acc_t, typename prior_t>
ILLIA_FUNCTION acc_t gaussian_sample_grad(acc_t grad_x, acc_t x, const prior_t& prior, acc_t prior_scale) {
  return std::fma((x - prior.mu) * prior_scale, prior.inverse_std, grad_x);
}

// The same for a prior of any family. The Gaussian's rounds as it always has.
template <typename acc_t, typename prior_t, typename family_t>
ILLIA_FUNCTION acc_t sample_grad(acc_t grad_x, acc_t x, const prior_t& prior, acc_t prior_scale,
                                 const family_t& family) {
  return std::fma(family.slope(prior_score(x, prior)), prior_scale, grad_x);
}

template <typename acc_t, typename prior_t>
ILLIA_FUNCTION acc_t sample_grad(acc_t grad_x, acc_t x, const prior_t& prior, acc_t prior_scale,
                                 const NormalFamily<acc_t>&) {
  return gaussian_sample_grad(grad_x, x, prior, prior_scale);
}

template <typename acc_t, typename prior_t>
ILLIA_FUNCTION acc_t sample_grad(acc_t grad_x, acc_t x, const prior_t& prior, acc_t prior_scale,
                                 const AnyFamily<acc_t>& family) {
  return family.visit([&](const auto& one) { return sample_grad(grad_x, x, prior, prior_scale, one); });
}

// log q(x) with mu and rho held fixed (Roeder, Wu and Duvenaud, "Sticking the landing: simple, lower-variance gradient
// estimators for variational inference", 2017). Where sigma has become 0 a grad_log_prob of 0 still gives 0.
template <typename acc_t>
ILLIA_FUNCTION HeldFixedGrads<acc_t> held_fixed_grads(acc_t grad_log_prob, acc_t eps, acc_t sigma) {
  return {grad_log_prob * limit(eps / sigma), grad_log_prob * eps * eps};
}

// Gradients of -grad log p for z_p times its slope or, of a KL divergence, for z_p itself and
// (sigma^2 + (mu - mu_prior)^2) / std_prior^2.
template <typename acc_t>
ILLIA_FUNCTION ElementPriorGrads<acc_t> element_prior_grads(acc_t grad, acc_t slope, acc_t squares) {
  return {-grad * slope, grad * (acc_t{1} - squares)};
}

// z = (x - mu) / sigma
template <typename acc_t>
ILLIA_FUNCTION acc_t posterior_score(acc_t x, acc_t mu, acc_t sigma) {
  return (x - mu) / sigma;
}

// Gradients of grad_log_prob (log q(x) - log p(x)) for a given x; `rho` lacks its factor h.
template <typename acc_t, typename prior_t, typename family_t = NormalFamily<acc_t>>
ILLIA_FUNCTION GaussianGrads<acc_t> gaussian_log_prob_grads(acc_t grad_log_prob, acc_t x, acc_t mu, acc_t sigma,
                                                            const prior_t& prior, acc_t prior_scale,
                                                            const family_t& family = {}) {
  const acc_t z = posterior_score(x, mu, sigma);
  const acc_t grad_mu = grad_log_prob * (z / sigma);
  return {sample_grad(-grad_mu, x, prior, prior_scale, family), grad_mu, grad_log_prob * std::fma(z, z, acc_t{-1})};
}

// Gradients of grad KL(q || p).
template <typename acc_t, typename prior_t>
ILLIA_FUNCTION GaussianGrads<acc_t> gaussian_kl_divergence_grads(acc_t grad, acc_t mu, acc_t sigma, acc_t sigmoid,
                                                                 acc_t h, const prior_t& prior, acc_t prior_scale) {
  // sigma / std_prior^2 may leave the range where its product with sigmoid, which is of sigma's size, does not
  return {acc_t{0}, (mu - prior.mu) * prior_scale * prior.inverse_std,
          std::fma(sigma * prior_scale, sigmoid * prior.inverse_std, -grad * h)};
}

ILLIA_NAMESPACE_END
