#if defined(__x86_64__)

// Standard headers come before the target: what they define is shared with code that runs on any CPU.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "cpu/kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,prefer-vector-width=512")
#endif

#define ILLIA_CAPABILITY avx512
#define ILLIA_VECTOR_BYTES 64
#include "cpu/gaussian_kernel.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // __x86_64__
