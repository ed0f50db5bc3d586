// A local tensor as the block of a larger one: which element of the larger tensor each local element is. No torch here.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "core/function.h"

namespace illia {

// A place is an element's row-major index in the larger tensor. Local elements come in rows of `row_size`, whose places
// are consecutive; the outer dimensions say where each row begins. Without outer dimensions all elements are one row
// and `row_size` is not read: Block{} is a whole tensor.
struct Block {
  static constexpr int kMaxDims = 8;
  int64_t first = 0;  // place of element 0
  int64_t row_size = 0;
  int num_dims = 0;  // outer dimensions, the outermost first
  int64_t sizes[kMaxDims] = {}, strides[kMaxDims] = {};

  ILLIA_FUNCTION bool is_one_row() const { return num_dims == 0; }

  // Place of the first element of a row.
  ILLIA_FUNCTION int64_t row_place(int64_t row) const {
    int64_t place = first;
    ILLIA_KEEP_LOOP
    for (int dim = num_dims - 1; dim > 0; --dim) {
      place += row % sizes[dim] * strides[dim];
      row /= sizes[dim];
    }
    return place + row * strides[0];
  }

  // Place of local element i.
  ILLIA_FUNCTION int64_t place(int64_t i) const {
    return is_one_row() ? first + i : row_place(i / row_size) + i % row_size;
  }
};

// The block of `sizes` that starts at index `origin` of a tensor of `full_sizes`, whose elements fit 63 bits.
// Neighbours that lie as one dimension become one; nullopt where more than kMaxDims are left.
inline std::optional<Block> make_block(const std::vector<int64_t>& sizes, const std::vector<int64_t>& full_sizes,
                                       const std::vector<int64_t>& origin) {
  Block block;
  block.row_size = 1;
  std::vector<int64_t> outer_sizes, outer_strides;  // the innermost first
  int64_t stride = 1;
  for (size_t dim = sizes.size(); dim-- > 0; stride *= full_sizes[dim]) {
    if (sizes[dim] == 0) return Block{};
    block.first += origin[dim] * stride;
    if (sizes[dim] == 1) continue;
    if (outer_sizes.empty() && stride == block.row_size) {
      block.row_size *= sizes[dim];
    } else if (!outer_sizes.empty() && stride == outer_strides.back() * outer_sizes.back()) {
      outer_sizes.back() *= sizes[dim];
    } else {
      outer_sizes.push_back(sizes[dim]);
      outer_strides.push_back(stride);
    }
  }
  if (outer_sizes.size() > Block::kMaxDims) return std::nullopt;
  block.num_dims = static_cast<int>(outer_sizes.size());
  std::copy(outer_sizes.rbegin(), outer_sizes.rend(), block.sizes);
  std::copy(outer_strides.rbegin(), outer_strides.rend(), block.strides);
  return block;
}

}  // namespace illia
