// Preloaded into Python: lets the n-th allocation fail, of those that a library makes and those that torch makes for
// tensors.
#include <dlfcn.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace {

std::atomic<long> to_go{0};  // allocations up to the one that fails; 0: none does
uintptr_t library_begin, library_end;

bool fails() { return to_go > 0 && --to_go == 0; }

}  // namespace

extern "C" void watch_library(uintptr_t begin, uintptr_t end) {
  library_begin = begin;
  library_end = end;
}

extern "C" void let_fail(long n) { to_go = n; }

extern "C" int has_failed() { return to_go == 0; }

void* operator new(size_t size) {
  const auto caller = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
  const bool is_ours = library_begin <= caller && caller < library_end;
  void* memory = is_ours && fails() ? nullptr : std::malloc(size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

extern "C" int posix_memalign(void** memory, size_t alignment, size_t size) noexcept {
  static const auto real = reinterpret_cast<decltype(&posix_memalign)>(dlsym(RTLD_NEXT, "posix_memalign"));
  return fails() ? ENOMEM : real(memory, alignment, size);
}
