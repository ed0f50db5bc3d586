// From tensors to a kernel's raw memory: contiguous views, outputs, values read on the host, threads, sums.
#pragma once

#include <pthread.h>

#include <cmath>

#include "cpu/kernels.h"
#include "ops/tensors.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace illia {

// The kernels of the instruction set chosen for this process, and its name.
struct Capability {
  const char* name;
  const Kernels* kernels;
};
const Capability& cpu_capability();

inline const KernelTable& kernels_for(ScalarType parameters) {
  const Kernels& kernels = *cpu_capability().kernels;
  return parameters == ScalarType::Double ? kernels.in_double : kernels.in_float;
}

// A contiguous tensor (a copy where the argument is strided), kept alive with its view.
class Input {
 public:
  explicit Input(const Tensor& tensor) : tensor_(as_contiguous(tensor)) {}
  operator ConstView() const { return {tensor_.const_data_ptr(), storage_of(tensor_.scalar_type())}; }

 private:
  Tensor tensor_;
};

// Fresh large memory is mapped page by page at the first touch, which costs as much as our arithmetic: ask for huge
// pages before that. A hint only, so failure needs no handling.
inline void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr size_t kWorthwhile = size_t{4} << 20;
  if (bytes < kWorthwhile) return;
  static const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) & ~(page - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(page - 1);
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

class Output {
 public:
  Output(IntHeaderOnlyArrayRef sizes, ScalarType dtype) : tensor_(empty(sizes, dtype, host())) {
    const size_t width = dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : 2;
    advise_huge_pages(tensor_.mutable_data_ptr(), static_cast<size_t>(tensor_.numel()) * width);
  }
  operator MutableView() const { return {tensor_.mutable_data_ptr(), storage_of(tensor_.scalar_type())}; }
  const Tensor& tensor() const { return tensor_; }

 private:
  Tensor tensor_;
};

inline Tensor not_asked_for(const Tensor& like) { return not_asked_for(like, host()); }

inline std::vector<Key> read_keys(const Tensor& key) {
  const Tensor words = as_contiguous(key);
  const Key* data = static_cast<const Key*>(words.const_data_ptr());
  return std::vector<Key>(data, data + words.numel() / 2);
}

// OpenMP's threads end with a fork, and in the child the thread that forked would wait for its own for ever: it works
// alone. The child's other threads start threads of their own.
inline thread_local bool has_forked = false;
inline const int watches_forks = pthread_atfork(nullptr, nullptr, [] { has_forked = true; });

// function(begin, end) for ranges of chunks, on torch's own threads.
template <typename function_t>
void parallel_for_chunks(int64_t num_chunks, int64_t num_samples, function_t function) {
  constexpr int64_t kGrain = 16;  // chunks of one sample that are worth a thread of their own
  if (has_forked) return function(0, num_chunks);
  torch::stable::parallel_for(0, num_chunks, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, num_samples)),
                              function);
}

// Runs a kernel over all chunks of `numel` elements.
template <typename args_t>
void launch(Kernel<args_t> kernel, const args_t& args, int64_t numel, int64_t num_samples = 1) {
  parallel_for_chunks(count_chunks(numel), num_samples, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

// Into element `index` of a float or double tensor.
inline void write_value(const Tensor& tensor, int64_t index, double value) {
  if (tensor.scalar_type() == ScalarType::Double) {
    tensor.mutable_data_ptr<double>()[index] = value;
  } else {
    tensor.mutable_data_ptr<float>()[index] = static_cast<float>(value);
  }
}

// Partial sums of each sample, one a chunk, and their sum in the order of the chunks.
class Partials {
 public:
  Partials(int64_t num_samples, int64_t numel)
      : num_chunks_(count_chunks(numel)), values_(static_cast<size_t>(num_samples * num_chunks_)) {}
  double* data() { return values_.data(); }

  // Knuth's two-sum: `lost` is what the additions round away, which in float64 a plain sum of many chunks would show.
  double sum(int64_t sample) const {
    const double* parts = values_.data() + sample * num_chunks_;
    double sum = 0, lost = 0;
    for (int64_t i = 0; i < num_chunks_; ++i) {
      const double next = sum + parts[i], added = next - sum;
      lost += (sum - (next - added)) + (parts[i] - added);
      sum = next;
    }
    return std::isfinite(lost) ? sum + lost : sum;
  }

  void sum_into(const Tensor& result) const {
    for (int64_t sample = 0; sample < result.numel(); ++sample) write_value(result, sample, sum(sample));
  }

 private:
  int64_t num_chunks_;
  std::vector<double> values_;
};

}  // namespace illia
