// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): words = f(counter, key).
#pragma once

#include "core/macros.h"

ILLIA_NAMESPACE_BEGIN

// One block of the stream. `lane_t` carries one 32-bit word: uint32_t where the machine multiplies 32 bits into two
// halves (a GPU), uint64_t where it multiplies 32 bits into 64 (a CPU), or a vector of the latter. In 64 bits the upper
// half of a word is undefined: a product never reads it, and who takes the words drops it.
template <typename lane_t>
struct PhiloxBlock {
  lane_t words[4];

  ILLIA_FUNCTION uint32_t word(int i) const { return static_cast<uint32_t>(words[i]); }
};

// 32 x 32 -> 64 bit product of the low halves. A specialisation gives a lane type its own instruction.
template <typename lane_t>
struct LaneProduct {
  lane_t high, low;

  ILLIA_FUNCTION LaneProduct(lane_t a, uint32_t b) {
    const uint64_t product = uint64_t{static_cast<uint32_t>(a)} * b;
    high = static_cast<lane_t>(product >> 32);
    low = static_cast<lane_t>(product);
  }
};

// All four counter words and both key words, as random123 publishes its known answers.
template <typename lane_t>
ILLIA_FUNCTION PhiloxBlock<lane_t> philox4x32(PhiloxBlock<lane_t> block, uint32_t key0, uint32_t key1) {
  constexpr uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
  constexpr int kRounds = 10;
  ILLIA_UNROLL
  for (int round = 0; round < kRounds; ++round) {
    const LaneProduct<lane_t> product0(block.words[0], kMultiplier0), product1(block.words[2], kMultiplier1);
    block.words[0] = product1.high ^ block.words[1] ^ key0;
    block.words[1] = product1.low;
    block.words[2] = product0.high ^ block.words[3] ^ key1;
    block.words[3] = product0.low;
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return block;
}

// Block `counter` of the stream of `seed`: counter words 0 and 1 are the counter, 2 and 3 are zero.
template <typename lane_t>
ILLIA_FUNCTION PhiloxBlock<lane_t> philox4x32(uint64_t seed, uint64_t counter) {
  const PhiloxBlock<lane_t> block{{static_cast<lane_t>(counter), static_cast<lane_t>(counter >> 32), 0, 0}};
  return philox4x32(block, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// The same for a lane of 64-bit counters, one a block.
template <typename lane_t>
ILLIA_FUNCTION PhiloxBlock<lane_t> philox4x32_lane(uint64_t seed, lane_t counters) {
  const PhiloxBlock<lane_t> block{{counters, counters >> 32, lane_t{}, lane_t{}}};
  return philox4x32(block, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

ILLIA_NAMESPACE_END
