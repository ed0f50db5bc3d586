// sigma = softplus(rho), its logarithm and their derivatives, finite for every finite rho.
//
// With t = exp(-|rho|) and q = log1p(t) / t:
//   rho <  0: sigma = t q,        log sigma = rho + log q,  factor = q
//   rho >= 0: sigma = rho + t q,  log sigma = log sigma,    factor = sigma
// so log sigma = min(rho, 0) + log(factor) and d log sigma / d rho = 1 / ((1 + t) factor): nothing underflows.
#pragma once

#include "core/elementary.h"

ILLIA_NAMESPACE_BEGIN

template <typename acc_t>
struct Softplus {
  acc_t sigma;   // Error: <= 2.11 / 2.4 ulp.
  acc_t factor;  // in [log 2, inf]
  acc_t t;       // in [0, 1]
  acc_t linear;  // linear_log_sigma(rho), but NaN at inf: enough where inf is also drawn from or squared
};

template <typename acc_t>
ILLIA_FUNCTION Softplus<acc_t> softplus(acc_t rho) {
  const acc_t t = exp_nonpositive(-std::fabs(rho));
  const acc_t q = log1p_ratio(t);
  const acc_t positive = at_least(acc_t{0}, rho);
  const acc_t sigma = std::fma(t, q, positive);
  return {sigma, rho < 0 ? q : sigma, t, rho - positive};
}

// h = d log sigma / d rho = sigmoid(rho) / sigma. Error: <= 3.32 / 3.6 ulp.
template <typename acc_t>
ILLIA_FUNCTION acc_t log_sigma_derivative(const Softplus<acc_t>& s) {
  return reciprocal((acc_t{1} + s.t) * s.factor);
}

// sigmoid(rho) = d sigma / d rho, from h = log_sigma_derivative. Error: <= 4.50 / 4.6 ulp.
// Where rho is large it is 1, and sigma * h would be inf * 0.
template <typename acc_t>
ILLIA_FUNCTION acc_t sigmoid(acc_t rho, acc_t sigma, acc_t h) {
  return rho > acc_t{64} ? acc_t{1} : sigma * h;
}

// The part of log sigma that is not log(factor): min(rho, 0). inf, -inf and NaN are passed on, because log_normal and
// split_mantissa read the bits of finite factors only.
template <typename acc_t>
ILLIA_FUNCTION acc_t linear_log_sigma(acc_t rho) {
  return rho > 0 && rho <= Constants<acc_t>::kMax ? acc_t{0} : rho;
}

// log sigma. Error: <= 1.32 / 1.7 ulp of max(1, |exact|).
template <typename acc_t>
ILLIA_FUNCTION acc_t log_sigma(acc_t rho) {
  return linear_log_sigma(rho) + log_normal(softplus(rho).factor);
}

// Splits a positive normal factor into a mantissa in [1, 2) and a biased exponent, so that the logarithm of a
// product of up to 64 factors costs one logarithm: log(product of mantissas) + log(2) * sum of exponents.
template <typename acc_t>
ILLIA_FUNCTION acc_t split_mantissa(acc_t factor, typename FloatFormat<acc_t>::int_t* biased_exponent) {
  using Format = FloatFormat<acc_t>;
  using uint_t = typename Format::uint_t;
  constexpr uint_t kMantissa = (uint_t{1} << Format::kMantissaBits) - 1;
  constexpr uint_t kOne = static_cast<uint_t>(Format::kExponentBias) << Format::kMantissaBits;
  const uint_t bits = bit_cast<uint_t>(factor);
  *biased_exponent = static_cast<typename Format::int_t>(bits >> Format::kMantissaBits);
  return bit_cast<acc_t>((bits & kMantissa) | kOne);
}

ILLIA_NAMESPACE_END
