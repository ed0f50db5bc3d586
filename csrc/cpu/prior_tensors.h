// From the tensors of the priors to a kernel's memory, and from its gradients back to tensors like them.
#pragma once

#include "cpu/launch.h"

namespace illia {

// Two numbers or, where one prior has several elements, both with one for each element of mu.
class PriorInput {
 public:
  PriorInput(const Tensor& mu_prior, const Tensor& std_prior, const Tensor& mu) {
    if (mu_prior.numel() == 1 && std_prior.numel() == 1) {
      values_ = {read_value(mu_prior), read_value(std_prior)};
      return;
    }
    each_mu_ = expand_as(mu_prior, mu, host());
    each_std_ = expand_as(std_prior, mu, host());
    values_ = {0, 1, each_mu_->const_data_ptr(), each_std_->const_data_ptr()};
  }
  operator PriorValues() const { return values_; }

 private:
  std::optional<Tensor> each_mu_, each_std_;
  PriorValues values_;
};

// The gradient to a prior: one number is the sum of its chunks; else one for each element, then summed to its shape.
class PriorGrad {
 public:
  PriorGrad(bool asked, const Tensor& prior, const Tensor& mu) : prior_(prior), mu_(mu) {
    if (!asked) return;
    if (prior.numel() == 1) {
      partials_.emplace(1, mu.numel());
    } else {
      each_.emplace(mu.sizes(), log_prob_dtype(mu.scalar_type()));
    }
  }
  void* each() const { return each_ ? MutableView(*each_).data : nullptr; }
  double* partials() { return partials_ ? partials_->data() : nullptr; }

  Tensor result() const {
    if (partials_) {
      const Tensor sum = empty(prior_.sizes(), ScalarType::Double, host());
      partials_->sum_into(sum);
      return as_dtype(sum, prior_.scalar_type());
    }
    if (!each_) return not_asked_for(mu_);
    const Tensor& grads = each_->tensor();
    if (same_sizes(prior_.sizes(), grads.sizes())) return as_dtype(grads, prior_.scalar_type());
    return as_dtype(grads.scalar_type() == ScalarType::Double ? sum_to_prior(grads.const_data_ptr<double>())
                                                              : sum_to_prior(grads.const_data_ptr<float>()),
                    prior_.scalar_type());
  }

 private:
  // Adds what broadcasting took from one element, in the order of the elements and in double.
  template <typename acc_t>
  Tensor sum_to_prior(const acc_t* grads) const {
    const Tensor sums = empty(prior_.sizes(), ScalarType::Double, host());
    double* values = sums.mutable_data_ptr<double>();
    std::fill(values, values + sums.numel(), 0.0);
    const auto sizes = mu_.sizes();
    const size_t missing = sizes.size() - prior_.sizes().size();
    Sizes strides(sizes.size()), index(sizes.size());
    for (size_t dim = missing; dim < sizes.size(); ++dim)
      strides[dim] = sizes[dim] == prior_.size(dim - missing) ? sums.stride(dim - missing) : 0;
    const int64_t row_size = sizes.back(), row_stride = strides.back();
    int64_t place = 0;
    for (int64_t first = 0; first < mu_.numel(); first += row_size) {
      for (int64_t i = 0; i < row_size; ++i) values[place + i * row_stride] += static_cast<double>(grads[first + i]);
      for (size_t dim = sizes.size() - 1; dim-- > 0;) {
        place += strides[dim];
        if (++index[dim] < sizes[dim]) break;
        place -= index[dim] * strides[dim];
        index[dim] = 0;
      }
    }
    return sums;
  }

  const Tensor &prior_, &mu_;
  std::optional<Output> each_;
  std::optional<Partials> partials_;
};

// Both gradients and what a kernel is told of them.
class PriorGrads {
 public:
  PriorGrads(bool mu_asked, bool std_asked, const Tensor& mu_prior, const Tensor& std_prior, const Tensor& mu)
      : mu(mu_asked, mu_prior, mu), std(std_asked, std_prior, mu) {}
  operator PriorGradTargets() { return {mu.each(), std.each(), mu.partials(), std.partials()}; }

  PriorGrad mu, std;
};

}  // namespace illia
