// The ops on the CPU.
#include <torch/csrc/stable/library.h>

#include "cpu/device.h"
#include "ops/gaussian.h"

STABLE_TORCH_LIBRARY_IMPL(illia_ext, CPU, m) {
#define ILLIA_IMPL(op) m.impl(#op, TORCH_BOX(&illia::op<illia::Cpu>))
  ILLIA_FOR_EACH_OP(ILLIA_IMPL);
}
