// Philox words for many blocks at once. clang makes one vector instruction of the plain product of two 32-bit words;
// g++ 12 builds it from shifts and additions (AVX2: twice the time) or takes a wider one (AVX-512), so it is told.
#pragma once

#include "core/philox.h"

ILLIA_NAMESPACE_BEGIN

#if ILLIA_VECTOR_BYTES > 8 && !defined(__clang__)
using vector_t = uint64_t __attribute__((vector_size(ILLIA_VECTOR_BYTES)));
using half_vector_t = uint32_t __attribute__((vector_size(ILLIA_VECTOR_BYTES / 2)));
using narrow_vector_t = int __attribute__((vector_size(ILLIA_VECTOR_BYTES)));

ILLIA_FUNCTION vector_t multiply_low_halves(vector_t a, vector_t b) {
#if ILLIA_VECTOR_BYTES == 64
  using signed_vector_t = long long __attribute__((vector_size(64)));
  return (vector_t)__builtin_ia32_pmuludq512_mask((narrow_vector_t)a, (narrow_vector_t)b, signed_vector_t{}, 0xFF);
#else
  return (vector_t)__builtin_ia32_pmuludq256((narrow_vector_t)a, (narrow_vector_t)b);
#endif
}

// Two vectors side by side: while one waits for its product the other goes on.
struct philox_lane_t {
  vector_t a, b;

  ILLIA_FUNCTION philox_lane_t operator^(philox_lane_t other) const { return {a ^ other.a, b ^ other.b}; }
  ILLIA_FUNCTION philox_lane_t operator^(uint32_t word) const { return {a ^ word, b ^ word}; }
  ILLIA_FUNCTION philox_lane_t operator>>(int bits) const { return {a >> bits, b >> bits}; }
};

template <>
struct LaneProduct<philox_lane_t> {
  philox_lane_t high, low;

  ILLIA_FUNCTION LaneProduct(philox_lane_t lane, uint32_t word) {
    const vector_t factor = vector_t{} + word;
    low = {multiply_low_halves(lane.a, factor), multiply_low_halves(lane.b, factor)};
    high = low >> 32;
  }
};

constexpr int kVectorBlocks = ILLIA_VECTOR_BYTES / 8;
constexpr int kLaneBlocks = 2 * kVectorBlocks;

ILLIA_FUNCTION philox_lane_t consecutive(uint64_t first) {
  vector_t places;
  for (int i = 0; i < kVectorBlocks; ++i) places[i] = i;
  return {places + first, places + (first + kVectorBlocks)};
}

ILLIA_FUNCTION philox_lane_t listed(const uint64_t* counters, uint64_t offset) {
  philox_lane_t lane;
  std::memcpy(&lane, counters, sizeof(lane));
  return {lane.a + offset, lane.b + offset};
}

struct philox_word_t {
  half_vector_t a, b;
};

ILLIA_FUNCTION philox_word_t low_words(philox_lane_t lane) {
  return {__builtin_convertvector(lane.a, half_vector_t), __builtin_convertvector(lane.b, half_vector_t)};
}
#else
constexpr int kLaneBlocks = 1;
using philox_lane_t = uint64_t;

ILLIA_FUNCTION uint64_t consecutive(uint64_t first) { return first; }
ILLIA_FUNCTION uint64_t listed(const uint64_t* counters, uint64_t offset) { return *counters + offset; }

ILLIA_FUNCTION uint32_t low_words(uint64_t lane) { return static_cast<uint32_t>(lane); }
#endif

// words[w][i] is word w of block i; lane(i) counts the kLaneBlocks blocks from i on.
template <int num_blocks, typename function_t>
ILLIA_FUNCTION void philox_words(uint64_t seed, function_t lane, uint32_t (&words)[4][num_blocks]) {
  static_assert(num_blocks % kLaneBlocks == 0);
  for (int64_t first = 0; first < num_blocks; first += kLaneBlocks) {
    const auto block = philox4x32_lane(seed, lane(first));
    for (int w = 0; w < 4; ++w) {
      const auto low = low_words(block.words[w]);
      std::memcpy(&words[w][first], &low, sizeof(low));
    }
  }
}

ILLIA_NAMESPACE_END
