// What an op asks of a kernel, on every device: raw contiguous memory. Neither torch nor CUDA headers here.
#pragma once

#include <cstdint>
#include <vector>

#include "core/family.h"
#include "ops/block.h"

namespace illia {

enum class Storage { kFloat, kDouble, kHalf, kBFloat16 };

// How tensors are stored: mu, rho and their gradients as `parameters`, x, eps and grad_x as `sample`. Where nothing
// else is said, other memory has the arithmetic type: double beside double parameters, else float.
struct Types {
  Storage parameters, sample;
};

struct Key {
  uint64_t seed, offset;
};

// One floating number: in `value` or, for a kernel to read, in the memory of a device.
struct Scalar {
  const void* data = nullptr;  // nullptr: in `value`
  Storage storage = Storage::kFloat;
  double value = 0;
};

// The prior of all elements. std = 1 adds nothing to sums.
struct PriorScalars {
  Scalar mu{}, std{nullptr, Storage::kDouble, 1};
};

// The gradient to a prior: both are nullptr where it is not asked for.
struct PriorGrad {
  void* each = nullptr;  // [numel]: for each element, or
  void* sum = nullptr;   // [1]: over all of them; double on the CPU, the arithmetic type on CUDA

  bool asked() const { return each || sum; }
};

// What few calls ask for. As it stands here it asks for nothing.
struct General {
  Block block{};
  const void *mu_prior = nullptr, *std_prior = nullptr;  // [numel]: for each element, or neither
  PriorFamily family{};                                  // of either kind of prior
  bool antithetic = false;                               // each odd sample is drawn with -eps of the one before
  bool stick_the_landing = false;                        // of a backward that has grad_log_prob
  PriorGrad mu_prior_grad{}, std_prior_grad{};           // of a backward that has grad_log_prob
  double* prior_partials = nullptr;                      // [2, num_tiles]; nullptr without their sums

  bool sums_prior_grads() const { return mu_prior_grad.sum || std_prior_grad.sum; }
  // Whether it asks for nothing but perhaps another place in the stream, and antithetic samples.
  bool is_plain_row() const {
    return block.is_one_row() && !std_prior && family.family == Family::kNormal && !stick_the_landing &&
           !mu_prior_grad.asked() && !std_prior_grad.asked();
  }
};

// A device works on tiles, ranges of elements whose size is its own. Each tile's sum goes to `partials`, which are
// added when all are there; where one tile is all, its sum is the result.
struct TileSums {
  void* results = nullptr;     // [num_samples]; nullptr: partials alone
  double* partials = nullptr;  // [num_samples, num_tiles]; nullptr where there are fewer than two tiles
  int64_t num_tiles = 0;

  bool asked() const { return results || partials; }
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
  TileSums log_prob;  // may be asked for; the prior is read only with it
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

// One of the tensors of a call. All have the same keys and number of samples, where they have any.
template <typename args_t>
struct Part {
  args_t args{};
  General general{};
};
template <typename args_t>
using Parts = std::vector<Part<args_t>>;

}  // namespace illia
