// From an op's tensors to the parts of a launch and back, for every device.
//
// A device_t offers what differs:
//   device_t(op, tensor)                      the device that holds an op's tensors
//   empty(sizes, dtype)                       a new contiguous tensor
//   Scratch scratch(count)                    doubles that last until the op ends: a type with data()
//   count_tiles(types, numel, general)        tiles of one sample, each with one partial sum
//   launch(types, parts)                      the kernel for arguments of this type, over all tensors
//   add(types, sums, tiles, num_samples)      the partial sums of each sample; `tiles` has each tensor's number of them
//   add_prior_grads(types, general, numel)    the partial sums of gradients to priors
//   sum_dtype(arithmetic)                     the dtype of the gradient to a prior of one element
//   sum_to(grads, sizes)                      gradients summed to the shape that was broadcast
// The CPU adds gradients to priors in double, CUDA in the arithmetic type.
#pragma once

#include <cmath>
#include <limits>

#include "ops/arguments.h"
#include "ops/tensors.h"

namespace illia {

inline Types types_of(ScalarType parameters, ScalarType sample) { return {storage_of(parameters), storage_of(sample)}; }

inline const Key* keys_of(const Tensor& key) { return static_cast<const Key*>(key.const_data_ptr()); }
inline const void* data_of(const std::optional<Tensor>& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }
inline void* target_of(const std::optional<Tensor>& tensor) { return tensor ? tensor->mutable_data_ptr() : nullptr; }

// What a conversion to `dtype` makes of a value: infinity beyond the range of float, which fill_ would refuse.
inline double in_range_of(ScalarType dtype, double value) {
  const bool overflows = dtype == ScalarType::Float && std::fabs(value) > std::numeric_limits<float>::max();
  return overflows ? std::copysign(std::numeric_limits<double>::infinity(), value) : value;
}

// A prior for each element of mu, contiguous in the arithmetic type.
template <typename device_t>
Tensor expand(const device_t& device, const Tensor& prior, const Tensor& mu) {
  const ScalarType dtype = log_prob_dtype(mu.scalar_type());
  // a copy from the CPU would wait for another device
  if (prior.is_cpu() && !mu.is_cpu()) {
    Tensor each = device.empty(mu.sizes(), dtype);
    return torch::stable::fill_(each, in_range_of(dtype, read_value(prior)));
  }
  if (prior.scalar_type() == dtype && same_sizes(prior.sizes(), mu.sizes())) return as_contiguous(prior);
  const Tensor each = device.empty(mu.sizes(), dtype);
  return copy_into(each, prior.numel() == 1 ? torch::stable::reshape(prior, {}) : prior);
}

// An output that is not asked for.
template <typename device_t>
Tensor not_asked_for(const device_t& device, const Tensor& mu) {
  return device.empty(Sizes{0}, mu.scalar_type());
}

// What all ops read: mu, rho and priors of each tensor. Keeps copies alive; the op's arguments keep the rest.
class Inputs {
 public:
  Inputs(const Tensors& mu, const Tensors& rho) {
    mu_.reserve(mu.size()), rho_.reserve(rho.size());
    for (const Tensor& tensor : mu) mu_.push_back(as_contiguous(tensor));
    for (const Tensor& tensor : rho) rho_.push_back(as_contiguous(tensor));
    priors_.resize(rho.size());
  }

  template <typename device_t>
  Inputs(const device_t& device, const Tensors& mu, const Tensors& rho, const Tensors& mu_prior,
         const Tensors& std_prior, const std::vector<PriorFamily>& families = {PriorFamily{}})
      : Inputs(mu, rho) {
    families_ = families;
    for (size_t k = 0; k < mu.size(); ++k) {
      if (family_of(k).family == Family::kFlat) continue;
      const Tensor &mean = prior_of(mu_prior, k), &std = prior_of(std_prior, k);
      if (mean.numel() == 1 && std.numel() == 1) {
        priors_[k].one = {scalar_of(mean), scalar_of(std)};
      } else {
        priors_[k].each_mu = expand(device, mean, mu[k]);
        priors_[k].each_std = expand(device, std, mu[k]);
      }
    }
  }

  size_t size() const { return rho_.size(); }
  bool has_mu() const { return !mu_.empty(); }
  ScalarType dtype() const { return rho_[0].scalar_type(); }
  const Tensor& like(size_t k) const { return rho_[k]; }

  // The arguments that tensor k has in every op.
  template <typename args_t>
  Part<args_t> part(size_t k) const {
    Part<args_t> part;
    part.args.mu = has_mu() ? mu_[k].const_data_ptr() : nullptr;
    part.args.rho = rho_[k].const_data_ptr();
    part.args.numel = rho_[k].numel();
    part.args.prior = priors_[k].one;
    part.general.mu_prior = data_of(priors_[k].each_mu);
    part.general.std_prior = data_of(priors_[k].each_std);
    part.general.family = family_of(k);
    return part;
  }

