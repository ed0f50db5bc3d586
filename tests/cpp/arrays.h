// Memory for the kernels under test, with what a check of it needs.
#pragma once

#include <cstdio>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/storage.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(data, size)
#define ASAN_UNPOISON_MEMORY_REGION(data, size)
#endif

namespace illia {

// The types of parameters and samples that a kernel may meet.
inline const std::pair<const char*, Types> kTypes[] = {
    {"float", {Storage::kFloat, Storage::kFloat}},     {"double", {Storage::kDouble, Storage::kDouble}},
    {"half", {Storage::kHalf, Storage::kHalf}},        {"bfloat16", {Storage::kBFloat16, Storage::kBFloat16}},
    {"float.half", {Storage::kFloat, Storage::kHalf}}, {"float.bfloat16", {Storage::kFloat, Storage::kBFloat16}}};

inline int failures = 0;

inline void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "failed: %s\n", what.c_str());
}

inline size_t width_of(Storage storage) { return storage == Storage::kDouble ? 8 : storage == Storage::kFloat ? 4 : 2; }

// Memory of `numel` elements `shift` elements behind a 64-byte boundary, between sentinels. A build with
// AddressSanitizer also forbids to read those, up to the 8 bytes that an element may share with them.
class Array {
 public:
  Array(Storage storage, int64_t numel, int shift = 0)
      : storage(storage),
        numel_(numel),
        width_(width_of(storage)),
        bytes_(numel * width_),
        memory_(bytes_ + 256, kSentinel) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(memory_.data()) + 64;
    offset_ = ((begin + 63) & ~uintptr_t{63}) - begin + 64 + shift * width_;
    forbid_sentinels();
  }
  Array(Array&&) = default;
  ~Array() { allow_sentinels(); }

  // value(i) for each i
  template <typename function_t>
  void fill(function_t value) {
    for (int64_t i = 0; i < numel_; ++i) {
      const double exact = value(i);
      const float single = static_cast<float>(exact);
      const uint16_t half = storage == Storage::kHalf ? base::float_to_half(single) : base::float_to_bfloat16(single);
      const void* source = storage == Storage::kDouble  ? static_cast<const void*>(&exact)
                           : storage == Storage::kFloat ? static_cast<const void*>(&single)
                                                        : &half;
      std::memcpy(data() + i * width_, source, width_);
    }
  }
  // `scale` times a standard normal, plus `center`.
  Array&& fill(unsigned seed, double center, double scale) && {
    std::mt19937 engine(seed);
    std::normal_distribution<double> normal(center, scale);
    fill([&](int64_t) { return normal(engine); });
    return std::move(*this);
  }

  int64_t numel() const { return numel_; }
  char* data() { return memory_.data() + offset_; }
  double value(int64_t i) {
    double exact = 0;
    float single = 0;
    uint16_t half = 0;
    void* target = storage == Storage::kDouble  ? static_cast<void*>(&exact)
                   : storage == Storage::kFloat ? static_cast<void*>(&single)
                                                : &half;
    std::memcpy(target, data() + i * width_, width_);
    if (storage == Storage::kDouble) return exact;
    if (storage == Storage::kFloat) return single;
    return storage == Storage::kHalf ? base::half_to_float(half) : base::bfloat16_to_float(half);
  }

  bool same_bits(Array& other) { return std::memcmp(data(), other.data(), bytes_) == 0; }
  bool sentinels_stand() const {
    allow_sentinels();
    bool stand = true;
    for (size_t i = 0; i < memory_.size(); ++i)
      stand &= (i >= offset_ && i < offset_ + bytes_) || memory_[i] == kSentinel;
    forbid_sentinels();
    return stand;
  }

  const Storage storage;

 private:
  void forbid_sentinels() const {
    ASAN_POISON_MEMORY_REGION(memory_.data(), offset_);
    ASAN_POISON_MEMORY_REGION(memory_.data() + offset_ + bytes_, memory_.size() - offset_ - bytes_);
  }
  void allow_sentinels() const { ASAN_UNPOISON_MEMORY_REGION(memory_.data(), memory_.size()); }

  static constexpr char kSentinel = 0x5A;
  int64_t numel_;
  size_t width_, bytes_;
  std::vector<char> memory_;
  size_t offset_;
};

}  // namespace illia
