// Elementary functions in float and double, written so that a compiler turns a loop over them into vector code:
// no branch, no table, explicit fma, the same bits in every instruction set.
//
// The coefficients come from tools/minimax.py. An error stated here, float / double, is the largest distance from the
// exact value in units of its last place (ulp), or, where it is subnormal, of the smallest subnormal number: in float
// the largest of all numbers, rounded up; in double a bound that 10^7 numbers kept. tests/ops/test_elementary.py reads
// and asserts it.
#pragma once

#include <cmath>
#include <limits>

#include "core/intrinsics.h"

ILLIA_NAMESPACE_BEGIN

// Horner's rule, coefficients from the lowest power up. They are arguments, because device code cannot read an array
// that is a static member.
template <typename acc_t>
ILLIA_FUNCTION acc_t polynomial(acc_t, acc_t highest) {
  return highest;
}

template <typename acc_t, typename... rest_t>
ILLIA_FUNCTION acc_t polynomial(acc_t x, acc_t lowest, rest_t... rest) {
  return std::fma(polynomial(x, rest...), x, lowest);
}

template <typename acc_t>
struct Constants;

template <>
struct Constants<float> {
  static constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f, kLn2 = 0x1.62e43p-1f;
  static constexpr float kLog2E = 0x1.715476p+0f;
  static constexpr float kRound = 0x1.8p+23f;  // adding it rounds to an integer, which its low bits then hold
  static constexpr float kTwoThirds = 0x1.555556p-1f;
  static constexpr float kExpZero = -104.0f;  // exp is 0 here and below
  static constexpr float kMax = std::numeric_limits<float>::max();
  static constexpr float kMinNormal = std::numeric_limits<float>::min();
  static constexpr float kInfinity = std::numeric_limits<float>::infinity();
  static constexpr int kSubnormalShift = 24;
  static constexpr float kSubnormalScale = 0x1p-24f;
  ILLIA_FUNCTION static float exp_polynomial(float r) {
    return polynomial(r, 0x1.fffffcp-2f, 0x1.555492p-3f, 0x1.5558f2p-5f, 0x1.1239d4p-7f, 0x1.6a2454p-10f);
  }
  ILLIA_FUNCTION static float log_polynomial(float f) {
    return polynomial(f, 0x1.555506p-2f, -0x1.fffefp-3f, 0x1.99d028p-3f, -0x1.559dcap-3f, 0x1.1ed70ep-3f,
                      -0x1.f3114ep-4f, 0x1.1e66e8p-3f, -0x1.080576p-3f);
  }
  ILLIA_FUNCTION static float log1p_polynomial(float t) {
    return polynomial(t, 0x1p+0f, -0x1.fffff8p-2f, 0x1.5553b6p-2f, -0x1.ffc59ep-3f, 0x1.978b56p-3f, -0x1.4a72c8p-3f,
                      0x1.ff299ap-4f, -0x1.54f326p-4f, 0x1.59038ap-5f, -0x1.c0ace2p-7f, 0x1.11415cp-9f);
  }
  ILLIA_FUNCTION static float sin_polynomial(float f2) {
    return polynomial(f2, 0x1.921fb6p+2f, -0x1.4abc24p+5f, 0x1.4680a4p+6f, -0x1.33198ep+6f);
  }
  ILLIA_FUNCTION static float cos_polynomial(float f2) {
    return polynomial(f2, 0x1p+0f, -0x1.3bd3ccp+4f, 0x1.03c1aep+6f, -0x1.55b132p+6f, 0x1.d46d86p+5f);
  }
};

