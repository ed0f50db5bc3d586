// Several Philox blocks side by side in one thread: they share the keys of the rounds, which cost as many additions as
// a block alone costs multiplications.
#pragma once

#include "core/philox.h"

ILLIA_NAMESPACE_BEGIN

template <int kCount>
struct WordLanes {
  uint32_t lanes[kCount];
};

template <int kCount>
ILLIA_FUNCTION WordLanes<kCount> operator^(WordLanes<kCount> a, const WordLanes<kCount>& b) {
  ILLIA_UNROLL
  for (int i = 0; i < kCount; ++i) a.lanes[i] ^= b.lanes[i];
  return a;
}

template <int kCount>
ILLIA_FUNCTION WordLanes<kCount> operator^(WordLanes<kCount> a, uint32_t b) {
  ILLIA_UNROLL
  for (int i = 0; i < kCount; ++i) a.lanes[i] ^= b;
  return a;
}

template <int kCount>
struct LaneProduct<WordLanes<kCount>> {
  WordLanes<kCount> high, low;

  ILLIA_FUNCTION LaneProduct(const WordLanes<kCount>& a, uint32_t b) {
    ILLIA_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const LaneProduct<uint32_t> product(a.lanes[i], b);
      high.lanes[i] = product.high;
      low.lanes[i] = product.low;
    }
  }
};

// One of the blocks.
template <int kCount>
ILLIA_FUNCTION PhiloxBlock<uint32_t> lane_block(const PhiloxBlock<WordLanes<kCount>>& block, int lane) {
  return {
      {block.words[0].lanes[lane], block.words[1].lanes[lane], block.words[2].lanes[lane], block.words[3].lanes[lane]}};
}

ILLIA_NAMESPACE_END
