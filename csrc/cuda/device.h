// A CUDA device, as ops/gaussian.h asks for a device: memory, torch's stream, sums. No CUDA header here, and nothing
// that waits for the device.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "cuda/kernels.h"
#include "ops/tensors.h"

// Only a torch with CUDA has it: weak, so that the library loads beside any torch.
extern "C" AOTI_TORCH_EXPORT AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream)
    __attribute__((weak));

namespace illia {
namespace cuda {

class Cuda {
 public:
  // Returns to torch's allocator when the op ends, which hands it on in the order of the stream.
  struct Scratch {
    std::optional<Tensor> tensor;
    double* data() const { return static_cast<double*>(tensor->mutable_data_ptr()); }
  };

  // The device of the tensor is made current.
  Cuda(const char* op, const Tensor& tensor) : op_(op), index_(tensor.get_device_index()), guard_(index_) {
    const bool known = aoti_torch_get_current_cuda_stream != nullptr &&
                       aoti_torch_get_current_cuda_stream(index_, &stream_) == TORCH_SUCCESS;
    check(known, "cuda:", index_, ": torch gives no current stream for this device");
  }

  Tensor empty(IntHeaderOnlyArrayRef sizes, ScalarType dtype) const {
    return illia::empty(sizes, dtype, {aoti_torch_device_type_cuda(), index_});
  }

  Scratch scratch(int64_t count) const { return {empty(Sizes{count}, ScalarType::Double)}; }

  int64_t count_tiles(Types types, int64_t numel, const General& general) const {
    return cuda::count_tiles(types, numel, general);
  }

  template <typename args_t>
  void launch(Types types, const Parts<args_t>& parts) const {
    const Launch on{types, stream_};
    if (parts.size() == 1) return check_launch(cuda::launch(on, parts[0].args, parts[0].general));
    if constexpr (kTakesMany<args_t>) {
      check_launch(cuda::launch(on, parts));
    } else {
      check(false, op_, ": takes one tensor, got ", parts.size());
    }
  }

  void add(Types types, const TileSums& sums, const std::vector<int64_t>&, int64_t num_samples) const {
    check_launch(launch_sums({types, stream_}, sums, num_samples));
  }

  void add_prior_grads(Types types, const General& general, int64_t numel) const {
    check_launch(launch_prior_grad_sums({types, stream_}, general, numel));
  }

  ScalarType sum_dtype(ScalarType arithmetic) const { return arithmetic; }

  Tensor sum_to(const Tensor& grads, IntHeaderOnlyArrayRef to) const {
    const int64_t missing = grads.dim() - static_cast<int64_t>(to.size());
    Sizes dims;
    for (int64_t dim = 0; dim < grads.dim(); ++dim)
      if (dim < missing || to[dim - missing] != grads.size(dim)) dims.push_back(dim);
    return torch::stable::reshape(torch::stable::sum(grads, IntHeaderOnlyArrayRef(dims)), to);
  }

 private:
  template <typename args_t>
  static constexpr bool kTakesMany =
      std::is_same_v<args_t, SampleArgs> || std::is_same_v<args_t, SampleBackwardArgs> ||
      std::is_same_v<args_t, KlDivergenceArgs> || std::is_same_v<args_t, KlDivergenceBackwardArgs>;

  void check_launch(const char* error) const {
    check(error == nullptr, op_, ": CUDA could not start the kernel on cuda:", index_, ": ", error ? error : "");
  }

  const char* op_;
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

}  // namespace cuda
}  // namespace illia
