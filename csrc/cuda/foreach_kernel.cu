// The kernels of many tensors: what those of one do with a tile, for the tiles of a table.
#include "cuda/kl_tile.cuh"
#include "cuda/launch.cuh"
#include "cuda/sample_tile.cuh"
#include "cuda/table.cuh"

namespace illia {
namespace cuda {

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
    with_tile<ForwardTile, scalar_t>(index, args.numel, entry.aligned, entry.first_block, [&](const auto& tile) {
      sample_tile<sample_t, true>(tile, index, args, prior, Plain{}, &constants, block_sum);
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
    with_tile<BackwardTile, scalar_t>(index, args.numel, entry.aligned, entry.first_block, [&](const auto& tile) {
      sample_backward_tile<sample_t, kLogProb>(tile, index, args, prior, h_scale, Plain{}, block_sum);
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
    with_tile<ForwardTile, scalar_t>(index, args.numel, entry.aligned, entry.first_block, [&](const auto& tile) {
      kl_divergence_tile(tile, index, args, prior, Plain{}, &constants, block_sum);
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
    with_tile<BackwardTile, scalar_t>(index, args.numel, entry.aligned, entry.first_block, [&](const auto& tile) {
      kl_divergence_backward_tile(tile, index, args, prior, Plain{}, block_sum);
    });
  });
}

// Runs all parts: by tables, or by a launch of its own, `single`, where one is not plain.
template <template <typename, bool> class tile_t, typename scalar_t, typename sample_t, typename args_t>
const char* start_parts(const Launch& launch, void (*kernel)(const Table<args_t>),
                        const char* (*single)(const Launch&, const args_t&, const General&), const Parts<args_t>& parts,
                        int64_t num_samples = 1) {
  Table<args_t> table;
  const auto flush = [&]() -> const char* {
    if (table.size == 0) return nullptr;
    const char* error = start(launch, kernel, make_grid(table.num_tiles, num_samples), kThreads, table);
    table.size = 0, table.num_tiles = 0;
    return error;
  };
  for (const auto& [args, general, first] : parts) {
    if (args.numel == 0) continue;
    const char* error = nullptr;
    if (general.is_plain()) {
      if (table.size == Table<args_t>::kCapacity) error = flush();
      const uint64_t first_block = static_cast<uint64_t>(first) / kNormalsPerBlock<AccType<scalar_t>>;
      table.first_tiles[table.size] = table.num_tiles;
      table.entries[table.size++] = {args, first_block, memory_aligned<scalar_t, sample_t>(args)};
      table.num_tiles += tile_t<scalar_t, true>::cover(args.numel);
    } else {
      General moved = general;
      moved.block.first = first;
      error = single(launch, args, moved);
    }
    if (error) return error;
  }
  return flush();
}

// The parts' tiles lie one after the other in each row of partials.
template <typename args_t>
Parts<args_t> with_sums(Parts<args_t> parts, TileSums args_t::* member, Storage parameters, const TileSums& sums) {
  int64_t first_tile = 0;
  for (auto& [args, general, first] : parts) {
    args.*member = sums.partials ? TileSums{nullptr, sums.partials + first_tile, sums.num_tiles} : sums;
    first_tile += count_tiles(parameters, args.numel, general);
  }
  return parts;
}

const char* launch_foreach_sample(const Launch& launch, Parts<SampleArgs> parts, const TileSums& log_prob) {
  const int64_t num_samples = parts.front().args.num_samples;
  if (num_samples == 0) return nullptr;
  parts = with_sums(std::move(parts), &SampleArgs::log_prob, launch.parameters, log_prob);
  return dispatch(launch, [&](auto tag, auto sample_tag) {
    using scalar_t = typename decltype(tag)::type;
    using sample_t = typename decltype(sample_tag)::type;
    const char* error = start_parts<ForwardTile, scalar_t, sample_t>(launch, foreach_sample_kernel<scalar_t, sample_t>,
                                                                     launch_sample, parts, num_samples);
    return error ? error : sum_tiles<scalar_t>(launch, log_prob, num_samples);
  });
}

const char* launch_foreach_sample_backward(const Launch& launch, const Parts<SampleBackwardArgs>& parts) {
  return dispatch(launch, [&](auto tag, auto sample_tag) {
    using scalar_t = typename decltype(tag)::type;
    using sample_t = typename decltype(sample_tag)::type;
    const auto kernel = parts.front().args.grad_log_prob ? foreach_sample_backward_kernel<scalar_t, sample_t, true>
                                                         : foreach_sample_backward_kernel<scalar_t, sample_t, false>;
    return start_parts<BackwardTile, scalar_t, sample_t>(launch, kernel, launch_sample_backward, parts);
  });
}

const char* launch_foreach_kl_divergence(const Launch& launch, Parts<KlDivergenceArgs> parts,
                                         const TileSums& kl_divergence) {
  parts = with_sums(std::move(parts), &KlDivergenceArgs::kl_divergence, launch.parameters, kl_divergence);
  return dispatch(launch.parameters, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const char* error = start_parts<ForwardTile, scalar_t, scalar_t>(launch, foreach_kl_divergence_kernel<scalar_t>,
                                                                     launch_kl_divergence, parts);
    return error ? error : sum_tiles<scalar_t>(launch, kl_divergence, 1);
  });
}

const char* launch_foreach_kl_divergence_backward(const Launch& launch, const Parts<KlDivergenceBackwardArgs>& parts) {
  return dispatch(launch.parameters, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    return start_parts<BackwardTile, scalar_t, scalar_t>(launch, foreach_kl_divergence_backward_kernel<scalar_t>,
                                                         launch_kl_divergence_backward, parts);
  });
}

}  // namespace cuda
}  // namespace illia
