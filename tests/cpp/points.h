// Numbers at which the tests look: of every exponent, dense where the functions bend, and at every transition.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/macros.h"

namespace illia {
namespace base {

// The i-th number of a fixed sequence (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
inline uint64_t scattered(uint64_t i) {
  uint64_t z = (i + 1) * 0x9E3779B97F4A7C15;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

// Where a function changes its way, with the neighbours of each.
template <typename acc_t>
std::vector<acc_t> edges() {
  using Limits = std::numeric_limits<acc_t>;
  std::vector<double> middles{0, Limits::denorm_min(), Limits::min(), Limits::min() / 2, Limits::max(), 0x1p20};
  for (int i = 1; i <= 16; ++i) middles.push_back(i / 8.0);  // 1/8 of a turn and its multiples
  for (double x : {2.0 / 3, 4.0 / 3, 16.6, 36.7, 64.0, 87.3, 103.28, 103.97, 104.0, 708.4, 744.4, 745.13, 746.0, 1e4})
    middles.push_back(x);
  std::vector<acc_t> result;
  for (double middle : middles)
    for (acc_t x : {static_cast<acc_t>(middle), static_cast<acc_t>(-middle)})
      for (acc_t towards : {-Limits::infinity(), x, Limits::infinity()}) result.push_back(std::nextafter(x, towards));
  return result;
}

// All of them that lie in [low, high]; NaN, where it is asked for.
template <typename acc_t>
std::vector<acc_t> points(acc_t low, acc_t high, bool with_nan = false) {
  using uint_t = typename FloatFormat<acc_t>::uint_t;
  std::vector<acc_t> all = edges<acc_t>(), result;
  for (acc_t special : {low, high, -acc_t{0}}) all.push_back(special);
  for (int i = -4096; i <= 4096; ++i) {
    all.push_back(acc_t(i) / 4096);
    all.push_back(acc_t(i) / 32 + acc_t(i) / 65536);
  }
  constexpr uint_t kStep = ~uint_t{0} / 4099;
  for (int i = 0; i < 4099; ++i) all.push_back(bit_cast<acc_t>(uint_t(i * kStep + (scattered(i) & 0xFFFF))));
  for (acc_t x : all)
    if (low <= x && x <= high) result.push_back(x);
  if (with_nan) result.push_back(std::numeric_limits<acc_t>::quiet_NaN());
  return result;
}

}  // namespace base
}  // namespace illia
