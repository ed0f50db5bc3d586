// Every function of the core as device code: it is enough that this compiles and links.
#include "core/gaussian.h"
#include "core/normal.h"

namespace illia {
namespace base {

template <typename acc_t>
__global__ void elementary_kernel(const acc_t* __restrict__ x, acc_t* __restrict__ out) {  // [1], [9]
  using int_t = typename FloatFormat<acc_t>::int_t;
  int_t exponent;
  out[0] = exp_nonpositive(x[0]);
  out[1] = log1p_ratio(x[0]);
  out[2] = log_normal(x[0]);
  sin_cos_turns(x[0], &out[3], &out[4]);
  out[5] = log_sigma(x[0]);
  out[6] = linear_log_sigma(x[0]);
  out[7] = split_mantissa(x[0], &exponent);
  out[8] = static_cast<acc_t>(exponent);
}

template <typename acc_t, typename lane_t>
__global__ void normal_kernel(uint64_t seed, uint64_t offset,
                              acc_t* __restrict__ eps) {  // [gridDim, blockDim, normals]
  constexpr int kNormals = kNormalsPerBlock<acc_t>;
  const uint64_t block = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  acc_t normals[kNormals];
  block_normals(philox4x32<lane_t>(seed, offset + block), normals);
  for (int k = 0; k < kNormals; ++k) eps[block * kNormals + k] = normals[k];
}

template <typename acc_t>
__global__ void gaussian_kernel(const acc_t* __restrict__ mu, const acc_t* __restrict__ rho,  // [blockDim]
                                const acc_t* __restrict__ eps, Prior<acc_t> prior,
                                acc_t* __restrict__ out) {  // [8, blockDim]
  const int i = threadIdx.x, n = blockDim.x;
  const acc_t prior_scale = prior.scale(1);
  const Softplus<acc_t> s = softplus(rho[i]);
  const acc_t h = log_sigma_derivative(s), dsigma = sigmoid(rho[i], s.sigma, h);
  const acc_t x = gaussian_sample(mu[i], s.sigma, eps[i]);
  const GaussianGrads<acc_t> log_prob = gaussian_log_prob_grads(acc_t{1}, x, mu[i], s.sigma, prior, prior_scale);
  const GaussianGrads<acc_t> kl = gaussian_kl_divergence_grads(acc_t{1}, mu[i], s.sigma, dsigma, h, prior, prior_scale);
  out[0 * n + i] = prior_score(x, prior);
  out[1 * n + i] = posterior_score(x, mu[i], s.sigma);
  out[2 * n + i] = gaussian_sample_grad(eps[i], x, prior, prior_scale);
  out[3 * n + i] = log_prob.x;
  out[4 * n + i] = log_prob.mu;
  out[5 * n + i] = log_prob.rho;
  out[6 * n + i] = kl.mu;
  out[7 * n + i] = kl.rho;
}

template <typename acc_t>
__global__ void element_prior_kernel(const acc_t* __restrict__ x, acc_t* __restrict__ out) {  // [4], [7]
  const ElementPrior<acc_t> prior = ElementPrior<acc_t>::make(x[0], x[1]);
  const LogStd<acc_t> log_std = log_std_parts(x[1]);
  const HeldFixedGrads<acc_t> held = held_fixed_grads(x[2], x[3], x[1]);
  const ElementPriorGrads<acc_t> grads = element_prior_grads(x[2], prior_score(x[3], prior), x[1]);
  out[0] = prior.scale(x[2]);
  out[1] = log_std.factor;
  out[2] = log_std.linear;
  out[3] = held.mu;
  out[4] = held.h_scale;
  out[5] = grads.mu;
  out[6] = grads.std;
}

#define ILLIA_INSTANTIATE(acc_t)                                                       \
  template __global__ void elementary_kernel<acc_t>(const acc_t*, acc_t*);             \
  template __global__ void normal_kernel<acc_t, uint32_t>(uint64_t, uint64_t, acc_t*); \
  template __global__ void normal_kernel<acc_t, uint64_t>(uint64_t, uint64_t, acc_t*); \
  template __global__ void element_prior_kernel<acc_t>(const acc_t*, acc_t*);          \
  template __global__ void gaussian_kernel<acc_t>(const acc_t*, const acc_t*, const acc_t*, Prior<acc_t>, acc_t*);
ILLIA_INSTANTIATE(float)
ILLIA_INSTANTIATE(double)

}  // namespace base
}  // namespace illia
