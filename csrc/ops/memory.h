// What tensors are made of, for kernels on every device. No torch here.
#pragma once

#include <cstdint>

namespace illia {

enum class Storage { kFloat, kDouble, kHalf, kBFloat16 };

struct Key {
  uint64_t seed, offset;
};

}  // namespace illia
