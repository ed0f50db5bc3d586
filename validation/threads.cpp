// torch's parallel loop, in threads that ThreadSanitizer sees: torch's own are OpenMP's, whose barriers it does not
// know. Loaded before torch it takes the place of the function that csrc/cpu/device.h calls. Neighbouring indices go to
// different threads, so that two threads share whatever two chunks share.
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

std::atomic<int64_t> loops;

}  // namespace

extern "C" int64_t count_loops() { return loops.load(std::memory_order_relaxed); }

extern "C" int32_t torch_parallel_for(int64_t begin, int64_t end, int64_t /*grain_size*/,
                                      void (*function)(int64_t begin, int64_t end, void* context), void* context) {
  constexpr int64_t kThreads = 3;
  loops.fetch_add(1, std::memory_order_relaxed);  // any other order would order the callers too, and hide their races
  std::vector<std::thread> threads;
  for (int64_t first = begin; first < end && first < begin + kThreads; ++first)
    threads.emplace_back([=] {
      for (int64_t i = first; i < end; i += kThreads) function(i, i + 1, context);
    });
  for (std::thread& thread : threads) thread.join();
  return 0;
}