template <>
struct Constants<double> {
  static constexpr double kLn2High = 0x1.62e42fefa3800p-1, kLn2Low = 0x1.ef35793c76730p-45;
  static constexpr double kLn2 = 0x1.62e42fefa39efp-1;
  static constexpr double kLog2E = 0x1.71547652b82fep+0;
  static constexpr double kRound = 0x1.8p+52;
  static constexpr double kTwoThirds = 0x1.5555555555555p-1;
  static constexpr double kExpZero = -746.0;
  static constexpr double kMax = std::numeric_limits<double>::max();
  static constexpr double kMinNormal = std::numeric_limits<double>::min();
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();
  static constexpr int kSubnormalShift = 54;
  static constexpr double kSubnormalScale = 0x1p-54;
  ILLIA_FUNCTION static double exp_polynomial(double r) {
    return polynomial(r, 0x1p-1, 0x1.555555555555bp-3, 0x1.5555555555503p-5, 0x1.111111110ec64p-7,
                      0x1.6c16c16c3044bp-10, 0x1.a01a01b37b672p-13, 0x1.a01a01369a954p-16, 0x1.71ddf02808dc3p-19,
                      0x1.27e5b43d535abp-22, 0x1.af6bdafbbf74fp-26, 0x1.1e3d27e7238b2p-29);
  }
  ILLIA_FUNCTION static double log_polynomial(double f) {
    return polynomial(f, 0x1.5555555555538p-2, -0x1.fffffffffff36p-3, 0x1.99999999a009ap-3, -0x1.555555556510ep-3,
                      0x1.24924920b8e41p-3, -0x1.fffffff10709p-4, 0x1.c71c74096723ap-4, -0x1.99999d5389e69p-4,
                      0x1.745cb6605ef16p-4, -0x1.5554c85b935b1p-4, 0x1.3b1dacad30d85p-4, -0x1.249f6ebcf57c5p-4,
                      0x1.106a04324627dp-4, -0x1.fe6a5a650318bp-5, 0x1.efb6abf37525cp-5, -0x1.d6cc462f29e7cp-5,
                      0x1.563d1eaf02b36p-5, -0x1.3a7df528547dcp-5, 0x1.5bfc65c8da324p-4, -0x1.5561710902c69p-4);
  }
  ILLIA_FUNCTION static double log1p_polynomial(double t) {
    return polynomial(t, 0x1p+0, -0x1.ffffffffffffdp-2, 0x1.55555555552a9p-2, -0x1.ffffffffe63bap-3,
                      0x1.999999959d234p-3, -0x1.555554f598244p-3, 0x1.24924326c9a7bp-3, -0x1.ffff77d4241f5p-4,
                      0x1.c717f83f3a835p-4, -0x1.997cdb0a56786p-4, 0x1.73ccc44025718p-4, -0x1.53149b17cd101p-4,
                      0x1.33ced941530b3p-4, -0x1.1167884d1ec9cp-4, 0x1.ce9f66fc4d5abp-5, -0x1.68061075dbe59p-5,
                      0x1.efaafcbbb8cep-6, -0x1.21b9f224ba66cp-6, 0x1.1352e75a05b2ep-7, -0x1.940032a5e13b8p-9,
                      0x1.aa24b6e91f542p-11, -0x1.1e0b266b95c3p-13, 0x1.6dc0608e6788cp-17);
  }
  ILLIA_FUNCTION static double sin_polynomial(double f2) {
    return polynomial(f2, 0x1.921fb54442d18p+2, -0x1.4abbce625be53p+5, 0x1.466bc6775aad9p+6, -0x1.32d2cce62abbdp+6,
                      0x1.50783485c2d51p+5, -0x1.e3074b42c2b24p+3, 0x1.e8eec79be0ce6p+1, -0x1.6c58cc2b1fa6ep-1);
  }
  ILLIA_FUNCTION static double cos_polynomial(double f2) {
    return polynomial(f2, 0x1p+0, -0x1.3bd3cc9be45dep+4, 0x1.03c1f081b5ac4p+6, -0x1.55d3c7e3cbfeep+6,
                      0x1.e1f5068919ae4p+5, -0x1.a6d1f29f1dad5p+4, 0x1.f9d3854585adbp+2, -0x1.b6dd69a1430e1p+0,
                      0x1.1e293cf0ffd6ap-2);
  }
};

