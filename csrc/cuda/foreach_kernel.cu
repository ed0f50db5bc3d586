// The kernels of many tensors: what those of one do with a tile. The tensors' arguments are a table in the kernel's
// own, and the grid runs over the tiles of all.
#include "cuda/kl_tile.cuh"
#include "cuda/launch.cuh"
#include "cuda/sample_tile.cuh"

namespace illia {
namespace cuda {

// What a kernel's arguments may take: the large ones need nvcc and a driver of CUDA 12.1. Each launch copies all of
// them, so few tensors take the small ones.
constexpr size_t kSmallBytes = 4096, kLargeBytes = CUDART_VERSION >= 12010 ? 32764 : kSmallBytes;

// Of tensors that take one variant of a kernel.
template <typename args_t, typename variant_type, size_t kBytes>
struct Table {
  using variant_t = variant_type;
  struct Entry {
    args_t args;
    variant_t variant;
  };
  static constexpr int kBuckets = 256;
  static constexpr int kFixedBytes = 3 * sizeof(int64_t) + kBuckets;
  static constexpr int kCapacity = std::min<int>(256, (kBytes - kFixedBytes) / (sizeof(Entry) + sizeof(int64_t)));

  int64_t num_tiles = 0;
  int size = 0, bucket_bits = 0;
  uint8_t first_of_bucket[kBuckets];  // the tensor that has the first tile of each 2^bucket_bits
  int64_t first_tiles[kCapacity];     // of each tensor
  Entry entries[kCapacity];

  void add(const Entry& entry, int64_t tiles) {
    first_tiles[size] = num_tiles;
    entries[size++] = entry;
    num_tiles += tiles;
  }

  // Before a launch.
  void fill_buckets() {
    for (bucket_bits = 0; num_tiles - 1 >= int64_t{kBuckets} << bucket_bits; ++bucket_bits) {
    }
    int place = 0;
    for (int64_t bucket = 0; bucket << bucket_bits < num_tiles; ++bucket) {
      while (place + 1 < size && first_tiles[place + 1] <= bucket << bucket_bits) ++place;
      first_of_bucket[bucket] = static_cast<uint8_t>(place);
    }
  }

  // The tensor that has a tile.
  __device__ __forceinline__ int find(int64_t tile) const {
    int place = first_of_bucket[tile >> bucket_bits];
    while (place + 1 < size && first_tiles[place + 1] <= tile) ++place;
    return place;
  }
};

// function(entry, index): each tile that falls to this block, by its tensor and its index there.
template <typename table_t, typename function_t>
__device__ __forceinline__ void for_each_tile(const table_t& table, function_t function) {
  for (int64_t tile = blockIdx.x; tile < table.num_tiles; tile += gridDim.x) {
    const int place = table.find(tile);
    function(table.entries[place], tile - table.first_tiles[place]);
  }
}

template <typename scalar_t, typename sample_t, typename table_t>
__global__ void __launch_bounds__(kThreads, 2) foreach_sample_kernel(const __grid_constant__ table_t table) {
  using acc_t = AccType<scalar_t>;
  __shared__ BlockSum<kThreads>::Buffers buffers;
  __shared__ double constants;
  BlockSum<kThreads> block_sum(buffers);
  for_each_tile(table, [&](const auto& entry, int64_t index) {
    const SampleArgs& args = entry.args;
    LazyPrior<acc_t> prior(args.prior);
    with_tile<ForwardTile, scalar_t>(index, args.numel, entry.variant, [&](const auto& tile) {
      sample_tile<sample_t, true>(tile, index, args, prior, entry.variant, &constants, block_sum);
    });
  });
}

template <typename scalar_t, typename sample_t, bool kLogProb, typename table_t>
__global__ void __launch_bounds__(kThreads, 2) foreach_sample_backward_kernel(const __grid_constant__ table_t table) {
  using acc_t = AccType<scalar_t>;
  __shared__ BlockSum<kThreads>::Buffers buffers;
  BlockSum<kThreads> block_sum(buffers);
  const acc_t h_scale = kLogProb ? h_scale_of<acc_t>(table.entries[0].args) : 0;  // the same for all
  for_each_tile(table, [&](const auto& entry, int64_t index) {
    const SampleBackwardArgs& args = entry.args;
    LazyPrior<acc_t> prior(args.prior);
    with_tile<BackwardTile, scalar_t>(index, args.numel, entry.variant, [&](const auto& tile) {
      sample_backward_tile<sample_t, kLogProb>(tile, index, args, prior, h_scale, entry.variant, block_sum);
    });
  });
}

template <typename scalar_t, typename table_t>
__global__ void __launch_bounds__(kThreads, 2) foreach_kl_divergence_kernel(const __grid_constant__ table_t table) {
  using acc_t = AccType<scalar_t>;
  __shared__ BlockSum<kThreads>::Buffers buffers;
  __shared__ double constants;
  BlockSum<kThreads> block_sum(buffers);
  for_each_tile(table, [&](const auto& entry, int64_t index) {
    const KlDivergenceArgs& args = entry.args;
    LazyPrior<acc_t> prior(args.prior);
    with_tile<ForwardTile, scalar_t>(index, args.numel, entry.variant, [&](const auto& tile) {
      kl_divergence_tile(tile, index, args, prior, entry.variant, &constants, block_sum);
    });
  });
}

template <typename scalar_t, typename table_t>
__global__ void __launch_bounds__(kThreads, 2)
    foreach_kl_divergence_backward_kernel(const __grid_constant__ table_t table) {
  using acc_t = AccType<scalar_t>;
  __shared__ BlockSum<kThreads>::Buffers buffers;
  BlockSum<kThreads> block_sum(buffers);
  for_each_tile(table, [&](const auto& entry, int64_t index) {
    const KlDivergenceBackwardArgs& args = entry.args;
    LazyPrior<acc_t> prior(args.prior);
    with_tile<BackwardTile, scalar_t>(index, args.numel, entry.variant, [&](const auto& tile) {
      kl_divergence_backward_tile(tile, index, args, prior, entry.variant, block_sum);
    });
  });
}

// Adds tensors to a table, and launches it whenever it is full. The table is not initialised, which would take longer
// than to fill it.
template <typename table_t, template <typename, bool> class tile_t, typename scalar_t, typename function_t>
class Launcher {
 public:
  // kernel_of(table) gives the kernel that takes a type of table.
  Launcher(const Launch& on, function_t kernel_of, int64_t num_samples)
      : on_(on), kernel_of_(kernel_of), num_samples_(num_samples) {}

