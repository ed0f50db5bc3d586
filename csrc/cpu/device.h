// The CPU, as ops/gaussian.h asks for a device: memory, threads, sums.
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

// The sum of a row in its order. Knuth's two-sum: `lost` is what the additions round away, which in float64 a plain sum
// of many chunks would show.
inline double sum_row(const double* row, int64_t size) {
  double sum = 0, lost = 0;
  for (int64_t i = 0; i < size; ++i) {
    const double next = sum + row[i], added = next - sum;
    lost += (sum - (next - added)) + (row[i] - added);
    sum = next;
  }
  return std::isfinite(lost) ? sum + lost : sum;
}

class Cpu {
 public:
  using Scratch = std::vector<double>;

  Cpu(const char* /*op*/, const Tensor&) {}

  Tensor empty(IntHeaderOnlyArrayRef sizes, ScalarType dtype) const {
    const Tensor tensor = illia::empty(sizes, dtype, host());
    const size_t width = dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : 2;
    advise_huge_pages(tensor.mutable_data_ptr(), static_cast<size_t>(tensor.numel()) * width);
    return tensor;
  }

  Scratch scratch(int64_t count) const { return Scratch(static_cast<size_t>(count)); }

  // A chunk is a tile.
  int64_t count_tiles(Types, int64_t numel, const General&) const { return count_chunks(numel); }

  // One parallel loop over the chunks of all tensors.
  template <typename args_t>
  void launch(Types types, const Parts<args_t>& parts) const {
    const Kernels& kernels = *cpu_capability().kernels;
    const auto kernel =
        (types.parameters == Storage::kDouble ? kernels.in_double : kernels.in_float).template get<args_t>();
    std::vector<int64_t> ends;  // of the tensors, counted in chunks
    ends.reserve(parts.size());
    int64_t num_chunks = 0;
    for (const auto& part : parts) ends.push_back(num_chunks += count_chunks(part.args.numel));
    parallel_for_chunks(num_chunks, num_samples_of(parts[0].args), [&](int64_t begin, int64_t end) {
      for (size_t k = std::upper_bound(ends.begin(), ends.end(), begin) - ends.begin(); begin < end; ++k) {
        const int64_t first = ends[k] - count_chunks(parts[k].args.numel), stop = std::min(end, ends[k]);
        kernel(parts[k].args, parts[k].general, types, begin - first, stop - first);
        begin = stop;
      }
    });
  }

  // In the order of the tensors, whose sums are rounded.
  void add(Types types, const TileSums& sums, const std::vector<int64_t>& tiles, int64_t num_samples) const {
    for (int64_t s = 0; s < num_samples; ++s) {
      const double* row = sums.partials + s * sums.num_tiles;
      double sum = 0;
      for (int64_t count : tiles) {
        sum += sum_row(row, count);
        row += count;
      }
      if (types.parameters == Storage::kDouble) {
        static_cast<double*>(sums.results)[s] = sum;
      } else {
        static_cast<float*>(sums.results)[s] = static_cast<float>(sum);
      }
    }
  }

  void add_prior_grads(Types, const General& general, int64_t numel) const {
    const int64_t num_chunks = count_chunks(numel);
    const auto add_row = [&](void* sum, int64_t row) {
      if (sum) *static_cast<double*>(sum) = sum_row(general.prior_partials + row * num_chunks, num_chunks);
    };
    add_row(general.mu_prior_grad.sum, 0);
    add_row(general.std_prior_grad.sum, 1);
  }

  ScalarType sum_dtype(ScalarType) const { return ScalarType::Double; }

  // In the order of the elements and in double.
  Tensor sum_to(const Tensor& grads, IntHeaderOnlyArrayRef to) const {
    const Tensor sums = illia::empty(to, ScalarType::Double, host());
    if (grads.scalar_type() == ScalarType::Double) {
      sum_to(grads, grads.const_data_ptr<double>(), sums);
    } else {
      sum_to(grads, grads.const_data_ptr<float>(), sums);
    }
    return sums;
  }

 private:
  template <typename args_t>
  static int64_t num_samples_of(const args_t& args) {
    if constexpr (std::is_same_v<args_t, KlDivergenceArgs> || std::is_same_v<args_t, KlDivergenceBackwardArgs>)
      return 1;
    else
      return args.num_samples;
  }

  template <typename acc_t>
  static void sum_to(const Tensor& grads, const acc_t* data, const Tensor& sums) {
    double* values = sums.mutable_data_ptr<double>();
    std::fill(values, values + sums.numel(), 0.0);
    const auto sizes = grads.sizes();
    const size_t missing = sizes.size() - sums.sizes().size();
    Sizes strides(sizes.size()), index(sizes.size());
    for (size_t dim = missing; dim < sizes.size(); ++dim)
      strides[dim] = sizes[dim] == sums.size(dim - missing) ? sums.stride(dim - missing) : 0;
    const int64_t row_size = sizes.back(), row_stride = strides.back();
    int64_t place = 0;
    for (int64_t first = 0; first < grads.numel(); first += row_size) {
      for (int64_t i = 0; i < row_size; ++i) values[place + i * row_stride] += static_cast<double>(data[first + i]);
      for (size_t dim = sizes.size() - 1; dim-- > 0;) {
        place += strides[dim];
        if (++index[dim] < sizes[dim]) break;
        place -= index[dim] * strides[dim];
        index[dim] = 0;
      }
    }
  }
};

}  // namespace illia
