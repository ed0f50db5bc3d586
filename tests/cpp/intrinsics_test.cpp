// The operations that core/intrinsics.h builds from an estimate, over every mantissa, with every estimate that PTX's
// manual permits. Prints what failed, and then returns 1.
#include "core/intrinsics.h"

#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <limits>

using namespace illia::base;

constexpr uint32_t kOne = 127u << 23;

// rsqrt.approx errs by at most 2^-22.9 of itself.
bool square_root_holds() {
  int64_t pairs = 0, wrong = 0, wrong_when_nearest = 0, wrong_when_scaled = 0;
  for (uint32_t mantissas = 0; mantissas < 1u << 24; ++mantissas) {  // [1, 4): the exponent's parity matters
    const float x = bit_cast<float>(kOne + mantissas), root = std::sqrt(x);
    const double exact = 1 / std::sqrt(static_cast<double>(x));
    const int32_t nearest = bit_cast<int32_t>(static_cast<float>(exact));
    for (int32_t step = -4; step <= 4; ++step) {
      const float estimate = bit_cast<float>(nearest + step);
      if (std::fabs(estimate - exact) > exact * 0x1.1p-23) continue;  // 2^-22.91
      const bool is_wrong = square_root_from_estimate(x, estimate) != root;
      ++pairs;
      wrong += is_wrong;
      wrong_when_nearest += is_wrong && step == 0;
    }
    for (int power : {-30, 30}) {  // powers of two change no rounding
      const float scaled =
          square_root_from_estimate(std::ldexp(x, 2 * power), std::ldexp(static_cast<float>(exact), -power));
      wrong_when_scaled += scaled != std::ldexp(root, power);
    }
  }
  const float zero = square_root_from_estimate(0.0f, 0x1p50f);
  std::printf("square root: %lld of %lld pairs are wrong, %lld of them with the nearest estimate\n",
              static_cast<long long>(wrong), static_cast<long long>(pairs), static_cast<long long>(wrong_when_nearest));
  // Two pairs are wrong, both with the second nearest estimate. A GPU that gave it would break its own sqrt.rn.
  return pairs > 40'000'000 && wrong == 2 && wrong_when_nearest == 0 && wrong_when_scaled == 0 && zero == 0;
}

// rcp.approx errs by at most one unit in the last place. `wrong` pairs are expected, none with the nearest estimate.
bool reciprocal_holds(int exponent, int64_t expected_wrong) {
  int64_t pairs = 0, wrong = 0, wrong_when_nearest = 0;
  for (uint32_t mantissa = 0; mantissa < 1u << 23; ++mantissa) {
    const float y = std::ldexp(bit_cast<float>(kOne + mantissa), exponent);
    const double exact = 4 / static_cast<double>(y);
    const double unit = std::ldexp(0x1p-23, mantissa == 0 ? 2 - exponent : 1 - exponent);
    const int32_t nearest = bit_cast<int32_t>(static_cast<float>(exact));
    for (int32_t step = -2; step <= 2; ++step) {
      const float estimate = bit_cast<float>(nearest + step);
      if (std::fabs(estimate - exact) > unit) continue;
      const bool is_wrong = reciprocal_from_estimate(y, estimate) != 1 / y;
      ++pairs;
      wrong += is_wrong;
      wrong_when_nearest += is_wrong && step == 0;
    }
  }
  std::printf("reciprocal from 2^%d: %lld of %lld pairs are wrong, %lld of them with the nearest estimate\n", exponent,
              static_cast<long long>(wrong), static_cast<long long>(pairs), static_cast<long long>(wrong_when_nearest));
  return pairs > 16'000'000 && wrong == expected_wrong && wrong_when_nearest == 0;
}

int main() {
  bool holds = square_root_holds();
  // The largest mantissa is wrong with the second nearest estimate: a GPU that gave it would break its own rcp.rn.
  // There the quotient is normal, and powers of two change no rounding; beyond 2^126 it is subnormal, and nothing is
  // wrong.
  for (int exponent : {-1, 0, 125}) holds &= reciprocal_holds(exponent, 1);
  for (int exponent : {126, 127}) holds &= reciprocal_holds(exponent, 0);
  using Limits = std::numeric_limits<float>;
  holds &= reciprocal_from_estimate(Limits::infinity(), 0) == 0;
  holds &= std::isnan(reciprocal_from_estimate(Limits::quiet_NaN(), Limits::quiet_NaN()));
  return holds ? 0 : 1;
}