  const char* add(const typename table_t::Entry& entry) {
    const char* error = table_.size == table_t::kCapacity ? flush() : nullptr;
    table_.add(entry, TileOf<tile_t, scalar_t, typename table_t::variant_t>::cover(entry.args.numel));
    return error;
  }

  const char* flush() {
    if (table_.size == 0) return nullptr;
    table_.fill_buckets();
    const char* error = start(on_, kernel_of_(table_), make_grid(table_.num_tiles, num_samples_), kThreads, table_);
    table_.size = 0, table_.num_tiles = 0;
    return error;
  }

 private:
  const Launch& on_;
  function_t kernel_of_;
  int64_t num_samples_;
  table_t table_;
};

// Runs all parts: by tables of those that are plain, which one may be if `plain`, and by tables of the others.
template <size_t kBytes, template <typename, bool> class tile_t, typename scalar_t, typename sample_t, typename args_t,
          typename function_t>
const char* start_tables(const Launch& on, function_t kernel_of, const Parts<args_t>& parts, int64_t num_samples,
                         bool plain) {
  Launcher<Table<args_t, Plain, kBytes>, tile_t, scalar_t, function_t> plains(on, kernel_of, num_samples);
  // small ones, which are half the code to compile
  Launcher<Table<args_t, General, kSmallBytes>, tile_t, scalar_t, function_t> others(on, kernel_of, num_samples);
  for (const auto& [args, general] : parts) {
    if (args.numel == 0) continue;
    const char* error = nullptr;
    if (plain && is_plain<scalar_t>(general)) {
      const bool aligned = memory_aligned<scalar_t, sample_t>(args);
      error = plains.add({args, {aligned, general.antithetic, first_block<scalar_t>(general)}});
    } else {
      error = others.add({args, general});
    }
    if (error) return error;
  }
  const char* error = plains.flush();
  return error ? error : others.flush();
}

template <template <typename, bool> class tile_t, typename scalar_t, typename sample_t, typename args_t,
          typename function_t>
const char* start_parts(const Launch& on, function_t kernel_of, const Parts<args_t>& parts, int64_t num_samples = 1,
                        bool plain = true) {
  constexpr size_t kFew = Table<args_t, Plain, kSmallBytes>::kCapacity;
  int driver = 0;
  const bool small = parts.size() <= kFew || cudaDriverGetVersion(&driver) != cudaSuccess || driver < 12010;
  return small ? start_tables<kSmallBytes, tile_t, scalar_t, sample_t>(on, kernel_of, parts, num_samples, plain)
               : start_tables<kLargeBytes, tile_t, scalar_t, sample_t>(on, kernel_of, parts, num_samples, plain);
}

const char* launch(const Launch& on, const Parts<SampleArgs>& parts) {
  const int64_t num_samples = parts.front().args.num_samples;
  if (num_samples == 0) return nullptr;
  return dispatch(on.types, [&](auto tag, auto sample_tag) {
    using scalar_t = typename decltype(tag)::type;
    using sample_t = typename decltype(sample_tag)::type;
    const auto kernel_of = [](const auto& table) {
      return foreach_sample_kernel<scalar_t, sample_t, std::decay_t<decltype(table)>>;
    };
    return start_parts<ForwardTile, scalar_t, sample_t>(on, kernel_of, parts, num_samples);
  });
}

const char* launch(const Launch& on, const Parts<SampleBackwardArgs>& parts) {
  const SampleBackwardArgs& first = parts.front().args;
  return dispatch(on.types, [&](auto tag, auto sample_tag) {
    using scalar_t = typename decltype(tag)::type;
    using sample_t = typename decltype(sample_tag)::type;
    const auto kernel_of = [&](const auto& table) {
      using table_t = std::decay_t<decltype(table)>;
      return first.grad_log_prob ? foreach_sample_backward_kernel<scalar_t, sample_t, true, table_t>
                                 : foreach_sample_backward_kernel<scalar_t, sample_t, false, table_t>;
    };
    return start_parts<BackwardTile, scalar_t, sample_t>(on, kernel_of, parts, 1, first.num_samples > 0);
  });
}

const char* launch(const Launch& on, const Parts<KlDivergenceArgs>& parts) {
  return dispatch(on.types.parameters, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const auto kernel_of = [](const auto& table) {
      return foreach_kl_divergence_kernel<scalar_t, std::decay_t<decltype(table)>>;
    };
    return start_parts<ForwardTile, scalar_t, scalar_t>(on, kernel_of, parts);
  });
}

const char* launch(const Launch& on, const Parts<KlDivergenceBackwardArgs>& parts) {
  return dispatch(on.types.parameters, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const auto kernel_of = [](const auto& table) {
      return foreach_kl_divergence_backward_kernel<scalar_t, std::decay_t<decltype(table)>>;
    };
    return start_parts<BackwardTile, scalar_t, scalar_t>(on, kernel_of, parts);
  });
}

}  // namespace cuda
}  // namespace illia
