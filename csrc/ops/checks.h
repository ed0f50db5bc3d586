// What an op accepts, on every device: each check names the argument and shows its value, before any work is done.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "ops/block.h"

namespace illia {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;

struct Shape {
  IntHeaderOnlyArrayRef sizes;
};

inline std::ostream& operator<<(std::ostream& out, Shape shape) {
  out << '[';
  for (size_t i = 0; i < shape.sizes.size(); ++i) out << (i ? ", " : "") << shape.sizes[i];
  return out << ']';
}

// A dtype as Python calls it.
struct Dtype {
  ScalarType dtype;
};

inline std::ostream& operator<<(std::ostream& out, Dtype value) {
  constexpr std::pair<ScalarType, const char*> kNames[] = {{ScalarType::Float, "torch.float32"},
                                                           {ScalarType::Double, "torch.float64"},
                                                           {ScalarType::Half, "torch.float16"},
                                                           {ScalarType::BFloat16, "torch.bfloat16"},
                                                           {ScalarType::Byte, "torch.uint8"},
                                                           {ScalarType::Char, "torch.int8"},
                                                           {ScalarType::Short, "torch.int16"},
                                                           {ScalarType::Int, "torch.int32"},
                                                           {ScalarType::Long, "torch.int64"},
                                                           {ScalarType::Bool, "torch.bool"},
                                                           {ScalarType::ComplexFloat, "torch.complex64"},
                                                           {ScalarType::ComplexDouble, "torch.complex128"},
                                                           {ScalarType::UInt16, "torch.uint16"},
                                                           {ScalarType::UInt32, "torch.uint32"},
                                                           {ScalarType::UInt64, "torch.uint64"},
                                                           {ScalarType::Float8_e5m2, "torch.float8_e5m2"},
                                                           {ScalarType::Float8_e4m3fn, "torch.float8_e4m3fn"},
                                                           {ScalarType::Float8_e5m2fnuz, "torch.float8_e5m2fnuz"},
                                                           {ScalarType::Float8_e4m3fnuz, "torch.float8_e4m3fnuz"}};
  for (const auto& [dtype, name] : kNames)
    if (dtype == value.dtype) return out << name;
  return out << value.dtype;
}

template <typename part_t>
const part_t& printed(const part_t& part) {
  return part;
}
inline Dtype printed(ScalarType dtype) { return {dtype}; }

template <typename... parts_t>
void check(bool holds, const parts_t&... parts) {
  if (holds) return;
  std::ostringstream message;
  (message << ... << printed(parts));
  throw std::runtime_error(message.str());
}

inline Shape shape_of(const Tensor& tensor) { return {tensor.sizes()}; }

// None arrives as an undefined tensor, whose dtype torch's shims refuse to tell, as they do that of a few rare ones.
inline ScalarType dtype_of(const char* name, const Tensor& tensor) {
  try {
    return tensor.scalar_type();
  } catch (const std::runtime_error&) {
    check(tensor.defined(), name, ": expected a tensor, got None");
    int32_t number = 0;
    aoti_torch_get_dtype(tensor.get(), &number);
    throw std::runtime_error(std::string(name) + ": expected a dtype that torch's stable interface knows, got number " +
                             std::to_string(number) + " of torch's ScalarType");
  }
}

inline bool same_sizes(IntHeaderOnlyArrayRef a, IntHeaderOnlyArrayRef b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin());
}

inline bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
         dtype == ScalarType::BFloat16;
}

inline void check_floating(const char* name, ScalarType dtype) {
  check(is_floating(dtype), name, ": expected float32, float64, float16 or bfloat16, got ", dtype);
}

inline void check_same_device(const char* name, const Tensor& tensor, const char* other_name, const Tensor& other) {
  if (tensor.device() == other.device()) return;
  const auto describe = [](const Tensor& t) {
    return t.is_cpu() ? std::string("cpu") : (t.is_cuda() ? "cuda:" : "device ") + std::to_string(t.get_device_index());
  };
  check(false, name, ": expected to be on the device of ", other_name, ", ", describe(other), ", got ",
        describe(tensor));
}

inline void check_same_shape(const char* name, const Tensor& tensor, const char* other_name, const Tensor& other) {
  check(same_sizes(tensor.sizes(), other.sizes()), name, ": expected the shape of ", other_name, ", ", shape_of(other),
        ", got ", shape_of(tensor));
}

inline void check_parameters(const Tensor& mu, const Tensor& rho) {
  const ScalarType dtype = dtype_of("mu", mu), rho_dtype = dtype_of("rho", rho);
  check_floating("mu", dtype);
  check(rho_dtype == dtype, "rho: expected the dtype of mu, ", dtype, ", got ", rho_dtype);
  check_same_shape("rho", rho, "mu", mu);
  check_same_device("rho", rho, "mu", mu);
}

inline bool is_batch_of_keys(const Tensor& key) { return key.dim() == 2; }

inline void check_key(const Tensor& key) {
  const ScalarType dtype = dtype_of("key", key);
  check(dtype == ScalarType::Long || dtype == ScalarType::UInt64, "key: expected int64 or uint64, got ", dtype);
  const bool has_shape = (key.dim() == 1 || key.dim() == 2) && key.size(key.dim() - 1) == 2;
  check(has_shape, "key: expected shape [2] or [num_samples, 2], got ", shape_of(key));
}

// Sizes of num_samples tensors of `sizes`: [*sizes] for one key, [num_samples, *sizes] for a batch of keys.
inline Sizes sample_sizes(const Tensor& key, IntHeaderOnlyArrayRef sizes) {
  Sizes result(sizes.begin(), sizes.end());
  if (is_batch_of_keys(key)) result.insert(result.begin(), key.size(0));
  return result;
}

