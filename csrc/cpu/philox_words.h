// Philox words for many blocks at once. clang makes one vector instruction of the plain product of two 32-bit words;
// g++ 12 builds it from shifts and additions (AVX2: twice the time) or takes a wider one (AVX-512), so it is told.
#pragma once

#include "core/philox.h"

ILLIA_NAMESPACE_BEGIN

#if ILLIA_VECTOR_BYTES > 8 && !defined(__clang__)
using vector_t = uint64_t __attribute__((vector_size(ILLIA_VECTOR_BYTES)));
using narrow_vector_t = int __attribute__((vector_size(ILLIA_VECTOR_BYTES)));

ILLIA_FUNCTION vector_t multiply_low_halves(vector_t a, vector_t b) {
#if ILLIA_VECTOR_BYTES == 64
  using signed_vector_t = long long __attribute__((vector_size(64)));
  return (vector_t)__builtin_ia32_pmuludq512_mask((narrow_vector_t)a, (narrow_vector_t)b, signed_vector_t{}, 0xFF);
#else
  return (vector_t)__builtin_ia32_pmuludq256((narrow_vector_t)a, (narrow_vector_t)b);
#endif
}

// The low halves of `even` and `odd` in turns: one instruction, or with AVX2 two.
ILLIA_FUNCTION vector_t interleave_low_halves(vector_t even, vector_t odd) {
#if ILLIA_VECTOR_BYTES == 64
  using float_vector_t = float __attribute__((vector_size(64)));
  return (vector_t)__builtin_ia32_movsldup512_mask((float_vector_t)odd, (float_vector_t)even, 0xAAAA);
#else
  return (vector_t)__builtin_ia32_pblendd256((narrow_vector_t)even, (narrow_vector_t)(odd << 32), 0xAA);
#endif
}

constexpr int kVectorBlocks = ILLIA_VECTOR_BYTES / 8;
constexpr int kVectors = 4;
constexpr int kLaneBlocks = kVectors * kVectorBlocks;

// Four vectors side by side: while one waits for its product the others go on. Vectors 0 and 1 hold the blocks 0, 2, 4,
// ... and 1, 3, 5, ... of the lane's first half, 2 and 3 those of its second.
struct philox_lane_t {
  vector_t vectors[kVectors];

  // function(i) makes vector i.
  template <typename function_t>
  ILLIA_FUNCTION static philox_lane_t of(function_t function) {
    return {{function(0), function(1), function(2), function(3)}};
  }

  ILLIA_FUNCTION philox_lane_t operator^(const philox_lane_t& other) const {
    return of([&](int i) __attribute__((always_inline)) { return vectors[i] ^ other.vectors[i]; });
  }
  ILLIA_FUNCTION philox_lane_t operator^(uint32_t word) const {
    return of([&](int i) __attribute__((always_inline)) { return vectors[i] ^ word; });
  }
  ILLIA_FUNCTION philox_lane_t operator>>(int bits) const {
    return of([&](int i) __attribute__((always_inline)) { return vectors[i] >> bits; });
  }
};

template <>
struct LaneProduct<philox_lane_t> {
  philox_lane_t high, low;

  ILLIA_FUNCTION LaneProduct(const philox_lane_t& lane, uint32_t word) {
    const vector_t factor = vector_t{} + word;
    low = philox_lane_t::of(
        [&](int i) __attribute__((always_inline)) { return multiply_low_halves(lane.vectors[i], factor); });
    high = low >> 32;
  }
};

// counter(k) is that of the lane's block k.
template <typename function_t>
ILLIA_FUNCTION philox_lane_t lane_of_counters(function_t counter) {
  return philox_lane_t::of([&](int i) __attribute__((always_inline)) {
    vector_t vector;
    for (int k = 0; k < kVectorBlocks; ++k) vector[k] = counter(i / 2 * 2 * kVectorBlocks + 2 * k + i % 2);
    return vector;
  });
}

ILLIA_FUNCTION philox_lane_t consecutive(uint64_t first) {
  return lane_of_counters([&](int k) __attribute__((always_inline)) { return first + static_cast<uint64_t>(k); });
}

ILLIA_FUNCTION philox_lane_t listed(const uint64_t* counters, uint64_t offset) {
  return lane_of_counters([&](int k) __attribute__((always_inline)) { return counters[k] + offset; });
}

struct philox_word_t {
  vector_t halves[2];
};

ILLIA_FUNCTION philox_word_t low_words(const philox_lane_t& lane) {
  return {{interleave_low_halves(lane.vectors[0], lane.vectors[1]),
           interleave_low_halves(lane.vectors[2], lane.vectors[3])}};
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
    ILLIA_UNROLL
    for (int w = 0; w < 4; ++w) {
      const auto low = low_words(block.words[w]);
      std::memcpy(&words[w][first], &low, sizeof(low));
    }
  }
}

ILLIA_NAMESPACE_END
