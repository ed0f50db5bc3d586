// The multi-tensor ops on the CPU: check, read, and launch the kernels over the chunks of all tensors.
#include <torch/csrc/stable/library.h>

#include "cpu/prior_tensors.h"
#include "ops/foreach.h"

namespace illia {
namespace {

// One parallel loop over the chunks of all tensors, each of which has its own arguments.
template <typename args_t>
void launch(Kernel<args_t> kernel, const std::vector<args_t>& args, int64_t num_samples = 1) {
  std::vector<int64_t> ends;  // of the tensors, counted in chunks
  int64_t num_chunks = 0;
  for (const args_t& tensor : args) ends.push_back(num_chunks += count_chunks(tensor.numel));
  parallel_for_chunks(num_chunks, num_samples, [&](int64_t begin, int64_t end) {
    for (size_t k = std::upper_bound(ends.begin(), ends.end(), begin) - ends.begin(); begin < end; ++k) {
      const int64_t first = ends[k] - count_chunks(args[k].numel), stop = std::min(end, ends[k]);
      kernel(args[k], begin - first, stop - first);
      begin = stop;
    }
  });
}

// What the arguments of each tensor point to.
struct Inputs {
  Inputs(const Tensors& mus, const Tensors& rhos, const Tensors& mu_priors, const Tensors& std_priors) {
    for (size_t k = 0; k < mus.size(); ++k) {
      mu.emplace_back(mus[k]);
      rho.emplace_back(rhos[k]);
      prior.emplace_back(prior_of(mu_priors, k), prior_of(std_priors, k), mus[k]);
    }
  }

  std::vector<Input> mu, rho;
  std::vector<PriorInput> prior;
};

// A double sum for each tensor and sample, and their sum in the order of the tensors.
class Sums {
 public:
  Sums(const Tensors& mus, int64_t num_samples) {
    for (const Tensor& mu : mus) partials_.emplace_back(num_samples, mu.numel());
  }
  double* data(size_t index) { return partials_[index].data(); }

  Tensor result(const Sizes& sizes, ScalarType parameters) const {
    const Output sums(sizes, log_prob_dtype(parameters));
    for (int64_t sample = 0; sample < sums.tensor().numel(); ++sample) {
      double sum = 0;
      for (const Partials& partials : partials_) sum += partials.sum(sample);
      write_value(sums.tensor(), sample, sum);
    }
    return sums.tensor();
  }

