// Standard normals from Philox words by Box and Muller's transform ("A note on the generation of random normal
// deviates", 1958), in the stream of torch.func._random.
#pragma once

#include "core/elementary.h"
#include "core/philox.h"

ILLIA_NAMESPACE_BEGIN

// Normals that one Philox block yields.
template <typename acc_t>
constexpr int kNormalsPerBlock = sizeof(acc_t) == sizeof(float) ? 4 : 2;

// A word in (0, 1]: it can round to 1, never to 0.
ILLIA_FUNCTION float uniform(uint32_t word) { return std::fma(static_cast<float>(word), 0x1p-32f, 0x1p-33f); }

// Two words in (0, 1], rounded once: the small summands first, whose sum is exact.
ILLIA_FUNCTION double uniform(uint32_t high, uint32_t low) {
  return static_cast<double>(high) * 0x1p-32 + (static_cast<double>(low) * 0x1p-64 + 0x1p-65);
}

// radius_uniform in (0, 1], angle_uniform in (0, 1]. A radius_uniform of 1 gives 0, not NaN.
template <typename acc_t>
ILLIA_FUNCTION void box_muller(acc_t radius_uniform, acc_t angle_uniform, acc_t* cosine_normal, acc_t* sine_normal) {
  const acc_t radius = square_root(acc_t{-2} * log_normal(radius_uniform));
  acc_t sine, cosine;
  sin_cos_turns(angle_uniform, &sine, &cosine);
  *cosine_normal = radius * cosine;
  *sine_normal = radius * sine;
}

template <typename lane_t>
ILLIA_FUNCTION void block_normals(const PhiloxBlock<lane_t>& block, float (&eps)[4]) {
  box_muller(uniform(block.word(0)), uniform(block.word(1)), &eps[0], &eps[1]);
  box_muller(uniform(block.word(2)), uniform(block.word(3)), &eps[2], &eps[3]);
}

template <typename lane_t>
ILLIA_FUNCTION void block_normals(const PhiloxBlock<lane_t>& block, double (&eps)[2]) {
  box_muller(uniform(block.word(0), block.word(1)), uniform(block.word(2), block.word(3)), &eps[0], &eps[1]);
}

ILLIA_NAMESPACE_END
