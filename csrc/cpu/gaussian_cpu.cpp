// The ops on the CPU: check, read, launch.
#include <torch/csrc/stable/library.h>

#include "cpu/prior_tensors.h"
#include "ops/arguments.h"

namespace illia {
namespace {

Tensor standard_normal_cpu(Tensor key, Sizes size, ScalarType dtype, std::optional<Sizes> full_size,
                           std::optional<Sizes> origin) {
  const Block block = check_standard_normal(key, size, dtype, full_size, origin);

  const std::vector<Key> keys = read_keys(key);
  const Output eps(sample_sizes(key, size), dtype);
  const int64_t num_samples = static_cast<int64_t>(keys.size());
  const int64_t numel = num_samples ? eps.tensor().numel() / num_samples : 0;
  launch(kernels_for(dtype).standard_normal, StandardNormalArgs{keys.data(), num_samples, numel, eps, block}, numel,
         num_samples);
  return eps.tensor();
}

// gaussian_sample and gaussian_sample_and_log_prob: one kernel, with or without its sums.
void sample(const Tensor& mu, const Tensor& rho, const std::vector<Key>& keys, const Block& block,
            const PriorValues& prior, const Output& x, Partials* partials) {
  const Input mu_input(mu), rho_input(rho);
  const int64_t num_samples = static_cast<int64_t>(keys.size()), numel = mu.numel();
  const SampleArgs args{
      mu_input, rho_input, keys.data(), num_samples, numel, prior, x, partials ? partials->data() : nullptr, block};
  launch(kernels_for(mu.scalar_type()).sample, args, numel, num_samples);
}

Tensor gaussian_sample_cpu(Tensor mu, Tensor rho, Tensor key, std::optional<ScalarType> dtype,
                           std::optional<Sizes> full_size, std::optional<Sizes> origin) {
  const Block block = check_gaussian_sample(mu, rho, key, dtype, full_size, origin);

  const std::vector<Key> keys = read_keys(key);
  const Output x(sample_sizes(key, mu.sizes()), dtype.value_or(mu.scalar_type()));
  sample(mu, rho, keys, block, PriorValues{0, 1}, x, nullptr);
  return x.tensor();
}

std::tuple<Tensor, Tensor> gaussian_sample_and_log_prob_cpu(Tensor mu, Tensor rho, Tensor mu_prior, Tensor std_prior,
                                                            Tensor key, std::optional<ScalarType> dtype,
                                                            bool /*stick_the_landing*/, std::optional<Sizes> full_size,
                                                            std::optional<Sizes> origin) {
  const Block block = check_gaussian_sample_and_log_prob(mu, rho, mu_prior, std_prior, key, dtype, full_size, origin);

  const std::vector<Key> keys = read_keys(key);
  const Output x(sample_sizes(key, mu.sizes()), dtype.value_or(mu.scalar_type()));
  Partials partials(static_cast<int64_t>(keys.size()), mu.numel());
  sample(mu, rho, keys, block, PriorInput(mu_prior, std_prior, mu), x, &partials);
  const Output log_prob(log_prob_sizes(key), log_prob_dtype(mu.scalar_type()));
  partials.sum_into(log_prob.tensor());
  return {x.tensor(), log_prob.tensor()};
}

Tensor gaussian_sample_backward_cpu(Tensor grad_x, Tensor rho, Tensor key, std::optional<Sizes> full_size,
                                    std::optional<Sizes> origin) {
  const Block block = check_gaussian_sample_backward(grad_x, rho, key, full_size, origin);

  const std::vector<Key> keys = read_keys(key);
  const Input grad_x_input(grad_x), rho_input(rho);
  const Output grad_rho(rho.sizes(), rho.scalar_type());
  const int64_t num_samples = static_cast<int64_t>(keys.size()), numel = rho.numel();
  const SampleBackwardArgs args{grad_x_input, nullptr,           ConstView{},   rho_input, keys.data(), num_samples,
                                numel,        PriorValues{0, 1}, MutableView{}, grad_rho,  block};
  launch(kernels_for(rho.scalar_type()).sample_backward, args, numel, num_samples);
  return grad_rho.tensor();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gaussian_sample_and_log_prob_backward_cpu(
    std::optional<Tensor> grad_x, std::optional<Tensor> grad_log_prob, Tensor mu, Tensor rho, Tensor mu_prior,
    Tensor std_prior, Tensor key, bool stick_the_landing, std::optional<Sizes> full_size, std::optional<Sizes> origin,
    bool prior_grads) {
  const Block block = check_gaussian_sample_and_log_prob_backward(grad_x, grad_log_prob, mu, rho, mu_prior, std_prior,
                                                                  key, full_size, origin, prior_grads);

  const std::vector<Key> keys = read_keys(key);
  const int64_t num_samples = static_cast<int64_t>(keys.size()), numel = mu.numel();
  const std::optional<Input> grad_x_input = grad_x ? std::optional<Input>(*grad_x) : std::nullopt;
  const std::vector<double> log_prob_grads =
      grad_log_prob ? read_values(*grad_log_prob) : std::vector<double>(keys.size());
  const Input mu_input(mu), rho_input(rho);
  const PriorInput prior(mu_prior, std_prior, mu);
  PriorGrads to_priors(prior_grads, prior_grads, mu_prior, std_prior, mu);
  const Output grad_mu(mu.sizes(), mu.scalar_type()), grad_rho(rho.sizes(), rho.scalar_type());
  const SampleBackwardArgs args{grad_x_input ? ConstView(*grad_x_input) : ConstView{},
                                grad_log_prob || prior_grads ? log_prob_grads.data() : nullptr,
                                mu_input,
                                rho_input,
                                keys.data(),
                                num_samples,
                                numel,
                                prior,
                                grad_mu,
                                grad_rho,
                                block,
                                to_priors,
                                stick_the_landing};
  launch(kernels_for(mu.scalar_type()).sample_backward, args, numel, num_samples);
  return {grad_mu.tensor(), grad_rho.tensor(), to_priors.mu.result(), to_priors.std.result()};
}

Tensor gaussian_log_prob_cpu(Tensor x, Tensor mu, Tensor rho, Tensor mu_prior, Tensor std_prior) {
  check_gaussian_log_prob(x, mu, rho, mu_prior, std_prior);

  const int64_t num_samples = count_samples(x, mu), numel = mu.numel();
  const Input x_input(x), mu_input(mu), rho_input(rho);
  const PriorInput prior(mu_prior, std_prior, mu);
  Partials partials(num_samples, numel);
  const LogProbArgs args{x_input, mu_input, rho_input, num_samples, numel, prior, partials.data()};
  launch(kernels_for(mu.scalar_type()).log_prob, args, numel, num_samples);
  const Output log_prob(log_prob_sizes(x, mu), log_prob_dtype(mu.scalar_type()));
  partials.sum_into(log_prob.tensor());
  return log_prob.tensor();
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gaussian_log_prob_backward_cpu(Tensor grad_log_prob, Tensor x,
                                                                                  Tensor mu, Tensor rho,
                                                                                  Tensor mu_prior, Tensor std_prior,
                                                                                  std::vector<bool> output_mask) {
  check_gaussian_log_prob_backward(grad_log_prob, x, mu, rho, mu_prior, std_prior, output_mask);

  const int64_t num_samples = count_samples(x, mu), numel = mu.numel();
  const std::vector<double> log_prob_grads = read_values(grad_log_prob);
  const Input x_input(x), mu_input(mu), rho_input(rho);
  const PriorInput prior(mu_prior, std_prior, mu);
  const auto output = [&](bool asked, const Tensor& like) {
    return asked ? std::optional<Output>(Output(like.sizes(), like.scalar_type())) : std::nullopt;
  };
  const auto view = [](const std::optional<Output>& out) { return out ? MutableView(*out) : MutableView{}; };
  const auto grad_x = output(output_mask[0], x), grad_mu = output(output_mask[1], mu),
             grad_rho = output(output_mask[2], rho);
  PriorGrads to_priors(output_mask[3], output_mask[4], mu_prior, std_prior, mu);
  const LogProbBackwardArgs args{log_prob_grads.data(), x_input,        mu_input, rho_input,
                                 num_samples,           numel,          prior,    view(grad_x),
                                 view(grad_mu),         view(grad_rho), to_priors};
  launch(kernels_for(mu.scalar_type()).log_prob_backward, args, numel, num_samples);
  const auto result = [&](const std::optional<Output>& out) { return out ? out->tensor() : not_asked_for(mu); };
  return {result(grad_x), result(grad_mu), result(grad_rho), to_priors.mu.result(), to_priors.std.result()};
}

Tensor gaussian_kl_divergence_cpu(Tensor mu, Tensor rho, Tensor mu_prior, Tensor std_prior) {
  check_gaussian_kl_divergence(mu, rho, mu_prior, std_prior);

  const Input mu_input(mu), rho_input(rho);
  const PriorInput prior(mu_prior, std_prior, mu);
  Partials partials(1, mu.numel());
  const KlDivergenceArgs args{mu_input, rho_input, mu.numel(), prior, partials.data()};
  launch(kernels_for(mu.scalar_type()).kl_divergence, args, mu.numel());
  const Output kl_divergence(Sizes{}, log_prob_dtype(mu.scalar_type()));
  partials.sum_into(kl_divergence.tensor());
  return kl_divergence.tensor();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gaussian_kl_divergence_backward_cpu(Tensor grad, Tensor mu, Tensor rho,
                                                                               Tensor mu_prior, Tensor std_prior,
                                                                               bool prior_grads) {
  check_gaussian_kl_divergence_backward(grad, mu, rho, mu_prior, std_prior, prior_grads);

  const Input mu_input(mu), rho_input(rho);
  const PriorInput prior(mu_prior, std_prior, mu);
  const Output grad_mu(mu.sizes(), mu.scalar_type()), grad_rho(rho.sizes(), rho.scalar_type());
  PriorGrads to_priors(prior_grads, prior_grads, mu_prior, std_prior, mu);
  const KlDivergenceBackwardArgs args{read_value(grad), mu_input, rho_input, mu.numel(), prior,
                                      grad_mu,          grad_rho, to_priors};
  launch(kernels_for(mu.scalar_type()).kl_divergence_backward, args, mu.numel());
  return {grad_mu.tensor(), grad_rho.tensor(), to_priors.mu.result(), to_priors.std.result()};
}

}  // namespace
}  // namespace illia

STABLE_TORCH_LIBRARY_IMPL(illia_ext, CPU, m) {
  m.impl("standard_normal", TORCH_BOX(&illia::standard_normal_cpu));
  m.impl("gaussian_sample", TORCH_BOX(&illia::gaussian_sample_cpu));
  m.impl("gaussian_sample_backward", TORCH_BOX(&illia::gaussian_sample_backward_cpu));
  m.impl("gaussian_log_prob", TORCH_BOX(&illia::gaussian_log_prob_cpu));
  m.impl("gaussian_log_prob_backward", TORCH_BOX(&illia::gaussian_log_prob_backward_cpu));
  m.impl("gaussian_sample_and_log_prob", TORCH_BOX(&illia::gaussian_sample_and_log_prob_cpu));
  m.impl("gaussian_sample_and_log_prob_backward", TORCH_BOX(&illia::gaussian_sample_and_log_prob_backward_cpu));
  m.impl("gaussian_kl_divergence", TORCH_BOX(&illia::gaussian_kl_divergence_cpu));
  m.impl("gaussian_kl_divergence_backward", TORCH_BOX(&illia::gaussian_kl_divergence_backward_cpu));
}
