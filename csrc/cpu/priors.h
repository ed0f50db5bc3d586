// The priors of a piece's elements, and the gradients to them.
#pragma once

#include "cpu/pieces.h"

ILLIA_NAMESPACE_BEGIN

// What a piece reads of its priors: element i's, and grad / std_prior of element i for the grad of one sample. Both
// kinds have the same members; the first is constant in a loop.
template <typename acc_t, typename family_t>
struct SamePrior {
  Prior<acc_t> prior;
  acc_t prior_scale;
  family_t family;

  SamePrior(const Prior<acc_t>& prior, double grad, const family_t& family)
      : prior(prior), prior_scale(prior.scale(grad)), family(family) {}
  ILLIA_FUNCTION const Prior<acc_t>& at(int64_t) const { return prior; }
  ILLIA_FUNCTION acc_t scale(int64_t) const { return prior_scale; }
};

template <typename acc_t, typename family_t>
struct EachPrior {
  const acc_t *mu, *inverse_std;  // [count]
  acc_t grad;
  family_t family;

  ILLIA_FUNCTION ElementPrior<acc_t> at(int64_t i) const { return {mu[i], inverse_std[i]}; }
  ILLIA_FUNCTION acc_t scale(int64_t i) const { return at(i).scale(grad); }
};

// Sum of log std_prior.
template <typename acc_t>
double log_std_piece(const acc_t* __restrict std, int64_t count) {
  LogSum<acc_t> sum;
  for_each_row(count, [&](int64_t first, int64_t lanes) __attribute__((always_inline)) {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const LogStd<acc_t> parts = log_std_parts(std[first + lane]);
      sum.add(lane, parts.factor, parts.linear);
    }
  });
  return sum.total(count);
}

// Pieces have at most kSize elements.
template <typename acc_t, int64_t kSize>
class Priors {
 public:
  // Scalars lie in `value`: whoever launches on a CPU can read them.
  Priors(const PriorScalars& one, const General& general)
      : same_(Prior<acc_t>::make(one.mu.value, one.std.value)),
        family_(AnyFamily<acc_t>::make(general.family)),
        constant_(general.family.constant),
        each_mu_(static_cast<const acc_t*>(general.mu_prior)),
        each_std_(static_cast<const acc_t*>(general.std_prior)) {}

  void move_to(const Piece& piece) {
    piece_ = piece;
    if (each_std_) invert();
  }

  // function(prior), where prior is a SamePrior or an EachPrior of a Gaussian, the latter only for a function that
  // reads its prior.
  template <bool kReads = true, typename function_t>
  ILLIA_FUNCTION auto visit_normal(double grad, function_t function) const {
    return visit_kind<kReads>(NormalFamily<acc_t>{}, grad, function);
  }

  // The same of any family.
  template <bool kReads = true, typename function_t>
  ILLIA_FUNCTION auto visit(double grad, function_t function) const {
    if constexpr (kReads)
      if (family_.family != Family::kNormal) return visit_other(grad, function);
    return visit_normal<kReads>(grad, function);
  }

  // Sum of log std_prior + constant, beside the family's.
  double log_std_sum(double constant = 0) const {
    constant += constant_;
    if (each_std_) return log_std_piece(each_std_ + piece_.first, piece_.count) + piece_.count * constant;
    return piece_.count * (same_.log_std + constant);
  }

  // mu_prior and 1 / std_prior of every element.
  ILLIA_APART void copy_to(acc_t* __restrict mu, acc_t* __restrict inverse_std) const {
    for (int64_t i = 0; i < piece_.count; ++i) {
      mu[i] = each_std_ ? each_mu_[piece_.first + i] : same_.mu;
      inverse_std[i] = each_std_ ? inverse_std_[i] : same_.inverse_std;
    }
  }

 private:
  template <bool kReads, typename family_t, typename function_t>
  ILLIA_FUNCTION auto visit_kind(const family_t& family, double grad, function_t function) const {
    if (kReads && each_std_)
      return function(
          EachPrior<acc_t, family_t>{each_mu_ + piece_.first, inverse_std_, static_cast<acc_t>(grad), family});
    return function(SamePrior<acc_t, family_t>(same_, grad, family));
  }

