// All that an op checks before it works, and the shapes it works on: one function an op, for every device. An op that
// draws gets its block, or those of its tensors.
#pragma once

#include "core/normal.h"
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

using FamilyName = std::optional<std::string>;
using FamilyNames = std::optional<std::vector<std::string>>;
using FamilyParameters = std::optional<std::vector<double>>;

// The families of priors from their names and the parameters of all: those of a scale mixture are the weight of the
// wide component, whose standard deviation std_prior is, and the narrow one's ratio to it.
inline std::vector<PriorFamily> check_families(const std::vector<std::string>& names,
                                               const FamilyParameters& parameters, bool prior_grads = false) {
  const double half_log_two_pi = 0.91893853320467274;  // log q lacks it, so that a Gaussian's constant is 0
  const auto is_mixture = [](const std::string& name) { return name == "scale_mixture"; };
  const size_t expected = 2 * std::count_if(names.begin(), names.end(), is_mixture);
  const size_t given = parameters ? parameters->size() : 0;
  std::vector<PriorFamily> families;
  families.reserve(names.size());
  size_t read = 0;
  for (const std::string& name : names) {
    check(is_mixture(name) || name == "normal" || name == "flat" || name == "laplace",
          "family: expected normal, flat, laplace or scale_mixture, got ", name);
    check(!prior_grads || name != "flat", "family: expected a prior, whose gradients are asked for, got flat");
    check(given == expected, "family_parameters: expected ", expected, " numbers, two for each scale_mixture, got ",
          given);
    PriorFamily family;
    if (name == "flat") family = {Family::kFlat, -half_log_two_pi};
    if (name == "laplace") family = {Family::kLaplace, base::Constants<double>::kLn2 - half_log_two_pi};
    if (is_mixture(name)) {
      const double weight = (*parameters)[read++], ratio = (*parameters)[read++];
      check(weight > 0 && weight < 1, "family_parameters: expected a weight between 0 and 1, got ", weight);
      check(ratio >= 1e-9 && ratio <= 1, "family_parameters: expected a ratio from 1e-9 to 1, got ", ratio);
      family = {Family::kScaleMixture, -base::log_any(weight), base::log_any((1 - weight) / (weight * ratio)),
                (1 / (ratio * ratio) - 1) / 2};
    }
    families.push_back(family);
  }
  return families;
}

inline PriorFamily check_family(const FamilyName& name, const FamilyParameters& parameters, bool prior_grads = false) {
  if (!name && !parameters) return {};
  return check_families({name.value_or("normal")}, parameters, prior_grads)[0];
}

// One for all tensors, or one for each.
inline std::vector<PriorFamily> check_families(const FamilyNames& names, const FamilyParameters& parameters,
                                               size_t num_tensors) {
  if (!names && !parameters) return {PriorFamily{}};
  const std::vector<std::string> given = names.value_or(std::vector<std::string>{"normal"});
  check(given.size() == 1 || given.size() == num_tensors, "family: expected one name, or as many as mu has tensors, ",
        num_tensors, ", got ", given.size());
  return check_families(given, parameters);
}

inline void check_antithetic(const Tensor& key, bool antithetic) {
  check(!antithetic || (is_batch_of_keys(key) && key.size(0) % 2 == 0),
        "antithetic: expected an even number of keys, [2 k, 2], got shape ", shape_of(key));
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
                                   const std::optional<Sizes>& origin, bool antithetic) {
  check_parameters(mu, rho);
  check_key(key);
  check_antithetic(key, antithetic);
  check_same_device("key", key, "mu", mu);
  if (dtype) check_sample_dtype("dtype", *dtype, mu.scalar_type());
  return check_block("mu", mu.sizes(), full_size, origin);
}

inline Block check_gaussian_sample_backward(const Tensor& grad_x, const Tensor& rho, const Tensor& key,
                                            const std::optional<Sizes>& full_size, const std::optional<Sizes>& origin,
                                            bool antithetic) {
  check_floating("rho", dtype_of("rho", rho));
  check_key(key);
  check_antithetic(key, antithetic);
  check_same_device("key", key, "rho", rho);
  check_sample_gradient(grad_x, key, rho);
  return check_block("rho", rho.sizes(), full_size, origin);
}

inline Block check_gaussian_sample_and_log_prob(const Tensor& mu, const Tensor& rho, const Tensor& mu_prior,
                                                const Tensor& std_prior, const Tensor& key,
                                                std::optional<ScalarType> dtype, const std::optional<Sizes>& full_size,
                                                const std::optional<Sizes>& origin, bool antithetic) {
  const Block block = check_gaussian_sample(mu, rho, key, dtype, full_size, origin, antithetic);
  check_priors(mu_prior, std_prior, mu);
  return block;
}

