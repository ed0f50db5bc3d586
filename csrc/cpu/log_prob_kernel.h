// log_prob of a given sample and the closed-form KL divergence, with their backward.
#pragma once

#include "cpu/priors.h"

ILLIA_NAMESPACE_BEGIN

// Sum of energy(z_p) - z^2 / 2.
template <typename acc_t, typename prior_t>
double log_prob_piece(const acc_t* __restrict x, const acc_t* __restrict mu, const acc_t* __restrict sigma,
                      int64_t count, const prior_t& prior) {
  LaneSum<acc_t> prior_energies, posterior_squares;
  for_each_row(count, [&](int64_t first, int64_t lanes) __attribute__((always_inline)) {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t i = first + lane;
      const acc_t z_p = prior_score(x[i], prior.at(i)), z = posterior_score(x[i], mu[i], sigma[i]);
      prior_energies.lanes[lane] = prior.family.add_twice(z_p, prior_energies.lanes[lane]);
      posterior_squares.lanes[lane] = std::fma(z, z, posterior_squares.lanes[lane]);
    }
  });
  return 0.5 * (prior_energies.total() - posterior_squares.total());
}

template <typename acc_t>
void log_prob_kernel(const LogProbArgs& args, const General& general, Types types, int64_t begin, int64_t end) {
  alignas(64) Buffer<acc_t, kChunkSize> x_buffer, mu_buffer, rho_buffer, sigma;
  Priors<acc_t, kChunkSize> priors(args.prior, general);
  for_each_piece<kChunkSize>(begin, end, args.numel, [&](const Piece& piece) {
    const acc_t* mu = load(args.mu, types.parameters, piece.first, piece.count, mu_buffer);
    const acc_t* rho = load(args.rho, types.parameters, piece.first, piece.count, rho_buffer);
    const double log_sigma = softplus_piece<acc_t, true, true>(rho, piece.count, sigma);
    priors.move_to(piece);
    const double log_std = priors.log_std_sum();
    for (int64_t s = 0; s < args.num_samples; ++s) {
      const acc_t* x = load(args.x, types.sample, s * args.numel + piece.first, piece.count, x_buffer);
      const double squares = priors.visit(0, [&](const auto& prior) __attribute__((always_inline)) {
        return log_prob_piece(x, mu, sigma, piece.count, prior);
      });
      hand_on<acc_t>(squares - log_sigma + log_std, s, piece, args.log_prob);
    }
  });
}

// Writes grad_x and adds one sample's gradients to grad_mu and rho_sum.
template <typename acc_t, typename prior_t>
void log_prob_backward_piece(acc_t grad_log_prob, const acc_t* __restrict x, const acc_t* __restrict mu,
                             const acc_t* __restrict sigma, int64_t count, const prior_t& prior,
                             acc_t* __restrict grad_x, acc_t* __restrict grad_mu, acc_t* __restrict rho_sum) {
  for (int64_t i = 0; i < count; ++i) {
    const GaussianGrads<acc_t> grads =
        gaussian_log_prob_grads(grad_log_prob, x[i], mu[i], sigma[i], prior.at(i), prior.scale(i), prior.family);
    grad_x[i] = grads.x;
    grad_mu[i] += grads.mu;
    rho_sum[i] += grads.rho;
  }
}

template <typename acc_t>
void log_prob_backward_kernel(const LogProbBackwardArgs& args, const General& general, Types types, int64_t begin,
                              int64_t end) {
  alignas(64) Buffer<acc_t, kTileSize> x_buffer, mu_buffer, rho_buffer, sigma, dsigma, h, rho_sum, grad_x_buffer,
      grad_mu_buffer;
  Priors<acc_t, kTileSize> priors(args.prior, general);
  PriorGradSums<acc_t> prior_grads(general, args.numel);
  for_each_piece<kTileSize>(begin, end, args.numel, [&](const Piece& piece) {
    const int64_t count = piece.count;
    const acc_t* mu = load(args.mu, types.parameters, piece.first, count, mu_buffer);
    const acc_t* rho = load(args.rho, types.parameters, piece.first, count, rho_buffer);
    acc_t* grad_mu = destination(args.grad_mu, types.parameters, piece.first, grad_mu_buffer);
    softplus_backward_piece(rho, count, sigma, dsigma, h);
    std::memset(grad_mu, 0, count * sizeof(acc_t));
    std::memset(rho_sum, 0, count * sizeof(acc_t));
    priors.move_to(piece);
    prior_grads.move_to(piece, priors);
    for (int64_t s = 0; s < args.num_samples; ++s) {
      const int64_t first = s * args.numel + piece.first;
      const acc_t* x = load(args.x, types.sample, first, count, x_buffer);
      acc_t* grad_x = destination(args.grad_x, types.sample, first, grad_x_buffer);
      const acc_t grad = static_cast<const acc_t*>(args.grad_log_prob)[s];
      priors.visit(grad, [&](const auto& prior) __attribute__((always_inline)) {
        log_prob_backward_piece(grad, x, mu, sigma, count, prior, grad_x, grad_mu, rho_sum);
      });
      if (prior_grads.asked()) prior_grads.add(grad, x, nullptr);
      store(args.grad_x, types.sample, first, count, grad_x);
    }
    store(args.grad_mu, types.parameters, piece.first, count, grad_mu);
    acc_t* grad_rho = destination(args.grad_rho, types.parameters, piece.first, rho_buffer);
    for (int64_t i = 0; i < count; ++i) grad_rho[i] = h[i] * rho_sum[i];
    store(args.grad_rho, types.parameters, piece.first, count, grad_rho);
    prior_grads.finish();
  });
}

