// All that an op checks before it works, and the shapes it works on: one function an op, for every device. An op that
// draws gets its block.
#pragma once

#include "ops/checks.h"

namespace illia {

// [] for one sample, [num_samples] for a batch.
inline Sizes log_prob_sizes(bool batch, int64_t num_samples) { return batch ? Sizes{num_samples} : Sizes{}; }

inline int64_t count_samples(const Tensor& key) { return is_batch_of_keys(key) ? key.size(0) : 1; }
inline Sizes log_prob_sizes(const Tensor& key) { return log_prob_sizes(is_batch_of_keys(key), count_samples(key)); }

inline bool is_batch_of_samples(const Tensor& x, const Tensor& mu) { return x.dim() > mu.dim(); }
inline int64_t count_samples(const Tensor& x, const Tensor& mu) { return is_batch_of_samples(x, mu) ? x.size(0) : 1; }
inline Sizes log_prob_sizes(const Tensor& x, const Tensor& mu) {
  return log_prob_sizes(is_batch_of_samples(x, mu), count_samples(x, mu));
}

inline Block check_standard_normal(const Tensor& key, const Sizes& size, ScalarType dtype,
                                   const std::optional<Sizes>& full_size, const std::optional<Sizes>& origin) {
  check_key(key);
  check_floating("dtype", dtype);
  check(std::all_of(size.begin(), size.end(), [](int64_t n) { return n >= 0; }),
        "size: expected no negative dimension, got ", Shape{size});
  return check_block("size", size, full_size, origin);
}

inline Block check_gaussian_sample(const Tensor& mu, const Tensor& rho, const Tensor& key,
                                   std::optional<ScalarType> dtype, const std::optional<Sizes>& full_size,
                                   const std::optional<Sizes>& origin) {
  check_parameters(mu, rho);
  check_key(key);
  check_same_device("key", key, "mu", mu);
  if (dtype) check_sample_dtype("dtype", *dtype, mu.scalar_type());
  return check_block("mu", mu.sizes(), full_size, origin);
}

inline Block check_gaussian_sample_backward(const Tensor& grad_x, const Tensor& rho, const Tensor& key,
                                            const std::optional<Sizes>& full_size, const std::optional<Sizes>& origin) {
  check_floating("rho", dtype_of("rho", rho));
  check_key(key);
  check_same_device("key", key, "rho", rho);
  check_sample_gradient(grad_x, key, rho);
  return check_block("rho", rho.sizes(), full_size, origin);
}

inline Block check_gaussian_sample_and_log_prob(const Tensor& mu, const Tensor& rho, const Tensor& mu_prior,
                                                const Tensor& std_prior, const Tensor& key,
                                                std::optional<ScalarType> dtype, const std::optional<Sizes>& full_size,
                                                const std::optional<Sizes>& origin) {
  const Block block = check_gaussian_sample(mu, rho, key, dtype, full_size, origin);
  check_priors(mu_prior, std_prior, mu);
  return block;
}

inline Block check_gaussian_sample_and_log_prob_backward(const std::optional<Tensor>& grad_x,
                                                         const std::optional<Tensor>& grad_log_prob, const Tensor& mu,
                                                         const Tensor& rho, const Tensor& mu_prior,
                                                         const Tensor& std_prior, const Tensor& key,
                                                         const std::optional<Sizes>& full_size,
                                                         const std::optional<Sizes>& origin, bool prior_grads) {
  const Block block =
      check_gaussian_sample_and_log_prob(mu, rho, mu_prior, std_prior, key, std::nullopt, full_size, origin);
  if (grad_x) check_sample_gradient(*grad_x, key, rho);
  if (grad_log_prob) check_log_prob_gradient("grad_log_prob", *grad_log_prob, log_prob_sizes(key), mu);
  check_prior_gradient(prior_grads, "mu_prior", mu_prior, mu);
  check_prior_gradient(prior_grads, "std_prior", std_prior, mu);
  return block;
}

inline void check_gaussian_log_prob(const Tensor& x, const Tensor& mu, const Tensor& rho, const Tensor& mu_prior,
                                    const Tensor& std_prior) {
  check_parameters(mu, rho);
  check_x(x, mu);
  check_priors(mu_prior, std_prior, mu);
}

inline void check_gaussian_log_prob_backward(const Tensor& grad_log_prob, const Tensor& x, const Tensor& mu,
                                             const Tensor& rho, const Tensor& mu_prior, const Tensor& std_prior,
                                             const std::vector<bool>& output_mask) {
  check_gaussian_log_prob(x, mu, rho, mu_prior, std_prior);
  check(output_mask.size() == 5, "output_mask: expected 5 values, got ", output_mask.size());
  check_log_prob_gradient("grad_log_prob", grad_log_prob, log_prob_sizes(x, mu), mu);
  check_prior_gradient(output_mask[3], "mu_prior", mu_prior, mu);
  check_prior_gradient(output_mask[4], "std_prior", std_prior, mu);
}

inline void check_gaussian_kl_divergence(const Tensor& mu, const Tensor& rho, const Tensor& mu_prior,
                                         const Tensor& std_prior) {
  check_parameters(mu, rho);
  check_priors(mu_prior, std_prior, mu);
}

inline void check_gaussian_kl_divergence_backward(const Tensor& grad, const Tensor& mu, const Tensor& rho,
                                                  const Tensor& mu_prior, const Tensor& std_prior, bool prior_grads) {
  check_gaussian_kl_divergence(mu, rho, mu_prior, std_prior);
  check_log_prob_gradient("grad", grad, Sizes{}, mu);
  check_prior_gradient(prior_grads, "mu_prior", mu_prior, mu);
  check_prior_gradient(prior_grads, "std_prior", std_prior, mu);
}

}  // namespace illia
