// All CPU kernels of one instruction set. A translation unit sets its target, names its namespace by ILLIA_CAPABILITY
// and includes this.
#pragma once

#include "cpu/log_prob_kernel.h"
#include "cpu/sample_kernel.h"

ILLIA_NAMESPACE_BEGIN

template <typename acc_t>
constexpr KernelTable make_kernel_table() {
  return {{standard_normal_kernel<acc_t>, sample_kernel<acc_t>, sample_backward_kernel<acc_t>, log_prob_kernel<acc_t>,
           log_prob_backward_kernel<acc_t>, kl_divergence_kernel<acc_t>, kl_divergence_backward_kernel<acc_t>}};
}

const Kernels kKernels = {make_kernel_table<float>(), make_kernel_table<double>()};

ILLIA_NAMESPACE_END
