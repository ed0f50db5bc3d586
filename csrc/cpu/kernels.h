// The CPU kernels, one table an instruction set. No torch here.
//
// A chunk is kChunkSize consecutive elements (the last may be shorter). Kernels handle any range of chunks, each on
// its own, so that threads may share them out in any way without changing a bit of the result.
#pragma once

#include <tuple>

#include "ops/kernels.h"

namespace illia {

constexpr int64_t kChunkSize = 1024;

constexpr int64_t count_chunks(int64_t numel) { return (numel + kChunkSize - 1) / kChunkSize; }

template <typename args_t>
using Kernel = void (*)(const args_t&, const General&, Types, int64_t begin_chunk, int64_t end_chunk);

struct KernelTable {
  std::tuple<Kernel<StandardNormalArgs>, Kernel<SampleArgs>, Kernel<SampleBackwardArgs>, Kernel<LogProbArgs>,
             Kernel<LogProbBackwardArgs>, Kernel<KlDivergenceArgs>, Kernel<KlDivergenceBackwardArgs>>
      kernels;

  // The kernel for arguments of this type.
  template <typename args_t>
  Kernel<args_t> get() const {
    return std::get<Kernel<args_t>>(kernels);
  }
};

// One pair of tables per instruction set: arithmetic in float (for float, half and bfloat16) and in double.
struct Kernels {
  KernelTable in_float, in_double;
};

namespace base {
extern const Kernels kKernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
#endif

}  // namespace illia
