// Chooses the instruction set once: the best that this CPU has, or the one that ILLIA_EXT_CPU_CAPABILITY names.
#include <cstdlib>
#include <cstring>

#include "cpu/device.h"

namespace illia {
namespace {

struct Candidate {
  Capability capability;
  bool supported;
};

Capability choose() {
#if defined(__x86_64__)
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#endif
  const Candidate candidates[] = {
#if defined(__x86_64__)
      {{"avx512", &avx512::kKernels}, has_avx512},
      {{"avx2", &avx2::kKernels}, has_avx2},
#endif
      {{"base", &base::kKernels}, true},
  };
  const char* asked = std::getenv("ILLIA_EXT_CPU_CAPABILITY");
  for (const Candidate& candidate : candidates) {
    if (asked ? std::strcmp(asked, candidate.capability.name) == 0 : candidate.supported) {
      check(candidate.supported, "ILLIA_EXT_CPU_CAPABILITY: this CPU lacks ", asked);
      return candidate.capability;
    }
  }
  check(false, "ILLIA_EXT_CPU_CAPABILITY: expected base, avx2 or avx512 (the last two on x86-64 only), got ", asked);
  return {};
}

}  // namespace

const Capability& cpu_capability() {
  static const Capability capability = choose();
  return capability;
}

}  // namespace illia
