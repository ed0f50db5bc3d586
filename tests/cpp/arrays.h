// Memory for the kernels under test, with what a check of it needs.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cpu/kernels.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(data, size)
#define ASAN_UNPOISON_MEMORY_REGION(data, size)
#endif

namespace illia {
namespace {

int failures = 0;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "failed: %s\n", what.c_str());
}

size_t width_of(Storage storage) { return storage == Storage::kDouble ? 8 : storage == Storage::kFloat ? 4 : 2; }

// Memory of `numel` elements `shift` elements behind a 64-byte boundary, between sentinels. A build with
// AddressSanitizer also forbids to read those, up to the 8 bytes that an element may share with them.
class Array {
 public:
  Array(Storage storage, int64_t numel, int shift = 0)
      : storage(storage), width_(width_of(storage)), bytes_(numel * width_), memory_(bytes_ + 256, kSentinel) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(memory_.data()) + 64;
    offset_ = ((begin + 63) & ~uintptr_t{63}) - begin + 64 + shift * width_;
    forbid_sentinels();
  }
  Array(Array&&) = default;
  ~Array() { allow_sentinels(); }

  // `scale` times a standard normal, plus `center`.
  Array&& fill(unsigned seed, double center, double scale) && {
    std::mt19937 engine(seed);
    std::normal_distribution<double> normal(center, scale);
    for (size_t i = 0; i < bytes_ / width_; ++i) {
      const double value = normal(engine);
      char* place = data() + i * width_;
      if (storage == Storage::kDouble) std::memcpy(place, &value, 8);
      const float single = static_cast<float>(value);
      if (storage == Storage::kFloat) std::memcpy(place, &single, 4);
      const __half half = __float2half_rn(single);
      if (storage == Storage::kHalf) std::memcpy(place, &half, 2);
      const __nv_bfloat16 brain = __float2bfloat16_rn(single);
      if (storage == Storage::kBFloat16) std::memcpy(place, &brain, 2);
    }
    return std::move(*this);
  }

  char* data() { return memory_.data() + offset_; }
  double value(int64_t i) {
    float single = 0;
    double result = 0;
    std::memcpy(storage == Storage::kDouble ? static_cast<void*>(&result) : &single, data() + i * width_, width_);
    return storage == Storage::kDouble ? result : single;
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
  size_t width_, bytes_;
  std::vector<char> memory_;
  size_t offset_;
};

}  // namespace
}  // namespace illia
