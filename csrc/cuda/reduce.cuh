// Sums in a fixed order: each thread adds its at most 16 elements of a tile in acc_t, the block adds its threads in
// double, and a second kernel adds the tiles. Neither the grid nor the run changes a bit. Adding 16 floats rounds 15
// times, which loses at most 15 * 2^-24 = 0.9e-6 of the sum of absolute values; z_p has three roundings of its own.
#pragma once

#include "cuda/tile.cuh"

namespace illia {
namespace cuda {

constexpr int kWarp = 32, kSumThreads = 1024;

// The prior of one tensor. A tile reads it when its own loads are under way, which take as long; the block's next tile
// of that tensor finds it there.
template <typename acc_t>
class LazyPrior {
 public:
  __device__ explicit LazyPrior(const PriorScalars& scalars) : scalars_(scalars) {}

  __device__ __forceinline__ const Prior<acc_t>& read() {
    if (known_) return prior_;
    const uint64_t mu = load_scalar(scalars_.mu), std = load_scalar(scalars_.std);
    prior_ = Prior<acc_t>::make(scalar_value(scalars_.mu, mu), scalar_value(scalars_.std, std));
    known_ = true;
    return prior_;
  }

 private:
  const PriorScalars& scalars_;
  Prior<acc_t> prior_;
  bool known_ = false;
};

// One thread's sum of logarithms, each given as a factor and a linear part: see core/softplus.h on the product of
// mantissas.
template <typename acc_t>
struct LogSum {
  using int_t = typename FloatFormat<acc_t>::int_t;
  acc_t linear = 0, mantissa = 1;
  int_t exponent = 0;  // biased once an element

  __device__ __forceinline__ void add_factor(acc_t factor) {
    int_t biased_exponent;
    mantissa *= split_mantissa(factor, &biased_exponent);
    exponent += biased_exponent;
  }

  // Softplus has a linear part that is enough beside eps^2 or sigma^2.
  template <typename parts_t>
  __device__ __forceinline__ void add(const parts_t& parts) {
    add_factor(parts.factor);
    linear += parts.linear;
  }

  // Of at most 16 elements. In float the product's 15 roundings of 2^-24 and the logarithm's 0.89 ulp, of at most 2^-20
  // below 16 log 2, lose at most (15 + 14.3) * 2^-24 together: 2^-23 an element.
  __device__ __forceinline__ double total(int count) const {
    const double unbiased = static_cast<double>(exponent - count * FloatFormat<acc_t>::kExponentBias);
    return std::fma(unbiased, Constants<double>::kLn2, static_cast<double>(log_normal(mantissa))) +
           static_cast<double>(linear);
  }
};

// Adds one double of each thread of a block; thread 0 gets the sum. Two buffers in turn make one barrier a call enough:
// who writes into a buffer again has passed the barrier of the call between, and that the readers reach after reading.
template <int kBlockThreads>
class BlockSum {
 public:
  using Buffers = double[2][kBlockThreads];

  __device__ explicit BlockSum(Buffers& buffers) : buffers_(buffers) {}

  __device__ __forceinline__ double operator()(double value) {
    double* values = buffers_[turn_];
    turn_ ^= 1;
    values[threadIdx.x] = value;
    __syncthreads();
    if (threadIdx.x >= kWarp) return 0;
    double sum = values[threadIdx.x];
    ILLIA_UNROLL
    for (int i = kWarp; i < kBlockThreads; i += kWarp) sum += values[i + threadIdx.x];
    ILLIA_UNROLL
    for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_down_sync(0xFFFFFFFFu, sum, step);
    return sum;
  }

 private:
  Buffers& buffers_;
  int turn_ = 0;
};

// What every element adds to its sum beside log std_prior.
constexpr double kLogProbConstant = 0, kKlConstant = -0.5;

// A tensor's constants are part of the sum of its tile 0: before that, thread 0 puts them into memory that it alone
// uses.
__device__ __forceinline__ void keep_constants(int64_t index, const Scalar& std_prior, int64_t numel, double constant,
                                               double* constants) {
  if (threadIdx.x == 0 && index == 0)
    *constants = static_cast<double>(numel) * (log_any(read_scalar(std_prior)) + constant);
}

// Thread 0 hands the sum of one tile of sample s on: to the second stage or, where one tile is all, to the result.
template <typename acc_t>
__device__ __forceinline__ void hand_on(double sum, int64_t s, int64_t index, const double* constants,
                                        const TileSums& sums) {
  if (threadIdx.x != 0) return;
  if (index == 0) sum += *constants;
  if (sums.partials) {
    sums.partials[s * sums.num_tiles + index] = sum;
  } else {
    static_cast<acc_t*>(sums.results)[s] = static_cast<acc_t>(sum);
  }
}

// The sum of a row, for thread 0.
__device__ __forceinline__ double sum_row(const double* __restrict__ row, int64_t size,
                                          BlockSum<kSumThreads>& block_sum) {
  constexpr int kLoads = 8;  // in flight
  double sum = 0;
  for (int64_t first = threadIdx.x; first < size; first += kSumThreads * kLoads) {
    double values[kLoads];
    ILLIA_UNROLL
    for (int i = 0; i < kLoads; ++i) {
      const int64_t place = first + i * kSumThreads;
      values[i] = place < size ? row[place] : 0;
    }
    ILLIA_UNROLL
    for (double value : values) sum += value;
  }
  return block_sum(sum);
}

// results[s] = the sum of sample s over its tiles. One block takes a sample.
template <typename acc_t>
__global__ void __launch_bounds__(kSumThreads)
    sum_tiles_kernel(const double* __restrict__ partials,  // [num_samples, num_tiles]
                     int64_t num_samples, int64_t num_tiles,
                     acc_t* __restrict__ results) {  // [num_samples]
  __shared__ BlockSum<kSumThreads>::Buffers buffers;
  BlockSum<kSumThreads> block_sum(buffers);
  for (int64_t s = blockIdx.x; s < num_samples; s += gridDim.x) {
    const double sum = sum_row(partials + s * num_tiles, num_tiles, block_sum);
    if (threadIdx.x == 0) results[s] = static_cast<acc_t>(sum);
  }
}

// The gradients to two priors of one element, each where it is asked for. One block takes one.
template <typename acc_t>
__global__ void __launch_bounds__(kSumThreads)
    sum_prior_grads_kernel(const double* __restrict__ partials,  // [2, num_tiles]
                           int64_t num_tiles, acc_t* grad_mu_prior, acc_t* grad_std_prior) {
  __shared__ BlockSum<kSumThreads>::Buffers buffers;
  BlockSum<kSumThreads> block_sum(buffers);
  acc_t* result = blockIdx.x == 0 ? grad_mu_prior : grad_std_prior;
  if (result == nullptr) return;
  const double sum = sum_row(partials + blockIdx.x * num_tiles, num_tiles, block_sum);
  if (threadIdx.x == 0) *result = static_cast<acc_t>(sum);
}

}  // namespace cuda
}  // namespace illia
