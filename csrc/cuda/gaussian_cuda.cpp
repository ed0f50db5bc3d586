// The ops on CUDA: check, allocate, launch on torch's current stream. Nothing here waits for the device.
#if defined(ILLIA_CUDA_VERSION)
#include <torch/csrc/stable/library.h>

#include "cuda/prior_tensors.h"
#include "ops/arguments.h"

namespace illia {
namespace {

using namespace cuda;

Tensor standard_normal_cuda(Tensor key, Sizes size, ScalarType dtype, std::optional<Sizes> full_size,
                            std::optional<Sizes> origin) {
  const General general{check_standard_normal(key, size, dtype, full_size, origin)};

  const Device device(key);
  const Tensor keys = as_contiguous(key);
  const Tensor eps = device.empty(sample_sizes(key, size), dtype);
  const int64_t num_samples = count_samples(key), numel = num_samples ? eps.numel() / num_samples : 0;
  const StandardNormalArgs args{keys_of(keys), num_samples, numel, eps.mutable_data_ptr()};
  device.check_launch("standard_normal", launch_standard_normal(device.launch(dtype, dtype), args, general));
  return eps;
}

Tensor gaussian_sample_cuda(Tensor mu, Tensor rho, Tensor key, std::optional<ScalarType> dtype,
                            std::optional<Sizes> full_size, std::optional<Sizes> origin) {
  const General general{check_gaussian_sample(mu, rho, key, dtype, full_size, origin)};

  const Device device(mu);
  const Tensor mu_input = as_contiguous(mu), rho_input = as_contiguous(rho), keys = as_contiguous(key);
  const ScalarType sample_dtype = dtype.value_or(mu.scalar_type());
  const Tensor x = device.empty(sample_sizes(key, mu.sizes()), sample_dtype);
  const SampleArgs args{data_of(mu_input), data_of(rho_input), keys_of(keys),        count_samples(key),
                        mu.numel(),        PriorScalars{},     x.mutable_data_ptr(), TileSums{}};
  device.check_launch("gaussian_sample", launch_sample(device.launch(mu.scalar_type(), sample_dtype), args, general));
  return x;
}

std::tuple<Tensor, Tensor> gaussian_sample_and_log_prob_cuda(Tensor mu, Tensor rho, Tensor mu_prior, Tensor std_prior,
                                                             Tensor key, std::optional<ScalarType> dtype,
                                                             bool /*stick_the_landing*/, std::optional<Sizes> full_size,
                                                             std::optional<Sizes> origin) {
  General general{check_gaussian_sample_and_log_prob(mu, rho, mu_prior, std_prior, key, dtype, full_size, origin)};

  const Device device(mu);
  const PriorInput priors(device, mu_prior, std_prior, mu, general);
  const Tensor mu_input = as_contiguous(mu), rho_input = as_contiguous(rho), keys = as_contiguous(key);
  const ScalarType sample_dtype = dtype.value_or(mu.scalar_type());
  const Tensor x = device.empty(sample_sizes(key, mu.sizes()), sample_dtype);
  const SumTensors log_prob(device, log_prob_sizes(key), mu, general);
  const SampleArgs args{data_of(mu_input),    data_of(rho_input),
                        keys_of(keys),        count_samples(key),
                        mu.numel(),           priors,
                        x.mutable_data_ptr(), log_prob};
  device.check_launch("gaussian_sample_and_log_prob",
                      launch_sample(device.launch(mu.scalar_type(), sample_dtype), args, general));
  return {x, log_prob.results()};
}

Tensor gaussian_sample_backward_cuda(Tensor grad_x, Tensor rho, Tensor key, std::optional<Sizes> full_size,
                                     std::optional<Sizes> origin) {
  const General general{check_gaussian_sample_backward(grad_x, rho, key, full_size, origin)};

  const Device device(rho);
  const Tensor grad_x_input = as_contiguous(grad_x), rho_input = as_contiguous(rho), keys = as_contiguous(key);
  const Tensor grad_rho = device.empty(rho.sizes(), rho.scalar_type());
  SampleBackwardArgs args{};
  args.grad_x = data_of(grad_x_input);
  args.rho = data_of(rho_input);
  args.keys = keys_of(keys);
  args.num_samples = count_samples(key);
  args.numel = rho.numel();
  args.grad_rho = grad_rho.mutable_data_ptr();
  device.check_launch("gaussian_sample_backward",
                      launch_sample_backward(device.launch(rho.scalar_type(), grad_x.scalar_type()), args, general));
  return grad_rho;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gaussian_sample_and_log_prob_backward_cuda(
    std::optional<Tensor> grad_x, std::optional<Tensor> grad_log_prob, Tensor mu, Tensor rho, Tensor mu_prior,
    Tensor std_prior, Tensor key, bool stick_the_landing, std::optional<Sizes> full_size, std::optional<Sizes> origin,
    bool prior_grads) {
  General general{check_gaussian_sample_and_log_prob_backward(grad_x, grad_log_prob, mu, rho, mu_prior, std_prior, key,
                                                              full_size, origin, prior_grads)};

  const Device device(mu);
  const PriorInput priors(device, mu_prior, std_prior, mu, general);
  const PriorGradTensors to_priors(device, prior_grads, prior_grads, mu_prior, std_prior, mu, general);
  // gradients to the priors come with those of log_prob alone
  if (prior_grads && !grad_log_prob)
    grad_log_prob = device.zeros(log_prob_sizes(key), log_prob_dtype(mu.scalar_type()));
  general.stick_the_landing = stick_the_landing && grad_log_prob;
  const std::optional<Tensor> grad_x_input = as_contiguous(grad_x), grad_log_prob_input = as_contiguous(grad_log_prob);
  const Tensor mu_input = as_contiguous(mu), rho_input = as_contiguous(rho), keys = as_contiguous(key);
  const Tensor grad_mu = device.empty(mu.sizes(), mu.scalar_type());
  const Tensor grad_rho = device.empty(rho.sizes(), rho.scalar_type());
  const SampleBackwardArgs args{data_of(grad_x_input),
                                data_of(grad_log_prob_input),
                                data_of(mu_input),
                                data_of(rho_input),
                                keys_of(keys),
                                count_samples(key),
                                mu.numel(),
                                priors,
                                grad_mu.mutable_data_ptr(),
                                grad_rho.mutable_data_ptr()};
  const ScalarType sample_dtype = grad_x ? grad_x->scalar_type() : mu.scalar_type();
  device.check_launch("gaussian_sample_and_log_prob_backward",
                      launch_sample_backward(device.launch(mu.scalar_type(), sample_dtype), args, general));
  return {grad_mu, grad_rho, to_priors.mu(device, mu), to_priors.std(device, mu)};
}

Tensor gaussian_log_prob_cuda(Tensor x, Tensor mu, Tensor rho, Tensor mu_prior, Tensor std_prior) {
  check_gaussian_log_prob(x, mu, rho, mu_prior, std_prior);

  const Device device(mu);
  General general;
  const PriorInput priors(device, mu_prior, std_prior, mu, general);
  const Tensor x_input = as_contiguous(x), mu_input = as_contiguous(mu), rho_input = as_contiguous(rho);
  const SumTensors log_prob(device, log_prob_sizes(x, mu), mu, general);
  const LogProbArgs args{data_of(x_input), data_of(mu_input), data_of(rho_input), count_samples(x, mu), mu.numel(),
                         priors,           log_prob};
  device.check_launch("gaussian_log_prob",
                      launch_log_prob(device.launch(mu.scalar_type(), x.scalar_type()), args, general));
  return log_prob.results();
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gaussian_log_prob_backward_cuda(Tensor grad_log_prob, Tensor x,
                                                                                   Tensor mu, Tensor rho,
                                                                                   Tensor mu_prior, Tensor std_prior,
                                                                                   std::vector<bool> output_mask) {
  check_gaussian_log_prob_backward(grad_log_prob, x, mu, rho, mu_prior, std_prior, output_mask);

  const Device device(mu);
  General general;
  const PriorInput priors(device, mu_prior, std_prior, mu, general);
  const PriorGradTensors to_priors(device, output_mask[3], output_mask[4], mu_prior, std_prior, mu, general);
  const Tensor grad_log_prob_input = as_contiguous(grad_log_prob), x_input = as_contiguous(x);
  const Tensor mu_input = as_contiguous(mu), rho_input = as_contiguous(rho);
  const auto output = [&](bool asked, const Tensor& like) {
    return asked ? device.empty(like.sizes(), like.scalar_type()) : device.not_asked_for(mu);
  };
  const Tensor grad_x = output(output_mask[0], x), grad_mu = output(output_mask[1], mu),
               grad_rho = output(output_mask[2], rho);
  const auto target = [&](bool asked, const Tensor& out) { return asked ? out.mutable_data_ptr() : nullptr; };
  const LogProbBackwardArgs args{data_of(grad_log_prob_input),
                                 data_of(x_input),
                                 data_of(mu_input),
                                 data_of(rho_input),
                                 count_samples(x, mu),
                                 mu.numel(),
                                 priors,
                                 target(output_mask[0], grad_x),
                                 target(output_mask[1], grad_mu),
                                 target(output_mask[2], grad_rho)};
  device.check_launch("gaussian_log_prob_backward",
                      launch_log_prob_backward(device.launch(mu.scalar_type(), x.scalar_type()), args, general));
  return {grad_x, grad_mu, grad_rho, to_priors.mu(device, mu), to_priors.std(device, mu)};
}

Tensor gaussian_kl_divergence_cuda(Tensor mu, Tensor rho, Tensor mu_prior, Tensor std_prior) {
  check_gaussian_kl_divergence(mu, rho, mu_prior, std_prior);

  const Device device(mu);
  General general;
  const PriorInput priors(device, mu_prior, std_prior, mu, general);
  const Tensor mu_input = as_contiguous(mu), rho_input = as_contiguous(rho);
  const SumTensors kl_divergence(device, Sizes{}, mu, general);
  const KlDivergenceArgs args{data_of(mu_input), data_of(rho_input), mu.numel(), priors, kl_divergence};
  device.check_launch("gaussian_kl_divergence",
                      launch_kl_divergence(device.launch(mu.scalar_type(), mu.scalar_type()), args, general));
  return kl_divergence.results();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gaussian_kl_divergence_backward_cuda(Tensor grad, Tensor mu, Tensor rho,
                                                                                Tensor mu_prior, Tensor std_prior,
                                                                                bool prior_grads) {
  check_gaussian_kl_divergence_backward(grad, mu, rho, mu_prior, std_prior, prior_grads);

  const Device device(mu);
  General general;
  const PriorInput priors(device, mu_prior, std_prior, mu, general);
  const PriorGradTensors to_priors(device, prior_grads, prior_grads, mu_prior, std_prior, mu, general);
  const Tensor mu_input = as_contiguous(mu), rho_input = as_contiguous(rho);
  const Tensor grad_mu = device.empty(mu.sizes(), mu.scalar_type());
  const Tensor grad_rho = device.empty(rho.sizes(), rho.scalar_type());
  const KlDivergenceBackwardArgs args{data_of(grad), data_of(mu_input),          data_of(rho_input),         mu.numel(),
                                      priors,        grad_mu.mutable_data_ptr(), grad_rho.mutable_data_ptr()};
  device.check_launch("gaussian_kl_divergence_backward",
                      launch_kl_divergence_backward(device.launch(mu.scalar_type(), mu.scalar_type()), args, general));
  return {grad_mu, grad_rho, to_priors.mu(device, mu), to_priors.std(device, mu)};
}

}  // namespace
}  // namespace illia

STABLE_TORCH_LIBRARY_IMPL(illia_ext, CUDA, m) {
  m.impl("standard_normal", TORCH_BOX(&illia::standard_normal_cuda));
  m.impl("gaussian_sample", TORCH_BOX(&illia::gaussian_sample_cuda));
  m.impl("gaussian_sample_backward", TORCH_BOX(&illia::gaussian_sample_backward_cuda));
  m.impl("gaussian_log_prob", TORCH_BOX(&illia::gaussian_log_prob_cuda));
  m.impl("gaussian_log_prob_backward", TORCH_BOX(&illia::gaussian_log_prob_backward_cuda));
  m.impl("gaussian_sample_and_log_prob", TORCH_BOX(&illia::gaussian_sample_and_log_prob_cuda));
  m.impl("gaussian_sample_and_log_prob_backward", TORCH_BOX(&illia::gaussian_sample_and_log_prob_backward_cuda));
  m.impl("gaussian_kl_divergence", TORCH_BOX(&illia::gaussian_kl_divergence_cuda));
  m.impl("gaussian_kl_divergence_backward", TORCH_BOX(&illia::gaussian_kl_divergence_backward_cuda));
}
#endif  // ILLIA_CUDA_VERSION
