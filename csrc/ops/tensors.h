// From tensors to memory and back, on every device.
#pragma once

#include "ops/checks.h"
#include "ops/kernels.h"

namespace illia {

inline Storage storage_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      return Storage::kDouble;
    case ScalarType::Half:
      return Storage::kHalf;
    case ScalarType::BFloat16:
      return Storage::kBFloat16;
    default:
      return Storage::kFloat;
  }
}

inline ScalarType arithmetic_dtype(Types types) {
  return types.parameters == Storage::kDouble ? ScalarType::Double : ScalarType::Float;
}

// A device as the shims name it.
struct Place {
  int32_t type, index;
};

inline Place host() { return {aoti_torch_device_type_cpu(), 0}; }

inline Place place_of(const Tensor& tensor) {
  return tensor.is_cpu() ? host() : Place{aoti_torch_device_type_cuda(), tensor.get_device_index()};
}

// A new contiguous tensor, straight from torch's allocator: new_empty would go through the dispatcher.
inline Tensor empty(IntHeaderOnlyArrayRef sizes, ScalarType dtype, Place place) {
  Sizes strides(sizes.size());
  int64_t stride = 1;
  bool overflow = false;
  for (size_t dim = sizes.size(); dim-- > 0;) {
    strides[dim] = stride;
    overflow |= __builtin_mul_overflow(stride, std::max<int64_t>(sizes[dim], 1), &stride);
  }
  const int32_t shim_dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle = nullptr;
  const bool allocated =
      !overflow && aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                            shim_dtype, place.type, place.index, &handle) == TORCH_SUCCESS;
  check(allocated || place.type == aoti_torch_device_type_cpu(), "cannot allocate a ", dtype, " tensor of shape ",
        Shape{sizes}, ": out of memory, or an earlier CUDA error");
  check(allocated, "out of memory: cannot allocate a ", dtype, " tensor of shape ", Shape{sizes});
  return Tensor(handle);
}

// torch's own error would only say where in its headers the call stands.
inline Tensor copy_into(Tensor copy, const Tensor& tensor) {
  bool copied = true;
  try {
    torch::stable::copy_(copy, tensor);
  } catch (const std::exception&) {
    copied = false;
  }
  check(copied, "out of memory", tensor.is_cpu() ? "" : ", or an earlier CUDA error", ": cannot copy a ",
        tensor.scalar_type(), " tensor of shape ", shape_of(tensor));
  return copy;
}

// Contiguous; torch::stable's own `contiguous` and `to` do not say either that memory ran out.
inline Tensor copy_as(const Tensor& tensor, ScalarType dtype) {
  return copy_into(empty(tensor.sizes(), dtype, place_of(tensor)), tensor);
}

// A copy where the argument is strided.
inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : copy_as(tensor, tensor.scalar_type());
}

inline std::optional<Tensor> as_contiguous(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(as_contiguous(*tensor)) : std::nullopt;
}

inline Tensor as_dtype(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : copy_as(tensor, dtype);
}

// The value of a floating tensor of one element on the CPU.
inline double read_value(const Tensor& tensor) {
  if (tensor.scalar_type() == ScalarType::Float) return tensor.const_data_ptr<float>()[0];
  if (tensor.scalar_type() == ScalarType::Double) return tensor.const_data_ptr<double>()[0];
  return copy_as(tensor, ScalarType::Double).const_data_ptr<double>()[0];
}

}  // namespace illia
