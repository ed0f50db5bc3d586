// The multi-tensor ops on CUDA: check, allocate, and launch over the tiles of all tensors. Nothing here waits for the
// device.
#if defined(ILLIA_CUDA_VERSION)
#include <torch/csrc/stable/library.h>

#include "cuda/prior_tensors.h"
#include "ops/foreach.h"

namespace illia {
namespace {

using namespace cuda;

// What the parts of a launch point to.
struct Inputs {
  Inputs(const Device& device, const Tensors& mus, const Tensors& rhos, const Tensors& mu_priors,
         const Tensors& std_priors)
      : general(mus.size()) {
    for (size_t k = 0; k < mus.size(); ++k) {
      mu.push_back(as_contiguous(mus[k]));
      rho.push_back(as_contiguous(rhos[k]));
      prior.emplace_back(device, prior_of(mu_priors, k), prior_of(std_priors, k), mus[k], general[k]);
    }
  }

  int64_t num_tiles() const {
    int64_t count = 0;
    for (size_t k = 0; k < mu.size(); ++k)
      count += count_tiles(storage_of(mu[k].scalar_type()), mu[k].numel(), general[k]);
    return count;
  }

  Tensors mu, rho;
  std::vector<PriorInput> prior;
  std::vector<General> general;
};

std::tuple<Tensors, Tensor> foreach_gaussian_sample_and_log_prob_cuda(Tensors mu, Tensors rho, Tensors mu_prior,
                                                                      Tensors std_prior, Tensor key,
                                                                      std::optional<ScalarType> dtype,
                                                                      bool /*stick_the_landing*/) {
  check_foreach_gaussian_sample_and_log_prob(mu, rho, mu_prior, std_prior, key, dtype);

  const ScalarType parameters = mu[0].scalar_type(), sample_dtype = dtype.value_or(parameters);
  const Device device(mu[0]);
  const Inputs inputs(device, mu, rho, mu_prior, std_prior);
  const Tensor keys = as_contiguous(key);
  const std::vector<Block> blocks = share_stream(mu);
  const SumTensors log_prob(device, log_prob_sizes(key), parameters, inputs.num_tiles());
  Tensors x;
  Parts<SampleArgs> parts;
  for (size_t k = 0; k < mu.size(); ++k) {
    x.push_back(device.empty(sample_sizes(key, mu[k].sizes()), sample_dtype));
    const SampleArgs args{data_of(inputs.mu[k]), data_of(inputs.rho[k]), keys_of(keys),           count_samples(key),
                          mu[k].numel(),         inputs.prior[k],        x[k].mutable_data_ptr(), TileSums{}};
    parts.push_back({args, inputs.general[k], blocks[k].first});
  }
  device.check_launch("foreach_gaussian_sample_and_log_prob",
                      launch_foreach_sample(device.launch(parameters, sample_dtype), std::move(parts), log_prob));
  return {x, log_prob.results()};
}

std::tuple<Tensors, Tensors> foreach_gaussian_sample_and_log_prob_backward_cuda(OptionalTensors grad_x,
                                                                                std::optional<Tensor> grad_log_prob,
                                                                                Tensors mu, Tensors rho,
                                                                                Tensors mu_prior, Tensors std_prior,
                                                                                Tensor key, bool stick_the_landing) {
  check_foreach_gaussian_sample_and_log_prob_backward(grad_x, grad_log_prob, mu, rho, mu_prior, std_prior, key);

  const ScalarType parameters = mu[0].scalar_type();
  const Device device(mu[0]);
  Inputs inputs(device, mu, rho, mu_prior, std_prior);
  const Tensor keys = as_contiguous(key);
  const std::optional<Tensor> grad_log_prob_input = as_contiguous(grad_log_prob);
  const std::vector<Block> blocks = share_stream(mu);
  OptionalTensors grad_x_inputs;
  Tensors grad_mu, grad_rho;
  Parts<SampleBackwardArgs> parts;
  for (size_t k = 0; k < mu.size(); ++k) {
    grad_x_inputs.push_back(as_contiguous(grad_x[k]));
    grad_mu.push_back(device.empty(mu[k].sizes(), parameters));
    grad_rho.push_back(device.empty(mu[k].sizes(), parameters));
    inputs.general[k].stick_the_landing = stick_the_landing && grad_log_prob;
    const SampleBackwardArgs args{data_of(grad_x_inputs[k]),
                                  data_of(grad_log_prob_input),
                                  data_of(inputs.mu[k]),
                                  data_of(inputs.rho[k]),
                                  keys_of(keys),
                                  count_samples(key),
                                  mu[k].numel(),
                                  inputs.prior[k],
                                  grad_mu[k].mutable_data_ptr(),
                                  grad_rho[k].mutable_data_ptr()};
    parts.push_back({args, inputs.general[k], blocks[k].first});
  }
  const Launch launch = device.launch(parameters, sample_grad_dtype(grad_x, mu));
  device.check_launch("foreach_gaussian_sample_and_log_prob_backward", launch_foreach_sample_backward(launch, parts));
  return {grad_mu, grad_rho};
}

Tensor foreach_gaussian_kl_divergence_cuda(Tensors mu, Tensors rho, Tensors mu_prior, Tensors std_prior) {
  check_foreach_parameters(mu, rho, mu_prior, std_prior);

  const ScalarType parameters = mu[0].scalar_type();
  const Device device(mu[0]);
  const Inputs inputs(device, mu, rho, mu_prior, std_prior);
  const SumTensors kl_divergence(device, Sizes{}, parameters, inputs.num_tiles());
  Parts<KlDivergenceArgs> parts;
  for (size_t k = 0; k < mu.size(); ++k) {
    const KlDivergenceArgs args{data_of(inputs.mu[k]), data_of(inputs.rho[k]), mu[k].numel(), inputs.prior[k],
                                TileSums{}};
    parts.push_back({args, inputs.general[k]});
  }
  const Launch launch = device.launch(parameters, parameters);
  device.check_launch("foreach_gaussian_kl_divergence",
                      launch_foreach_kl_divergence(launch, std::move(parts), kl_divergence));
  return kl_divergence.results();
}

std::tuple<Tensors, Tensors> foreach_gaussian_kl_divergence_backward_cuda(Tensor grad, Tensors mu, Tensors rho,
                                                                          Tensors mu_prior, Tensors std_prior) {
  check_foreach_gaussian_kl_divergence_backward(grad, mu, rho, mu_prior, std_prior);

  const ScalarType parameters = mu[0].scalar_type();
  const Device device(mu[0]);
  const Inputs inputs(device, mu, rho, mu_prior, std_prior);
  Tensors grad_mu, grad_rho;
  Parts<KlDivergenceBackwardArgs> parts;
  for (size_t k = 0; k < mu.size(); ++k) {
    grad_mu.push_back(device.empty(mu[k].sizes(), parameters));
    grad_rho.push_back(device.empty(mu[k].sizes(), parameters));
    const KlDivergenceBackwardArgs args{
        data_of(grad),   data_of(inputs.mu[k]),         data_of(inputs.rho[k]),        mu[k].numel(),
        inputs.prior[k], grad_mu[k].mutable_data_ptr(), grad_rho[k].mutable_data_ptr()};
    parts.push_back({args, inputs.general[k]});
  }
  const Launch launch = device.launch(parameters, parameters);
  device.check_launch("foreach_gaussian_kl_divergence_backward", launch_foreach_kl_divergence_backward(launch, parts));
  return {grad_mu, grad_rho};
}

}  // namespace
}  // namespace illia

STABLE_TORCH_LIBRARY_IMPL(illia_ext, CUDA, m) {
  m.impl("foreach_gaussian_sample_and_log_prob", TORCH_BOX(&illia::foreach_gaussian_sample_and_log_prob_cuda));
  m.impl("foreach_gaussian_sample_and_log_prob_backward",
         TORCH_BOX(&illia::foreach_gaussian_sample_and_log_prob_backward_cuda));
  m.impl("foreach_gaussian_kl_divergence", TORCH_BOX(&illia::foreach_gaussian_kl_divergence_cuda));
  m.impl("foreach_gaussian_kl_divergence_backward", TORCH_BOX(&illia::foreach_gaussian_kl_divergence_backward_cuda));
}
#endif  // ILLIA_CUDA_VERSION