  template <typename function_t>
  ILLIA_APART auto visit_other(double grad, function_t function) const {
    return family_.visit([&](const auto& family)
                             __attribute__((always_inline)) { return visit_kind<true>(family, grad, function); });
  }

  ILLIA_APART void invert() {
    const acc_t* __restrict std = each_std_ + piece_.first;
    for (int64_t i = 0; i < piece_.count; ++i) inverse_std_[i] = ElementPrior<acc_t>::make(0, std[i]).inverse_std;
  }

  const Prior<acc_t> same_;
  const AnyFamily<acc_t> family_;
  const double constant_;
  const acc_t *each_mu_, *each_std_;  // [numel], or nullptr
  Piece piece_;
  alignas(64) Buffer<acc_t, kSize> inverse_std_;
};

// Gradients of a tile's elements to their priors, summed over samples.
template <typename acc_t>
class PriorGradSums {
 public:
  PriorGradSums(const General& general, int64_t numel)
      : general_(general),
        family_(AnyFamily<acc_t>::make(general.family)),
        num_chunks_(count_chunks(numel)),
        asked_(general.mu_prior_grad.asked() || general.std_prior_grad.asked()) {}

  bool asked() const { return asked_; }

  void move_to(const Piece& piece, const Priors<acc_t, kTileSize>& priors) {
    if (asked_) begin(piece, priors);
  }

  void finish() {
    if (asked_) hand_on();
  }

  // Those of -grad log p(x), or with sigma of grad KL(N(x, sigma^2) || p) for a Gaussian p.
  ILLIA_APART void add(acc_t grad, const acc_t* __restrict x, const acc_t* __restrict sigma) {
    for (int64_t i = 0; i < piece_.count; ++i) {
      const acc_t z_p = prior_score(x[i], ElementPrior<acc_t>{mu_prior_[i], inverse_std_[i]});
      const acc_t z_sigma = sigma ? sigma[i] * inverse_std_[i] : acc_t{0}, slope = family_.slope(z_p);
      const ElementPriorGrads<acc_t> grads = element_prior_grads(grad, slope, std::fma(z_p, slope, z_sigma * z_sigma));
      mu_[i] += grads.mu;
      std_[i] += grads.std;
    }
  }

 private:
  ILLIA_APART void begin(const Piece& piece, const Priors<acc_t, kTileSize>& priors) {
    piece_ = piece;
    priors.copy_to(mu_prior_, inverse_std_);
    std::memset(mu_, 0, sizeof(mu_));
    std::memset(std_, 0, sizeof(std_));
  }

  ILLIA_APART void hand_on() {
    for (int64_t i = 0; i < piece_.count; ++i) {
      mu_[i] *= inverse_std_[i];
      std_[i] *= inverse_std_[i];
    }
    hand_on(mu_, general_.mu_prior_grad, 0);
    hand_on(std_, general_.std_prior_grad, 1);
  }

  ILLIA_APART void hand_on(const acc_t* grads, const PriorGrad& to, int64_t row) const {
    if (to.each) std::memcpy(static_cast<acc_t*>(to.each) + piece_.first, grads, piece_.count * sizeof(acc_t));
    if (!to.sum) return;
    LaneSum<acc_t> sum;
    for_each_row(piece_.count, [&](int64_t first, int64_t lanes) __attribute__((always_inline)) {
      for (int64_t lane = 0; lane < lanes; ++lane) sum.lanes[lane] += grads[first + lane];
    });
    general_.prior_partials[row * num_chunks_ + piece_.first / kChunkSize] += sum.total();
  }

  const General& general_;
  const AnyFamily<acc_t> family_;
  const int64_t num_chunks_;
  const bool asked_;
  Piece piece_;
  alignas(64) Buffer<acc_t, kTileSize> mu_prior_, inverse_std_, mu_, std_;
};

ILLIA_NAMESPACE_END
