// Between memory and arithmetic: 16 bytes of memory are one access, and become numbers of the arithmetic type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "core/macros.h"
#include "cuda/kernels.h"

namespace illia {
namespace cuda {

using base::bit_cast;

template <typename scalar_t>
struct Arithmetic {
  using type = float;
};
template <>
struct Arithmetic<double> {
  using type = double;
};
template <typename scalar_t>
using AccType = typename Arithmetic<scalar_t>::type;

// What one memory access moves.
template <int kBytes>
struct Access;
template <>
struct Access<16> {
  using type = uint4;
};
template <>
struct Access<8> {
  using type = uint2;
};

template <typename acc_t, typename scalar_t>
__device__ __forceinline__ acc_t to_arithmetic(scalar_t value) {
  return static_cast<acc_t>(value);  // half and bfloat16 are exact in float
}

template <typename scalar_t, typename acc_t>
__device__ __forceinline__ scalar_t to_storage(acc_t value) {
  if constexpr (std::is_same_v<scalar_t, __half>) {
    return __float2half_rn(value);
  } else if constexpr (std::is_same_v<scalar_t, __nv_bfloat16>) {
    return __float2bfloat16_rn(value);
  } else {
    return value;
  }
}

// The 32-bit word that holds two 16-bit numbers: one instruction makes both.
template <typename scalar_t>
__device__ __forceinline__ uint32_t to_storage_pair(float low, float high) {
  if constexpr (std::is_same_v<scalar_t, __half>) {
    return bit_cast<uint32_t>(__floats2half2_rn(low, high));
  } else {
    return bit_cast<uint32_t>(__floats2bfloat162_rn(low, high));
  }
}

// kWidth elements at `data`, which is aligned to their size; zeros where it is not `there`. Then the words are zero,
// not the numbers: a branch over a load and its conversion would make the load behind it wait.
template <typename scalar_t, int kWidth, typename acc_t>
__device__ __forceinline__ void load_vector(const scalar_t* data, acc_t* values, bool there = true) {
  using access_t = typename Access<kWidth * sizeof(scalar_t)>::type;
  access_t words{};
  if (there) words = __ldg(reinterpret_cast<const access_t*>(data));
  scalar_t stored[kWidth];
  memcpy(static_cast<void*>(stored), &words, sizeof(words));
  ILLIA_UNROLL
  for (int k = 0; k < kWidth; ++k) values[k] = to_arithmetic<acc_t>(stored[k]);
}

template <typename scalar_t, int kWidth, typename acc_t>
__device__ __forceinline__ void store_vector(scalar_t* data, const acc_t* values) {
  using access_t = typename Access<kWidth * sizeof(scalar_t)>::type;
  access_t words;
  if constexpr (sizeof(scalar_t) == 2) {
    uint32_t pairs[kWidth / 2];
    ILLIA_UNROLL
    for (int k = 0; k < kWidth; k += 2) pairs[k / 2] = to_storage_pair<scalar_t>(values[k], values[k + 1]);
    memcpy(&words, pairs, sizeof(words));
  } else {
    memcpy(&words, values, sizeof(words));
  }
  __stwb(reinterpret_cast<access_t*>(data), words);  // nvcc takes some assignments apart
}

// The bits of a scalar, so that several loads are under way before the first is converted.
__device__ inline uint64_t load_scalar(const Scalar& scalar) {
  const bool in_double = scalar.storage == Storage::kDouble, in_float = scalar.storage == Storage::kFloat;
  uint64_t bits = bit_cast<uint64_t>(scalar.value);
  if (scalar.data && in_double) bits = *static_cast<const uint64_t*>(scalar.data);
  if (scalar.data && in_float) bits = *static_cast<const uint32_t*>(scalar.data);
  if (scalar.data && !in_double && !in_float) bits = *static_cast<const uint16_t*>(scalar.data);
  return bits;
}

__device__ inline double scalar_value(const Scalar& scalar, uint64_t bits) {
  if (scalar.data == nullptr || scalar.storage == Storage::kDouble) return bit_cast<double>(bits);
  if (scalar.storage == Storage::kFloat) return bit_cast<float>(static_cast<uint32_t>(bits));
  __half_raw half;
  __nv_bfloat16_raw bfloat16;
  half.x = bfloat16.x = static_cast<uint16_t>(bits);
  return scalar.storage == Storage::kHalf ? __half2float(half) : __bfloat162float(bfloat16);
}

__device__ inline double read_scalar(const Scalar& scalar) { return scalar_value(scalar, load_scalar(scalar)); }

}  // namespace cuda
}  // namespace illia
