// What sample_and_log_prob and its backward do with one tile, of one tensor or of many.
#pragma once

#include "cuda/general.cuh"

namespace illia {
namespace cuda {

// A sample's Philox words, which need its key alone, are made before what is loaded is used, so that their arithmetic
// passes the time of the loads. __syncwarp keeps ptxas from using it earlier; double would spill.
template <typename tile_t>
constexpr bool kDrawsFirst = sizeof(typename tile_t::acc_t) == sizeof(float);

// x, and with kLogProb the tile's sum of energy(z_p) - eps^2 / 2 - log sigma: the quadratic term of log q(x) is exactly
// -eps^2 / 2.
template <typename sample_t, bool kLogProb, typename tile_t, typename variant_t>
__device__ __forceinline__ void sample_tile(const tile_t& tile, [[maybe_unused]] int64_t index, const SampleArgs& args,
                                            [[maybe_unused]] LazyPrior<typename tile_t::acc_t>& lazy_prior,
                                            const variant_t& variant, [[maybe_unused]] double* constants,
                                            [[maybe_unused]] BlockSum<kThreads>& block_sum) {
  using scalar_t = typename tile_t::param_t;
  using acc_t = typename tile_t::acc_t;
  constexpr int kWidth = tile_t::kWidth, kCount = tile_t::kCount;
  constexpr bool kWordsFirst = kLogProb && kDrawsFirst<tile_t>;
  // 1. What all samples share.
  acc_t mu[kCount], rho[kCount], sigma[kCount];
  tile.load(static_cast<const scalar_t*>(args.rho), rho);
  tile.load(static_cast<const scalar_t*>(args.mu), mu);
  const Key key = key_of(args, variant, blockIdx.y);
  Prior<acc_t> prior{};
  if constexpr (kLogProb) {
    prior = lazy_prior.read();
    keep_constants(index, args.prior.std, args.numel, kLogProbConstant, constants);
  }
  typename tile_t::Words words;
  if constexpr (kWordsFirst) words = tile.words(key);
  __syncwarp();
  LogSum<acc_t> log_sigma;
  ILLIA_UNROLL
  for (int i = 0; i < kCount; ++i) {
    const Softplus<acc_t> s = softplus(rho[i]);
    if (kLogProb && tile.holds(i)) log_sigma.add(s);
    sigma[i] = s.sigma;
  }
  [[maybe_unused]] const auto priors = priors_of(tile, variant, prior);
  [[maybe_unused]] const double logs = kLogProb ? log_sigma.total(tile.count()) - log_std_sum(tile, variant) : 0;

  int64_t s = blockIdx.y;
  do {
    // 2. One sample.
    if constexpr (!kWordsFirst) words = tile.words(key_of(args, variant, s));
    acc_t prior_energies = 0, eps_squares = 0;
    ILLIA_UNROLL
    for (int j = 0; j < tile_t::kVectors; ++j) {
      acc_t eps[kWidth], x[kWidth];
      tile.normals(words, j, eps);
      ILLIA_UNROLL
      for (int k = 0; k < kWidth; ++k) {
        eps[k] *= is_negated(variant, s) ? acc_t{-1} : acc_t{1};
        x[k] = gaussian_sample(mu[j * kWidth + k], sigma[j * kWidth + k], eps[k]);
        if (kLogProb && tile.holds(j, k)) {
          const acc_t z_p = prior_score(x[k], priors[j * kWidth + k]);
          prior_energies = priors.family.add_twice(z_p, prior_energies);
          eps_squares = std::fma(eps[k], eps[k], eps_squares);
        }
      }
      tile.store_vector(static_cast<sample_t*>(args.x) + s * args.numel, j, x);
    }
    const int64_t next = s + gridDim.y;
    if constexpr (kWordsFirst)
      if (next < args.num_samples) words = tile.words(key_of(args, variant, next));
    // 3. Its sum over the tile.
    if constexpr (kLogProb) {
      const double squares = static_cast<double>(prior_energies) - static_cast<double>(eps_squares);
      const double sum = block_sum(0.5 * squares - logs);
      hand_on<acc_t>(sum, s, index, constants, args.log_prob);
    }
    s = next;
  } while (s < args.num_samples);
}

// The sum of grad_log_prob over the samples, the factor of -h.
template <typename acc_t>
__device__ __forceinline__ acc_t h_scale_of(const SampleBackwardArgs& args) {
  double sum = 0;
  for (int64_t s = 0; s < args.num_samples; ++s)
    sum += static_cast<double>(static_cast<const acc_t*>(args.grad_log_prob)[s]);
  return static_cast<acc_t>(sum);
}

// grad_mu = sum of g and grad_rho = d sigma / d rho * sum of g eps - h * sum of grad_log_prob, over the samples in
// their order, where g is the gradient to x.
template <typename sample_t, bool kLogProb, typename tile_t, typename variant_t>
__device__ __forceinline__ void sample_backward_tile(const tile_t& tile, [[maybe_unused]] int64_t index,
                                                     const SampleBackwardArgs& args,
                                                     [[maybe_unused]] LazyPrior<typename tile_t::acc_t>& lazy_prior,
                                                     [[maybe_unused]] typename tile_t::acc_t h_scale,
                                                     [[maybe_unused]] const variant_t& variant,
                                                     [[maybe_unused]] BlockSum<kThreads>& block_sum) {
  using scalar_t = typename tile_t::param_t;
  using acc_t = typename tile_t::acc_t;
  constexpr int kWidth = tile_t::kWidth, kCount = tile_t::kCount;
  constexpr bool kGeneral = kIsGeneral<variant_t>;
  constexpr bool kWordsFirst = !kGeneral && kDrawsFirst<tile_t>;  // of a plain launch, which has a sample
  [[maybe_unused]] const acc_t* grad_log_prob = static_cast<const acc_t*>(args.grad_log_prob);
  const sample_t* grad_x = static_cast<const sample_t*>(args.grad_x);
  // 1. What all samples share.
  [[maybe_unused]] acc_t mu[kCount];
  acc_t rho[kCount], sigma[kCount], h[kCount], g[kCount], grad_mu[kCount] = {}, rho_sum[kCount] = {};
  tile.load(static_cast<const scalar_t*>(args.rho), rho);
  if constexpr (kLogProb) tile.load(static_cast<const scalar_t*>(args.mu), mu);
  tile.load(grad_x, g, grad_x && (kWordsFirst || args.num_samples > 0));
  Key key;
  if constexpr (kWordsFirst) key = args.keys[0];
  typename tile_t::Words words;
  if constexpr (kWordsFirst) words = tile.words(key);
  const Prior<acc_t> prior = kLogProb ? lazy_prior.read() : Prior<acc_t>{};
  __syncwarp();
  ILLIA_UNROLL
  for (int i = 0; i < kCount; ++i) {
    const Softplus<acc_t> s = softplus(rho[i]);
    sigma[i] = s.sigma;
    h[i] = log_sigma_derivative(s);
  }
  [[maybe_unused]] const auto priors = priors_of(tile, variant, prior);
  [[maybe_unused]] PriorGradSums<tile_t> prior_sums;
  [[maybe_unused]] acc_t h_sum[kCount] = {};  // with stick_the_landing, in place of h_scale

  for (int64_t s = 0; (kWordsFirst && s == 0) || s < args.num_samples; ++s) {
    // 2. One sample's share.
    if constexpr (!kWordsFirst) words = tile.words(key_of(args, variant, s));
    [[maybe_unused]] const acc_t prior_scale = kLogProb ? prior.scale(static_cast<double>(grad_log_prob[s])) : 0;
    ILLIA_UNROLL
    for (int j = 0; j < tile_t::kVectors; ++j) {
      acc_t eps[kWidth];
      tile.normals(words, j, eps);
      ILLIA_UNROLL
      for (int k = 0; k < kWidth; ++k) {
        const int i = j * kWidth + k;
        eps[k] *= is_negated(variant, s) ? acc_t{-1} : acc_t{1};
        [[maybe_unused]] const acc_t x = kLogProb ? gaussian_sample(mu[i], sigma[i], eps[k]) : 0;
        if constexpr (kLogProb)
          g[i] = sample_grad(g[i], x, priors[i], priors.scale(i, grad_log_prob[s], prior_scale), priors.family);
        grad_mu[i] += g[i];
        rho_sum[i] = std::fma(g[i], eps[k], rho_sum[i]);
        if constexpr (kLogProb && kGeneral) {
          const acc_t z_p = prior_score(x, priors[i]), slope = priors.family.slope(z_p);
          prior_sums.add(i, grad_log_prob[s], slope, z_p * slope);
          if (variant.stick_the_landing) {
            const HeldFixedGrads<acc_t> held = held_fixed_grads(grad_log_prob[s], eps[k], sigma[i]);
            grad_mu[i] -= held.mu;
            h_sum[i] += held.h_scale;
          }
        }
      }
    }
    if (s + 1 < args.num_samples) {
      tile.load(grad_x + (s + 1) * args.numel, g, grad_x != nullptr);
      if constexpr (kWordsFirst) words = tile.words(key_of(args, variant, s + 1));
    }
  }

  // 3. The factors that do not depend on the sample.
  ILLIA_UNROLL
  for (int i = 0; i < kCount; ++i) {
    rho_sum[i] *= sigmoid(rho[i], sigma[i], h[i]);
    if constexpr (kLogProb && kGeneral) {
      rho_sum[i] = std::fma(variant.stick_the_landing ? -h_sum[i] : -h_scale, h[i], rho_sum[i]);
    } else if constexpr (kLogProb) {
      rho_sum[i] = std::fma(-h_scale, h[i], rho_sum[i]);
    }
  }
  tile.store(static_cast<scalar_t*>(args.grad_mu), grad_mu);
  tile.store(static_cast<scalar_t*>(args.grad_rho), rho_sum);
  if constexpr (kLogProb && kGeneral) prior_sums.hand_on(tile, priors, variant, index, block_sum);
}

}  // namespace cuda
}  // namespace illia