 private:
  std::vector<Partials> partials_;
};

std::tuple<Tensors, Tensor> foreach_gaussian_sample_and_log_prob_cpu(Tensors mu, Tensors rho, Tensors mu_prior,
                                                                     Tensors std_prior, Tensor key,
                                                                     std::optional<ScalarType> dtype,
                                                                     bool /*stick_the_landing*/) {
  check_foreach_gaussian_sample_and_log_prob(mu, rho, mu_prior, std_prior, key, dtype);

  const ScalarType parameters = mu[0].scalar_type();
  const std::vector<Key> keys = read_keys(key);
  const int64_t num_samples = static_cast<int64_t>(keys.size());
  const Inputs inputs(mu, rho, mu_prior, std_prior);
  const std::vector<Block> blocks = share_stream(mu);
  Tensors x;
  std::vector<SampleArgs> args;
  for (size_t k = 0; k < mu.size(); ++k) {
    const Output output(sample_sizes(key, mu[k].sizes()), dtype.value_or(parameters));
    x.push_back(output.tensor());
    args.push_back({inputs.mu[k], inputs.rho[k], keys.data(), num_samples, mu[k].numel(), inputs.prior[k], output,
                    nullptr, blocks[k]});
  }
  Sums sums(mu, num_samples);
  for (size_t k = 0; k < mu.size(); ++k) args[k].partials = sums.data(k);
  launch(kernels_for(parameters).sample, args, num_samples);
  return {x, sums.result(log_prob_sizes(key), parameters)};
}

std::tuple<Tensors, Tensors> foreach_gaussian_sample_and_log_prob_backward_cpu(OptionalTensors grad_x,
                                                                               std::optional<Tensor> grad_log_prob,
                                                                               Tensors mu, Tensors rho,
                                                                               Tensors mu_prior, Tensors std_prior,
                                                                               Tensor key, bool stick_the_landing) {
  check_foreach_gaussian_sample_and_log_prob_backward(grad_x, grad_log_prob, mu, rho, mu_prior, std_prior, key);

  const ScalarType parameters = mu[0].scalar_type();
  const std::vector<Key> keys = read_keys(key);
  const int64_t num_samples = static_cast<int64_t>(keys.size());
  const std::vector<double> log_prob_grads = grad_log_prob ? read_values(*grad_log_prob) : std::vector<double>();
  const Inputs inputs(mu, rho, mu_prior, std_prior);
  const std::vector<Block> blocks = share_stream(mu);
  std::vector<Input> grad_inputs;
  grad_inputs.reserve(mu.size());
  Tensors grad_mu, grad_rho;
  std::vector<SampleBackwardArgs> args;
  for (size_t k = 0; k < mu.size(); ++k) {
    const Output to_mu(mu[k].sizes(), parameters), to_rho(mu[k].sizes(), parameters);
    grad_mu.push_back(to_mu.tensor());
    grad_rho.push_back(to_rho.tensor());
    args.push_back({grad_x[k] ? ConstView(grad_inputs.emplace_back(*grad_x[k])) : ConstView{},
                    grad_log_prob ? log_prob_grads.data() : nullptr,
                    inputs.mu[k],
                    inputs.rho[k],
                    keys.data(),
                    num_samples,
                    mu[k].numel(),
                    inputs.prior[k],
                    to_mu,
                    to_rho,
                    blocks[k],
                    {},
                    stick_the_landing});
  }
  launch(kernels_for(parameters).sample_backward, args, num_samples);
  return {grad_mu, grad_rho};
}

Tensor foreach_gaussian_kl_divergence_cpu(Tensors mu, Tensors rho, Tensors mu_prior, Tensors std_prior) {
  check_foreach_parameters(mu, rho, mu_prior, std_prior);

  const ScalarType parameters = mu[0].scalar_type();
  const Inputs inputs(mu, rho, mu_prior, std_prior);
  Sums sums(mu, 1);
  std::vector<KlDivergenceArgs> args;
  for (size_t k = 0; k < mu.size(); ++k)
    args.push_back({inputs.mu[k], inputs.rho[k], mu[k].numel(), inputs.prior[k], sums.data(k)});
  launch(kernels_for(parameters).kl_divergence, args);
  return sums.result(Sizes{}, parameters);
}

std::tuple<Tensors, Tensors> foreach_gaussian_kl_divergence_backward_cpu(Tensor grad, Tensors mu, Tensors rho,
                                                                         Tensors mu_prior, Tensors std_prior) {
  check_foreach_gaussian_kl_divergence_backward(grad, mu, rho, mu_prior, std_prior);

  const ScalarType parameters = mu[0].scalar_type();
  const double grad_value = read_value(grad);
  const Inputs inputs(mu, rho, mu_prior, std_prior);
  Tensors grad_mu, grad_rho;
  std::vector<KlDivergenceBackwardArgs> args;
  for (size_t k = 0; k < mu.size(); ++k) {
    const Output to_mu(mu[k].sizes(), parameters), to_rho(mu[k].sizes(), parameters);
    grad_mu.push_back(to_mu.tensor());
    grad_rho.push_back(to_rho.tensor());
    args.push_back({grad_value, inputs.mu[k], inputs.rho[k], mu[k].numel(), inputs.prior[k], to_mu, to_rho, {}});
  }
  launch(kernels_for(parameters).kl_divergence_backward, args);
  return {grad_mu, grad_rho};
}

}  // namespace
}  // namespace illia

STABLE_TORCH_LIBRARY_IMPL(illia_ext, CPU, m) {
  m.impl("foreach_gaussian_sample_and_log_prob", TORCH_BOX(&illia::foreach_gaussian_sample_and_log_prob_cpu));
  m.impl("foreach_gaussian_sample_and_log_prob_backward",
         TORCH_BOX(&illia::foreach_gaussian_sample_and_log_prob_backward_cpu));
  m.impl("foreach_gaussian_kl_divergence", TORCH_BOX(&illia::foreach_gaussian_kl_divergence_cpu));
  m.impl("foreach_gaussian_kl_divergence_backward", TORCH_BOX(&illia::foreach_gaussian_kl_divergence_backward_cpu));
}
