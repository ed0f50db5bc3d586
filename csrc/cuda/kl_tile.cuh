// What the closed-form KL divergence and its backward do with one tile, of one tensor or of many.
#pragma once

#include "cuda/general.cuh"

namespace illia {
namespace cuda {

// The tile's sum of (sigma^2 + (mu - mu_prior)^2) / (2 std_prior^2) - log sigma.
template <typename tile_t, typename variant_t>
__device__ __forceinline__ void kl_divergence_tile(const tile_t& tile, int64_t index, const KlDivergenceArgs& args,
                                                   LazyPrior<typename tile_t::acc_t>& lazy_prior,
                                                   const variant_t& variant, double* constants,
                                                   BlockSum<kThreads>& block_sum) {
  using scalar_t = typename tile_t::param_t;
  using acc_t = typename tile_t::acc_t;
  constexpr int kCount = tile_t::kCount;
  acc_t mu[kCount], rho[kCount], mu_squares = 0, sigma_squares = 0;
  tile.load(static_cast<const scalar_t*>(args.rho), rho);
  tile.load(static_cast<const scalar_t*>(args.mu), mu);
  const Prior<acc_t> prior = lazy_prior.read();
  keep_constants(index, args.prior.std, args.numel, kKlConstant, constants);
  const auto priors = priors_of(tile, variant, prior);
  LogSum<acc_t> log_sigma;
  ILLIA_UNROLL
  for (int i = 0; i < kCount; ++i) {
    if (!tile.holds(i)) continue;
    const Softplus<acc_t> s = softplus(rho[i]);
    log_sigma.add(s);
    const acc_t z_mu = prior_score(mu[i], priors[i]), z_sigma = s.sigma * priors[i].inverse_std;
    mu_squares = std::fma(z_mu, z_mu, mu_squares);
    sigma_squares = std::fma(z_sigma, z_sigma, sigma_squares);
  }
  const double squares = static_cast<double>(mu_squares) + static_cast<double>(sigma_squares);
  const double logs = log_sigma.total(tile.count()) - log_std_sum(tile, variant);
  const double sum = block_sum(0.5 * squares - logs);
  hand_on<acc_t>(sum, 0, index, constants, args.kl_divergence);
}

template <typename tile_t, typename variant_t>
__device__ __forceinline__ void kl_divergence_backward_tile(const tile_t& tile, [[maybe_unused]] int64_t index,
                                                            const KlDivergenceBackwardArgs& args,
                                                            LazyPrior<typename tile_t::acc_t>& lazy_prior,
                                                            const variant_t& variant,
                                                            [[maybe_unused]] BlockSum<kThreads>& block_sum) {
  using scalar_t = typename tile_t::param_t;
  using acc_t = typename tile_t::acc_t;
  constexpr int kCount = tile_t::kCount;
  acc_t mu[kCount], rho[kCount], grad_mu[kCount], grad_rho[kCount];
  tile.load(static_cast<const scalar_t*>(args.rho), rho);
  tile.load(static_cast<const scalar_t*>(args.mu), mu);
  const acc_t grad = *static_cast<const acc_t*>(args.grad);
  const Prior<acc_t> prior = lazy_prior.read();
  const acc_t prior_scale = prior.scale(static_cast<double>(grad));
  const auto priors = priors_of(tile, variant, prior);
  [[maybe_unused]] PriorGradSums<tile_t> prior_sums;
  ILLIA_UNROLL
  for (int i = 0; i < kCount; ++i) {
    const Softplus<acc_t> s = softplus(rho[i]);
    const acc_t h = log_sigma_derivative(s);
    const GaussianGrads<acc_t> grads = gaussian_kl_divergence_grads(grad, mu[i], s.sigma, sigmoid(rho[i], s.sigma, h),
                                                                    h, priors[i], priors.scale(i, grad, prior_scale));
    if constexpr (kIsGeneral<variant_t>) {
      const acc_t z_mu = prior_score(mu[i], priors[i]), z_sigma = s.sigma * priors[i].inverse_std;
      prior_sums.add(i, grad, z_mu, std::fma(z_mu, z_mu, z_sigma * z_sigma));
    }
    grad_mu[i] = grads.mu;
    grad_rho[i] = grads.rho;
  }
  tile.store(static_cast<scalar_t*>(args.grad_mu), grad_mu);
  tile.store(static_cast<scalar_t*>(args.grad_rho), grad_rho);
  if constexpr (kIsGeneral<variant_t>) prior_sums.hand_on(tile, priors, variant, index, block_sum);
}

}  // namespace cuda
}  // namespace illia