// Sum of (sigma^2 + (mu - mu_prior)^2) / (2 std_prior^2).
template <typename acc_t, typename prior_t>
double kl_divergence_piece(const acc_t* __restrict mu, const acc_t* __restrict sigma, int64_t count,
                           const prior_t& prior) {
  LaneSum<acc_t> mu_squares, sigma_squares;
  for_each_row(count, [&](int64_t first, int64_t lanes) __attribute__((always_inline)) {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t i = first + lane;
      const acc_t z_mu = prior_score(mu[i], prior.at(i)), z_sigma = sigma[i] * prior.at(i).inverse_std;
      mu_squares.lanes[lane] = std::fma(z_mu, z_mu, mu_squares.lanes[lane]);
      sigma_squares.lanes[lane] = std::fma(z_sigma, z_sigma, sigma_squares.lanes[lane]);
    }
  });
  return 0.5 * (mu_squares.total() + sigma_squares.total());
}

template <typename acc_t>
void kl_divergence_kernel(const KlDivergenceArgs& args, const General& general, Types types, int64_t begin,
                          int64_t end) {
  alignas(64) Buffer<acc_t, kChunkSize> mu_buffer, rho_buffer, sigma;
  Priors<acc_t, kChunkSize> priors(args.prior, general);
  for_each_piece<kChunkSize>(begin, end, args.numel, [&](const Piece& piece) {
    const acc_t* mu = load(args.mu, types.parameters, piece.first, piece.count, mu_buffer);
    const acc_t* rho = load(args.rho, types.parameters, piece.first, piece.count, rho_buffer);
    const double log_sigma = softplus_piece<acc_t, true>(rho, piece.count, sigma);
    priors.move_to(piece);
    const double squares = priors.visit_normal(0, [&](const auto& prior) __attribute__((always_inline)) {
      return kl_divergence_piece(mu, sigma, piece.count, prior);
    });
    hand_on<acc_t>(squares - log_sigma + priors.log_std_sum(-0.5), 0, piece, args.kl_divergence);
  });
}

template <typename acc_t, typename prior_t>
void kl_divergence_backward_piece(acc_t grad, const acc_t* __restrict mu, const acc_t* __restrict sigma,
                                  const acc_t* __restrict dsigma, const acc_t* __restrict h, int64_t count,
                                  const prior_t& prior, acc_t* __restrict grad_mu, acc_t* __restrict grad_rho) {
  for (int64_t i = 0; i < count; ++i) {
    const GaussianGrads<acc_t> grads =
        gaussian_kl_divergence_grads(grad, mu[i], sigma[i], dsigma[i], h[i], prior.at(i), prior.scale(i));
    grad_mu[i] = grads.mu;
    grad_rho[i] = grads.rho;
  }
}

template <typename acc_t>
void kl_divergence_backward_kernel(const KlDivergenceBackwardArgs& args, const General& general, Types types,
                                   int64_t begin, int64_t end) {
  const acc_t grad = *static_cast<const acc_t*>(args.grad);
  alignas(64) Buffer<acc_t, kTileSize> mu_buffer, rho_buffer, sigma, dsigma, h, grad_mu_buffer, grad_rho_buffer;
  Priors<acc_t, kTileSize> priors(args.prior, general);
  PriorGradSums<acc_t> prior_grads(general, args.numel);
  for_each_piece<kTileSize>(begin, end, args.numel, [&](const Piece& piece) {
    const acc_t* mu = load(args.mu, types.parameters, piece.first, piece.count, mu_buffer);
    const acc_t* rho = load(args.rho, types.parameters, piece.first, piece.count, rho_buffer);
    acc_t* grad_mu = destination(args.grad_mu, types.parameters, piece.first, grad_mu_buffer);
    acc_t* grad_rho = destination(args.grad_rho, types.parameters, piece.first, grad_rho_buffer);
    softplus_backward_piece(rho, piece.count, sigma, dsigma, h);
    priors.move_to(piece);
    priors.visit_normal(grad, [&](const auto& prior) __attribute__((always_inline)) {
      kl_divergence_backward_piece(grad, mu, sigma, dsigma, h, piece.count, prior, grad_mu, grad_rho);
    });
    store(args.grad_mu, types.parameters, piece.first, piece.count, grad_mu);
    store(args.grad_rho, types.parameters, piece.first, piece.count, grad_rho);
    prior_grads.move_to(piece, priors);
    if (prior_grads.asked()) prior_grads.add(grad, mu, sigma);
    prior_grads.finish();
  });
}

ILLIA_NAMESPACE_END
