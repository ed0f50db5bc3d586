// The elementary functions of the core against the C library's in long double, at all points of points.h, within the
// errors that csrc/core states of them; tests/ops/test_elementary.py takes more points, and mpmath.
#pragma once

#include <limits>

#include "check.h"
#include "core/normal.h"
#include "core/softplus.h"
#include "points.h"

namespace illia {
namespace base {
namespace {

constexpr long double kTwoPi = 6.283185307179586476925286766559005768L;

long double exact_softplus(long double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }
long double exact_sigmoid(long double x) { return x > 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x)); }
// Their limits where exp(x) leaves long double; the next terms are exp(x) / 2 off.
long double exact_log_sigma(long double x) { return x < -11000 ? x : std::log(exact_softplus(x)); }
long double exact_h(long double x) { return x < -11000 ? 1 : exact_sigmoid(x) / exact_softplus(x); }
// By the distance to the nearest whole turn, which is exact.
long double exact_sine(long double turns) { return std::sin(kTwoPi * (turns - std::rint(turns))); }
long double exact_cosine(long double turns) { return std::cos(kTwoPi * (turns - std::rint(turns))); }

// Errors are stated in units in the last place of the exact value, or of max(1, |exact|): `least` is 1 then. That of a
// subnormal number is the smallest number. The C library's own error is some 2^-11 of such a unit.
template <typename acc_t, typename function_t>
void check_error(const char* what, const std::vector<acc_t>& at, function_t function, long double (*exact)(long double),
                 double stated, long double least = 0) {
  using Limits = std::numeric_limits<acc_t>;
  double worst = 0;
  acc_t worst_x = 0;
  for (acc_t x : at) {
    const long double expected = exact(x);
    const long double size = std::fmax(std::fabs(expected), std::fmax(least, static_cast<long double>(Limits::min())));
    int exponent;
    std::frexp(size, &exponent);
    const long double unit = std::ldexp(1.0L, exponent - Limits::digits);
    const double error = static_cast<double>(std::fabs(function(x) - expected) / unit);
    if (!(error <= worst)) worst = error, worst_x = x;  // NaN counts as the largest
  }
  if (worst <= stated) return;
  ++failures;
  std::cerr << what << " errs by " << worst << " ulp at " << std::hexfloat << worst_x << std::defaultfloat
            << ", stated are " << stated << "\n";
}

// Stated errors are those of float or of double.
template <typename acc_t>
double stated(double in_float, double in_double) {
  return sizeof(acc_t) == sizeof(float) ? in_float : in_double;
}

template <typename acc_t>
void test_elementary() {
  using Limits = std::numeric_limits<acc_t>;
  check_error(
      "exp_nonpositive", points<acc_t>(-Limits::max(), 0), exp_nonpositive<acc_t>,
      [](long double x) { return std::exp(x); }, stated<acc_t>(1.01, 1.1));
  check_error(
      "log1p_ratio", points<acc_t>(0, 1), log1p_ratio<acc_t>,
      [](long double t) { return t > 0 ? std::log1p(t) / t : 1; }, stated<acc_t>(1.11, 1.5));
  check_error(
      "log_normal", points<acc_t>(Limits::min(), Limits::max()), log_normal<acc_t>,
      [](long double x) { return std::log(x); }, stated<acc_t>(0.89, 1.3));
  const auto sine = [](acc_t turns) {
    acc_t sine, cosine;
    sin_cos_turns(turns, &sine, &cosine);
    return sine;
  };
  const auto cosine = [](acc_t turns) {
    acc_t sine, cosine;
    sin_cos_turns(turns, &sine, &cosine);
    return cosine;
  };
  const std::vector<acc_t> turns = points<acc_t>(-0x1p20, 0x1p20);
  check_error("sin_turns", turns, sine, exact_sine, stated<acc_t>(0.68, 0.75), 1);
  check_error("cos_turns", turns, cosine, exact_cosine, stated<acc_t>(0.68, 0.75), 1);
}

template <typename acc_t>
void test_softplus() {
  using Limits = std::numeric_limits<acc_t>;
  const std::vector<acc_t> rhos = points<acc_t>(-Limits::max(), Limits::max());
  const auto h = [](acc_t rho) { return log_sigma_derivative(softplus(rho)); };
  const auto derivative = [&](acc_t rho) { return sigmoid(rho, softplus(rho).sigma, h(rho)); };
  check_error("sigma", rhos, [](acc_t rho) { return softplus(rho).sigma; }, exact_softplus, stated<acc_t>(2.11, 2.4));
  check_error("h", rhos, h, exact_h, stated<acc_t>(3.32, 3.6));
  check_error("sigmoid", rhos, derivative, exact_sigmoid, stated<acc_t>(4.5, 4.6));
  check_error("log_sigma", rhos, log_sigma<acc_t>, exact_log_sigma, stated<acc_t>(1.32, 1.7), 1);
  const auto by_parts = [](acc_t rho) {  // what the kernels sum
    const Softplus<acc_t> s = softplus(rho);
    return s.linear + log_normal(s.factor);
  };
  check_error("log sigma by its parts", rhos, by_parts, exact_log_sigma, stated<acc_t>(1.32, 1.7), 1);

  const acc_t infinity = Limits::infinity(), nan = Limits::quiet_NaN();
  ILLIA_CHECK_EQUAL(exp_nonpositive(-infinity), 0);
  ILLIA_CHECK_EQUAL(std::isnan(exp_nonpositive(nan)), true);
  ILLIA_CHECK_EQUAL(log_sigma(infinity), infinity);
  ILLIA_CHECK_EQUAL(log_sigma(-infinity), -infinity);
  ILLIA_CHECK_EQUAL(softplus(infinity).sigma, infinity);
  ILLIA_CHECK_EQUAL(softplus(-infinity).sigma, 0);
  ILLIA_CHECK_EQUAL(h(infinity), 0);
  ILLIA_CHECK_EQUAL(h(-infinity), 1);
  ILLIA_CHECK_EQUAL(derivative(infinity), 1);
  ILLIA_CHECK_EQUAL(derivative(-infinity), 0);
  const acc_t of_nan[] = {softplus(nan).sigma, softplus(nan).factor, softplus(nan).linear, log_sigma(nan), h(nan),
                          derivative(nan)};
  for (acc_t result : of_nan) ILLIA_CHECK_EQUAL(std::isnan(result), true);
}

void test_log_any() {
  using Limits = std::numeric_limits<double>;
  check_error(
      "log_any", points<double>(Limits::min(), Limits::max()), log_any, [](long double x) { return std::log(x); }, 1.3);
  check_error(
      "log_any of subnormal numbers", points<double>(Limits::denorm_min(), Limits::min()), log_any,
      [](long double x) { return std::log(x); }, 2.3);
  ILLIA_CHECK_EQUAL(log_any(0), -HUGE_VAL);
  ILLIA_CHECK_EQUAL(log_any(-0.0), -HUGE_VAL);
  ILLIA_CHECK_EQUAL(log_any(HUGE_VAL), HUGE_VAL);
  for (double x : {-1.0, -Limits::denorm_min(), -HUGE_VAL, Limits::quiet_NaN()})
    ILLIA_CHECK_EQUAL(std::isnan(log_any(x)), true);
}

// What a GPU does in other ways has the bits of IEEE 754's own operations; of the estimates here the nearest.
template <typename acc_t>
void test_operations() {
  using Limits = std::numeric_limits<acc_t>;
  for (acc_t x : points<acc_t>(0x1p-60, 0x1p60)) {
    ILLIA_CHECK_EQUAL(square_root(x), std::sqrt(x));
    if constexpr (sizeof(acc_t) == sizeof(float)) {
      const float estimate = static_cast<float>(1 / std::sqrt(static_cast<double>(x)));
      ILLIA_CHECK_EQUAL(square_root_from_estimate(x, estimate), std::sqrt(x));
    }
  }
  for (acc_t y : points<acc_t>(0x1p-124, Limits::infinity())) {
    ILLIA_CHECK_EQUAL(reciprocal(y), 1 / y);
    if constexpr (sizeof(acc_t) == sizeof(float))
      ILLIA_CHECK_EQUAL(reciprocal_from_estimate(y, static_cast<float>(4 / static_cast<double>(y))), 1 / y);
  }
  ILLIA_CHECK_EQUAL(square_root(acc_t{0}), 0);
  ILLIA_CHECK_EQUAL(std::isnan(reciprocal(Limits::quiet_NaN())), true);
  ILLIA_CHECK_EQUAL(std::isnan(at_least(acc_t{0}, Limits::quiet_NaN())), true);
  for (acc_t x : {acc_t{-3}, acc_t{0}, acc_t{2}, acc_t{5}}) ILLIA_CHECK_EQUAL(at_least(acc_t{2}, x), std::fmax(2, x));
}

// A word and a half of 2^-32, a step of rounding each for the word and the sum.
void test_uniform() {
  for (uint64_t i = 0; i < 2000; ++i) {
    const uint32_t high = i < 2 ? -static_cast<uint32_t>(i) : scattered(i) >> (i % 32), low = scattered(~i);
    const double narrow = (high + 0.5) * 0x1p-32;
    ILLIA_CHECK_NEAR(uniform(high), narrow, narrow * 0x1p-23);
    const long double wide = high * 0x1p-32L + (low + 0.5L) * 0x1p-64L;
    ILLIA_CHECK_NEAR(uniform(high, low), wide, wide * 0x1p-52L);
    ILLIA_CHECK_EQUAL(uniform(high) > 0 && uniform(high) <= 1 && uniform(high, low) > 0 && uniform(high, low) <= 1,
                      true);
  }
}

// The radius errs by 1.3 ulp / 2 for the logarithm and 0.5 for the root, the cosine by 0.75 ulp of 1, the product by
// half of one: together less than 3 ulp of the radius.
template <typename acc_t>
void test_box_muller() {
  for (uint64_t i = 0; i < 3000; ++i) {
    const acc_t u = acc_t((scattered(i) >> 40) + 1) * acc_t(0x1p-24), v = acc_t(scattered(~i) >> 40) * acc_t(0x1p-24);
    const long double radius = std::sqrt(-2 * std::log(static_cast<long double>(u)));
    const double tolerance = 3 * std::numeric_limits<acc_t>::epsilon() * static_cast<double>(radius);
    acc_t cosine_normal, sine_normal;
    box_muller(u, v, &cosine_normal, &sine_normal);
    ILLIA_CHECK_NEAR(cosine_normal, radius * exact_cosine(v), tolerance);
    ILLIA_CHECK_NEAR(sine_normal, radius * exact_sine(v), tolerance);
  }
}

template <typename acc_t>
void test_accuracy_of_type() {
  test_elementary<acc_t>();
  test_softplus<acc_t>();
  test_operations<acc_t>();
  test_box_muller<acc_t>();
}

void test_accuracy() {
  test_accuracy_of_type<float>();
  test_accuracy_of_type<double>();
  test_log_any();
  test_uniform();
}

}  // namespace
}  // namespace base
}  // namespace illia
