// Faults on purpose, one a function: a sanitizer that does not report them would prove nothing.
#include <dlfcn.h>

#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

extern "C" {

float read_beyond(const float* data, int64_t numel) { return data[numel]; }

void write_before(float* data, int64_t) { data[-1] = 0; }

float read_freed(const float*, int64_t numel) {
  float* freed = new float[numel];
  delete[] freed;
  return *static_cast<volatile float*>(freed);
}

float beyond_the_stack(const float* data, int64_t numel) {
  volatile float copy[4] = {data[0], data[1], data[2], data[3]};
  return *(copy + numel);
}

int64_t overflow(const float*, int64_t numel) { return INT64_MAX + numel; }

int64_t shift(const float*, int64_t numel) { return 1 << (numel + 60); }

int64_t cast(const float* data, int64_t) { return static_cast<int32_t>(*data * 1e20f); }

double misaligned(const float* data, int64_t) {
  return *reinterpret_cast<const double*>(reinterpret_cast<const char*>(data) + 4);
}

// Within the memory of the vector, beyond its elements.
float beyond_a_vector(const float* data, int64_t numel) {
  std::vector<float> copy;
  copy.reserve(2 * numel);
  copy.assign(data, data + numel);
  return copy[numel];
}

// All indices of a parallel loop, that of threads.cpp, add to one element.
void race_in_a_loop(float* data, int64_t) {
  using body_t = void (*)(int64_t begin, int64_t end, void* context);
  using loop_t = int32_t (*)(int64_t begin, int64_t end, int64_t grain_size, body_t body, void* context);
  const auto loop = reinterpret_cast<loop_t>(dlsym(RTLD_DEFAULT, "torch_parallel_for"));
  loop(0, 8, 1, [](int64_t, int64_t, void* sum) { *static_cast<float*>(sum) += 1; }, data);
}

// A race where two threads call it: it rests, so that the second comes before the first has ended.
void race_of_callers(float* data, int64_t) {
  data[0] += 1;
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
}
}
