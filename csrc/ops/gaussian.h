// The body of each op, for every device: check, allocate, launch. An op of one tensor is an op of a list of one.
#pragma once

#include "ops/parts.h"

namespace illia {

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

// A sample of each tensor, and their log_prob where it is to be written.
template <typename device_t>
Tensors draw(const device_t& device, const Inputs& inputs, const Tensor& key, std::optional<ScalarType> dtype,
             const std::vector<Block>& blocks, bool antithetic, std::optional<Tensor>* log_prob = nullptr) {
  const Tensor keys = as_contiguous(key);
  const ScalarType sample_dtype = dtype.value_or(inputs.dtype());
  const Types types = types_of(inputs.dtype(), sample_dtype);
  Tensors x;
  Parts<SampleArgs> parts;
  x.reserve(inputs.size()), parts.reserve(inputs.size());
  for (size_t k = 0; k < inputs.size(); ++k) {
    x.push_back(device.empty(sample_sizes(key, inputs.like(k).sizes()), sample_dtype));
    auto& [args, general] = parts.emplace_back(inputs.part<SampleArgs>(k));
    args.keys = keys_of(keys);
    args.num_samples = count_samples(key);
    args.x = x[k].mutable_data_ptr();
    general.block = blocks[k];
    general.antithetic = antithetic;
  }
  if (!log_prob) {
    device.launch(types, parts);
    return x;
  }
  const Sums sums(device, log_prob_sizes(key), types, parts, &SampleArgs::log_prob);
  device.launch(types, parts);
  *log_prob = sums.add();
  return x;
}

template <typename device_t>
Tensor gaussian_sample(Tensor mu, Tensor rho, Tensor key, std::optional<ScalarType> dtype,
                       std::optional<Sizes> full_size, std::optional<Sizes> origin, bool antithetic) {
  const Block block = check_gaussian_sample(mu, rho, key, dtype, full_size, origin, antithetic);

  const device_t device("gaussian_sample", mu);
  return draw(device, Inputs({mu}, {rho}), key, dtype, {block}, antithetic)[0];
}

template <typename device_t>
std::tuple<Tensor, Tensor> gaussian_sample_and_log_prob(Tensor mu, Tensor rho, Tensor mu_prior, Tensor std_prior,
                                                        Tensor key, std::optional<ScalarType> dtype,
                                                        bool /*stick_the_landing*/, std::optional<Sizes> full_size,
                                                        std::optional<Sizes> origin, FamilyName family,
                                                        FamilyParameters family_parameters, bool antithetic) {
  const PriorFamily of_prior = check_family(family, family_parameters);
  const Block block =
      check_gaussian_sample_and_log_prob(mu, rho, mu_prior, std_prior, key, dtype, full_size, origin, antithetic);

  const device_t device("gaussian_sample_and_log_prob", mu);
  std::optional<Tensor> log_prob;
  const Inputs inputs(device, {mu}, {rho}, {mu_prior}, {std_prior}, {of_prior});
  const Tensors x = draw(device, inputs, key, dtype, {block}, antithetic, &log_prob);
  return {x[0], *log_prob};
}

template <typename device_t>
std::tuple<Tensors, Tensor> foreach_gaussian_sample_and_log_prob(Tensors mu, Tensors rho, Tensors mu_prior,
                                                                 Tensors std_prior, Tensor key,
                                                                 std::optional<ScalarType> dtype,
                                                                 bool /*stick_the_landing*/, FamilyNames family,
                                                                 FamilyParameters family_parameters, bool antithetic) {
  check_foreach_gaussian_sample_and_log_prob(mu, rho, mu_prior, std_prior, key, dtype, antithetic);
  const std::vector<PriorFamily> families = check_families(family, family_parameters, mu.size());

  const device_t device("foreach_gaussian_sample_and_log_prob", mu[0]);
  std::optional<Tensor> log_prob;
  const Inputs inputs(device, mu, rho, mu_prior, std_prior, families);
  const Tensors x = draw(device, inputs, key, dtype, share_stream(mu), antithetic, &log_prob);
  return {x, *log_prob};
}

// The gradients of a draw: to mu and rho of each tensor (to rho alone where `inputs` has no mu) and, of a single
// tensor, to its priors.
template <typename device_t>
std::tuple<Tensors, Tensors> draw_backward(const device_t& device, const Inputs& inputs, const OptionalTensors& grad_x,
                                           const std::optional<Tensor>& grad_log_prob, const Tensor& key,
                                           const std::vector<Block>& blocks, bool antithetic,
                                           bool stick_the_landing = false,
                                           PriorGrads<device_t>* prior_grads = nullptr) {
  const ScalarType parameters = inputs.dtype();
  const Types types = types_of(parameters, sample_grad_dtype(grad_x, parameters));
  const Tensor keys = as_contiguous(key);
  const std::optional<Tensor> grad_log_prob_input = as_contiguous(grad_log_prob);
  OptionalTensors grad_x_inputs;
  Tensors grad_mu, grad_rho;
  Parts<SampleBackwardArgs> parts;
  grad_x_inputs.reserve(inputs.size()), parts.reserve(inputs.size());
  grad_mu.reserve(inputs.size()), grad_rho.reserve(inputs.size());
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
    general.antithetic = antithetic;
    general.stick_the_landing = stick_the_landing && grad_log_prob;
  }
  if (prior_grads) prior_grads->ask(types, parts[0].general);
  device.launch(types, parts);
  if (prior_grads) prior_grads->add(types, parts[0].general);
  return {grad_mu, grad_rho};
}

