// What sums over tiles need beside the kernels that make them: how many tiles there are, and the second stage.
#include "cuda/launch.cuh"

namespace illia {
namespace cuda {

int64_t count_tiles(Types types, int64_t numel, const General& general) {
  return dispatch(types.parameters, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    return dispatch_variant<scalar_t>(general, true, [&](const auto& variant) {
      return TileOf<ForwardTile, scalar_t, std::decay_t<decltype(variant)>>::cover(numel);
    });
  });
}

// Of one tile the sum is made already; of none it is 0.
const char* launch_sums(const Launch& on, const TileSums& sums, int64_t num_samples) {
  if (sums.num_tiles == 1 || num_samples == 0) return nullptr;
  const dim3 grid(static_cast<unsigned>(std::min(num_samples, kMostBlocks)));
  return dispatch(on.types.parameters, [&](auto tag) {
    using acc_t = AccType<typename decltype(tag)::type>;
    return start(on, sum_tiles_kernel<acc_t>, grid, kSumThreads, sums.partials, num_samples, sums.num_tiles,
                 static_cast<acc_t*>(sums.results));
  });
}

const char* launch_prior_grad_sums(const Launch& on, const General& general, int64_t numel) {
  return dispatch(on.types.parameters, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    using acc_t = AccType<scalar_t>;
    return start(on, sum_prior_grads_kernel<acc_t>, dim3(2), kSumThreads, general.prior_partials,
                 GeneralTile<scalar_t>::cover(numel), static_cast<acc_t*>(general.mu_prior_grad.sum),
                 static_cast<acc_t*>(general.std_prior_grad.sum));
  });
}

}  // namespace cuda
}  // namespace illia
