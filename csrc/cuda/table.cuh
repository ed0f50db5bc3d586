// Many tensors in one launch: their arguments are a table in the kernel's own, and the grid runs over the tiles of all.
#pragma once

#include <cuda_runtime.h>

#include "cuda/general.cuh"

namespace illia {
namespace cuda {

constexpr size_t kArgumentBytes = CUDART_VERSION >= 12010 ? 32764 : 4096;  // that a kernel may have

template <typename args_t>
struct Table {
  struct Entry {
    args_t args;
    uint64_t first_block;  // of the tensor, in the stream of a key
    bool aligned;          // all its memory may be accessed by vectors
  };
  static constexpr int kCapacity = (kArgumentBytes - 2 * sizeof(int64_t)) / (sizeof(Entry) + sizeof(int64_t));

  int64_t num_tiles = 0;
  int size = 0;
  int64_t first_tiles[kCapacity];  // of each tensor: apart, so that a search reads little memory
  Entry entries[kCapacity];

  // The tensor that has a tile.
  __device__ __forceinline__ int find(int64_t tile) const {
    int low = 0, high = size;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (first_tiles[middle] <= tile ? low : high) = middle;
    }
    return low;
  }
};

// function(entry, index): each tile that falls to this block, by its tensor and its index there.
template <typename args_t, typename function_t>
__device__ __forceinline__ void for_each_tile(const Table<args_t>& table, function_t function) {
  for (int64_t tile = blockIdx.x; tile < table.num_tiles; tile += gridDim.x) {
    const int place = table.find(tile);
    function(table.entries[place], tile - table.first_tiles[place]);
  }
}

}  // namespace cuda
}  // namespace illia
