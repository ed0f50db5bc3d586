// The border between our mathematics and its compilers: g++, clang++ and nvcc read the same headers.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/function.h"

// Every translation unit that is compiled for another instruction set names its own namespace, or the
// linker would keep one copy of each function and an old CPU could meet instructions that it does not have.
#if !defined(ILLIA_CAPABILITY)
#define ILLIA_CAPABILITY base
#define ILLIA_VECTOR_BYTES 8  // no vectors by name
#endif
#define ILLIA_NAMESPACE_BEGIN \
  namespace illia {           \
  namespace ILLIA_CAPABILITY {
#define ILLIA_NAMESPACE_END \
  }                         \
  }

ILLIA_NAMESPACE_BEGIN

template <typename to_t, typename from_t>
ILLIA_FUNCTION to_t bit_cast(from_t value) {
  static_assert(sizeof(to_t) == sizeof(from_t));
  to_t result;
  std::memcpy(&result, &value, sizeof(to_t));
  return result;
}

// IEEE 754 layout of the two arithmetic types.
template <typename acc_t>
struct FloatFormat;

template <>
struct FloatFormat<float> {
  using int_t = int32_t;
  using uint_t = uint32_t;
  static constexpr int kMantissaBits = 23;
  static constexpr int kExponentBias = 127;
};

template <>
struct FloatFormat<double> {
  using int_t = int64_t;
  using uint_t = uint64_t;
  static constexpr int kMantissaBits = 52;
  static constexpr int kExponentBias = 1023;
};

ILLIA_NAMESPACE_END
