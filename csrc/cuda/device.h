// An op's tensors on a CUDA device, as the launches of kernels.h want them. No CUDA header here.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "cuda/kernels.h"
#include "ops/tensors.h"

// Only a torch with CUDA has it: weak, so that the library loads beside any torch.
extern "C" AOTI_TORCH_EXPORT AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream)
    __attribute__((weak));

namespace illia {
namespace cuda {

// The device of an op's tensors, made current, and torch's stream on it.
class Device {
 public:
  explicit Device(const Tensor& tensor) : index_(tensor.get_device_index()), guard_(index_) {
    const bool known = aoti_torch_get_current_cuda_stream != nullptr &&
                       aoti_torch_get_current_cuda_stream(index_, &stream_) == TORCH_SUCCESS;
    check(known, "cuda:", index_, ": torch gives no current stream for this device");
  }

  Launch launch(ScalarType parameters, ScalarType sample) const {
    return {storage_of(parameters), storage_of(sample), stream_};
  }

  Tensor empty(IntHeaderOnlyArrayRef sizes, ScalarType dtype) const { return illia::empty(sizes, dtype, place()); }
  Tensor zeros(IntHeaderOnlyArrayRef sizes, ScalarType dtype) const {
    Tensor result = empty(sizes, dtype);
    return torch::stable::zero_(result);
  }
  Tensor not_asked_for(const Tensor& like) const { return illia::not_asked_for(like, place()); }

  // A prior for each element of mu, contiguous in the arithmetic type. A number on the CPU is filled in: its copy would
  // wait for the device.
  Tensor expand(const Tensor& prior, const Tensor& mu) const {
    if (!prior.is_cpu()) return expand_as(prior, mu, place());
    Tensor each = empty(mu.sizes(), log_prob_dtype(mu.scalar_type()));
    torch::stable::fill_(each, read_value(prior));
    return each;
  }

  void check_launch(const char* op, const char* error) const {
    check(error == nullptr, op, ": CUDA could not start the kernel on cuda:", index_, ": ", error ? error : "");
  }

 private:
  Place place() const { return {aoti_torch_device_type_cuda(), index_}; }

  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

inline const void* data_of(const Tensor& tensor) { return tensor.const_data_ptr(); }
inline const void* data_of(const std::optional<Tensor>& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }
inline const Key* keys_of(const Tensor& key) { return static_cast<const Key*>(key.const_data_ptr()); }

inline void* target_of(const std::optional<Tensor>& tensor) { return tensor ? tensor->mutable_data_ptr() : nullptr; }

// Results that are sums over tiles, of the parameters' arithmetic type, and scratch for those of several tiles. That
// returns to torch's allocator when the op ends, which hands it on in the order of the stream.
class SumTensors {
 public:
  SumTensors(const Device& device, const Sizes& sizes, ScalarType parameters, int64_t num_tiles)
      : results_(device.empty(sizes, log_prob_dtype(parameters))), num_tiles_(num_tiles) {
    if (num_tiles > 1) partials_ = device.empty(Sizes{results_.numel(), num_tiles}, ScalarType::Double);
  }
  SumTensors(const Device& device, const Sizes& sizes, const Tensor& mu, const General& general)
      : SumTensors(device, sizes, mu.scalar_type(), count_tiles(storage_of(mu.scalar_type()), mu.numel(), general)) {}

  operator TileSums() const {
    return {results_.mutable_data_ptr(), static_cast<double*>(target_of(partials_)), num_tiles_};
  }
  const Tensor& results() const { return results_; }

 private:
  Tensor results_;
  std::optional<Tensor> partials_;
  int64_t num_tiles_;
};

}  // namespace cuda
}  // namespace illia
