// The priors of a piece's elements, and the gradients to them.
#pragma once

#include "cpu/pieces.h"

ILLIA_NAMESPACE_BEGIN

// mu_prior and grad / std_prior^2 of one element.
template <typename acc_t>
struct ScaledPrior {
  acc_t mu, scale;
};

// Pieces have at most kSize elements.
template <typename acc_t, int64_t kSize>
class Priors {
 public:
  explicit Priors(const PriorValues& values)
      : same_(Prior<acc_t>::make(values.mu, values.std)),
        all_mu_(static_cast<const acc_t*>(values.each_mu)),
        all_std_(static_cast<const acc_t*>(values.each_std)) {}

  void move_to(const Piece& piece) {
    if (!all_std_) return;
    mu_ = all_mu_ + piece.first;
    std_ = all_std_ + piece.first;
    for (int64_t i = 0; i < piece.count; ++i) inverse_std_[i] = ElementPrior<acc_t>::make(mu_[i], std_[i]).inverse_std;
  }

  // function(prior), where prior(i) is that of element i.
  template <typename function_t>
  ILLIA_FUNCTION auto visit(function_t function) const {
    if (all_std_)
      return function([mu = mu_, inverse_std = inverse_std_](int64_t i)
                          __attribute__((always_inline)) { return ElementPrior<acc_t>{mu[i], inverse_std[i]}; });
    return function([same = same_](int64_t) __attribute__((always_inline)) { return same; });
  }

  // The same for ScaledPrior.
  template <typename function_t>
  ILLIA_FUNCTION void visit_scaled(double grad, function_t function) const {
    if (all_std_)
      return function([mu = mu_, inverse_std = inverse_std_, grad = static_cast<acc_t>(grad)](int64_t i)
                          __attribute__((always_inline)) {
                            const ElementPrior<acc_t> prior{mu[i], inverse_std[i]};
                            return ScaledPrior<acc_t>{prior.mu, prior.scale(grad)};
                          });
    const ScaledPrior<acc_t> scaled{same_.mu, same_.scale(grad)};
    function([scaled](int64_t) __attribute__((always_inline)) { return scaled; });
  }

  // Sum of log std_prior + constant.
  double log_std_sum(int64_t count, double constant = 0) const {
    if (!all_std_) return count * (same_.log_std + constant);
    LogSum<acc_t> sum;
    for_each_row(count, [&](int64_t first, int64_t lanes) __attribute__((always_inline)) {
      for (int64_t lane = 0; lane < lanes; ++lane) {
        const LogStd<acc_t> parts = log_std_parts(std_[first + lane]);
        sum.add(lane, parts.factor, parts.linear);
      }
    });
    return sum.total(count) + count * constant;
  }

 private:
  const Prior<acc_t> same_;
  const acc_t *all_mu_, *all_std_;  // [numel], or nullptr
  const acc_t *mu_ = nullptr, *std_ = nullptr;
  alignas(64) Buffer<acc_t, kSize> inverse_std_;
};

// Gradients of a tile's elements to their priors, summed over samples.
template <typename acc_t>
class PriorGradSums {
 public:
  explicit PriorGradSums(const PriorGradTargets& targets) : targets_(targets), asked_(targets.asked()) {}

  bool asked() const { return asked_; }

  void move_to(const Piece& piece) {
    piece_ = piece;
    for (int64_t i = 0; asked_ && i < piece.count; ++i) mu_[i] = std_[i] = 0;
  }

  // Those of one sample: of -grad log p(x).
  template <typename prior_t>
  void add(acc_t grad, const acc_t* __restrict x, prior_t prior) {
    for (int64_t i = 0; i < piece_.count; ++i) {
      const acc_t z_p = prior_score(x[i], prior(i));
      add(i, prior_grads(grad, z_p, z_p * z_p));
    }
  }

  // Those of grad KL(q || p).
  template <typename prior_t>
  void add_kl(acc_t grad, const acc_t* __restrict mu, const acc_t* __restrict sigma, prior_t prior) {
    for (int64_t i = 0; i < piece_.count; ++i) {
      const acc_t z_mu = prior_score(mu[i], prior(i)), z_sigma = sigma[i] * prior(i).inverse_std;
      add(i, prior_grads(grad, z_mu, std::fma(z_mu, z_mu, z_sigma * z_sigma)));
    }
  }

  template <typename prior_t>
  void hand_on(prior_t prior) {
    for (int64_t i = 0; i < piece_.count; ++i) {
      mu_[i] *= prior(i).inverse_std;
      std_[i] *= prior(i).inverse_std;
    }
    hand_on(mu_, targets_.each_mu, targets_.mu_partials);
    hand_on(std_, targets_.each_std, targets_.std_partials);
  }

 private:
  ILLIA_FUNCTION void add(int64_t i, const PriorGrads<acc_t>& grads) {
    mu_[i] += grads.mu;
    std_[i] += grads.std;
  }

  void hand_on(const acc_t* grads, void* each, double* partials) const {
    if (each) std::memcpy(static_cast<acc_t*>(each) + piece_.first, grads, piece_.count * sizeof(acc_t));
    if (!partials) return;
    LaneSum<acc_t> sum;
    for_each_row(piece_.count, [&](int64_t first, int64_t lanes) __attribute__((always_inline)) {
      for (int64_t lane = 0; lane < lanes; ++lane) sum.lanes[lane] += grads[first + lane];
    });
    partials[piece_.first / kChunkSize] += sum.total();
  }

  const PriorGradTargets& targets_;
  const bool asked_;
  Piece piece_;
  alignas(64) Buffer<acc_t, kTileSize> mu_, std_;
};

ILLIA_NAMESPACE_END
