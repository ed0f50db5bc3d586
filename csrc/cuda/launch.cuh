// From storage types to a kernel, and a grid for it.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/general.cuh"

namespace illia {
namespace cuda {

template <typename scalar_t>
struct TypeTag {
  using type = scalar_t;
};

// function(TypeTag) for the stored type.
template <typename function_t>
auto dispatch(Storage storage, function_t function) {
  switch (storage) {
    case Storage::kDouble:
      return function(TypeTag<double>{});
    case Storage::kHalf:
      return function(TypeTag<__half>{});
    case Storage::kBFloat16:
      return function(TypeTag<__nv_bfloat16>{});
    default:
      return function(TypeTag<float>{});
  }
}

// function(TypeTag of the parameters, TypeTag of the sample): the same, or a 16-bit sample beside float.
template <typename function_t>
auto dispatch(Types types, function_t function) {
  if (types.parameters == Storage::kFloat && types.sample == Storage::kHalf)
    return function(TypeTag<float>{}, TypeTag<__half>{});
  if (types.parameters == Storage::kFloat && types.sample == Storage::kBFloat16)
    return function(TypeTag<float>{}, TypeTag<__nv_bfloat16>{});
  return dispatch(types.parameters, [&](auto tag) { return function(tag, tag); });
}

// Whether the plain kernels do what is asked: they may begin at any Philox block of the stream.
template <typename scalar_t>
bool is_plain(const General& general) {
  return general.is_plain_row() && general.block.first % kNormalsPerBlock<AccType<scalar_t>> == 0;
}

template <typename scalar_t>
uint64_t first_block(const General& general) {
  return static_cast<uint64_t>(general.block.first) / kNormalsPerBlock<AccType<scalar_t>>;
}

// function(the variant that is enough), with all memory `aligned` to vectors or not. `plain` says whether the plain one
// may be.
template <typename scalar_t, typename function_t>
auto dispatch_variant(const General& general, bool aligned, function_t function, bool plain = true) {
  if (plain && is_plain<scalar_t>(general))
    return function(Plain{aligned, general.antithetic, first_block<scalar_t>(general)});
  return function(general);
}

constexpr int64_t kMostBlocks = 0x7FFFFFFF;  // of a grid

// Blocks for `num_tiles` tiles of each of `num_samples` samples. Up to kEnoughBlocks, some 30 for each multiprocessor
// of the largest GPUs, every tile has its own; above that each block takes up to four, which saves three of four
// prologues and still leaves thousands of blocks, so that no multiprocessor waits for the last. Spare blocks share
// the samples.
inline dim3 make_grid(int64_t num_tiles, int64_t num_samples = 1) {
  constexpr int64_t kEnoughBlocks = 4096, kTilesPerBlock = 4;
  const int64_t blocks =
      std::min(num_tiles, std::max(kEnoughBlocks, (num_tiles + kTilesPerBlock - 1) / kTilesPerBlock));
  const int64_t groups = std::min(num_samples, std::max<int64_t>(1, kEnoughBlocks / blocks));
  return dim3(static_cast<unsigned>(std::min(blocks, kMostBlocks)), static_cast<unsigned>(groups));
}

// Whether each row of stored_t may be accessed by vectors as wide as those of the parameters. nullptr may.
template <typename scalar_t, typename stored_t>
bool rows_aligned(const void* data, int64_t num_samples = 1, int64_t numel = 0) {
  constexpr int64_t kBytes = Tile<scalar_t, 1, true>::kWidth * sizeof(stored_t);
  const bool first = reinterpret_cast<uintptr_t>(data) % kBytes == 0;
  return first && (num_samples <= 1 || numel * static_cast<int64_t>(sizeof(stored_t)) % kBytes == 0);
}

// The same for parameters and their gradients: single rows.
template <typename scalar_t, typename... pointers_t>
bool vectors_aligned(pointers_t... data) {
  return (rows_aligned<scalar_t, scalar_t>(data) && ...);
}

// Whether all memory of a launch may be accessed by vectors.
template <typename scalar_t, typename sample_t>
bool memory_aligned(const SampleArgs& args) {
  return vectors_aligned<scalar_t>(args.mu, args.rho) &&
         rows_aligned<scalar_t, sample_t>(args.x, args.num_samples, args.numel);
}

template <typename scalar_t, typename sample_t>
bool memory_aligned(const SampleBackwardArgs& args) {
  return vectors_aligned<scalar_t>(args.mu, args.rho, args.grad_mu, args.grad_rho) &&
         rows_aligned<scalar_t, sample_t>(args.grad_x, args.num_samples, args.numel);
}

template <typename scalar_t, typename sample_t>
bool memory_aligned(const KlDivergenceArgs& args) {
  return vectors_aligned<scalar_t>(args.mu, args.rho);
}

template <typename scalar_t, typename sample_t>
bool memory_aligned(const KlDivergenceBackwardArgs& args) {
  return vectors_aligned<scalar_t>(args.mu, args.rho, args.grad_mu, args.grad_rho);
}

// nullptr, or the message of a launch that failed. That error is then forgotten: our copy of the CUDA runtime remembers
// it for nobody else.
template <typename... parameters_t, typename... args_t>
const char* start(const Launch& launch, void (*kernel)(parameters_t...), dim3 grid, int threads,
                  const args_t&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = static_cast<cudaStream_t>(launch.stream);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, args...);
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}

// A kernel over tiles.
template <template <typename, bool> class tile_t, typename scalar_t, typename args_t, typename variant_t>
const char* start_tiles(const Launch& launch, void (*kernel)(const args_t, const variant_t), const args_t& args,
                        const variant_t& variant, int64_t num_samples = 1) {
  if (args.numel == 0 || num_samples == 0) return nullptr;
  const int64_t num_tiles = TileOf<tile_t, scalar_t, variant_t>::cover(args.numel);
  return start(launch, kernel, make_grid(num_tiles, num_samples), kThreads, args, variant);
}

}  // namespace cuda
}  // namespace illia
