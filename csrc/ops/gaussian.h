// The body of each op, for every device: check, allocate, launch. An op of one tensor is an op of a list of one.
//
// A device_t offers what differs:
//   device_t(op, tensor)                      the device that holds an op's tensors
//   empty(sizes, dtype)                       a new contiguous tensor
//   scratch(count)                            doubles that last until the op ends: an object with data()
//   count_tiles(types, numel, general)        tiles of one sample, each with one partial sum
//   launch(types, parts)                      the kernel for arguments of this type, over all tensors
//   add(types, sums, tiles, num_samples)      the partial sums of each sample; `tiles` has each tensor's number of them
//   add_prior_grads(types, general, numel)    the partial sums of gradients to priors
//   sum_dtype(arithmetic)                     of a gradient to a prior of one element
//   sum_to(grads, sizes)                      what broadcasting took from one element, added
#pragma once

#include "ops/arguments.h"
#include "ops/tensors.h"

namespace illia {

inline Types types_of(ScalarType parameters, ScalarType sample) { return {storage_of(parameters), storage_of(sample)}; }

inline const Key* keys_of(const Tensor& key) { return static_cast<const Key*>(key.const_data_ptr()); }
inline const void* data_of(const std::optional<Tensor>& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }
inline void* target_of(const std::optional<Tensor>& tensor) { return tensor ? tensor->mutable_data_ptr() : nullptr; }

// A prior for each element of mu, contiguous in the arithmetic type.
template <typename device_t>
Tensor expand(const device_t& device, const Tensor& prior, const Tensor& mu) {
  const ScalarType dtype = log_prob_dtype(mu.scalar_type());
  if (prior.scalar_type() == dtype && same_sizes(prior.sizes(), mu.sizes())) return as_contiguous(prior);
  Tensor each = device.empty(mu.sizes(), dtype);
  // a copy from the CPU would wait for another device
  if (prior.numel() == 1 && prior.is_cpu()) return torch::stable::fill_(each, read_value(prior));
  return copy_into(each, prior.numel() == 1 ? torch::stable::reshape(prior, {}) : prior);
}

// What all ops read: mu, rho and priors of each tensor, kept alive.
class Inputs {
 public:
  Inputs(const Tensors& mu, const Tensors& rho) {
    for (const Tensor& tensor : mu) mu_.push_back(as_contiguous(tensor));
    for (const Tensor& tensor : rho) rho_.push_back(as_contiguous(tensor));
    priors_.resize(rho.size());
  }

