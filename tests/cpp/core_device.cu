// Every function of the core as device code: it is enough that this compiles and links.
#include "core/gaussian.h"
#include "core/normal.h"

namespace illia {
namespace base {

template <typename acc_t>
__global__ void functions_kernel(const acc_t* __restrict__ in, acc_t* __restrict__ out) {  // [5], [25]
  const acc_t x = in[0], mu = in[1], rho = in[2], eps = in[3], std_prior = in[4];
  typename FloatFormat<acc_t>::int_t exponent;
  *out++ = exp_nonpositive(x);
  *out++ = log1p_ratio(x);
  *out++ = log_normal(x);
  sin_cos_turns(x, out, out + 1), out += 2;
  *out++ = log_sigma(rho);
  *out++ = linear_log_sigma(rho);
  *out++ = split_mantissa(x, &exponent);
  *out++ = static_cast<acc_t>(exponent);
  // against one prior, and against that of an element
  const Prior<acc_t> prior = Prior<acc_t>::make(mu, std_prior);
  const ElementPrior<acc_t> element = ElementPrior<acc_t>::make(mu, std_prior);
  const Softplus<acc_t> s = softplus(rho);
  const acc_t h = log_sigma_derivative(s), dsigma = sigmoid(rho, s.sigma, h), scale = prior.scale(1);
  const GaussianGrads<acc_t> log_prob = gaussian_log_prob_grads(acc_t{1}, x, mu, s.sigma, prior, scale);
  const GaussianGrads<acc_t> kl = gaussian_kl_divergence_grads(acc_t{1}, mu, s.sigma, dsigma, h, prior, scale);
  const LogStd<acc_t> log_std = log_std_parts(std_prior);
  const HeldFixedGrads<acc_t> held = held_fixed_grads(x, eps, s.sigma);
  const ElementPriorGrads<acc_t> grads = element_prior_grads(x, prior_score(x, element), std_prior);
  for (acc_t value : {gaussian_sample(mu, s.sigma, eps), prior_score(x, prior), posterior_score(x, mu, s.sigma),
                      gaussian_sample_grad(eps, x, prior, scale), log_prob.x, log_prob.mu, log_prob.rho, kl.mu, kl.rho,
                      element.scale(x), log_std.factor, log_std.linear, held.mu, held.h_scale, grads.mu, grads.std})
    *out++ = value;
}

template <typename acc_t, typename lane_t>
__global__ void normal_kernel(uint64_t seed, uint64_t offset, acc_t* __restrict__ eps) {  // [kNormalsPerBlock]
  acc_t normals[kNormalsPerBlock<acc_t>];
  block_normals(philox4x32<lane_t>(seed, offset), normals);
  for (acc_t normal : normals) *eps++ = normal;
}

template __global__ void functions_kernel<float>(const float*, float*);
template __global__ void functions_kernel<double>(const double*, double*);
template __global__ void normal_kernel<float, uint32_t>(uint64_t, uint64_t, float*);
template __global__ void normal_kernel<float, uint64_t>(uint64_t, uint64_t, float*);
template __global__ void normal_kernel<double, uint32_t>(uint64_t, uint64_t, double*);
template __global__ void normal_kernel<double, uint64_t>(uint64_t, uint64_t, double*);

}  // namespace base
}  // namespace illia
