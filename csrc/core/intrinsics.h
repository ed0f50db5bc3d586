// Operations for which a GPU has a shorter way to the same bits.
#pragma once

#include <cmath>

#include "core/macros.h"

ILLIA_NAMESPACE_BEGIN

// x, but at least `bound`; NaN stays. The sign of a zero is open.
template <typename acc_t>
ILLIA_FUNCTION acc_t at_least(acc_t bound, acc_t x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (sizeof(acc_t) == sizeof(float)) {
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(x) : "f"(x), "f"(bound));
    return x;
  }
#endif
  return x < bound ? bound : x;
}

// sqrt(x) from an estimate of 1 / sqrt(x): one Newton step, in which `residual` is exact. nvcc makes these four
// operations of sqrt.rn wherever x is far from the ends of the exponents, so with the estimate of the same instruction
// the result is correctly rounded by the word of the same manual. tests/cpp/intrinsics_test.cpp says how much of that
// can be had without trusting it.
ILLIA_FUNCTION float square_root_from_estimate(float x, float estimate) {
  const float root = x * estimate;
  const float residual = std::fma(-root, root, x);
  return std::fma(residual, 0.5f * estimate, root);
}

ILLIA_FUNCTION double square_root(double x) { return std::sqrt(x); }

// sqrt(x), correctly rounded, for x = 0 or 2^-60 <= x <= 2^60: no look at other x, and no branch.
ILLIA_FUNCTION float square_root(float x) {
#if defined(__CUDA_ARCH__)
  float estimate;
  // 2^-100 changes no such x but 0, whose estimate it makes finite.
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(estimate) : "f"(x + 0x1p-100f));
  return square_root_from_estimate(x, estimate);
#else
  return std::sqrt(x);
#endif
}

// 1 / y from an estimate of 4 / y: one Newton step, in which `residual` is exact. Wherever nvcc's own division makes
// this step with the estimate of the same instruction, between 2^-126 and 2^126, the bits are the same. Beyond, the
// quotient is subnormal and the estimate, a quarter of which is rounded, needs residual^2 as well. The smaller of NaN
// and 1 is 1, so that y = inf, estimated as 0, gives 0. tests/cpp/intrinsics_test.cpp says how much of that needs no
// trust.
ILLIA_FUNCTION float reciprocal_from_estimate(float y, float estimate) {
  const float rounded = 0.25f * estimate;
  const float residual = std::fmin(std::fma(-y, rounded, 1.0f), 1.0f);
  return std::fma(rounded, std::fma(residual, residual, residual), rounded);
}

ILLIA_FUNCTION double reciprocal(double y) { return 1 / y; }

// 1 / y, correctly rounded, for y >= 2^-124, inf and NaN: no look at other y, and no branch.
ILLIA_FUNCTION float reciprocal(float y) {
#if defined(__CUDA_ARCH__)
  float estimate;
  // A quarter of y has no subnormal estimate, which the instruction would make 0.
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(estimate) : "f"(0.25f * y));
  return reciprocal_from_estimate(y, estimate);
#else
  return 1 / y;
#endif
}

ILLIA_NAMESPACE_END
