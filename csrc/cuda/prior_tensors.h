// From the tensors of the priors to a kernel's memory, and from its gradients back to tensors like them.
#pragma once

#include "cuda/device.h"

namespace illia {
namespace cuda {

// Two numbers or, where one prior has several elements, both with one for each element of mu.
class PriorInput {
 public:
  PriorInput(const Device& device, const Tensor& mu_prior, const Tensor& std_prior, const Tensor& mu,
             General& general) {
    if (mu_prior.numel() == 1 && std_prior.numel() == 1) {
      scalars_ = {scalar_of(mu_prior), scalar_of(std_prior)};
      return;
    }
    each_mu_ = device.expand(mu_prior, mu);
    each_std_ = device.expand(std_prior, mu);
    general.mu_prior = data_of(each_mu_);
    general.std_prior = data_of(each_std_);
  }
  operator PriorScalars() const { return scalars_; }

 private:
  // A prior on the CPU is read now; one on the device is read there.
  static Scalar scalar_of(const Tensor& prior) {
    if (prior.is_cpu()) return {nullptr, Storage::kDouble, read_value(prior)};
    return {prior.const_data_ptr(), storage_of(prior.scalar_type()), 0};
  }

  std::optional<Tensor> each_mu_, each_std_;
  PriorScalars scalars_{{}, {nullptr, Storage::kDouble, 1}};  // log 1 adds nothing to sums
};

// The gradient to a prior: of one element it is a sum; else there is one for each element of mu, then summed to the
// prior's shape.
class PriorGradTensor {
 public:
  PriorGradTensor(const Device& device, bool asked, const Tensor& prior, const Tensor& mu) : prior_(prior) {
    if (asked) grads_ = device.empty(is_sum() ? prior.sizes() : mu.sizes(), log_prob_dtype(mu.scalar_type()));
  }

  PriorGrad target() const { return is_sum() ? PriorGrad{nullptr, target_of(grads_)} : PriorGrad{target_of(grads_)}; }

  Tensor result(const Device& device, const Tensor& mu) const {
    if (!grads_) return device.not_asked_for(mu);
    return as_dtype(same_sizes(grads_->sizes(), prior_.sizes()) ? *grads_ : sum_to_prior(*grads_),
                    prior_.scalar_type());
  }

 private:
  bool is_sum() const { return prior_.numel() == 1; }

  Tensor sum_to_prior(const Tensor& grads) const {
    const int64_t missing = grads.dim() - prior_.dim();
    Sizes dims;
    for (int64_t dim = 0; dim < grads.dim(); ++dim)
      if (dim < missing || prior_.size(dim - missing) != grads.size(dim)) dims.push_back(dim);
    return torch::stable::reshape(torch::stable::sum(grads, IntHeaderOnlyArrayRef(dims)), prior_.sizes());
  }

  const Tensor& prior_;
  std::optional<Tensor> grads_;
};

// Both gradients, of which `general` learns.
class PriorGradTensors {
 public:
  PriorGradTensors(const Device& device, bool mu_asked, bool std_asked, const Tensor& mu_prior, const Tensor& std_prior,
                   const Tensor& mu, General& general)
      : mu_(device, mu_asked, mu_prior, mu), std_(device, std_asked, std_prior, mu) {
    general.mu_prior_grad = mu_.target();
    general.std_prior_grad = std_.target();
    if (!general.sums_prior_grads()) return;
    partials_ =
        device.empty(Sizes{2, count_tiles(storage_of(mu.scalar_type()), mu.numel(), general)}, ScalarType::Double);
    general.prior_partials = static_cast<double*>(partials_->mutable_data_ptr());
  }

  Tensor mu(const Device& device, const Tensor& mu) const { return mu_.result(device, mu); }
  Tensor std(const Device& device, const Tensor& mu) const { return std_.result(device, mu); }

 private:
  PriorGradTensor mu_, std_;
  std::optional<Tensor> partials_;
};

}  // namespace cuda
}  // namespace illia
