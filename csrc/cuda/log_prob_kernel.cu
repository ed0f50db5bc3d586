// log_prob of a given sample and the closed-form KL divergence, with their backward.
#include "cuda/kl_tile.cuh"
#include "cuda/launch.cuh"

namespace illia {
namespace cuda {

// Each tile's sum of energy(z_p) - z^2 / 2 - log sigma.
template <typename scalar_t, typename sample_t, typename variant_t>
__global__ void __launch_bounds__(kThreads, 2) log_prob_kernel(const LogProbArgs args, const variant_t variant) {
  using acc_t = AccType<scalar_t>;
  __shared__ BlockSum<kThreads>::Buffers buffers;
  __shared__ double constants;
  BlockSum<kThreads> block_sum(buffers);
  LazyPrior<acc_t> prior(args.prior);

  for_each_tile<ForwardTile, scalar_t>(args.numel, variant, [&](const auto& tile, int64_t index) {
    using tile_t = std::decay_t<decltype(tile)>;
    constexpr int kCount = tile_t::kCount;
    // 1. What all samples share.
    acc_t mu[kCount], rho[kCount], sigma[kCount];
    tile.load(static_cast<const scalar_t*>(args.rho), rho);
    tile.load(static_cast<const scalar_t*>(args.mu), mu);
    keep_constants(index, args.prior.std, args.numel, kLogProbConstant, &constants);
    const auto priors = priors_of(tile, variant, prior.read());
    LogSum<acc_t> log_sigma;
    ILLIA_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const Softplus<acc_t> s = softplus(rho[i]);
      if (tile.holds(i)) log_sigma.add(LogStd<acc_t>{s.factor, linear_log_sigma(rho[i])});
      sigma[i] = s.sigma;
    }
    const double logs = log_sigma.total(tile.count()) - log_std_sum(tile, variant);

    for (int64_t s = blockIdx.y; s < args.num_samples; s += gridDim.y) {
      // 2. One sample.
      acc_t x[kCount], prior_energies = 0, posterior_squares = 0;
      tile.load(static_cast<const sample_t*>(args.x) + s * args.numel, x);
      ILLIA_UNROLL
      for (int i = 0; i < kCount; ++i) {
        if (!tile.holds(i)) continue;
        const acc_t z_p = prior_score(x[i], priors[i]), z = posterior_score(x[i], mu[i], sigma[i]);
        prior_energies = priors.family.add_twice(z_p, prior_energies);
        posterior_squares = std::fma(z, z, posterior_squares);
      }
      // 3. Its sum over the tile.
      const double squares = static_cast<double>(prior_energies) - static_cast<double>(posterior_squares);
      const double sum = block_sum(0.5 * squares - logs);
      hand_on<acc_t>(sum, s, index, &constants, args.log_prob);
    }
  });
}

// grad_x of each sample, and grad_mu and grad_rho summed over the samples in their order.
template <typename scalar_t, typename sample_t, typename variant_t>
__global__ void __launch_bounds__(kThreads, 2)
    log_prob_backward_kernel(const LogProbBackwardArgs args, const variant_t variant) {
  using acc_t = AccType<scalar_t>;
  __shared__ BlockSum<kThreads>::Buffers buffers;
  [[maybe_unused]] BlockSum<kThreads> block_sum(buffers);
  LazyPrior<acc_t> prior(args.prior);
  const sample_t* x_rows = static_cast<const sample_t*>(args.x);
  sample_t* grad_x_rows = static_cast<sample_t*>(args.grad_x);

  for_each_tile<BackwardTile, scalar_t>(args.numel, variant, [&](const auto& tile, [[maybe_unused]] int64_t index) {
    using tile_t = std::decay_t<decltype(tile)>;
    constexpr int kCount = tile_t::kCount;
    // 1. What all samples share.
    acc_t mu[kCount], rho[kCount], sigma[kCount], h[kCount], x[kCount], grad_mu[kCount] = {}, rho_sum[kCount] = {};
    tile.load(static_cast<const scalar_t*>(args.rho), rho);
    tile.load(static_cast<const scalar_t*>(args.mu), mu);
    tile.load(x_rows, x, args.num_samples > 0);
    __syncwarp();  // keeps ptxas from using them earlier
    ILLIA_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const Softplus<acc_t> s = softplus(rho[i]);
      sigma[i] = s.sigma;
      h[i] = log_sigma_derivative(s);
    }
    const Prior<acc_t> one = prior.read();
    const auto priors = priors_of(tile, variant, one);
    [[maybe_unused]] PriorGradSums<tile_t> prior_sums;

    for (int64_t s = 0; s < args.num_samples; ++s) {
      // 2. One sample's share.
      acc_t grad_x[kCount];
      const acc_t grad_log_prob = static_cast<const acc_t*>(args.grad_log_prob)[s];
      const acc_t prior_scale = one.scale(static_cast<double>(grad_log_prob));
      ILLIA_UNROLL
      for (int i = 0; i < kCount; ++i) {
        const GaussianGrads<acc_t> grads =
            gaussian_log_prob_grads(grad_log_prob, x[i], mu[i], sigma[i], priors[i],
                                    priors.scale(i, grad_log_prob, prior_scale), priors.family);
        if constexpr (kIsGeneral<variant_t>) {
          const acc_t z_p = prior_score(x[i], priors[i]), slope = priors.family.slope(z_p);
          prior_sums.add(i, grad_log_prob, slope, z_p * slope);
        }
        grad_x[i] = grads.x;
        grad_mu[i] += grads.mu;
        rho_sum[i] += grads.rho;
      }
      if (s + 1 < args.num_samples) tile.load(x_rows + (s + 1) * args.numel, x);
      tile.store(grad_x_rows ? grad_x_rows + s * args.numel : nullptr, grad_x);
    }

    // 3. The factor that does not depend on the sample.
    ILLIA_UNROLL
    for (int i = 0; i < kCount; ++i) rho_sum[i] *= h[i];
    tile.store(static_cast<scalar_t*>(args.grad_mu), grad_mu);
    tile.store(static_cast<scalar_t*>(args.grad_rho), rho_sum);
    if constexpr (kIsGeneral<variant_t>) prior_sums.hand_on(tile, priors, variant, index, block_sum);
  });
}

