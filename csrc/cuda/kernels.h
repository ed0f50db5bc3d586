// What the torch side asks of CUDA: raw memory of one device, and a stream. Neither torch nor CUDA headers here.
//
// A launch returns nullptr, or the driver's message: then a kernel was not started, and no sum was written.
#pragma once

#include <vector>

#include "ops/block.h"
#include "ops/memory.h"

namespace illia {
namespace cuda {

// One floating number, in device memory or (data == nullptr) in `value`. Only a kernel reads device memory: whoever
// launches never waits for the device.
struct Scalar {
  const void* data = nullptr;
  Storage storage = Storage::kFloat;
  double value = 0;
};

struct PriorScalars {
  Scalar mu, std;
};

// The gradient to a prior, of the arithmetic type.
struct PriorGrad {
  void* each = nullptr;  // [numel]: for each element, or
  void* sum = nullptr;   // [1]: over all of them, or neither: not asked for

  bool asked() const { return each || sum; }
};

// What few calls ask for. As it stands here they ask for nothing, and the plain kernels run; else the general ones do.
struct General {
  Block block{};
  const void *mu_prior = nullptr, *std_prior = nullptr;  // [numel] of the arithmetic type: for each element, or neither
  bool stick_the_landing = false;
  PriorGrad mu_prior_grad{}, std_prior_grad{};  // of a backward that has grad_log_prob
  double* prior_partials = nullptr;             // [2, num_tiles]; nullptr without their sums

  bool sums_prior_grads() const { return mu_prior_grad.sum || std_prior_grad.sum; }
  bool is_plain() const {
    return block.first == 0 && block.is_one_row() && !std_prior && !stick_the_landing && !mu_prior_grad.asked() &&
           !std_prior_grad.asked();
  }
};

// Each tile's sum goes to `partials`, which a second kernel adds; where one tile is all, its sum is the result.
struct TileSums {
  void* results = nullptr;     // [num_samples] of the arithmetic type; nullptr: the caller adds the partials
  double* partials = nullptr;  // [num_samples, num_tiles]; nullptr where there are fewer than two tiles
  int64_t num_tiles = 0;

  bool asked() const { return results || partials; }
};

// Where a launch runs, and in which types. mu, rho and their gradients are stored as `parameters`, x and grad_x as
// `sample`. Sums and grad_log_prob are float, or double beside double parameters.
struct Launch {
  Storage parameters, sample;
  void* stream;
};

struct StandardNormalArgs {
  const Key* keys;  // [num_samples]
  int64_t num_samples, numel;
  void* eps;  // [num_samples, numel]
};

struct SampleArgs {
  const void *mu, *rho;  // [numel]
  const Key* keys;       // [num_samples]
  int64_t num_samples, numel;
  PriorScalars prior;
  void* x;            // [num_samples, numel]
  TileSums log_prob;  // may be asked for
};

struct SampleBackwardArgs {
  const void* grad_x;         // [num_samples, numel] or nullptr
  const void* grad_log_prob;  // [num_samples] or nullptr; prior and mu are read only with it
  const void *mu, *rho;       // [numel]
  const Key* keys;            // [num_samples]
  int64_t num_samples, numel;
  PriorScalars prior;
  void *grad_mu, *grad_rho;  // [numel]; grad_mu may be nullptr
};

struct LogProbArgs {
  const void* x;         // [num_samples, numel]
  const void *mu, *rho;  // [numel]
  int64_t num_samples, numel;
  PriorScalars prior;
  TileSums log_prob;
};

struct LogProbBackwardArgs {
  const void* grad_log_prob;  // [num_samples]
  const void* x;              // [num_samples, numel]
  const void *mu, *rho;       // [numel]
  int64_t num_samples, numel;
  PriorScalars prior;
  void* grad_x;              // [num_samples, numel] or nullptr
  void *grad_mu, *grad_rho;  // [numel] or nullptr
};

struct KlDivergenceArgs {
  const void *mu, *rho;  // [numel]
  int64_t numel;
  PriorScalars prior;
  TileSums kl_divergence;  // of one sample
};

struct KlDivergenceBackwardArgs {
  const void* grad;      // []
  const void *mu, *rho;  // [numel]
  int64_t numel;
  PriorScalars prior;
  void *grad_mu, *grad_rho;  // [numel]
};

// One of the tensors of a foreach op: all that a launch of its own would have.
template <typename args_t>
struct Part {
  args_t args;
  General general{};  // its block is the whole tensor
  int64_t first = 0;  // place of element 0 in the stream that all share, from a Philox block on
};
template <typename args_t>
using Parts = std::vector<Part<args_t>>;

// Tiles of one sample, each with one partial sum.
int64_t count_tiles(Storage parameters, int64_t numel, const General& general = {});

const char* launch_standard_normal(const Launch& launch, const StandardNormalArgs& args, const General& general = {});
const char* launch_sample(const Launch& launch, const SampleArgs& args, const General& general = {});
const char* launch_sample_backward(const Launch& launch, const SampleBackwardArgs& args, const General& general = {});
const char* launch_log_prob(const Launch& launch, const LogProbArgs& args, const General& general = {});
const char* launch_log_prob_backward(const Launch& launch, const LogProbBackwardArgs& args,
                                     const General& general = {});
const char* launch_kl_divergence(const Launch& launch, const KlDivergenceArgs& args, const General& general = {});
const char* launch_kl_divergence_backward(const Launch& launch, const KlDivergenceBackwardArgs& args,
                                          const General& general = {});

// The same for at least one tensor, with keys, num_samples and gradients to sums that all share. The sums, which the
// parts leave out, are over all.
const char* launch_foreach_sample(const Launch& launch, Parts<SampleArgs> parts, const TileSums& log_prob);
const char* launch_foreach_sample_backward(const Launch& launch, const Parts<SampleBackwardArgs>& parts);
const char* launch_foreach_kl_divergence(const Launch& launch, Parts<KlDivergenceArgs> parts,
                                         const TileSums& kl_divergence);
const char* launch_foreach_kl_divergence_backward(const Launch& launch, const Parts<KlDivergenceBackwardArgs>& parts);

}  // namespace cuda
}  // namespace illia