  template <typename device_t>
  Inputs(const device_t& device, const Tensors& mu, const Tensors& rho, const Tensors& mu_prior,
         const Tensors& std_prior)
      : Inputs(mu, rho) {
    for (size_t k = 0; k < mu.size(); ++k) {
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
    return part;
  }

 private:
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
};

// Sums over the elements of all parts, one a sample.
template <typename device_t>
class Sums {
 public:
  template <typename args_t>
  Sums(const device_t& device, const Sizes& sizes, Types types, Parts<args_t>& parts, TileSums args_t::* member)
      : device_(device),
        types_(types),
        results_(device.empty(sizes, types.parameters == Storage::kDouble ? ScalarType::Double : ScalarType::Float)) {
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

  Tensor results() const {
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
    if (!to.grads) return device_.empty(Sizes{0}, mu_.scalar_type());
    const bool fits = to.is_sum() || same_sizes(to.grads->sizes(), to.prior.sizes());
    return as_dtype(fits ? *to.grads : device_.sum_to(*to.grads, to.prior.sizes()), to.prior.scalar_type());
  }

  const device_t& device_;
  const Tensor& mu_;
  const Grads to_mu_, to_std_;
  typename device_t::Scratch scratch_{};
};

template <typename device_t>
Tensor standard_normal(Tensor key, Sizes size, ScalarType dtype, std::optional<Sizes> full_size,
                       std::optional<Sizes> origin) {
  Parts<StandardNormalArgs> parts(1);
  auto& [args, general] = parts[0];
  general.block = check_standard_normal(key, size, dtype, full_size, origin);

  const device_t device("standard_normal", key);
  const Tensor keys = as_contiguous(key), eps = device.empty(sample_sizes(key, size), dtype);
  args.keys = keys_of(keys);
  args.num_samples = count_samples(key);
  args.numel = args.num_samples ? eps.numel() / args.num_samples : 0;
  args.eps = eps.mutable_data_ptr();
  device.launch(types_of(dtype, dtype), parts);
  return eps;
}

// A sample of each tensor, and if it is asked for their log_prob.
template <typename device_t>
std::pair<Tensors, std::optional<Tensor>> draw(const device_t& device, const Inputs& inputs, const Tensor& key,
                                               std::optional<ScalarType> dtype, const std::vector<Block>& blocks,
                                               bool with_log_prob) {
  const Tensor keys = as_contiguous(key);
  const ScalarType sample_dtype = dtype.value_or(inputs.dtype());
  const Types types = types_of(inputs.dtype(), sample_dtype);
  Tensors x;
  Parts<SampleArgs> parts;
  for (size_t k = 0; k < inputs.size(); ++k) {
    x.push_back(device.empty(sample_sizes(key, inputs.like(k).sizes()), sample_dtype));
    auto& [args, general] = parts.emplace_back(inputs.part<SampleArgs>(k));
    args.keys = keys_of(keys);
    args.num_samples = count_samples(key);
    args.x = x[k].mutable_data_ptr();
    general.block = blocks[k];
  }
  if (!with_log_prob) {
    device.launch(types, parts);
    return {x, std::nullopt};
  }
  const Sums log_prob(device, log_prob_sizes(key), types, parts, &SampleArgs::log_prob);
  device.launch(types, parts);
  return {x, log_prob.results()};
}

template <typename device_t>
Tensor gaussian_sample(Tensor mu, Tensor rho, Tensor key, std::optional<ScalarType> dtype,
                       std::optional<Sizes> full_size, std::optional<Sizes> origin) {
  const Block block = check_gaussian_sample(mu, rho, key, dtype, full_size, origin);

  const device_t device("gaussian_sample", mu);
  return draw(device, Inputs({mu}, {rho}), key, dtype, {block}, false).first[0];
}

template <typename device_t>
std::tuple<Tensor, Tensor> gaussian_sample_and_log_prob(Tensor mu, Tensor rho, Tensor mu_prior, Tensor std_prior,
                                                        Tensor key, std::optional<ScalarType> dtype,
                                                        bool /*stick_the_landing*/, std::optional<Sizes> full_size,
                                                        std::optional<Sizes> origin) {
  const Block block = check_gaussian_sample_and_log_prob(mu, rho, mu_prior, std_prior, key, dtype, full_size, origin);

  const device_t device("gaussian_sample_and_log_prob", mu);
  const Inputs inputs(device, {mu}, {rho}, {mu_prior}, {std_prior});
  const auto [x, log_prob] = draw(device, inputs, key, dtype, {block}, true);
  return {x[0], *log_prob};
}

template <typename device_t>
std::tuple<Tensors, Tensor> foreach_gaussian_sample_and_log_prob(Tensors mu, Tensors rho, Tensors mu_prior,
                                                                 Tensors std_prior, Tensor key,
                                                                 std::optional<ScalarType> dtype,
                                                                 bool /*stick_the_landing*/) {
  check_foreach_gaussian_sample_and_log_prob(mu, rho, mu_prior, std_prior, key, dtype);

  const device_t device("foreach_gaussian_sample_and_log_prob", mu[0]);
  const auto [x, log_prob] =
      draw(device, Inputs(device, mu, rho, mu_prior, std_prior), key, dtype, share_stream(mu), true);
  return {x, *log_prob};
}

// The gradients of a draw: to mu and rho of each tensor, without mu in `inputs` to rho alone, and to the priors of one.
template <typename device_t>
std::tuple<Tensors, Tensors> draw_backward(const device_t& device, const Inputs& inputs, const OptionalTensors& grad_x,
                                           const std::optional<Tensor>& grad_log_prob, const Tensor& key,
                                           const std::vector<Block>& blocks, bool stick_the_landing,
                                           PriorGrads<device_t>* prior_grads = nullptr) {
  const ScalarType parameters = inputs.dtype();
  const Types types = types_of(parameters, sample_grad_dtype(grad_x, parameters));
  const Tensor keys = as_contiguous(key);
  const std::optional<Tensor> grad_log_prob_input = as_contiguous(grad_log_prob);
  OptionalTensors grad_x_inputs;
  Tensors grad_mu, grad_rho;
  Parts<SampleBackwardArgs> parts;
  for (size_t k = 0; k < inputs.size(); ++k) {
    auto& [args, general] = parts.emplace_back(inputs.part<SampleBackwardArgs>(k));
    args.grad_x = data_of(grad_x_inputs.emplace_back(as_contiguous(grad_x[k])));
    args.grad_log_prob = data_of(grad_log_prob_input);
    args.keys = keys_of(keys);
    args.num_samples = count_samples(key);
    if (inputs.has_mu())
      args.grad_mu = grad_mu.emplace_back(device.empty(inputs.like(k).sizes(), parameters)).mutable_data_ptr();
    args.grad_rho = grad_rho.emplace_back(device.empty(inputs.like(k).sizes(), parameters)).mutable_data_ptr();
    general.block = blocks[k];
    general.stick_the_landing = stick_the_landing && grad_log_prob;
  }
  if (prior_grads) prior_grads->ask(types, parts[0].general);
  device.launch(types, parts);
  if (prior_grads) prior_grads->add(types, parts[0].general);
  return {grad_mu, grad_rho};
}

template <typename device_t>
Tensor gaussian_sample_backward(Tensor grad_x, Tensor rho, Tensor key, std::optional<Sizes> full_size,
                                std::optional<Sizes> origin) {
  const Block block = check_gaussian_sample_backward(grad_x, rho, key, full_size, origin);

  const device_t device("gaussian_sample_backward", rho);
  return std::get<1>(draw_backward(device, Inputs({}, {rho}), {grad_x}, std::nullopt, key, {block}, false))[0];
}

template <typename device_t>
std::tuple<Tensor, Tensor, Tensor, Tensor> gaussian_sample_and_log_prob_backward(
    std::optional<Tensor> grad_x, std::optional<Tensor> grad_log_prob, Tensor mu, Tensor rho, Tensor mu_prior,
    Tensor std_prior, Tensor key, bool stick_the_landing, std::optional<Sizes> full_size, std::optional<Sizes> origin,
    bool prior_grads) {
  const Block block = check_gaussian_sample_and_log_prob_backward(grad_x, grad_log_prob, mu, rho, mu_prior, std_prior,
                                                                  key, full_size, origin, prior_grads);

  const device_t device("gaussian_sample_and_log_prob_backward", mu);
  const Inputs inputs(device, {mu}, {rho}, {mu_prior}, {std_prior});
  PriorGrads to_priors(device, prior_grads, prior_grads, mu_prior, std_prior, mu);
  // a kernel gives gradients to the priors with those of log_prob alone
  if (prior_grads && !grad_log_prob) {
    Tensor zeros = device.empty(log_prob_sizes(key), log_prob_dtype(mu.scalar_type()));
    grad_log_prob = torch::stable::zero_(zeros);
  }
  const auto [grad_mu, grad_rho] =
      draw_backward(device, inputs, {grad_x}, grad_log_prob, key, {block}, stick_the_landing, &to_priors);
  return {grad_mu[0], grad_rho[0], to_priors.mu(), to_priors.std()};
}

template <typename device_t>
std::tuple<Tensors, Tensors> foreach_gaussian_sample_and_log_prob_backward(OptionalTensors grad_x,
                                                                           std::optional<Tensor> grad_log_prob,
                                                                           Tensors mu, Tensors rho, Tensors mu_prior,
                                                                           Tensors std_prior, Tensor key,
                                                                           bool stick_the_landing) {
  check_foreach_gaussian_sample_and_log_prob_backward(grad_x, grad_log_prob, mu, rho, mu_prior, std_prior, key);

  const device_t device("foreach_gaussian_sample_and_log_prob_backward", mu[0]);
  const Inputs inputs(device, mu, rho, mu_prior, std_prior);
  return draw_backward(device, inputs, grad_x, grad_log_prob, key, share_stream(mu), stick_the_landing);
}

template <typename device_t>
Tensor gaussian_log_prob(Tensor x, Tensor mu, Tensor rho, Tensor mu_prior, Tensor std_prior) {
  check_gaussian_log_prob(x, mu, rho, mu_prior, std_prior);

  const device_t device("gaussian_log_prob", mu);
  const Tensor x_input = as_contiguous(x);
  const Inputs inputs(device, {mu}, {rho}, {mu_prior}, {std_prior});
  const Types types = types_of(mu.scalar_type(), x.scalar_type());
  Parts<LogProbArgs> parts{inputs.part<LogProbArgs>(0)};
  parts[0].args.x = x_input.const_data_ptr();
  parts[0].args.num_samples = count_samples(x, mu);
  const Sums log_prob(device, log_prob_sizes(x, mu), types, parts, &LogProbArgs::log_prob);
  device.launch(types, parts);
  return log_prob.results();
}

template <typename device_t>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gaussian_log_prob_backward(Tensor grad_log_prob, Tensor x, Tensor mu,
                                                                              Tensor rho, Tensor mu_prior,
                                                                              Tensor std_prior,
                                                                              std::vector<bool> output_mask) {
  check_gaussian_log_prob_backward(grad_log_prob, x, mu, rho, mu_prior, std_prior, output_mask);

  const device_t device("gaussian_log_prob_backward", mu);
  const Tensor x_input = as_contiguous(x), grad_log_prob_input = as_contiguous(grad_log_prob);
  const Inputs inputs(device, {mu}, {rho}, {mu_prior}, {std_prior});
  PriorGrads to_priors(device, output_mask[3], output_mask[4], mu_prior, std_prior, mu);
  const auto output = [&](bool asked, const Tensor& like) {
    return asked ? std::optional<Tensor>(device.empty(like.sizes(), like.scalar_type())) : std::nullopt;
  };
  const std::optional<Tensor> grad_x = output(output_mask[0], x), grad_mu = output(output_mask[1], mu),
                              grad_rho = output(output_mask[2], rho);
  const Types types = types_of(mu.scalar_type(), x.scalar_type());
  Parts<LogProbBackwardArgs> parts{inputs.part<LogProbBackwardArgs>(0)};
  auto& [args, general] = parts[0];
  args.grad_log_prob = grad_log_prob_input.const_data_ptr();
  args.x = x_input.const_data_ptr();
  args.num_samples = count_samples(x, mu);
  args.grad_x = target_of(grad_x);
  args.grad_mu = target_of(grad_mu);
  args.grad_rho = target_of(grad_rho);
  to_priors.ask(types, general);
  device.launch(types, parts);
  to_priors.add(types, general);
  const auto result = [&](const std::optional<Tensor>& grad) {
    return grad ? *grad : device.empty(Sizes{0}, mu.scalar_type());
  };
  return {result(grad_x), result(grad_mu), result(grad_rho), to_priors.mu(), to_priors.std()};
}

// KL(q || p) of all tensors.
template <typename device_t>
Tensor kl_divergence(const device_t& device, const Inputs& inputs) {
  const Types types = types_of(inputs.dtype(), inputs.dtype());
  Parts<KlDivergenceArgs> parts;
  for (size_t k = 0; k < inputs.size(); ++k) parts.push_back(inputs.part<KlDivergenceArgs>(k));
  const Sums sum(device, Sizes{}, types, parts, &KlDivergenceArgs::kl_divergence);
  device.launch(types, parts);
  return sum.results();
}

template <typename device_t>
Tensor gaussian_kl_divergence(Tensor mu, Tensor rho, Tensor mu_prior, Tensor std_prior) {
  check_gaussian_kl_divergence(mu, rho, mu_prior, std_prior);

  const device_t device("gaussian_kl_divergence", mu);
  return kl_divergence(device, Inputs(device, {mu}, {rho}, {mu_prior}, {std_prior}));
}

template <typename device_t>
Tensor foreach_gaussian_kl_divergence(Tensors mu, Tensors rho, Tensors mu_prior, Tensors std_prior) {
  check_foreach_parameters(mu, rho, mu_prior, std_prior);

  const device_t device("foreach_gaussian_kl_divergence", mu[0]);
  return kl_divergence(device, Inputs(device, mu, rho, mu_prior, std_prior));
}

// Its gradients to mu and rho of each tensor, and to the priors of one.
template <typename device_t>
std::tuple<Tensors, Tensors> kl_divergence_backward(const device_t& device, const Inputs& inputs, const Tensor& grad,
                                                    PriorGrads<device_t>* prior_grads = nullptr) {
  const ScalarType parameters = inputs.dtype();
  const Types types = types_of(parameters, parameters);
  Tensors grad_mu, grad_rho;
  Parts<KlDivergenceBackwardArgs> parts;
  for (size_t k = 0; k < inputs.size(); ++k) {
    KlDivergenceBackwardArgs& args = parts.emplace_back(inputs.part<KlDivergenceBackwardArgs>(k)).args;
    args.grad = grad.const_data_ptr();
    args.grad_mu = grad_mu.emplace_back(device.empty(inputs.like(k).sizes(), parameters)).mutable_data_ptr();
    args.grad_rho = grad_rho.emplace_back(device.empty(inputs.like(k).sizes(), parameters)).mutable_data_ptr();
  }
  if (prior_grads) prior_grads->ask(types, parts[0].general);
  device.launch(types, parts);
  if (prior_grads) prior_grads->add(types, parts[0].general);
  return {grad_mu, grad_rho};
}

template <typename device_t>
std::tuple<Tensor, Tensor, Tensor, Tensor> gaussian_kl_divergence_backward(Tensor grad, Tensor mu, Tensor rho,
                                                                           Tensor mu_prior, Tensor std_prior,
                                                                           bool prior_grads) {
  check_gaussian_kl_divergence_backward(grad, mu, rho, mu_prior, std_prior, prior_grads);

  const device_t device("gaussian_kl_divergence_backward", mu);
  const Inputs inputs(device, {mu}, {rho}, {mu_prior}, {std_prior});
  PriorGrads to_priors(device, prior_grads, prior_grads, mu_prior, std_prior, mu);
  const auto [grad_mu, grad_rho] = kl_divergence_backward(device, inputs, grad, &to_priors);
  return {grad_mu[0], grad_rho[0], to_priors.mu(), to_priors.std()};
}

template <typename device_t>
std::tuple<Tensors, Tensors> foreach_gaussian_kl_divergence_backward(Tensor grad, Tensors mu, Tensors rho,
                                                                     Tensors mu_prior, Tensors std_prior) {
  check_foreach_gaussian_kl_divergence_backward(grad, mu, rho, mu_prior, std_prior);

  const device_t device("foreach_gaussian_kl_divergence_backward", mu[0]);
  return kl_divergence_backward(device, Inputs(device, mu, rho, mu_prior, std_prior), grad);
}

}  // namespace illia

// do_with(op) for each op.
#define ILLIA_FOR_EACH_OP(do_with)                        \
  do_with(standard_normal);                               \
  do_with(gaussian_sample);                               \
  do_with(gaussian_sample_backward);                      \
  do_with(gaussian_log_prob);                             \
  do_with(gaussian_log_prob_backward);                    \
  do_with(gaussian_sample_and_log_prob);                  \
  do_with(gaussian_sample_and_log_prob_backward);         \
  do_with(gaussian_kl_divergence);                        \
  do_with(gaussian_kl_divergence_backward);               \
  do_with(foreach_gaussian_sample_and_log_prob);          \
  do_with(foreach_gaussian_sample_and_log_prob_backward); \
  do_with(foreach_gaussian_kl_divergence);                \
  do_with(foreach_gaussian_kl_divergence_backward)
