// What the torch side asks of a CPU kernel: raw contiguous memory and a range of chunks. No torch here.
//
// A chunk is kChunkSize consecutive elements (the last may be shorter). Kernels handle any range of chunks, each on
// its own, so that threads may share them out in any way without changing a bit of the result.
#pragma once

#include "ops/block.h"
#include "ops/memory.h"

namespace illia {

constexpr int64_t kChunkSize = 1024;

constexpr int64_t count_chunks(int64_t numel) { return (numel + kChunkSize - 1) / kChunkSize; }

struct ConstView {
  const void* data = nullptr;  // nullptr: not given
  Storage storage = Storage::kFloat;
};

struct MutableView {
  void* data = nullptr;  // nullptr: not asked for
  Storage storage = Storage::kFloat;
};

// One prior for all elements, or one for each: then both are [numel] of the arithmetic type, and the numbers not read.
struct PriorValues {
  double mu, std;
  const void *each_mu = nullptr, *each_std = nullptr;
};

// Gradients to the priors: for each element, or summed over those of a chunk, or neither: not asked for.
struct PriorGradTargets {
  void *each_mu = nullptr, *each_std = nullptr;            // [numel] of the arithmetic type
  double *mu_partials = nullptr, *std_partials = nullptr;  // [num_chunks], zeros at first

  bool asked() const { return each_mu || each_std || mu_partials || std_partials; }
};

struct StandardNormalArgs {
  const Key* keys;  // [num_samples]
  int64_t num_samples, numel;
  MutableView eps;  // [num_samples, numel]
  Block block{};
};

struct SampleArgs {
  ConstView mu, rho;  // [numel]
  const Key* keys;    // [num_samples]
  int64_t num_samples, numel;
  PriorValues prior;
  MutableView x;     // [num_samples, numel]
  double* partials;  // [num_samples, num_chunks] of log_prob; nullptr: not asked for
  Block block{};
};

struct SampleBackwardArgs {
  ConstView grad_x;             // [num_samples, numel] or nullptr
  const double* grad_log_prob;  // [num_samples] or nullptr; prior and mu are read only with it
  ConstView mu, rho;            // [numel]
  const Key* keys;              // [num_samples]
  int64_t num_samples, numel;
  PriorValues prior;
  MutableView grad_mu, grad_rho;  // [numel]; grad_mu may be nullptr
  Block block{};
  PriorGradTargets prior_grads{};  // only with grad_log_prob
  bool stick_the_landing = false;
};

struct LogProbArgs {
  ConstView x;        // [num_samples, numel]
  ConstView mu, rho;  // [numel]
  int64_t num_samples, numel;
  PriorValues prior;
  double* partials;  // [num_samples, num_chunks]
};

struct LogProbBackwardArgs {
  const double* grad_log_prob;  // [num_samples]
  ConstView x;                  // [num_samples, numel]
  ConstView mu, rho;            // [numel]
  int64_t num_samples, numel;
  PriorValues prior;
  MutableView grad_x;             // [num_samples, numel] or nullptr
  MutableView grad_mu, grad_rho;  // [numel] or nullptr
  PriorGradTargets prior_grads{};
};

struct KlDivergenceArgs {
  ConstView mu, rho;  // [numel]
  int64_t numel;
  PriorValues prior;
  double* partials;  // [num_chunks]
};

struct KlDivergenceBackwardArgs {
  double grad;
  ConstView mu, rho;  // [numel]
  int64_t numel;
  PriorValues prior;
  MutableView grad_mu, grad_rho;  // [numel]
  PriorGradTargets prior_grads{};
};

template <typename args_t>
using Kernel = void (*)(const args_t&, int64_t begin_chunk, int64_t end_chunk);

struct KernelTable {
  Kernel<StandardNormalArgs> standard_normal;
  Kernel<SampleArgs> sample;
  Kernel<SampleBackwardArgs> sample_backward;
  Kernel<LogProbArgs> log_prob;
  Kernel<LogProbBackwardArgs> log_prob_backward;
  Kernel<KlDivergenceArgs> kl_divergence;
  Kernel<KlDivergenceBackwardArgs> kl_divergence_backward;
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
