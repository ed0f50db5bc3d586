// torch's parallel loop, in threads that ThreadSanitizer sees: torch's own are OpenMP's, whose barriers it does not
// know. Loaded before torch it takes the place of the function that csrc/cpu/device.h calls. Neighbouring indices go to
// different threads, so that whatever two chunks share is shared by two threads.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

// Relaxed, because any other order would order the callers too, and hide their races.
constexpr auto kRelaxed = std::memory_order_relaxed;
std::atomic<int64_t> loops, under_way, most_at_once;

}  // namespace

extern "C" {

int64_t count_loops() { return loops.load(kRelaxed); }

int64_t count_at_once() { return most_at_once.load(kRelaxed); }

using function_t = void (*)(int64_t begin, int64_t end, void* context);

int32_t torch_parallel_for(int64_t begin, int64_t end, int64_t /*grain_size*/, function_t function, void* context) {
  constexpr int64_t kThreads = 3;
  loops.fetch_add(1, kRelaxed);
  const int64_t now = under_way.fetch_add(1, kRelaxed) + 1;
  for (int64_t most = most_at_once.load(kRelaxed);
       most < now && !most_at_once.compare_exchange_weak(most, now, kRelaxed);) {
  }
  std::vector<std::thread> threads;
  for (int64_t first = begin; first < end && first < begin + kThreads; ++first)
    threads.emplace_back([=] {
      for (int64_t i = first; i < end; i += kThreads) function(i, i + 1, context);
    });
  for (std::thread& thread : threads) thread.join();
  under_way.fetch_sub(1, kRelaxed);
  return 0;
}

// Planted: all indices of a loop add to one element.
void race_in_a_loop(float* data) {
  torch_parallel_for(0, 8, 1, [](int64_t, int64_t, void* sum) { *static_cast<float*>(sum) += 1; }, data);
}

// Planted: a race where two threads call it. It rests, so that the second comes before the first has ended.
void race_of_callers(float* data) {
  data[0] += 1;
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
}
}
