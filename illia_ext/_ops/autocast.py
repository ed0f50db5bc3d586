"""Autocast: a sample comes out in autocast's dtype, narrowed by the kernel that draws it.

Parameters stay as they are, and so does log_prob. An explicit `dtype` wins; parameters that are not float32 are left
alone. The other ops take autocast's tensors as they come: a half x beside float32 parameters.
"""

from typing import Any

import torch
from torch import Tensor

from illia_ext._ops.fake import op

__all__: list[str] = []

_library = torch.library.Library("illia_ext", "IMPL")


def _register(name: str, device_type: str, key: str) -> None:
    overload = op(name)

    def kernel(mu: Any, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Any:
        # of a list the first tensor: they are alike, and the op refuses an empty list
        first = mu if isinstance(mu, Tensor) else next(iter(mu), None)
        if dtype is None and first is not None and first.dtype == torch.float32 and first.device.type == device_type:
            dtype = torch.get_autocast_dtype(device_type)
        with torch.autocast(device_type, enabled=False):
            return overload(mu, *args, dtype=dtype, **kwargs)

    _library.impl(name, kernel, key)


for _name in ("gaussian_sample", "gaussian_sample_and_log_prob", "foreach_gaussian_sample_and_log_prob"):
    _register(_name, "cpu", "AutocastCPU")
    _register(_name, "cuda", "AutocastCUDA")
