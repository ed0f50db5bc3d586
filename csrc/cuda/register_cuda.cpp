// The ops on CUDA; in a library without CUDA kernels they refuse, and say what helps.
#include <torch/csrc/stable/library.h>

#include "cuda/device.h"
#include "ops/gaussian.h"

#if defined(ILLIA_CUDA_VERSION)

#define ILLIA_IMPL(op) m.impl(#op, TORCH_BOX(&illia::op<illia::cuda::Cuda>))

#else

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

#define ILLIA_IMPL(op)                   \
  static const char* const k_##op = #op; \
  m.impl(#op, &refuse_cuda<&k_##op>)

#endif  // ILLIA_CUDA_VERSION

STABLE_TORCH_LIBRARY_IMPL(illia_ext, CUDA, m) { ILLIA_FOR_EACH_OP(ILLIA_IMPL); }
