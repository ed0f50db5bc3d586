// square_root_from_estimate over every mantissa, with every estimate that rsqrt.approx may give by PTX's manual
// (an error of at most 2^-22.9 of itself). Prints what failed, and then returns 1.
#include <cmath>
#include <cstdio>
#include <initializer_list>

#include "core/intrinsics.h"

using namespace illia::base;

int main() {
  constexpr uint32_t kOne = 127u << 23;
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
  std::printf("%lld of %lld pairs are wrong, %lld of them with the nearest estimate\n", static_cast<long long>(wrong),
              static_cast<long long>(pairs), static_cast<long long>(wrong_when_nearest));
  // Two pairs are wrong, both with the second nearest estimate. A GPU that gave it would break its own sqrt.rn.
  const bool holds = pairs > 40'000'000 && wrong == 2 && wrong_when_nearest == 0 && wrong_when_scaled == 0 && zero == 0;
  return holds ? 0 : 1;
}