 private:
  const PriorFamily& family_of(size_t k) const { return families_[families_.size() == 1 ? 0 : k]; }

  // Two numbers or, where one prior has several elements, both with one for each element of mu.
  struct PriorOf {
    PriorScalars one;
    std::optional<Tensor> each_mu, each_std;
  };

  // A number on the CPU is read now; elsewhere a kernel reads it.
  static Scalar scalar_of(const Tensor& prior) {
    if (prior.is_cpu()) return {nullptr, Storage::kDouble, read_value(prior)};
    return {prior.const_data_ptr(), storage_of(prior.scalar_type()), 0};
  }

  Tensors mu_, rho_;
  std::vector<PriorOf> priors_;
  std::vector<PriorFamily> families_{PriorFamily{}};
};

// Sums over the elements of all parts, one a sample.
template <typename device_t>
class Sums {
 public:
  template <typename args_t>
  Sums(const device_t& device, const Sizes& sizes, Types types, Parts<args_t>& parts, TileSums args_t::* member)
      : device_(device), types_(types), results_(device.empty(sizes, arithmetic_dtype(types))) {
    tiles_.reserve(parts.size());
    for (const auto& part : parts) {
      tiles_.push_back(device.count_tiles(types, part.args.numel, part.general));
      sums_.num_tiles += tiles_.back();
    }
    sums_.results = results_.mutable_data_ptr();
    if (sums_.num_tiles > 1) {
      scratch_ = device.scratch(results_.numel() * sums_.num_tiles);
      sums_.partials = scratch_.data();
    }
    // the parts' tiles are side by side in each row of partials
    TileSums next = sums_;
    if (sums_.partials) next.results = nullptr;
    for (size_t k = 0; k < parts.size(); ++k) {
      parts[k].args.*member = next;
      if (sums_.partials) next.partials += tiles_[k];
    }
  }

  // After the launch, once.
  Tensor add() const {
    if (sums_.num_tiles != 1) device_.add(types_, sums_, tiles_, results_.numel());
    return results_;
  }

 private:
  const device_t& device_;
  const Types types_;
  const Tensor results_;
  std::vector<int64_t> tiles_;
  typename device_t::Scratch scratch_{};
  TileSums sums_;
};

// The gradients to the priors of one tensor: that to one element is a sum; else there is one for each element of mu,
// then summed to the prior's shape.
template <typename device_t>
class PriorGrads {
 public:
  PriorGrads(const device_t& device, bool mu_asked, bool std_asked, const Tensor& mu_prior, const Tensor& std_prior,
             const Tensor& mu)
      : device_(device), mu_(mu), to_mu_(grads_of(mu_asked, mu_prior)), to_std_(grads_of(std_asked, std_prior)) {}

  void ask(Types types, General& general) {
    general.mu_prior_grad = to_mu_.target();
    general.std_prior_grad = to_std_.target();
    if (!general.sums_prior_grads()) return;
    scratch_ = device_.scratch(2 * device_.count_tiles(types, mu_.numel(), general));
    general.prior_partials = scratch_.data();
  }

  // After the launch.
  void add(Types types, const General& general) const {
    if (general.sums_prior_grads()) device_.add_prior_grads(types, general, mu_.numel());
  }

  Tensor mu() const { return result(to_mu_); }
  Tensor std() const { return result(to_std_); }

 private:
  struct Grads {
    const Tensor& prior;
    std::optional<Tensor> grads;

    bool is_sum() const { return prior.numel() == 1; }
    PriorGrad target() const {
      PriorGrad target;
      (is_sum() ? target.sum : target.each) = target_of(grads);
      return target;
    }
  };

  Grads grads_of(bool asked, const Tensor& prior) const {
    const ScalarType arithmetic = log_prob_dtype(mu_.scalar_type());
    if (!asked) return {prior, std::nullopt};
    if (prior.numel() == 1) return {prior, device_.empty(prior.sizes(), device_.sum_dtype(arithmetic))};
    return {prior, device_.empty(mu_.sizes(), arithmetic)};
  }

  Tensor result(const Grads& to) const {
    if (!to.grads) return not_asked_for(device_, mu_);
    const bool fits = to.is_sum() || same_sizes(to.grads->sizes(), to.prior.sizes());
    return as_dtype(fits ? *to.grads : device_.sum_to(*to.grads, to.prior.sizes()), to.prior.scalar_type());
  }

  const device_t& device_;
  const Tensor& mu_;
  const Grads to_mu_, to_std_;
  typename device_t::Scratch scratch_{};
};

}  // namespace illia
