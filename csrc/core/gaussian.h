// The mean-field Gaussian q = N(mu, sigma^2), sigma = softplus(rho), against the prior p = N(mu_prior, std_prior^2),
// element by element. Every kernel, on every device, is a loop over these lines.
//
// Densities come without their constants: log q = -log sigma - z^2 / 2 and log p = -log std_prior - z_p^2 / 2 up to
// the same -log(2 pi) / 2, where z = (x - mu) / sigma and z_p = (x - mu_prior) / std_prior.
#pragma once

#include "core/softplus.h"

ILLIA_NAMESPACE_BEGIN

// Quotients are formed in double before rounding: std_prior^2 can leave the range of float.
template <typename acc_t>
struct Prior {
  acc_t mu;
  acc_t inverse_std;
  double inverse_variance;
  double log_std;

  ILLIA_FUNCTION static Prior make(double mu, double std) {
    return {static_cast<acc_t>(mu), in_range<acc_t>(1 / std, std), in_range<double>(1 / std / std, std), log_any(std)};
  }

  // grad / std_prior^2
  ILLIA_FUNCTION acc_t scale(double grad) const { return in_range<acc_t>(grad * inverse_variance, inverse_variance); }

 private:
  // Of a positive std_prior however small the quotient stays finite: (x - mu_prior) * quotient is 0 at x = mu_prior,
  // and grad * quotient where grad is 0.
  template <typename quotient_t>
  ILLIA_FUNCTION static quotient_t in_range(double quotient, double positive) {
    constexpr double kMax = Constants<quotient_t>::kMax;
    if (!(positive > 0)) return static_cast<quotient_t>(quotient);
    return static_cast<quotient_t>(quotient > kMax ? kMax : quotient < -kMax ? -kMax : quotient);
  }
};

// Gradients of one element. In the sums over samples `rho` collects the factor of sigmoid(rho) or of h.
template <typename acc_t>
struct GaussianGrads {
  acc_t x, mu, rho;
};

// x = mu + sigma eps
template <typename acc_t>
ILLIA_FUNCTION acc_t gaussian_sample(acc_t mu, acc_t sigma, acc_t eps) {
  return std::fma(sigma, eps, mu);
}

// z_p = (x - mu_prior) / std_prior
template <typename acc_t>
ILLIA_FUNCTION acc_t prior_score(acc_t x, const Prior<acc_t>& prior) {
  return (x - prior.mu) * prior.inverse_std;
}

// d (grad_x x - grad_log_prob log p(x)) / dx; prior_scale = grad_log_prob / std_prior^2.
template <typename acc_t>
ILLIA_FUNCTION acc_t gaussian_sample_grad(acc_t grad_x, acc_t x, acc_t mu_prior, acc_t prior_scale) {
  return std::fma(x - mu_prior, prior_scale, grad_x);
}

// z = (x - mu) / sigma
template <typename acc_t>
ILLIA_FUNCTION acc_t posterior_score(acc_t x, acc_t mu, acc_t sigma) {
  return (x - mu) / sigma;
}

// Gradients of grad_log_prob (log q(x) - log p(x)) for a given x; `rho` lacks its factor h.
template <typename acc_t>
ILLIA_FUNCTION GaussianGrads<acc_t> gaussian_log_prob_grads(acc_t grad_log_prob, acc_t x, acc_t mu, acc_t sigma,
                                                            acc_t mu_prior, acc_t prior_scale) {
  const acc_t z = posterior_score(x, mu, sigma);
  const acc_t grad_mu = grad_log_prob * (z / sigma);
  return {std::fma(x - mu_prior, prior_scale, -grad_mu), grad_mu, grad_log_prob * std::fma(z, z, acc_t{-1})};
}

// Gradients of grad KL(q || p).
template <typename acc_t>
ILLIA_FUNCTION GaussianGrads<acc_t> gaussian_kl_divergence_grads(acc_t grad, acc_t mu, acc_t sigma, acc_t sigmoid,
                                                                 acc_t h, acc_t mu_prior, acc_t prior_scale) {
  return {acc_t{0}, (mu - mu_prior) * prior_scale, std::fma(sigma * prior_scale, sigmoid, -grad * h)};
}

ILLIA_NAMESPACE_END
