// standard_normal, and sample_and_log_prob with its backward (the plain sample is the same without its sums).
#pragma once

#include "cpu/noise.h"
#include "cpu/priors.h"

ILLIA_NAMESPACE_BEGIN

template <typename acc_t>
void standard_normal_kernel(const StandardNormalArgs& args, const General& general, Types types, int64_t begin,
                            int64_t end) {
  Noise<acc_t> noise(general.block);
  for_each_piece<kChunkSize>(begin, end, args.numel, [&](const Piece& piece) {
    noise.move_to(piece);
    for (int64_t s = 0; s < args.num_samples; ++s)
      store(args.eps, types.sample, s * args.numel + piece.first, piece.count, noise.draw(args.keys, s));
  });
}

// x, and with kLogProb the sum of energy(z_p) - eps^2 / 2: the quadratic term of log q(x) is exactly -eps^2 / 2.
template <typename acc_t, bool kLogProb, typename prior_t>
double sample_piece(const acc_t* __restrict mu, const acc_t* __restrict sigma, const acc_t* __restrict eps,
                    int64_t count, const prior_t& prior, acc_t* __restrict x) {
  LaneSum<acc_t> prior_energies, eps_squares;
  for_each_row(count, [&](int64_t first, int64_t lanes) __attribute__((always_inline)) {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t i = first + lane;
      const acc_t x_i = gaussian_sample(mu[i], sigma[i], eps[i]);
      x[i] = x_i;
      if constexpr (kLogProb) {
        const acc_t z_p = prior_score(x_i, prior.at(i));
        prior_energies.lanes[lane] = prior.family.add_twice(z_p, prior_energies.lanes[lane]);
        eps_squares.lanes[lane] = std::fma(eps[i], eps[i], eps_squares.lanes[lane]);
      }
    }
  });
  return 0.5 * (prior_energies.total() - eps_squares.total());
}

template <typename acc_t, bool kLogProb>
void sample_pieces(const SampleArgs& args, const General& general, Types types, int64_t begin, int64_t end) {
  alignas(64) Buffer<acc_t, kChunkSize> mu_buffer, rho_buffer, sigma, x_buffer;
  Noise<acc_t> noise(general.block);
  Priors<acc_t, kChunkSize> priors(args.prior, general);
  for_each_piece<kChunkSize>(begin, end, args.numel, [&](const Piece& piece) {
    const acc_t* mu = load(args.mu, types.parameters, piece.first, piece.count, mu_buffer);
    const acc_t* rho = load(args.rho, types.parameters, piece.first, piece.count, rho_buffer);
    const double log_sigma = softplus_piece<acc_t, kLogProb>(rho, piece.count, sigma);
    noise.move_to(piece);
    priors.move_to(piece);
    const double log_std = kLogProb ? priors.log_std_sum() : 0;
    for (int64_t s = 0; s < args.num_samples; ++s) {
      const int64_t first = s * args.numel + piece.first;
      acc_t* x = destination(args.x, types.sample, first, x_buffer);
      const acc_t* eps = noise.draw(args.keys, s, general.antithetic);
      const double squares = priors.template visit<kLogProb>(0, [&](const auto& prior) __attribute__((always_inline)) {
        return sample_piece<acc_t, kLogProb>(mu, sigma, eps, piece.count, prior, x);
      });
      store(args.x, types.sample, first, piece.count, x);
      if constexpr (kLogProb) hand_on<acc_t>(squares - log_sigma + log_std, s, piece, args.log_prob);
    }
  });
}

template <typename acc_t>
void sample_kernel(const SampleArgs& args, const General& general, Types types, int64_t begin, int64_t end) {
  (args.log_prob.asked() ? sample_pieces<acc_t, true> : sample_pieces<acc_t, false>)(args, general, types, begin, end);
}

// Adds one sample's gradients: grad_mu += g and rho_sum += g eps, where g is the gradient to x.
template <typename acc_t, bool kLogProb, typename prior_t>
void sample_backward_piece(const acc_t* __restrict grad_x, const acc_t* __restrict mu, const acc_t* __restrict sigma,
                           const acc_t* __restrict eps, int64_t count, const prior_t& prior, acc_t* __restrict grad_mu,
                           acc_t* __restrict rho_sum) {
  for (int64_t i = 0; i < count; ++i) {
    acc_t g = grad_x[i];
    if constexpr (kLogProb)
      g = sample_grad(g, gaussian_sample(mu[i], sigma[i], eps[i]), prior.at(i), prior.scale(i), prior.family);
    grad_mu[i] += g;
    rho_sum[i] = std::fma(g, eps[i], rho_sum[i]);
  }
}

