// The core without torch, against its mathematics. Usage: core_test tests/data/philox_known_answers.txt
// Prints each check that failed, with its values, and then returns 1.
#include <cmath>
#include <fstream>
#include <iostream>
#include <limits>
#include <string>

#include "check.h"
#include "core/gaussian.h"
#include "core/normal.h"
#include "core_accuracy.h"
#include "core_formulas.h"

namespace illia {
namespace base {
namespace {

void test_known_answers(const char* path) {
  std::ifstream file(path);
  int count = 0;
  for (std::string name; file >> name; file.ignore(1000, '\n')) {
    if (name != "philox4x32") continue;
    uint32_t rounds, words[10];  // counter [4], key [2], expected [4]
    file >> std::dec >> rounds >> std::hex;
    for (uint32_t& word : words) file >> word;
    PhiloxBlock<uint32_t> narrow;
    PhiloxBlock<uint64_t> wide;
    for (int i = 0; i < 4; ++i) {
      narrow.words[i] = words[i];
      wide.words[i] = words[i] | uint64_t{0xDEADBEEF} << 32;  // the upper half must not matter
    }
    narrow = philox4x32(narrow, words[4], words[5]);
    wide = philox4x32(wide, words[4], words[5]);
    for (int i = 0; i < 4; ++i) {
      ILLIA_CHECK_EQUAL(narrow.word(i), words[6 + i]);
      ILLIA_CHECK_EQUAL(wide.word(i), words[6 + i]);
    }
    ++count;
  }
  ILLIA_CHECK_EQUAL(count, 3);
}

// Counter and seed are 64 bits each, their low halves first, in every lane width.
void test_counters_and_seeds() {
  const uint64_t places[] = {0, 1, 0xFFFFFFFF, 0x100000000, 0x123456789ABCDEF0, ~uint64_t{0}};
  for (uint64_t seed : places)
    for (uint64_t counter : places) {
      const PhiloxBlock<uint32_t> words{{static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0}};
      const auto expected = philox4x32(words, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
      for (int i = 0; i < 4; ++i) {
        ILLIA_CHECK_EQUAL(philox4x32<uint32_t>(seed, counter).word(i), expected.word(i));
        ILLIA_CHECK_EQUAL(philox4x32<uint64_t>(seed, counter).word(i), expected.word(i));
        ILLIA_CHECK_EQUAL(philox4x32_lane<uint64_t>(seed, counter).word(i), expected.word(i));
      }
    }
}

// The first normals of torch.func._random for key [42, 0], to the decimals given.
void test_first_normals() {
  const double expected_floats[] = {-0.9702, 0.1940, -1.2356, 1.9239, -0.0732, 0.1391};
  for (int i = 0; i < 6; ++i) {
    float eps[4];
    block_normals(philox4x32<uint32_t>(42, i / 4), eps);
    ILLIA_CHECK_NEAR(eps[i % 4], expected_floats[i], 5e-5);
  }
  double eps[2];
  block_normals(philox4x32<uint32_t>(42, 0), eps);
  ILLIA_CHECK_NEAR(eps[0], 0.886497505901441, 1e-15);
  ILLIA_CHECK_NEAR(eps[1], 0.4393560694379269, 1e-15);
}

// The longest radius is sqrt(-2 log(2^-33)) or sqrt(-2 log(2^-65)); it errs by 2 ulp below 16, and a uniform that
// rounds to 1 gives 0.
template <typename acc_t>
void test_radius(acc_t smallest_uniform, double longest) {
  acc_t cosine, sine;
  box_muller(smallest_uniform, acc_t{1}, &cosine, &sine);
  ILLIA_CHECK_NEAR(cosine, longest, 16 * std::numeric_limits<acc_t>::epsilon());
  box_muller(acc_t{1}, acc_t(0.3), &cosine, &sine);
  ILLIA_CHECK_EQUAL(cosine, 0);
  ILLIA_CHECK_EQUAL(sine, 0);
}

template <typename acc_t>
void test_softplus_extremes() {
  using Limits = std::numeric_limits<acc_t>;
  for (acc_t rho : {acc_t{1000}, acc_t{1e30}, Limits::max()}) {
    const Softplus<acc_t> small = softplus(-rho), large = softplus(rho);
    const acc_t small_h = log_sigma_derivative(small), large_h = log_sigma_derivative(large);
    ILLIA_CHECK_EQUAL(small.sigma, 0);
    ILLIA_CHECK_EQUAL(log_sigma(-rho), -rho);
    ILLIA_CHECK_EQUAL(small_h, 1);
    ILLIA_CHECK_EQUAL(sigmoid(-rho, small.sigma, small_h), 0);
    ILLIA_CHECK_EQUAL(large.sigma, rho);
    ILLIA_CHECK_NEAR(log_sigma(rho), std::log(rho),
                     3 * Limits::epsilon() * std::log(rho));  // 1.7 ulp and the library's
    ILLIA_CHECK_EQUAL(large_h, 1 / rho);
    ILLIA_CHECK_EQUAL(sigmoid(rho, large.sigma, large_h), 1);
  }
}

// From there on 1 is the nearest number to sigmoid(rho), and rho times 1 / rho is not always 1.
template <typename acc_t>
void test_large_rho() {
  for (int i = 1; i <= 4096; ++i) {
    const acc_t rho = 64 + acc_t(i) / 4096;
    const Softplus<acc_t> s = softplus(rho);
    ILLIA_CHECK_EQUAL(sigmoid(rho, s.sigma, log_sigma_derivative(s)), 1);
  }
}

// Each of two sigma errs by 2.4 ulp, each of two sigmoids by 4.6 ulp of at most 1.
template <typename acc_t>
void test_softplus_identities() {
  constexpr double kEpsilon = std::numeric_limits<acc_t>::epsilon();
  for (int i = 0; i <= 640; ++i) {
    const acc_t rho = acc_t(i) / 8;
    const Softplus<acc_t> minus = softplus(-rho), plus = softplus(rho);
    const acc_t minus_sigmoid = sigmoid(-rho, minus.sigma, log_sigma_derivative(minus));
    const acc_t plus_sigmoid = sigmoid(rho, plus.sigma, log_sigma_derivative(plus));
    ILLIA_CHECK_NEAR(plus.sigma - minus.sigma, rho, 5 * kEpsilon * plus.sigma);
    ILLIA_CHECK_NEAR(plus_sigmoid + minus_sigmoid, 1, 10 * kEpsilon);

    typename FloatFormat<acc_t>::int_t exponent;
    const acc_t mantissa = split_mantissa(plus.factor, &exponent);
    ILLIA_CHECK_EQUAL(mantissa >= 1 && mantissa < 2, true);
    ILLIA_CHECK_EQUAL(std::ldexp(mantissa, static_cast<int>(exponent) - FloatFormat<acc_t>::kExponentBias),
                      plus.factor);
  }
}

// log_std_parts within 2 ulp of max(1, |exact|): one of the logarithm, one of the sum. Of a subnormal std_prior the
// inverse may be beyond the largest number.
template <typename acc_t>
void test_element_priors() {
  using Limits = std::numeric_limits<acc_t>;
  const acc_t infinity = Limits::infinity(), nan = Limits::quiet_NaN();
  for (acc_t value :
       {Limits::denorm_min(), Limits::min() / 3, Limits::min(), acc_t(1e-30), acc_t(0.7), Limits::max()}) {
    const LogStd<acc_t> parts = log_std_parts(value);
    const double exact = std::log(static_cast<double>(value));
    ILLIA_CHECK_NEAR(parts.linear + log_normal(parts.factor), exact,
                     2 * Limits::epsilon() * std::fmax(1, std::fabs(exact)));
    ILLIA_CHECK_EQUAL(parts.factor >= Limits::min(), true);

    const auto prior = ElementPrior<acc_t>::make(acc_t(0.5), value);
    ILLIA_CHECK_EQUAL(prior.inverse_std, std::fmin(1 / value, Limits::max()));
    ILLIA_CHECK_EQUAL(prior_score(acc_t(0.5), prior), 0);
    ILLIA_CHECK_EQUAL(std::isfinite(prior.scale(-1)), true);
    ILLIA_CHECK_EQUAL(prior.scale(0), 0);
  }
  ILLIA_CHECK_EQUAL(log_std_parts(acc_t(0)).linear, -infinity);
  ILLIA_CHECK_EQUAL(log_std_parts(-acc_t(0)).linear, -infinity);
  ILLIA_CHECK_EQUAL(log_std_parts(infinity).linear, infinity);
  for (acc_t value : {acc_t(0), infinity}) ILLIA_CHECK_EQUAL(log_std_parts(value).factor, 1);
  for (acc_t value : {acc_t(-1), -Limits::denorm_min(), -infinity, nan}) {
    ILLIA_CHECK_EQUAL(std::isnan(log_std_parts(value).linear), true);
    ILLIA_CHECK_EQUAL(log_std_parts(value).factor, 1);
  }
  ILLIA_CHECK_EQUAL(std::isnan(ElementPrior<acc_t>::make(0, nan).scale(1)), true);
}

}  // namespace
}  // namespace base
}  // namespace illia

int main(int argc, char** argv) {
  using namespace illia::base;
  if (argc != 2) {
    std::cerr << "usage: core_test tests/data/philox_known_answers.txt\n";
    return 2;
  }
  test_known_answers(argv[1]);
  test_counters_and_seeds();
  test_first_normals();
  test_radius(uniform(0), std::sqrt(66 * std::log(2.0)));
  test_radius(uniform(0, 0), std::sqrt(130 * std::log(2.0)));
  test_softplus_extremes<float>();
  test_softplus_extremes<double>();
  test_large_rho<float>();
  test_large_rho<double>();
  test_softplus_identities<float>();
  test_softplus_identities<double>();
  test_element_priors<float>();
  test_element_priors<double>();
  const bool is_exact = std::log(1 + 0x1p-60L) != 0;
  if (is_exact) {
    test_accuracy();
    test_formulas<float>();
    test_formulas<double>();
  } else {
    std::cerr << "long double's functions have the digits of double here: no exact values to compare with\n";
  }
  std::cerr << failures << " checks of the core failed\n";
  if (failures > 0) return 1;
  return is_exact ? 0 : 77;  // skipped
}
