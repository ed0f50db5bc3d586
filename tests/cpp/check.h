// Checks that print what failed, with its values, and count it.
#pragma once

#include <cmath>
#include <iomanip>
#include <iostream>

namespace illia {
namespace base {
namespace {

int failures = 0;

template <typename actual_t, typename expected_t>
void check_near(actual_t actual, expected_t expected, double tolerance, const char* what, const char* file, int line) {
  if (actual == expected || std::fabs(static_cast<double>(actual) - static_cast<double>(expected)) <= tolerance) return;
  if (++failures > 20) return;  // enough to read
  std::cerr << file << ":" << line << ": " << what << " is " << std::setprecision(17) << actual << ", expected "
            << expected << " +- " << tolerance << "\n";
}

#define ILLIA_CHECK_NEAR(actual, expected, tolerance) \
  check_near(actual, expected, tolerance, #actual, __FILE__, __LINE__)
#define ILLIA_CHECK_EQUAL(actual, expected) check_near(actual, expected, 0.0, #actual, __FILE__, __LINE__)

}  // namespace
}  // namespace base
}  // namespace illia