// What stick_the_landing changes: grad_mu, and the factor of -h, which is otherwise the sum of grad_log_prob.
template <typename acc_t>
void hold_fixed_piece(acc_t grad_log_prob, const acc_t* __restrict sigma, const acc_t* __restrict eps, int64_t count,
                      acc_t* __restrict grad_mu, acc_t* __restrict h_scale) {
  for (int64_t i = 0; i < count; ++i) {
    const HeldFixedGrads<acc_t> held = held_fixed_grads(grad_log_prob, eps[i], sigma[i]);
    grad_mu[i] -= held.mu;
    h_scale[i] += held.h_scale;
  }
}

// grad_rho = dsigma rho_sum - h_scale h
template <typename acc_t, bool kLogProb, typename scale_t>
void grad_rho_piece(const acc_t* __restrict dsigma, const acc_t* __restrict h, const acc_t* __restrict rho_sum,
                    int64_t count, scale_t h_scale, acc_t* __restrict grad_rho) {
  for (int64_t i = 0; i < count; ++i) {
    grad_rho[i] = dsigma[i] * rho_sum[i];
    if constexpr (kLogProb) grad_rho[i] = std::fma(-h_scale(i), h[i], grad_rho[i]);
  }
}

template <typename acc_t, bool kLogProb>
void sample_backward_pieces(const SampleBackwardArgs& args, const General& general, Types types, int64_t begin,
                            int64_t end) {
  const bool hold_fixed = kLogProb && general.stick_the_landing;
  const acc_t* grad_log_prob = static_cast<const acc_t*>(args.grad_log_prob);
  double grad_log_prob_sum = 0;
  if constexpr (kLogProb)
    for (int64_t s = 0; s < args.num_samples; ++s) grad_log_prob_sum += static_cast<double>(grad_log_prob[s]);
  alignas(64) Buffer<acc_t, kTileSize> grad_x_buffer, mu_buffer, rho_buffer, sigma, dsigma, h, rho_sum, grad_mu_buffer,
      h_scale, x;
  Noise<acc_t> noise(general.block);
  Priors<acc_t, kTileSize> priors(args.prior, general);
  PriorGradSums<acc_t> prior_grads(general, args.numel);
  for_each_piece<kTileSize>(begin, end, args.numel, [&](const Piece& piece) {
    const int64_t count = piece.count;
    const acc_t* mu = kLogProb ? load(args.mu, types.parameters, piece.first, count, mu_buffer) : nullptr;
    const acc_t* rho = load(args.rho, types.parameters, piece.first, count, rho_buffer);
    acc_t* grad_mu = destination(args.grad_mu, types.parameters, piece.first, grad_mu_buffer);
    softplus_backward_piece(rho, count, sigma, dsigma, h);
    std::memset(grad_mu, 0, count * sizeof(acc_t));
    std::memset(rho_sum, 0, count * sizeof(acc_t));
    if (hold_fixed) std::memset(h_scale, 0, count * sizeof(acc_t));
    noise.move_to(piece);
    priors.move_to(piece);
    prior_grads.move_to(piece, priors);
    for (int64_t s = 0; s < args.num_samples; ++s) {
      const acc_t* grad_x =
          load_or_zeros(args.grad_x, types.sample, s * args.numel + piece.first, count, grad_x_buffer);
      const acc_t* eps = noise.draw(args.keys, s, general.antithetic);
      const acc_t grad = kLogProb ? grad_log_prob[s] : 0;
      priors.template visit<kLogProb>(grad, [&](const auto& prior) __attribute__((always_inline)) {
        sample_backward_piece<acc_t, kLogProb>(grad_x, mu, sigma, eps, count, prior, grad_mu, rho_sum);
      });
      if (hold_fixed) hold_fixed_piece(grad, sigma, eps, count, grad_mu, h_scale);
      if (kLogProb && prior_grads.asked()) {
        for (int64_t i = 0; i < count; ++i) x[i] = gaussian_sample(mu[i], sigma[i], eps[i]);
        prior_grads.add(grad, x, nullptr);
      }
    }
    store(args.grad_mu, types.parameters, piece.first, count, grad_mu);
    acc_t* grad_rho = destination(args.grad_rho, types.parameters, piece.first, rho_buffer);
    if (hold_fixed) {
      const auto scale = [&](int64_t i) { return h_scale[i]; };
      grad_rho_piece<acc_t, kLogProb>(dsigma, h, rho_sum, count, scale, grad_rho);
    } else {
      const auto scale = [sum = static_cast<acc_t>(grad_log_prob_sum)](int64_t) { return sum; };
      grad_rho_piece<acc_t, kLogProb>(dsigma, h, rho_sum, count, scale, grad_rho);
    }
    store(args.grad_rho, types.parameters, piece.first, count, grad_rho);
    prior_grads.finish();
  });
}

template <typename acc_t>
void sample_backward_kernel(const SampleBackwardArgs& args, const General& general, Types types, int64_t begin,
                            int64_t end) {
  (args.grad_log_prob ? sample_backward_pieces<acc_t, true> : sample_backward_pieces<acc_t, false>)(args, general,
                                                                                                    types, begin, end);
}

ILLIA_NAMESPACE_END
