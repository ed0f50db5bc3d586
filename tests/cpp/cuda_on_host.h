// Runs kernels on the CPU, one thread for each thread of a block, one block at a time: enough to test which elements a
// thread takes, what it computes and in which order sums are added, where there is no GPU. Compile a .cu as C++ with
// this header in front. CUDA's own headers give the types, vectors and conversions.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <pthread.h>

#include <thread>
#include <vector>

#undef __global__
#undef __device__
#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __shared__ static  // blocks run one after the other
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct HostBlock {
  pthread_barrier_t all, warp;  // only the first warp exchanges values
  double exchanged[32];
};
inline HostBlock host_block;
inline dim3 gridDim, host_grid_limit(0xFFFFFFFF, 0xFFFFFFFF);  // a test may ask for smaller grids
inline thread_local uint3 blockIdx, threadIdx;
inline int host_launches = 0;

inline void __syncthreads() { pthread_barrier_wait(&host_block.all); }

inline void __syncwarp() {}  // kernels use it only to hold the compiler back

inline double __shfl_down_sync(unsigned, double value, int step) {
  host_block.exchanged[threadIdx.x] = value;
  pthread_barrier_wait(&host_block.warp);
  const double other = threadIdx.x + step < 32 ? host_block.exchanged[threadIdx.x + step] : value;
  pthread_barrier_wait(&host_block.warp);
  return other;
}

template <typename value_t>
value_t __ldg(const value_t* data) {
  return *data;
}

template <typename value_t>
void __stwb(value_t* data, value_t value) {
  *data = value;
}

template <typename... parameters_t, typename... args_t>
cudaError_t host_launch(const cudaLaunchConfig_t* config, void (*kernel)(parameters_t...), const args_t&... args) {
  ++host_launches;
  gridDim.x = std::min(config->gridDim.x, host_grid_limit.x);
  gridDim.y = std::min(config->gridDim.y, host_grid_limit.y);
  pthread_barrier_init(&host_block.all, nullptr, config->blockDim.x);
  pthread_barrier_init(&host_block.warp, nullptr, 32);
  std::vector<std::thread> threads;
  for (unsigned thread = 0; thread < config->blockDim.x; ++thread)
    threads.emplace_back([&, thread] {
      for (unsigned y = 0; y < gridDim.y; ++y)
        for (unsigned x = 0; x < gridDim.x; ++x) {
          threadIdx = {thread, 0, 0};
          blockIdx = {x, y, 0};
          kernel(args...);
          __syncthreads();
        }
    });
  for (std::thread& thread : threads) thread.join();
  pthread_barrier_destroy(&host_block.all);
  pthread_barrier_destroy(&host_block.warp);
  return cudaSuccess;
}

#define cudaLaunchKernelEx host_launch
#define cudaGetLastError() static_cast<void>(0)
#define cudaGetErrorString(error) "no error on the host"
