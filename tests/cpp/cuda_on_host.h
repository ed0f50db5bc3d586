// Runs kernels on the CPU, one coroutine for each thread of a block, one block at a time: enough to test which elements
// a thread takes, what it computes and in which order sums are added, where there is no GPU. Compile a .cu as C++ with
// this header in front. CUDA's own headers give the types, vectors and conversions.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#undef __global__
#undef __device__
#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__
#define __device__
#define __shared__ static  // blocks run one after the other
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

inline dim3 gridDim, blockDim, host_grid_limit(0xFFFFFFFF, 0xFFFFFFFF);  // a test may ask for smaller grids
inline uint3 blockIdx, threadIdx;
inline int host_launches = 0, host_driver = 13000;

struct HostBarrier {
  unsigned count = 0, turn = 0;
};

struct HostThread {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(1 << 17);
  const HostBarrier* barrier;  // at which it waits until its turn is over
  unsigned turn;
  bool ended;

  bool may_run() const { return !ended && !(barrier && barrier->turn == turn); }
};
inline std::vector<HostThread> host_threads(1024);  // as many as a block may have
inline ucontext_t host_scheduler;
inline std::function<void()> host_kernel;

inline void host_wait(HostBarrier& barrier, unsigned num_threads) {
  HostThread& thread = host_threads[threadIdx.x];
  thread.barrier = &barrier;
  thread.turn = barrier.turn;
  if (++barrier.count == num_threads) barrier = {0, barrier.turn + 1};
  swapcontext(&thread.context, &host_scheduler);
}
inline HostBarrier host_block, host_warp;  // only the first warp exchanges values
inline double host_exchanged[32];

inline void __syncthreads() { host_wait(host_block, blockDim.x); }

inline void __syncwarp() {}  // kernels use it only to hold the compiler back

inline double __shfl_down_sync(unsigned, double value, int step) {
  host_exchanged[threadIdx.x] = value;
  host_wait(host_warp, 32);
  const double other = threadIdx.x + step < 32 ? host_exchanged[threadIdx.x + step] : value;
  host_wait(host_warp, 32);
  return other;
}

// A GPU ends a kernel at memory that is not aligned to its access.
template <typename value_t>
void host_require_aligned(const value_t* data) {
  if (reinterpret_cast<uintptr_t>(data) % sizeof(value_t) == 0) return;
  std::fprintf(stderr, "an access of %zu bytes is not aligned\n", sizeof(value_t));
  std::abort();
}

template <typename value_t>
value_t __ldg(const value_t* data) {
  host_require_aligned(data);
  return *data;
}

template <typename value_t>
void __stwb(value_t* data, value_t value) {
  host_require_aligned(data);
  *data = value;
}

inline void host_run_thread() {
  host_kernel();
  host_threads[threadIdx.x].ended = true;
}

inline void host_run_block() {
  for (unsigned i = 0; i < blockDim.x; ++i) {
    HostThread& thread = host_threads[i];
    getcontext(&thread.context);
    thread.context.uc_stack = {thread.stack.data(), 0, thread.stack.size()};
    thread.context.uc_link = &host_scheduler;
    makecontext(&thread.context, host_run_thread, 0);
    thread.barrier = nullptr;
    thread.ended = false;
  }
  for (bool all_ended = false; !all_ended;) {
    all_ended = true;
    for (unsigned i = 0; i < blockDim.x; ++i) {
      threadIdx = {i, 0, 0};
      if (host_threads[i].may_run()) swapcontext(&host_scheduler, &host_threads[i].context);
      all_ended &= host_threads[i].ended;
    }
  }
}

template <typename... parameters_t, typename... args_t>
cudaError_t host_launch(const cudaLaunchConfig_t* config, void (*kernel)(parameters_t...), const args_t&... args) {
  if (config->gridDim.x == 0 || config->gridDim.y == 0) return cudaErrorInvalidConfiguration;
  ++host_launches;
  blockDim = config->blockDim;
  gridDim.x = std::min(config->gridDim.x, host_grid_limit.x);
  gridDim.y = std::min(config->gridDim.y, host_grid_limit.y);
  host_kernel = [&] { kernel(args...); };
  for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) host_run_block();
  return cudaSuccess;
}

#define cudaLaunchKernelEx host_launch
#define cudaGetLastError() static_cast<void>(0)
#define cudaDriverGetVersion(version) (*(version) = host_driver, cudaSuccess)
#define cudaGetErrorString(error) "an empty grid"
