// The normals of a piece, in batches of Philox blocks.
#pragma once

#include "core/normal.h"
#include "cpu/philox_words.h"
#include "cpu/pieces.h"

ILLIA_NAMESPACE_BEGIN

// Philox blocks drawn at once.
template <typename acc_t>
constexpr int kBatchBlocks = kNormalsBatch / kNormalsPerBlock<acc_t>;

// The normals of `num_blocks` blocks, rounded up to whole batches; lane(i) counts those from i on: see philox_words.
template <typename acc_t, typename function_t>
ILLIA_FUNCTION void draw_batches(uint64_t seed, int64_t num_blocks, function_t lane, acc_t* __restrict eps) {
  constexpr int kNormals = kNormalsPerBlock<acc_t>, kBlocks = kBatchBlocks<acc_t>;
  for (int64_t first = 0; first < num_blocks; first += kBlocks) {
    uint32_t words[4][kBlocks];
    philox_words(seed, [&](int64_t i) __attribute__((always_inline)) { return lane(first + i); }, words);
    for (int64_t i = 0; i < kBlocks; ++i) {
      acc_t normals[kNormals];
      block_normals(PhiloxBlock<uint32_t>{{words[0][i], words[1][i], words[2][i], words[3][i]}}, normals);
      for (int64_t k = 0; k < kNormals; ++k) eps[(first + i) * kNormals + k] = normals[k];
    }
  }
}

// Blocks counter, counter + 1, ...
template <typename acc_t>
void draw_consecutive(uint64_t seed, uint64_t counter, int64_t num_blocks, acc_t* __restrict eps) {
  const auto lane = [=](int64_t i)
                        __attribute__((always_inline)) { return consecutive(counter + static_cast<uint64_t>(i)); };
  draw_batches(seed, num_blocks, lane, eps);
}

// Blocks offset + counters[i].
template <typename acc_t>
void draw_listed(const Key& key, const uint64_t* counters, int64_t num_blocks, acc_t* __restrict eps) {
  const auto lane = [&](int64_t i) __attribute__((always_inline)) { return listed(counters + i, key.offset); };
  draw_batches(key.seed, num_blocks, lane, eps);
}

// Pieces have at most kChunkSize elements.
template <typename acc_t>
class Noise {
 public:
  explicit Noise(const Block& block) : block_(block) {}

  void move_to(const Piece& piece) {
    piece_ = piece;
    if (!block_.is_one_row()) collect();
  }

  // eps of the piece for sample s, until the next draw. Antithetic samples come in pairs, in their order: what is there
  // changes its sign for the second.
  const acc_t* draw(const Key* keys, int64_t s, bool antithetic = false) {
    if (antithetic && s % 2) return negate();
    return drawn_ = block_.is_one_row() ? draw_row(keys[s]) : draw_collected(keys[s]);
  }

 private:
  static constexpr int kNormals = kNormalsPerBlock<acc_t>, kBlocks = kBatchBlocks<acc_t>;
  static_assert(kChunkSize * kNormals >= kChunkSize + kNormalsBatch && kChunkSize % kBlocks == 0);

  // Elements of one row, from index `source` of the collected normals.
  struct Run {
    int64_t source, count;
  };

  acc_t* draw_row(const Key& key) {
    const int64_t place = block_.first + piece_.first, skipped = place % kNormals;
    const int64_t num_blocks = (skipped + piece_.count + kNormals - 1) / kNormals;
    draw_consecutive(key.seed, key.offset + static_cast<uint64_t>(place / kNormals), num_blocks, normals_);
    return normals_ + skipped;
  }

  ILLIA_APART acc_t* negate() {
    for (int64_t i = 0; i < piece_.count; ++i) drawn_[i] = -drawn_[i];
    return drawn_;
  }

  // Lists the Philox blocks that the piece's rows need, each once where neighbours share it: never more than elements.
  ILLIA_APART void collect() {
    num_blocks_ = num_runs_ = 0;
    int64_t row = piece_.first / block_.row_size, in_row = piece_.first % block_.row_size;
    for (int64_t i = 0; i < piece_.count; i += runs_[num_runs_++].count) {
      const int64_t place = block_.row_place(row) + in_row;
      const int64_t in_piece = piece_.count - i, rest_of_row = block_.row_size - in_row;
      const int64_t count = rest_of_row < in_piece ? rest_of_row : in_piece;
      ++row;
      in_row = 0;
      const uint64_t counter = static_cast<uint64_t>(place / kNormals);
      const uint64_t end = static_cast<uint64_t>((place + count - 1) / kNormals) + 1;
      const bool shared = num_blocks_ > 0 && counters_[num_blocks_ - 1] == counter;
      if (shared) --num_blocks_;
      runs_[num_runs_] = {num_blocks_ * kNormals + place % kNormals, count};
      for (uint64_t next = counter; next < end; ++next) counters_[num_blocks_++] = next;
    }
    for (int64_t i = num_blocks_; i % kBlocks; ++i) counters_[i] = 0;  // drawn too, to fill the last batch
  }

  ILLIA_APART acc_t* draw_collected(const Key& key) {
    draw_listed(key, counters_, num_blocks_, normals_);
    acc_t* eps = eps_;
    for (int64_t run = 0; run < num_runs_; ++run) {
      const acc_t* source = normals_ + runs_[run].source;
      for (int64_t k = 0; k < runs_[run].count; ++k) *eps++ = source[k];
    }
    return eps_;
  }

  const Block& block_;
  Piece piece_;
  acc_t* drawn_ = nullptr;
  alignas(64) Buffer<acc_t, kChunkSize * kNormals> normals_;

  // of a block of several rows
  int64_t num_blocks_, num_runs_;
  uint64_t counters_[kChunkSize];  // [num_blocks_], without the key's offset
  Run runs_[kChunkSize];           // [num_runs_]
  Buffer<acc_t, kChunkSize> eps_;  // [piece_.count]
};

ILLIA_NAMESPACE_END
