"""What torch's own checks let through to an op: None for a tensor, rare dtypes, tensors larger than any memory."""

import re
from typing import Any

import pytest
import torch
from helpers import make_key

from illia_ext._ops.fake import NAMES, op

HUGE = 2**50  # elements: 4 PiB of float32, more than a process can address


def valid_arguments(name: str, device: torch.device | str, numel: int = 3) -> dict[str, Any]:
    """Of the op `name`, by the names in its schema."""
    elements, scalar = torch.ones(1, device=device).expand(numel), torch.ones((), device=device)
    values = dict.fromkeys(("mu", "rho", "x", "grad_x"), elements)
    values |= dict.fromkeys(("grad", "grad_log_prob", "mu_prior", "std_prior"), scalar)
    values |= {"key": make_key(1, device=device), "output_mask": [True] * 5, "size": [numel]}
    given = {a.name: a for a in op(name)._schema.arguments if a.name in values}
    is_list = {key: str(a.type) in ("List[Tensor]", "List[Optional[Tensor]]") for key, a in given.items()}
    arguments = {key: [values[key]] if is_list[key] else values[key] for key in given}
    return arguments | ({"dtype": torch.float32} if name == "standard_normal" else {})


TENSORS = [(name, a.name) for name in NAMES for a in op(name)._schema.arguments if str(a.type) == "Tensor"]


@pytest.mark.parametrize(("name", "argument"), TENSORS)
def test_none_for_a_tensor(name: str, argument: str, device: torch.device) -> None:
    arguments = valid_arguments(name, device)
    op(name)(**arguments)
    alone = name == "standard_normal"  # torch then finds no device
    message = "There were no tensor arguments" if alone else f"{argument}: expected a tensor, got None$"
    with pytest.raises(NotImplementedError if alone else RuntimeError, match=f"^{message}"):
        op(name)(**arguments | {argument: None})


@pytest.mark.parametrize("dtype", [torch.uint4, torch.bits8, torch.float8_e8m0fnu])
@pytest.mark.parametrize(("name", "argument"), TENSORS)
def test_a_dtype_that_the_shims_do_not_know(name: str, argument: str, dtype: torch.dtype, device: torch.device) -> None:
    arguments = valid_arguments(name, device)
    odd = torch.empty(arguments[argument].shape, dtype=dtype, device=device)
    with pytest.raises(RuntimeError, match=f"^{argument}: expected a dtype that torch's stable interface knows, got "):
        op(name)(**arguments | {argument: odd})


@pytest.mark.parametrize("name", NAMES)
def test_larger_than_any_memory(name: str, device: torch.device) -> None:
    message = f"cannot allocate a torch.float32 tensor of shape [{HUGE}]"
    with pytest.raises(RuntimeError, match=rf"^(out of memory: )?{re.escape(message)}"):
        op(name)(**valid_arguments(name, device, HUGE))


@pytest.mark.parametrize("count", [4, 6])
def test_output_mask_has_five_values(count: int, device: torch.device) -> None:
    name = "gaussian_log_prob_backward"
    arguments = valid_arguments(name, device) | {"output_mask": [True] * count}
    with pytest.raises(RuntimeError, match=f"^output_mask: expected 5 values, got {count}$"):
        op(name)(**arguments)
