// Between memory and arithmetic: float and double are used where they lie, half and bfloat16 are converted chunk by
// chunk. Conversions are integer arithmetic in plain loops, to nearest even, so that they vectorise everywhere.
#pragma once

#include "core/macros.h"
#include "cpu/kernels.h"

ILLIA_NAMESPACE_BEGIN

template <typename acc_t>
constexpr Storage kNativeStorage = sizeof(acc_t) == sizeof(float) ? Storage::kFloat : Storage::kDouble;

ILLIA_FUNCTION float bfloat16_to_float(uint16_t value) { return bit_cast<float>(uint32_t{value} << 16); }

ILLIA_FUNCTION uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>(value != value ? 0x7FC0 : rounded);
}

ILLIA_FUNCTION float half_to_float(uint16_t value) {
  constexpr uint32_t kExponentMask = 0x0F800000, kRebias = (127 - 15) << 23;
  const uint32_t magnitude = (uint32_t{value} & 0x7FFF) << 13;
  const uint32_t exponent = magnitude & kExponentMask;
  const uint32_t normal = magnitude + kRebias + (exponent == kExponentMask ? kRebias : 0);  // inf and NaN stay so
  const float subnormal = bit_cast<float>(normal + (1 << 23)) - 0x1p-14f;
  const uint32_t bits = exponent == 0 ? bit_cast<uint32_t>(subnormal) : normal;
  return bit_cast<float>(bits | (uint32_t{value} & 0x8000) << 16);
}

ILLIA_FUNCTION uint16_t float_to_half(float value) {
  constexpr uint32_t kInfinity = 0x7F800000, kOverflow = (127 + 16) << 23, kSmallestNormal = (127 - 14) << 23;
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  const uint32_t normal = (magnitude - ((127 - 15) << 23) + 0xFFF + ((magnitude >> 13) & 1)) >> 13;
  // Adding 1/2 aligns a subnormal half with the low bits of a float, and the addition rounds it.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - bit_cast<uint32_t>(0.5f);
  const uint32_t special = magnitude > kInfinity ? 0x7E00 : 0x7C00;
  const uint32_t finite = magnitude < kSmallestNormal ? subnormal : normal;
  return static_cast<uint16_t>((magnitude >= kOverflow ? special : finite) | (bits >> 16 & 0x8000));
}

// `count` elements from index `first`, in place where memory holds the arithmetic type, else through `buffer`.
template <typename acc_t>
const acc_t* load(const void* data, Storage storage, int64_t first, int64_t count, acc_t* buffer) {
  if (storage == kNativeStorage<acc_t>) return static_cast<const acc_t*>(data) + first;
  const uint16_t* source = static_cast<const uint16_t*>(data) + first;
  if (storage == Storage::kHalf) {
    for (int64_t i = 0; i < count; ++i) buffer[i] = half_to_float(source[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) buffer[i] = bfloat16_to_float(source[i]);
  }
  return buffer;
}

template <typename acc_t>
const acc_t* load_or_zeros(const void* data, Storage storage, int64_t first, int64_t count, acc_t* buffer) {
  if (data) return load(data, storage, first, count, buffer);
  std::memset(buffer, 0, count * sizeof(acc_t));
  return buffer;
}

// Where a kernel writes what `store` then brings to memory.
template <typename acc_t>
acc_t* destination(void* data, Storage storage, int64_t first, acc_t* buffer) {
  if (data && storage == kNativeStorage<acc_t>) return static_cast<acc_t*>(data) + first;
  return buffer;
}

template <typename acc_t>
void store(void* data, Storage storage, int64_t first, int64_t count, const acc_t* buffer) {
  if (!data) return;
  if (storage == kNativeStorage<acc_t>) {
    acc_t* native = static_cast<acc_t*>(data) + first;
    if (native != buffer) std::memcpy(native, buffer, count * sizeof(acc_t));
    return;
  }
  uint16_t* target = static_cast<uint16_t*>(data) + first;
  if (storage == Storage::kHalf) {
    for (int64_t i = 0; i < count; ++i) target[i] = float_to_half(static_cast<float>(buffer[i]));
  } else {
    for (int64_t i = 0; i < count; ++i) target[i] = float_to_bfloat16(static_cast<float>(buffer[i]));
  }
}

ILLIA_NAMESPACE_END
