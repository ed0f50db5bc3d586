// The ops on the CPU: check, read, launch.
#include <torch/csrc/stable/library.h>

#include "cpu/launch.h"

namespace illia {
namespace {

// [] for one sample, [num_samples] for a batch.
Sizes log_prob_sizes(bool batch, int64_t num_samples) { return batch ? Sizes{num_samples} : Sizes{}; }

Tensor standard_normal_cpu(Tensor key, Sizes size, ScalarType dtype, std::optional<Sizes> full_size,
                           std::optional<Sizes> origin) {
  check_key(key);
  check_floating("dtype", dtype);
  check(std::all_of(size.begin(), size.end(), [](int64_t n) { return n >= 0; }),
        "size: expected no negative dimension, got ", Shape{size});
  refuse_blocks(full_size, origin);

  const std::vector<Key> keys = read_keys(key);
  const Output eps(sample_sizes(key, size), dtype);
  const int64_t num_samples = static_cast<int64_t>(keys.size());
  const int64_t numel = num_samples ? eps.tensor().numel() / num_samples : 0;
  launch(kernels_for(dtype).standard_normal, StandardNormalArgs{keys.data(), num_samples, numel, eps}, numel,
         num_samples);
  return eps.tensor();
}

// gaussian_sample and gaussian_sample_and_log_prob: one kernel, with or without its sums.
Tensor sample(const Tensor& mu, const Tensor& rho, const Tensor& key, std::optional<ScalarType> dtype,
              const PriorValues& prior, Partials* partials, const std::vector<Key>& keys) {
  const Input mu_input(mu), rho_input(rho);
  const Output x(sample_sizes(key, mu.sizes()), dtype.value_or(mu.scalar_type()));
  const int64_t num_samples = static_cast<int64_t>(keys.size()), numel = mu.numel();
  const SampleArgs args{mu_input, rho_input, keys.data(), num_samples,
                        numel,    prior,     x,           partials ? partials->data() : nullptr};
  launch(kernels_for(mu.scalar_type()).sample, args, numel, num_samples);
  return x.tensor();
}

void check_sampling(const Tensor& mu, const Tensor& rho, const Tensor& key, std::optional<ScalarType> dtype,
                    const std::optional<Sizes>& full_size, const std::optional<Sizes>& origin) {
  check_parameters(mu, rho);
  check_key(key);
  check_same_device("key", key, "mu", mu);
  if (dtype) check_sample_dtype("dtype", *dtype, mu.scalar_type());
  refuse_blocks(full_size, origin);
}

Tensor gaussian_sample_cpu(Tensor mu, Tensor rho, Tensor key, std::optional<ScalarType> dtype,
                           std::optional<Sizes> full_size, std::optional<Sizes> origin) {
  check_sampling(mu, rho, key, dtype, full_size, origin);
  return sample(mu, rho, key, dtype, PriorValues{0, 1}, nullptr, read_keys(key));
}

std::tuple<Tensor, Tensor> gaussian_sample_and_log_prob_cpu(Tensor mu, Tensor rho, Tensor mu_prior, Tensor std_prior,
                                                            Tensor key, std::optional<ScalarType> dtype,
                                                            bool stick_the_landing, std::optional<Sizes> full_size,
                                                            std::optional<Sizes> origin) {
  check_sampling(mu, rho, key, dtype, full_size, origin);
  check_priors(mu_prior, std_prior, mu);
  refuse_stick_the_landing(stick_the_landing);

  const std::vector<Key> keys = read_keys(key);
  const int64_t num_samples = static_cast<int64_t>(keys.size());
  Partials partials(num_samples, mu.numel());
  const Tensor x = sample(mu, rho, key, dtype, read_prior(mu_prior, std_prior), &partials, keys);
  const Output log_prob(log_prob_sizes(is_batch_of_keys(key), num_samples), log_prob_dtype(mu.scalar_type()));
  partials.sum_into(log_prob.tensor());
  return {x, log_prob.tensor()};
}

Tensor gaussian_sample_backward_cpu(Tensor grad_x, Tensor rho, Tensor key, std::optional<Sizes> full_size,
                                    std::optional<Sizes> origin) {
  check_floating("rho", rho.scalar_type());
  check_key(key);
  check_same_device("key", key, "rho", rho);
  check_sample_gradient(grad_x, key, rho);
  refuse_blocks(full_size, origin);

  const std::vector<Key> keys = read_keys(key);
  const Input grad_x_input(grad_x), rho_input(rho);
  const Output grad_rho(rho.sizes(), rho.scalar_type());
  const int64_t num_samples = static_cast<int64_t>(keys.size()), numel = rho.numel();
  const SampleBackwardArgs args{grad_x_input, nullptr, ConstView{},       rho_input,     keys.data(),
                                num_samples,  numel,   PriorValues{0, 1}, MutableView{}, grad_rho};
  launch(kernels_for(rho.scalar_type()).sample_backward, args, numel, num_samples);
  return grad_rho.tensor();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gaussian_sample_and_log_prob_backward_cpu(
    std::optional<Tensor> grad_x, std::optional<Tensor> grad_log_prob, Tensor mu, Tensor rho, Tensor mu_prior,
    Tensor std_prior, Tensor key, bool stick_the_landing, std::optional<Sizes> full_size, std::optional<Sizes> origin,
    bool prior_grads) {
  check_sampling(mu, rho, key, std::nullopt, full_size, origin);
  check_priors(mu_prior, std_prior, mu);
  refuse_stick_the_landing(stick_the_landing);
  refuse_prior_gradients("prior_grads", prior_grads);
  const std::vector<Key> keys = read_keys(key);
  const int64_t num_samples = static_cast<int64_t>(keys.size()), numel = mu.numel();
  if (grad_x) check_sample_gradient(*grad_x, key, rho);
  if (grad_log_prob)
    check_log_prob_gradient("grad_log_prob", *grad_log_prob, log_prob_sizes(is_batch_of_keys(key), num_samples), mu);

  const std::optional<Input> grad_x_input = grad_x ? std::optional<Input>(*grad_x) : std::nullopt;
  const std::vector<double> log_prob_grads =
      grad_log_prob ? read_values(*grad_log_prob) : std::vector<double>(keys.size());
  const Input mu_input(mu), rho_input(rho);
  const Output grad_mu(mu.sizes(), mu.scalar_type()), grad_rho(rho.sizes(), rho.scalar_type());
  const SampleBackwardArgs args{grad_x_input ? ConstView(*grad_x_input) : ConstView{},
                                grad_log_prob ? log_prob_grads.data() : nullptr,
                                mu_input,
                                rho_input,
                                keys.data(),
                                num_samples,
                                numel,
                                read_prior(mu_prior, std_prior),
                                grad_mu,
                                grad_rho};
  launch(kernels_for(mu.scalar_type()).sample_backward, args, numel, num_samples);
  return {grad_mu.tensor(), grad_rho.tensor(), not_asked_for(mu), not_asked_for(mu)};
}

Tensor gaussian_log_prob_cpu(Tensor x, Tensor mu, Tensor rho, Tensor mu_prior, Tensor std_prior) {
  check_parameters(mu, rho);
  check_x(x, mu);
  check_priors(mu_prior, std_prior, mu);

  const bool batch = x.dim() > mu.dim();
  const int64_t num_samples = batch ? x.size(0) : 1, numel = mu.numel();
  const Input x_input(x), mu_input(mu), rho_input(rho);
  Partials partials(num_samples, numel);
  const LogProbArgs args{x_input,        mu_input, rho_input, num_samples, numel, read_prior(mu_prior, std_prior),
                         partials.data()};
  launch(kernels_for(mu.scalar_type()).log_prob, args, numel, num_samples);
  const Output log_prob(log_prob_sizes(batch, num_samples), log_prob_dtype(mu.scalar_type()));
  partials.sum_into(log_prob.tensor());
  return log_prob.tensor();
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gaussian_log_prob_backward_cpu(Tensor grad_log_prob, Tensor x,
                                                                                  Tensor mu, Tensor rho,
                                                                                  Tensor mu_prior, Tensor std_prior,
                                                                                  std::vector<bool> output_mask) {
  check_parameters(mu, rho);
  check_x(x, mu);
  check_priors(mu_prior, std_prior, mu);
  check(output_mask.size() == 5, "output_mask: expected 5 values, got ", output_mask.size());
  refuse_prior_gradients("output_mask", output_mask[3] || output_mask[4]);
  const bool batch = x.dim() > mu.dim();
  const int64_t num_samples = batch ? x.size(0) : 1, numel = mu.numel();
  check_log_prob_gradient("grad_log_prob", grad_log_prob, log_prob_sizes(batch, num_samples), mu);

  const std::vector<double> log_prob_grads = read_values(grad_log_prob);
  const Input x_input(x), mu_input(mu), rho_input(rho);
  const auto output = [&](bool asked, const Tensor& like) {
    return asked ? std::optional<Output>(Output(like.sizes(), like.scalar_type())) : std::nullopt;
  };
  const auto view = [](const std::optional<Output>& out) { return out ? MutableView(*out) : MutableView{}; };
  const auto grad_x = output(output_mask[0], x), grad_mu = output(output_mask[1], mu),
             grad_rho = output(output_mask[2], rho);
  const LogProbBackwardArgs args{
      log_prob_grads.data(),           x_input,      mu_input,      rho_input,     num_samples, numel,
      read_prior(mu_prior, std_prior), view(grad_x), view(grad_mu), view(grad_rho)};
  launch(kernels_for(mu.scalar_type()).log_prob_backward, args, numel, num_samples);
  const auto result = [&](const std::optional<Output>& out) { return out ? out->tensor() : not_asked_for(mu); };
  return {result(grad_x), result(grad_mu), result(grad_rho), not_asked_for(mu), not_asked_for(mu)};
}

Tensor gaussian_kl_divergence_cpu(Tensor mu, Tensor rho, Tensor mu_prior, Tensor std_prior) {
  check_parameters(mu, rho);
  check_priors(mu_prior, std_prior, mu);

  const Input mu_input(mu), rho_input(rho);
  Partials partials(1, mu.numel());
  const KlDivergenceArgs args{mu_input, rho_input, mu.numel(), read_prior(mu_prior, std_prior), partials.data()};
  launch(kernels_for(mu.scalar_type()).kl_divergence, args, mu.numel());
  const Output kl_divergence(Sizes{}, log_prob_dtype(mu.scalar_type()));
  partials.sum_into(kl_divergence.tensor());
  return kl_divergence.tensor();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gaussian_kl_divergence_backward_cpu(Tensor grad, Tensor mu, Tensor rho,
                                                                               Tensor mu_prior, Tensor std_prior,
                                                                               bool prior_grads) {
  check_parameters(mu, rho);
  check_priors(mu_prior, std_prior, mu);
  check_log_prob_gradient("grad", grad, Sizes{}, mu);
  refuse_prior_gradients("prior_grads", prior_grads);

  const Input mu_input(mu), rho_input(rho);
  const Output grad_mu(mu.sizes(), mu.scalar_type()), grad_rho(rho.sizes(), rho.scalar_type());
  const KlDivergenceBackwardArgs args{
      read_value(grad), mu_input, rho_input, mu.numel(), read_prior(mu_prior, std_prior), grad_mu, grad_rho};
  launch(kernels_for(mu.scalar_type()).kl_divergence_backward, args, mu.numel());
  return {grad_mu.tensor(), grad_rho.tensor(), not_asked_for(mu), not_asked_for(mu)};
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
