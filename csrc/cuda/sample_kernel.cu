// standard_normal, and sample_and_log_prob with its backward (the plain sample is the same without its sums).
#include "cuda/launch.cuh"
#include "cuda/sample_tile.cuh"

namespace illia {
namespace cuda {

template <typename scalar_t, typename variant_t>
__global__ void __launch_bounds__(kThreads, 2)
    standard_normal_kernel(const StandardNormalArgs args, const variant_t variant) {
  for_each_tile<ForwardTile, scalar_t>(args.numel, variant, [&](const auto& tile, int64_t) {
    using tile_t = std::decay_t<decltype(tile)>;
    for (int64_t s = blockIdx.y; s < args.num_samples; s += gridDim.y) {
      const auto words = tile.words(args.keys[s]);
      ILLIA_UNROLL
      for (int j = 0; j < tile_t::kVectors; ++j) {
        typename tile_t::acc_t eps[tile_t::kWidth];
        tile.normals(words, j, eps);
        tile.store_vector(static_cast<scalar_t*>(args.eps) + s * args.numel, j, eps);
      }
    }
  });
}

template <typename scalar_t, typename sample_t, bool kLogProb, typename variant_t>
__global__ void __launch_bounds__(kThreads, 2) sample_kernel(const SampleArgs args, const variant_t variant) {
  using acc_t = AccType<scalar_t>;
  __shared__ BlockSum<kThreads>::Buffers buffers;
  __shared__ double constants;
  BlockSum<kThreads> block_sum(buffers);
  LazyPrior<acc_t> prior(args.prior);

  for_each_tile<ForwardTile, scalar_t>(args.numel, variant, [&](const auto& tile, int64_t index) {
    sample_tile<sample_t, kLogProb>(tile, index, args, prior, variant, &constants, block_sum);
  });
}

template <typename scalar_t, typename sample_t, bool kLogProb, typename variant_t>
__global__ void __launch_bounds__(kThreads, 2)
    sample_backward_kernel(const SampleBackwardArgs args, const variant_t variant) {
  using acc_t = AccType<scalar_t>;
  __shared__ BlockSum<kThreads>::Buffers buffers;
  BlockSum<kThreads> block_sum(buffers);
  LazyPrior<acc_t> prior(args.prior);
  const acc_t h_scale = kLogProb ? h_scale_of<acc_t>(args) : 0;

  for_each_tile<BackwardTile, scalar_t>(args.numel, variant, [&](const auto& tile, int64_t index) {
    sample_backward_tile<sample_t, kLogProb>(tile, index, args, prior, h_scale, variant, block_sum);
  });
}

const char* launch(const Launch& on, const StandardNormalArgs& args, const General& general) {
  return dispatch(on.types.parameters, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const bool aligned = rows_aligned<scalar_t, scalar_t>(args.eps, args.num_samples, args.numel);
    return dispatch_variant<scalar_t>(general, aligned, [&](const auto& variant) {
      using variant_t = std::decay_t<decltype(variant)>;
      return start_tiles<ForwardTile, scalar_t>(on, standard_normal_kernel<scalar_t, variant_t>, args, variant,
                                                args.num_samples);
    });
  });
}

const char* launch(const Launch& on, const SampleArgs& args, const General& general) {
  return dispatch(on.types, [&](auto tag, auto sample_tag) {
    using scalar_t = typename decltype(tag)::type;
    using sample_t = typename decltype(sample_tag)::type;
    return dispatch_variant<scalar_t>(general, memory_aligned<scalar_t, sample_t>(args), [&](const auto& variant) {
      using variant_t = std::decay_t<decltype(variant)>;
      const auto kernel = args.log_prob.asked() ? sample_kernel<scalar_t, sample_t, true, variant_t>
                                                : sample_kernel<scalar_t, sample_t, false, variant_t>;
      return start_tiles<ForwardTile, scalar_t>(on, kernel, args, variant, args.num_samples);
    });
  });
}

const char* launch(const Launch& on, const SampleBackwardArgs& args, const General& general) {
  return dispatch(on.types, [&](auto tag, auto sample_tag) {
    using scalar_t = typename decltype(tag)::type;
    using sample_t = typename decltype(sample_tag)::type;
    return dispatch_variant<scalar_t>(
        general, memory_aligned<scalar_t, sample_t>(args),
        [&](const auto& variant) {
          using variant_t = std::decay_t<decltype(variant)>;
          // of no sample grad_log_prob has no memory, and gradients to priors are 0
          const bool with_log_prob = args.grad_log_prob || args.num_samples == 0;
          const auto kernel = with_log_prob ? sample_backward_kernel<scalar_t, sample_t, true, variant_t>
                                            : sample_backward_kernel<scalar_t, sample_t, false, variant_t>;
          return start_tiles<BackwardTile, scalar_t>(on, kernel, args, variant);
        },
        args.num_samples > 0);
  });
}

}  // namespace cuda
}  // namespace illia