template <typename device_t>
Tensor gaussian_sample_backward(Tensor grad_x, Tensor rho, Tensor key, std::optional<Sizes> full_size,
                                std::optional<Sizes> origin, bool antithetic) {
  const Block block = check_gaussian_sample_backward(grad_x, rho, key, full_size, origin, antithetic);

  const device_t device("gaussian_sample_backward", rho);
  return std::get<1>(draw_backward(device, Inputs({}, {rho}), {grad_x}, std::nullopt, key, {block}, antithetic))[0];
}

template <typename device_t>
std::tuple<Tensor, Tensor, Tensor, Tensor> gaussian_sample_and_log_prob_backward(
    std::optional<Tensor> grad_x, std::optional<Tensor> grad_log_prob, Tensor mu, Tensor rho, Tensor mu_prior,
    Tensor std_prior, Tensor key, bool stick_the_landing, std::optional<Sizes> full_size, std::optional<Sizes> origin,
    bool prior_grads, FamilyName family, FamilyParameters family_parameters, bool antithetic) {
  const PriorFamily of_prior = check_family(family, family_parameters, prior_grads);
  const Block block = check_gaussian_sample_and_log_prob_backward(grad_x, grad_log_prob, mu, rho, mu_prior, std_prior,
                                                                  key, full_size, origin, prior_grads, antithetic);

  const device_t device("gaussian_sample_and_log_prob_backward", mu);
  const Inputs inputs(device, {mu}, {rho}, {mu_prior}, {std_prior}, {of_prior});
  PriorGrads to_priors(device, prior_grads, prior_grads, mu_prior, std_prior, mu);
  // a kernel gives gradients to the priors with those of log_prob alone
  if (prior_grads && !grad_log_prob) {
    Tensor zeros = device.empty(log_prob_sizes(key), log_prob_dtype(mu.scalar_type()));
    grad_log_prob = torch::stable::zero_(zeros);
  }
  const auto [grad_mu, grad_rho] =
      draw_backward(device, inputs, {grad_x}, grad_log_prob, key, {block}, antithetic, stick_the_landing, &to_priors);
  return {grad_mu[0], grad_rho[0], to_priors.mu(), to_priors.std()};
}

template <typename device_t>
std::tuple<Tensors, Tensors> foreach_gaussian_sample_and_log_prob_backward(
    OptionalTensors grad_x, std::optional<Tensor> grad_log_prob, Tensors mu, Tensors rho, Tensors mu_prior,
    Tensors std_prior, Tensor key, bool stick_the_landing, FamilyNames family, FamilyParameters family_parameters,
    bool antithetic) {
  check_foreach_gaussian_sample_and_log_prob_backward(grad_x, grad_log_prob, mu, rho, mu_prior, std_prior, key,
                                                      antithetic);
  const std::vector<PriorFamily> families = check_families(family, family_parameters, mu.size());

  const device_t device("foreach_gaussian_sample_and_log_prob_backward", mu[0]);
  const Inputs inputs(device, mu, rho, mu_prior, std_prior, families);
  return draw_backward(device, inputs, grad_x, grad_log_prob, key, share_stream(mu), antithetic, stick_the_landing);
}

template <typename device_t>
Tensor gaussian_log_prob(Tensor x, Tensor mu, Tensor rho, Tensor mu_prior, Tensor std_prior, FamilyName family,
                         FamilyParameters family_parameters) {
  const PriorFamily of_prior = check_family(family, family_parameters);
  check_gaussian_log_prob(x, mu, rho, mu_prior, std_prior);

  const device_t device("gaussian_log_prob", mu);
  const Tensor x_input = as_contiguous(x);
  const Inputs inputs(device, {mu}, {rho}, {mu_prior}, {std_prior}, {of_prior});
  const Types types = types_of(mu.scalar_type(), x.scalar_type());
  Parts<LogProbArgs> parts{inputs.part<LogProbArgs>(0)};
  parts[0].args.x = x_input.const_data_ptr();
  parts[0].args.num_samples = count_samples(x, mu);
  const Sums log_prob(device, log_prob_sizes(x, mu), types, parts, &LogProbArgs::log_prob);
  device.launch(types, parts);
  return log_prob.add();
}

template <typename device_t>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gaussian_log_prob_backward(
    Tensor grad_log_prob, Tensor x, Tensor mu, Tensor rho, Tensor mu_prior, Tensor std_prior,
    std::vector<bool> output_mask, FamilyName family, FamilyParameters family_parameters) {
  check_gaussian_log_prob_backward(grad_log_prob, x, mu, rho, mu_prior, std_prior, output_mask);
  const PriorFamily of_prior = check_family(family, family_parameters, output_mask[3] || output_mask[4]);

  const device_t device("gaussian_log_prob_backward", mu);
  const Tensor x_input = as_contiguous(x), grad_log_prob_input = as_contiguous(grad_log_prob);
  const Inputs inputs(device, {mu}, {rho}, {mu_prior}, {std_prior}, {of_prior});
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
  const auto result = [&](const std::optional<Tensor>& grad) { return grad ? *grad : not_asked_for(device, mu); };
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
  return sum.add();
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
