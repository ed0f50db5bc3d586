// In a library without CUDA kernels the ops refuse CUDA tensors, and say what helps.
#if !defined(ILLIA_CUDA_VERSION)
#include <torch/csrc/stable/library.h>

#include "ops/checks.h"

namespace {

// A boxed kernel: it never looks at its arguments, so it serves every schema.
template <const char* const* kOp>
void refuse_cuda(StableIValue*, uint64_t, uint64_t) {
  illia::check(false, *kOp,
               ": got a tensor on a CUDA device, and this build of illia_ext has no CUDA kernels; put CUDA's compiler "
               "nvcc on PATH, or its folder into CUDA_HOME, and build again with ILLIA_EXT_CUDA=1 (or move the tensors "
               "to the CPU)");
}

}  // namespace

#define ILLIA_REFUSE(op)                 \
  static const char* const k_##op = #op; \
  m.impl(#op, &refuse_cuda<&k_##op>)

STABLE_TORCH_LIBRARY_IMPL(illia_ext, CUDA, m) {
  ILLIA_REFUSE(standard_normal);
  ILLIA_REFUSE(gaussian_sample);
  ILLIA_REFUSE(gaussian_sample_backward);
  ILLIA_REFUSE(gaussian_log_prob);
  ILLIA_REFUSE(gaussian_log_prob_backward);
  ILLIA_REFUSE(gaussian_sample_and_log_prob);
  ILLIA_REFUSE(gaussian_sample_and_log_prob_backward);
  ILLIA_REFUSE(gaussian_kl_divergence);
  ILLIA_REFUSE(gaussian_kl_divergence_backward);
  ILLIA_REFUSE(foreach_gaussian_sample_and_log_prob);
  ILLIA_REFUSE(foreach_gaussian_sample_and_log_prob_backward);
  ILLIA_REFUSE(foreach_gaussian_kl_divergence);
  ILLIA_REFUSE(foreach_gaussian_kl_divergence_backward);
}
#endif  // ILLIA_CUDA_VERSION
