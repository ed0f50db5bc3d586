#if defined(__x86_64__)

// Standard headers come before the target: what they define is shared with code that runs on any CPU.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "cpu/kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define ILLIA_CAPABILITY avx2
#define ILLIA_VECTOR_BYTES 32
#include "cpu/gaussian_kernel.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif  // __x86_64__
