// Every function of the core as a symbol of its own, for validation/test_mutation.py: it links a broken core to tests
// that were compiled once, with ILLIA_FUNCTION told not to inline.
#include "core/gaussian.h"
#include "core/normal.h"

namespace illia {
namespace base {

#define ILLIA_EMIT_FAMILY(acc_t, prior_t, family_t)                                                        \
  template acc_t sample_grad(acc_t, acc_t, const prior_t&, acc_t, const family_t&);                        \
  template GaussianGrads<acc_t> gaussian_log_prob_grads(acc_t, acc_t, acc_t, acc_t, const prior_t&, acc_t, \
                                                        const family_t&);

#define ILLIA_EMIT_WITH(acc_t, prior_t)                                     \
  template acc_t prior_score(acc_t, const prior_t&);                        \
  template acc_t gaussian_sample_grad(acc_t, acc_t, const prior_t&, acc_t); \
  ILLIA_EMIT_FAMILY(acc_t, prior_t, NormalFamily<acc_t>)                    \
  ILLIA_EMIT_FAMILY(acc_t, prior_t, FlatFamily<acc_t>)                      \
  ILLIA_EMIT_FAMILY(acc_t, prior_t, LaplaceFamily<acc_t>)                   \
  ILLIA_EMIT_FAMILY(acc_t, prior_t, ScaleMixtureFamily<acc_t>)              \
  ILLIA_EMIT_FAMILY(acc_t, prior_t, AnyFamily<acc_t>)                       \
  template GaussianGrads<acc_t> gaussian_kl_divergence_grads(acc_t, acc_t, acc_t, acc_t, acc_t, const prior_t&, acc_t);

#define ILLIA_EMIT(acc_t)                                                     \
  template acc_t at_least(acc_t, acc_t);                                      \
  template acc_t exp_nonpositive(acc_t);                                      \
  template acc_t log1p_ratio(acc_t);                                          \
  template acc_t log_normal(acc_t);                                           \
  template void sin_cos_turns(acc_t, acc_t*, acc_t*);                         \
  template Softplus<acc_t> softplus(acc_t);                                   \
  template acc_t log_sigma_derivative(const Softplus<acc_t>&);                \
  template acc_t sigmoid(acc_t, acc_t, acc_t);                                \
  template acc_t linear_log_sigma(acc_t);                                     \
  template acc_t log_sigma(acc_t);                                            \
  template acc_t split_mantissa(acc_t, FloatFormat<acc_t>::int_t*);           \
  template acc_t in_range<acc_t>(double, double);                             \
  template acc_t limit(acc_t);                                                \
  template struct Prior<acc_t>;                                               \
  template struct ElementPrior<acc_t>;                                        \
  template LogStd<acc_t> log_std_parts(acc_t);                                \
  template struct NormalFamily<acc_t>;                                        \
  template struct FlatFamily<acc_t>;                                          \
  template struct LaplaceFamily<acc_t>;                                       \
  template struct ScaleMixtureFamily<acc_t>;                                  \
  template struct AnyFamily<acc_t>;                                           \
  template acc_t gaussian_sample(acc_t, acc_t, acc_t);                        \
  ILLIA_EMIT_WITH(acc_t, Prior<acc_t>)                                        \
  ILLIA_EMIT_WITH(acc_t, ElementPrior<acc_t>)                                 \
  template HeldFixedGrads<acc_t> held_fixed_grads(acc_t, acc_t, acc_t);       \
  template ElementPriorGrads<acc_t> element_prior_grads(acc_t, acc_t, acc_t); \
  template acc_t posterior_score(acc_t, acc_t, acc_t);                        \
  template void box_muller(acc_t, acc_t, acc_t*, acc_t*);
ILLIA_EMIT(float)
ILLIA_EMIT(double)

#define ILLIA_EMIT_LANE(lane_t)                                                     \
  template struct PhiloxBlock<lane_t>;                                              \
  template PhiloxBlock<lane_t> philox4x32(PhiloxBlock<lane_t>, uint32_t, uint32_t); \
  template PhiloxBlock<lane_t> philox4x32<lane_t>(uint64_t, uint64_t);              \
  template void block_normals(const PhiloxBlock<lane_t>&, float (&)[4]);            \
  template void block_normals(const PhiloxBlock<lane_t>&, double (&)[2]);
ILLIA_EMIT_LANE(uint32_t)
ILLIA_EMIT_LANE(uint64_t)
template PhiloxBlock<uint64_t> philox4x32_lane(uint64_t, uint64_t);

// What is no template is emitted where it is used.
double used(double x, float y) {
  return log_any(x) + square_root(x) + square_root(y) + reciprocal(x) + reciprocal(y) +
         square_root_from_estimate(y, y) + reciprocal_from_estimate(y, y) + uniform(uint32_t{1}) + uniform(1, 2);
}

}  // namespace base
}  // namespace illia