// The sample may have the parameters' dtype, or be half or bfloat16 beside float32 parameters (autocast).
inline void check_sample_dtype(const char* name, ScalarType dtype, ScalarType parameters) {
  const bool narrowed = parameters == ScalarType::Float && (dtype == ScalarType::Half || dtype == ScalarType::BFloat16);
  check(dtype == parameters || narrowed, name, ": expected the dtype of mu, ", parameters,
        ", or float16 or bfloat16 beside float32, got ", dtype);
}

inline ScalarType log_prob_dtype(ScalarType parameters) {
  return parameters == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline bool broadcasts_to(IntHeaderOnlyArrayRef sizes, IntHeaderOnlyArrayRef target) {
  return sizes.size() <= target.size() && std::equal(sizes.rbegin(), sizes.rend(), target.rbegin(),
                                                     [](int64_t n, int64_t m) { return n == 1 || n == m; });
}

// A 0-dim prior on the CPU is a number, for parameters on any device.
inline void check_prior(const char* name, const Tensor& prior, const Tensor& mu) {
  check_floating(name, dtype_of(name, prior));
  const bool is_number = prior.dim() == 0 && prior.is_cpu();
  if (!is_number) check_same_device(name, prior, "mu", mu);
  check(prior.numel() == 1 || broadcasts_to(prior.sizes(), mu.sizes()), name,
        ": expected one element, or a shape that broadcasts to that of mu, ", shape_of(mu), ", got ", shape_of(prior));
}

inline void check_priors(const Tensor& mu_prior, const Tensor& std_prior, const Tensor& mu) {
  check_prior("mu_prior", mu_prior, mu);
  check_prior("std_prior", std_prior, mu);
}

// x has mu's shape (one sample) or one dimension more in front.
inline void check_x(const Tensor& x, const Tensor& mu) {
  check_sample_dtype("x", dtype_of("x", x), mu.scalar_type());
  check_same_device("x", x, "mu", mu);
  const auto sizes = x.sizes();
  const bool one = same_sizes(sizes, mu.sizes());
  const bool batch = x.dim() == mu.dim() + 1 && same_sizes(sizes.slice(1), mu.sizes());
  check(one || batch, "x: expected the shape of mu, ", shape_of(mu), ", or one dimension of samples before it, got ",
        shape_of(x));
}

inline void check_sizes(const char* name, const Tensor& tensor, IntHeaderOnlyArrayRef sizes) {
  check(same_sizes(tensor.sizes(), sizes), name, ": expected shape ", Shape{sizes}, ", got ", shape_of(tensor));
}

inline void check_sample_gradient(const Tensor& grad_x, const Tensor& key, const Tensor& rho) {
  check_sample_dtype("grad_x", dtype_of("grad_x", grad_x), rho.scalar_type());
  check_sizes("grad_x", grad_x, sample_sizes(key, rho.sizes()));
  check_same_device("grad_x", grad_x, "rho", rho);
}

inline void check_log_prob_gradient(const char* name, const Tensor& grad, IntHeaderOnlyArrayRef sizes,
                                    const Tensor& mu) {
  const ScalarType expected = log_prob_dtype(mu.scalar_type()), dtype = dtype_of(name, grad);
  check(dtype == expected, name, ": expected ", expected, ", got ", dtype);
  check_sizes(name, grad, sizes);
  check_same_device(name, grad, "mu", mu);
}

inline void check_prior_gradient(bool asked, const char* name, const Tensor& prior, const Tensor& mu) {
  check(!asked || prior.is_cpu() == mu.is_cpu(), name,
        ": a gradient to a number on the CPU beside parameters on another device is not offered, it would have to wait "
        "for that device; move it to the device of mu, or detach it");
}

// The block that starts at index `origin` of a tensor of `full_size`; `sizes` are those of `name`.
inline Block check_block(const char* name, IntHeaderOnlyArrayRef sizes, const std::optional<Sizes>& full_size,
                         const std::optional<Sizes>& origin) {
  if (!full_size && !origin) return Block{};
  // Behind an if, because check reads its arguments whatever its condition says.
  if (!full_size) check(false, "full_size: expected sizes beside origin, ", Shape{*origin}, ", got None");
  if (!origin) check(false, "origin: expected an index beside full_size, ", Shape{*full_size}, ", got None");
  const auto check_length = [&](const char* argument, const Sizes& values) {
    check(values.size() == sizes.size(), argument, ": expected one value for each dimension of ", name, ", ",
          Shape{sizes}, ", got ", Shape{values});
  };
  check_length("full_size", *full_size);
  check_length("origin", *origin);
  int64_t numel = 1;
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    const int64_t start = (*origin)[dim], full = (*full_size)[dim];
    check(start >= 0 && full >= sizes[dim] && start <= full - sizes[dim],
          "origin: expected 0 <= origin and origin + size <= full_size, got ", Shape{*origin}, " for size ",
          Shape{sizes}, " and full_size ", Shape{*full_size});
    check(!__builtin_mul_overflow(numel, std::max<int64_t>(full, 1), &numel),
          "full_size: expected fewer than 2^63 elements, got ", Shape{*full_size});
  }
  const std::optional<Block> block = make_block(Sizes(sizes.begin(), sizes.end()), *full_size, *origin);
  check(block.has_value(), "full_size: expected a block whose rows are told by at most ", Block::kMaxDims,
        " dimensions, got size ", Shape{sizes}, " in ", Shape{*full_size});
  return *block;
}

}  // namespace illia
