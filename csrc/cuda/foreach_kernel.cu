// The kernels of many tensors: what those of one do with a tile. The tensors' arguments are a table in the kernel's
// own, and the grid runs over the tiles of all.
#include "cuda/kl_tile.cuh"
#include "cuda/launch.cuh"
#include "cuda/sample_tile.cuh"

namespace illia {
namespace cuda {

constexpr size_t kArgumentBytes = CUDART_VERSION >= 12010 ? 32764 : 4096;  // that a kernel may have

template <typename args_t>
struct Table {
  struct Entry {
    args_t args;
    Plain plain;
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

template <typename scalar_t, typename sample_t>
__global__ void __launch_bounds__(kThreads, 2) foreach_sample_kernel(const __grid_constant__ Table<SampleArgs> table) {
  using acc_t = AccType<scalar_t>;
  __shared__ BlockSum<kThreads>::Buffers buffers;
  __shared__ double constants;
  BlockSum<kThreads> block_sum(buffers);
  for_each_tile(table, [&](const auto& entry, int64_t index) {
    const SampleArgs& args = entry.args;
    const Prior<acc_t> prior = read_prior<acc_t>(args.prior);
    keep_constants(index, args.prior.std, args.numel, kLogProbConstant, &constants);
    with_tile<ForwardTile, scalar_t>(index, args.numel, entry.plain, [&](const auto& tile) {
      sample_tile<sample_t, true>(tile, index, args, prior, entry.plain, &constants, block_sum);
    });
  });
}

template <typename scalar_t, typename sample_t, bool kLogProb>
__global__ void __launch_bounds__(kThreads, 2)
    foreach_sample_backward_kernel(const __grid_constant__ Table<SampleBackwardArgs> table) {
  using acc_t = AccType<scalar_t>;
  __shared__ BlockSum<kThreads>::Buffers buffers;
  BlockSum<kThreads> block_sum(buffers);
  const acc_t h_scale = kLogProb ? h_scale_of<acc_t>(table.entries[0].args) : 0;  // the same for all
  for_each_tile(table, [&](const auto& entry, int64_t index) {
    const SampleBackwardArgs& args = entry.args;
    const Prior<acc_t> prior = kLogProb ? read_prior<acc_t>(args.prior) : Prior<acc_t>{};
    with_tile<BackwardTile, scalar_t>(index, args.numel, entry.plain, [&](const auto& tile) {
      sample_backward_tile<sample_t, kLogProb>(tile, index, args, prior, h_scale, entry.plain, block_sum);
    });
  });
}

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads, 2)
    foreach_kl_divergence_kernel(const __grid_constant__ Table<KlDivergenceArgs> table) {
  using acc_t = AccType<scalar_t>;
  __shared__ BlockSum<kThreads>::Buffers buffers;
  __shared__ double constants;
  BlockSum<kThreads> block_sum(buffers);
  for_each_tile(table, [&](const auto& entry, int64_t index) {
    const KlDivergenceArgs& args = entry.args;
    const Prior<acc_t> prior = read_prior<acc_t>(args.prior);
    keep_constants(index, args.prior.std, args.numel, kKlConstant, &constants);
    with_tile<ForwardTile, scalar_t>(index, args.numel, entry.plain, [&](const auto& tile) {
      kl_divergence_tile(tile, index, args, prior, entry.plain, &constants, block_sum);
    });
  });
}

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads, 2)
    foreach_kl_divergence_backward_kernel(const __grid_constant__ Table<KlDivergenceBackwardArgs> table) {
  using acc_t = AccType<scalar_t>;
  __shared__ BlockSum<kThreads>::Buffers buffers;
  BlockSum<kThreads> block_sum(buffers);
  for_each_tile(table, [&](const auto& entry, int64_t index) {
    const KlDivergenceBackwardArgs& args = entry.args;
    const Prior<acc_t> prior = read_prior<acc_t>(args.prior);
    with_tile<BackwardTile, scalar_t>(index, args.numel, entry.plain, [&](const auto& tile) {
      kl_divergence_backward_tile(tile, index, args, prior, entry.plain, block_sum);
    });
  });
}

// Runs all parts: by tables, or by a launch of its own where one is not plain.
template <template <typename, bool> class tile_t, typename scalar_t, typename sample_t, typename args_t>
const char* start_parts(const Launch& on, void (*kernel)(const Table<args_t>), const Parts<args_t>& parts,
                        int64_t num_samples = 1) {
  Table<args_t> table;
  const auto flush = [&]() -> const char* {
    if (table.size == 0) return nullptr;
    const char* error = start(on, kernel, make_grid(table.num_tiles, num_samples), kThreads, table);
    table.size = 0, table.num_tiles = 0;
    return error;
  };
  for (const auto& [args, general] : parts) {
    if (args.numel == 0) continue;
    const char* error = nullptr;
    if (is_plain<scalar_t>(general)) {
      if (table.size == Table<args_t>::kCapacity) error = flush();
      table.first_tiles[table.size] = table.num_tiles;
      table.entries[table.size++] = {args, {memory_aligned<scalar_t, sample_t>(args), first_block<scalar_t>(general)}};
      table.num_tiles += tile_t<scalar_t, true>::cover(args.numel);
    } else {
      error = launch(on, args, general);
    }
    if (error) return error;
  }
  return flush();
}

const char* launch(const Launch& on, const Parts<SampleArgs>& parts) {
  const int64_t num_samples = parts.front().args.num_samples;
  if (num_samples == 0) return nullptr;
  return dispatch(on.types, [&](auto tag, auto sample_tag) {
    using scalar_t = typename decltype(tag)::type;
    using sample_t = typename decltype(sample_tag)::type;
    return start_parts<ForwardTile, scalar_t, sample_t>(on, foreach_sample_kernel<scalar_t, sample_t>, parts,
                                                        num_samples);
  });
}

const char* launch(const Launch& on, const Parts<SampleBackwardArgs>& parts) {
  return dispatch(on.types, [&](auto tag, auto sample_tag) {
    using scalar_t = typename decltype(tag)::type;
    using sample_t = typename decltype(sample_tag)::type;
    const auto kernel = parts.front().args.grad_log_prob ? foreach_sample_backward_kernel<scalar_t, sample_t, true>
                                                         : foreach_sample_backward_kernel<scalar_t, sample_t, false>;
    return start_parts<BackwardTile, scalar_t, sample_t>(on, kernel, parts);
  });
}

const char* launch(const Launch& on, const Parts<KlDivergenceArgs>& parts) {
  return dispatch(on.types.parameters, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    return start_parts<ForwardTile, scalar_t, scalar_t>(on, foreach_kl_divergence_kernel<scalar_t>, parts);
  });
}

const char* launch(const Launch& on, const Parts<KlDivergenceBackwardArgs>& parts) {
  return dispatch(on.types.parameters, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    return start_parts<BackwardTile, scalar_t, scalar_t>(on, foreach_kl_divergence_backward_kernel<scalar_t>, parts);
  });
}

}  // namespace cuda
}  // namespace illia