inline Block check_gaussian_sample_and_log_prob_backward(
    const std::optional<Tensor>& grad_x, const std::optional<Tensor>& grad_log_prob, const Tensor& mu,
    const Tensor& rho, const Tensor& mu_prior, const Tensor& std_prior, const Tensor& key,
    const std::optional<Sizes>& full_size, const std::optional<Sizes>& origin, bool prior_grads, bool antithetic) {
  const Block block = check_gaussian_sample_and_log_prob(mu, rho, mu_prior, std_prior, key, std::nullopt, full_size,
                                                         origin, antithetic);
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

using Tensors = std::vector<Tensor>;
using OptionalTensors = std::vector<std::optional<Tensor>>;

// Of a list of priors that holds one for all tensors, or one for each.
inline const Tensor& prior_of(const Tensors& priors, size_t index) { return priors[priors.size() == 1 ? 0 : index]; }

// check(k) for each of the tensors; what it refuses gets the tensor's number.
template <typename check_t>
void check_each(size_t count, check_t check) {
  for (size_t k = 0; k < count; ++k) {
    try {
      check(k);
    } catch (const std::runtime_error& error) {
      throw std::runtime_error("tensor " + std::to_string(k) + ": " + error.what());
    }
  }
}

inline void check_foreach_parameters(const Tensors& mu, const Tensors& rho, const Tensors& mu_prior,
                                     const Tensors& std_prior) {
  check(!mu.empty(), "mu: expected at least one tensor, got an empty list");
  check(rho.size() == mu.size(), "rho: expected as many tensors as mu, ", mu.size(), ", got ", rho.size());
  const auto check_count = [&](const char* name, const Tensors& priors) {
    check(priors.size() == 1 || priors.size() == mu.size(), name, ": expected one tensor, or as many as mu, ",
          mu.size(), ", got ", priors.size());
  };
  check_count("mu_prior", mu_prior);
  check_count("std_prior", std_prior);
  check_each(mu.size(), [&](size_t k) {
    check_parameters(mu[k], rho[k]);
    check(mu[k].scalar_type() == mu[0].scalar_type(), "mu: expected the dtype of tensor 0, ", mu[0].scalar_type(),
          ", got ", mu[k].scalar_type());
    check_same_device("mu", mu[k], "tensor 0", mu[0]);
    check_priors(prior_of(mu_prior, k), prior_of(std_prior, k), mu[k]);
  });
}

inline void check_foreach_gaussian_sample_and_log_prob(const Tensors& mu, const Tensors& rho, const Tensors& mu_prior,
                                                       const Tensors& std_prior, const Tensor& key,
                                                       std::optional<ScalarType> dtype, bool antithetic) {
  check_foreach_parameters(mu, rho, mu_prior, std_prior);
  check_key(key);
  check_antithetic(key, antithetic);
  check_same_device("key", key, "mu", mu[0]);
  if (dtype) check_sample_dtype("dtype", *dtype, mu[0].scalar_type());
}

// The dtype of the gradients to the samples, which all have: that of the parameters where there is none.
inline ScalarType sample_grad_dtype(const OptionalTensors& grad_x, ScalarType parameters) {
  const auto first = std::find_if(grad_x.begin(), grad_x.end(), [](const auto& grad) { return grad.has_value(); });
  return first == grad_x.end() ? parameters : (*first)->scalar_type();
}

inline void check_foreach_gaussian_sample_and_log_prob_backward(const OptionalTensors& grad_x,
                                                                const std::optional<Tensor>& grad_log_prob,
                                                                const Tensors& mu, const Tensors& rho,
                                                                const Tensors& mu_prior, const Tensors& std_prior,
                                                                const Tensor& key, bool antithetic) {
  check_foreach_gaussian_sample_and_log_prob(mu, rho, mu_prior, std_prior, key, std::nullopt, antithetic);
  check(grad_x.size() == mu.size(), "grad_x: expected as many gradients as mu has tensors, ", mu.size(), ", got ",
        grad_x.size());
  const ScalarType dtype = sample_grad_dtype(grad_x, mu[0].scalar_type());
  check_each(mu.size(), [&](size_t k) {
    if (!grad_x[k]) return;
    check_sample_gradient(*grad_x[k], key, rho[k]);
    check(grad_x[k]->scalar_type() == dtype, "grad_x: expected the dtype of the gradients before it, ", dtype, ", got ",
          grad_x[k]->scalar_type());
  });
  if (grad_log_prob) check_log_prob_gradient("grad_log_prob", *grad_log_prob, log_prob_sizes(key), mu[0]);
}

inline void check_foreach_gaussian_kl_divergence_backward(const Tensor& grad, const Tensors& mu, const Tensors& rho,
                                                          const Tensors& mu_prior, const Tensors& std_prior) {
  check_foreach_parameters(mu, rho, mu_prior, std_prior);
  check_log_prob_gradient("grad", grad, Sizes{}, mu[0]);
}

// Where each tensor lies in the stream that all share: from the first Philox block on that those before it left unused.
inline std::vector<Block> share_stream(const Tensors& mu) {
  const int64_t normals =
      mu[0].scalar_type() == ScalarType::Double ? base::kNormalsPerBlock<double> : base::kNormalsPerBlock<float>;
  std::vector<Block> blocks(mu.size());
  int64_t place = 0;
  for (size_t k = 0; k < mu.size(); ++k) {
    blocks[k].first = place;
    place += (mu[k].numel() + normals - 1) / normals * normals;
  }
  return blocks;
}

}  // namespace illia
