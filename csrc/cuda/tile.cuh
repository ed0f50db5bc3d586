// How threads share the elements of a tensor.
//
// A block of kThreads threads takes a tile of kThreads * kWidth * kVectors consecutive elements. Thread t holds
// vectors t, t + kThreads, ... of the tile, so that neighbours read neighbouring memory. A vector is what 16 bytes of
// parameters hold, and its normals are whole Philox blocks. The sharing depends neither on the grid nor on where memory
// begins, so neither do sums.
#pragma once

#include "core/gaussian.h"
#include "core/normal.h"
#include "cuda/storage.cuh"
#include "cuda/word_lanes.cuh"

namespace illia {
namespace cuda {

using namespace base;

constexpr int kThreads = 256;

// A full tile has no element beyond numel, and its memory may be accessed by vectors.
template <typename scalar_t, int kVectorsPerThread, bool kIsFull, int kVectorWidth = 16 / sizeof(scalar_t)>
struct Tile {
  using param_t = scalar_t;
  using acc_t = AccType<scalar_t>;
  static constexpr bool kFull = kIsFull;
  static constexpr int kWidth = kVectorWidth;
  static constexpr int kVectors = kVectorsPerThread;
  static constexpr int kCount = kWidth * kVectors;  // elements of one thread
  static constexpr int64_t kSize = int64_t{kThreads} * kCount;
  static constexpr int kNormals = kNormalsPerBlock<acc_t>;
  static constexpr int kBlocksPerVector = kWidth / kNormals;
  static_assert(kWidth % kNormals == 0);
  using Words = PhiloxBlock<WordLanes<kBlocksPerVector * kVectors>>;

  // Tiles of a tensor; the last may not be full.
  ILLIA_FUNCTION static constexpr int64_t cover(int64_t numel) { return (numel + kSize - 1) / kSize; }

  int64_t first;  // this thread's first element
  int64_t numel;
  uint64_t first_block;  // of the tensor, in the stream of a key

  __device__ Tile(int64_t index, int64_t numel, uint64_t first_block = 0)
      : first(index * kSize + int64_t{threadIdx.x} * kWidth), numel(numel), first_block(first_block) {}

  // Element k of vector j, and whether there is one.
  __device__ __forceinline__ int64_t element(int j, int k) const { return first + (j * kThreads * kWidth + k); }
  __device__ __forceinline__ bool holds(int j, int k) const { return kFull || element(j, k) < numel; }
  __device__ __forceinline__ bool holds(int i) const { return holds(i / kWidth, i % kWidth); }

  // How many elements this thread holds.
  __device__ __forceinline__ int count() const {
    if constexpr (kFull) return kCount;
    int count = 0;
    ILLIA_UNROLL
    for (int i = 0; i < kCount; ++i) count += holds(i);
    return count;
  }

  // Elements beyond numel become 0, and all do where data is not `there`.
  template <typename stored_t>
  __device__ __forceinline__ void load(const stored_t* data, acc_t (&values)[kCount], bool there = true) const {
    ILLIA_UNROLL
    for (int j = 0; j < kVectors; ++j) {
      if constexpr (kFull) {
        load_vector<stored_t, kWidth>(data + element(j, 0), values + j * kWidth, there);
      } else {
        ILLIA_UNROLL
        for (int k = 0; k < kWidth; ++k) {
          stored_t stored{};
          if (there && holds(j, k)) stored = __ldg(data + element(j, k));
          values[j * kWidth + k] = to_arithmetic<acc_t>(stored);
        }
      }
    }
  }

  // Vector j alone.
  template <typename stored_t>
  __device__ __forceinline__ void store_vector(stored_t* data, int j, const acc_t* values) const {
    if constexpr (kFull) {
      cuda::store_vector<stored_t, kWidth>(data + element(j, 0), values);
    } else {
      ILLIA_UNROLL
      for (int k = 0; k < kWidth; ++k)
        if (holds(j, k)) data[element(j, k)] = to_storage<stored_t>(values[k]);
    }
  }

  // Nothing without data.
  template <typename stored_t>
  __device__ __forceinline__ void store(stored_t* data, const acc_t (&values)[kCount]) const {
    if (data == nullptr) return;
    ILLIA_UNROLL
    for (int j = 0; j < kVectors; ++j) store_vector(data, j, values + j * kWidth);
  }

  // The Philox words of all vectors.
  __device__ __forceinline__ Words words(const Key& key) const {
    const uint64_t counter = key.offset + first_block + static_cast<uint64_t>(first) / kNormals;
    Words block{};
    ILLIA_UNROLL
    for (int lane = 0; lane < kBlocksPerVector * kVectors; ++lane) {
      const int j = lane / kBlocksPerVector, b = lane % kBlocksPerVector;
      const uint64_t lane_counter = counter + (j * kThreads * kBlocksPerVector + b);
      block.words[0].lanes[lane] = static_cast<uint32_t>(lane_counter);
      block.words[1].lanes[lane] = static_cast<uint32_t>(lane_counter >> 32);
    }
    return philox4x32(block, static_cast<uint32_t>(key.seed), static_cast<uint32_t>(key.seed >> 32));
  }

  // The normals of vector j.
  __device__ __forceinline__ static void normals(const Words& words, int j, acc_t (&eps)[kWidth]) {
    ILLIA_UNROLL
    for (int b = 0; b < kBlocksPerVector; ++b) {
      acc_t normals[kNormals];
      block_normals(lane_block(words, j * kBlocksPerVector + b), normals);
      ILLIA_UNROLL
      for (int k = 0; k < kNormals; ++k) eps[b * kNormals + k] = normals[k];
    }
  }
};

// Forward kernels keep 16 elements of a thread in registers over all samples (4 in double, where 8 would spill) and add
// them up: enough that the sum over the block costs a few instructions an element. Backward kernels hold more of each
// element, and fewer of them.
template <typename scalar_t, bool kFull>
using ForwardTile = Tile<scalar_t, sizeof(scalar_t) == 4 ? 4 : 2, kFull>;
template <typename scalar_t, bool kFull>
using BackwardTile = Tile<scalar_t, sizeof(scalar_t) == 2 ? 1 : 2, kFull>;

}  // namespace cuda
}  // namespace illia