// exp(x) for x <= 0. Subnormal results are right, 0 below the smallest, NaN stays. Error: <= 1.01 / 1.1 ulp.
template <typename acc_t>
ILLIA_FUNCTION acc_t exp_nonpositive(acc_t x) {
  using K = Constants<acc_t>;
  using Format = FloatFormat<acc_t>;
  using uint_t = typename Format::uint_t;
  x = at_least(acc_t{K::kExpZero}, x);
  const acc_t shifted = std::fma(x, K::kLog2E, K::kRound);
  const acc_t n = shifted - K::kRound;
  const acc_t r = std::fma(n, -K::kLn2Low, std::fma(n, -K::kLn2High, x));
  const acc_t exp_r = std::fma(r * r, K::exp_polynomial(r), r) + acc_t{1};
  // 2^n may be below the normal numbers: scale by 2^(n + shift), exactly, then by 2^-shift, which rounds once.
  const uint_t exponent = bit_cast<uint_t>(shifted) + (K::kSubnormalShift + Format::kExponentBias);
  return exp_r * bit_cast<acc_t>(exponent << Format::kMantissaBits) * K::kSubnormalScale;
}

// log1p(t) / t for 0 <= t <= 1, between 1 and log(2). Error: <= 1.11 / 1.5 ulp.
template <typename acc_t>
ILLIA_FUNCTION acc_t log1p_ratio(acc_t t) {
  return Constants<acc_t>::log1p_polynomial(t);
}

// log(x) for finite normal x > 0. Error: <= 0.89 / 1.3 ulp.
template <typename acc_t>
ILLIA_FUNCTION acc_t log_normal(acc_t x) {
  using K = Constants<acc_t>;
  using Format = FloatFormat<acc_t>;
  using int_t = typename Format::int_t;
  using uint_t = typename Format::uint_t;
  const uint_t bits = bit_cast<uint_t>(x);
  const int_t exponent = static_cast<int_t>(bits - bit_cast<uint_t>(K::kTwoThirds)) >> Format::kMantissaBits;
  const acc_t f = bit_cast<acc_t>(bits - (static_cast<uint_t>(exponent) << Format::kMantissaBits)) - acc_t{1};
  const acc_t f2 = f * f;
  const acc_t log_mantissa = f + std::fma(f2 * f, K::log_polynomial(f), acc_t(-0.5) * f2);
  return std::fma(static_cast<acc_t>(exponent), K::kLn2, log_mantissa);
}

// log(x) of any double, for arguments of an op: that of a C library has other bits on other machines.
// Error: that of log_normal, and 1 ulp more where x is subnormal.
ILLIA_FUNCTION double log_any(double x) {
  using K = Constants<double>;
  if (!(x > 0)) return x == 0 ? -K::kInfinity : K::kInfinity - K::kInfinity;
  if (x > K::kMax) return x;
  return x < K::kMinNormal ? log_normal(x / K::kSubnormalScale) - K::kSubnormalShift * K::kLn2 : log_normal(x);
}

// sin and cos of `turns` full turns, |turns| <= 2^20; the reduction to an eighth of a turn is exact.
// Error: <= 0.68 / 0.75 ulp of max(1, |exact|).
template <typename acc_t>
ILLIA_FUNCTION void sin_cos_turns(acc_t turns, acc_t* sine, acc_t* cosine) {
  using K = Constants<acc_t>;
  using uint_t = typename FloatFormat<acc_t>::uint_t;
  const acc_t shifted = std::fma(turns, acc_t{4}, K::kRound);
  const uint_t quadrant = bit_cast<uint_t>(shifted);
  const acc_t f = std::fma(shifted - K::kRound, acc_t(-0.25), turns);
  const acc_t f2 = f * f;
  const acc_t sin_f = f * K::sin_polynomial(f2);
  const acc_t cos_f = K::cos_polynomial(f2);
  const bool swap = quadrant & 1;
  constexpr int kSignShift = 8 * sizeof(acc_t) - 2;
  const uint_t sine_sign = (quadrant & 2) << kSignShift;
  const uint_t cosine_sign = ((quadrant + 1) & 2) << kSignShift;
  *sine = bit_cast<acc_t>(bit_cast<uint_t>(swap ? cos_f : sin_f) ^ sine_sign);
  *cosine = bit_cast<acc_t>(bit_cast<uint_t>(swap ? sin_f : cos_f) ^ cosine_sign);
}

ILLIA_NAMESPACE_END