template <typename scalar_t, typename variant_t>
__global__ void __launch_bounds__(kThreads, 2)
    kl_divergence_kernel(const KlDivergenceArgs args, const variant_t variant) {
  using acc_t = AccType<scalar_t>;
  __shared__ BlockSum<kThreads>::Buffers buffers;
  __shared__ double constants;
  BlockSum<kThreads> block_sum(buffers);
  LazyPrior<acc_t> prior(args.prior);

  for_each_tile<ForwardTile, scalar_t>(args.numel, variant, [&](const auto& tile, int64_t index) {
    kl_divergence_tile(tile, index, args, prior, variant, &constants, block_sum);
  });
}

template <typename scalar_t, typename variant_t>
__global__ void __launch_bounds__(kThreads, 2)
    kl_divergence_backward_kernel(const KlDivergenceBackwardArgs args, const variant_t variant) {
  using acc_t = AccType<scalar_t>;
  __shared__ BlockSum<kThreads>::Buffers buffers;
  BlockSum<kThreads> block_sum(buffers);
  LazyPrior<acc_t> prior(args.prior);

  for_each_tile<BackwardTile, scalar_t>(args.numel, variant, [&](const auto& tile, int64_t index) {
    kl_divergence_backward_tile(tile, index, args, prior, variant, block_sum);
  });
}

const char* launch(const Launch& on, const LogProbArgs& args, const General& general) {
  return dispatch(on.types, [&](auto tag, auto sample_tag) {
    using scalar_t = typename decltype(tag)::type;
    using sample_t = typename decltype(sample_tag)::type;
    const bool aligned = vectors_aligned<scalar_t>(args.mu, args.rho) &&
                         rows_aligned<scalar_t, sample_t>(args.x, args.num_samples, args.numel);
    return dispatch_variant<scalar_t>(general, aligned, [&](const auto& variant) {
      using variant_t = std::decay_t<decltype(variant)>;
      return start_tiles<ForwardTile, scalar_t>(on, log_prob_kernel<scalar_t, sample_t, variant_t>, args, variant,
                                                args.num_samples);
    });
  });
}

const char* launch(const Launch& on, const LogProbBackwardArgs& args, const General& general) {
  return dispatch(on.types, [&](auto tag, auto sample_tag) {
    using scalar_t = typename decltype(tag)::type;
    using sample_t = typename decltype(sample_tag)::type;
    const bool aligned = vectors_aligned<scalar_t>(args.mu, args.rho, args.grad_mu, args.grad_rho) &&
                         rows_aligned<scalar_t, sample_t>(args.x, args.num_samples, args.numel) &&
                         rows_aligned<scalar_t, sample_t>(args.grad_x, args.num_samples, args.numel);
    return dispatch_variant<scalar_t>(general, aligned, [&](const auto& variant) {
      using variant_t = std::decay_t<decltype(variant)>;
      return start_tiles<BackwardTile, scalar_t>(on, log_prob_backward_kernel<scalar_t, sample_t, variant_t>, args,
                                                 variant);
    });
  });
}

const char* launch(const Launch& on, const KlDivergenceArgs& args, const General& general) {
  return dispatch(on.types.parameters, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    return dispatch_variant<scalar_t>(general, memory_aligned<scalar_t, scalar_t>(args), [&](const auto& variant) {
      using variant_t = std::decay_t<decltype(variant)>;
      return start_tiles<ForwardTile, scalar_t>(on, kl_divergence_kernel<scalar_t, variant_t>, args, variant);
    });
  });
}

const char* launch(const Launch& on, const KlDivergenceBackwardArgs& args, const General& general) {
  return dispatch(on.types.parameters, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    return dispatch_variant<scalar_t>(general, memory_aligned<scalar_t, scalar_t>(args), [&](const auto& variant) {
      using variant_t = std::decay_t<decltype(variant)>;
      return start_tiles<BackwardTile, scalar_t>(on, kl_divergence_backward_kernel<scalar_t, variant_t>, args, variant);
    });
  });
}

}  // namespace cuda
}  // namespace illia
