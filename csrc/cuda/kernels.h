// What the torch side asks of CUDA. Neither torch nor CUDA headers here.
//
// A launch returns nullptr, or the driver's message: then a kernel was not started, and results are incomplete.
#pragma once

#include "ops/kernels.h"

namespace illia {
namespace cuda {

// Where a launch runs, and in which types.
struct Launch {
  Types types;
  void* stream;
};

// Tiles of one sample, each with one partial sum.
int64_t count_tiles(Types types, int64_t numel, const General& general = {});

// One tensor. Sums of several tiles, and gradients to priors of one element, are left in their partials.
const char* launch(const Launch& on, const StandardNormalArgs& args, const General& general = {});
const char* launch(const Launch& on, const SampleArgs& args, const General& general = {});
const char* launch(const Launch& on, const SampleBackwardArgs& args, const General& general = {});
const char* launch(const Launch& on, const LogProbArgs& args, const General& general = {});
const char* launch(const Launch& on, const LogProbBackwardArgs& args, const General& general = {});
const char* launch(const Launch& on, const KlDivergenceArgs& args, const General& general = {});
const char* launch(const Launch& on, const KlDivergenceBackwardArgs& args, const General& general = {});

// At least one tensor; each begins at a Philox block of the stream that all share.
const char* launch(const Launch& on, const Parts<SampleArgs>& parts);
const char* launch(const Launch& on, const Parts<SampleBackwardArgs>& parts);
const char* launch(const Launch& on, const Parts<KlDivergenceArgs>& parts);
const char* launch(const Launch& on, const Parts<KlDivergenceBackwardArgs>& parts);

// The second stage of sums: the partials of each sample, and those of gradients to priors.
const char* launch_sums(const Launch& on, const TileSums& sums, int64_t num_samples);
const char* launch_prior_grad_sums(const Launch& on, const General& general, int64_t numel);

}  // namespace cuda
}  // namespace illia
