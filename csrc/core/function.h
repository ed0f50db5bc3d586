// How g++, clang++ and nvcc are told that a function is part of its loop. Apart from macros.h, because it belongs to no
// instruction set.
#pragma once

#if defined(__CUDACC__)
#define ILLIA_FUNCTION __host__ __device__ __forceinline__
#define ILLIA_UNROLL _Pragma("unroll")
#define ILLIA_KEEP_LOOP _Pragma("unroll 1")
#else
#define ILLIA_FUNCTION inline __attribute__((always_inline))
#define ILLIA_UNROLL _Pragma("GCC unroll 16")
#define ILLIA_KEEP_LOOP
#endif

// A function that a plain call does not need: compiled once, not into each kernel.
#define ILLIA_APART __attribute__((noinline))
