"""What a Python argument must be: the kind of thing, its range, its shape. What an op accepts is checked in C++."""

import operator
import sys
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "DTYPES",
    "broadcasts",
    "check_count",
    "check_dtype",
    "check_finite",
    "check_int64",
    "check_key",
    "check_one_key",
    "check_one_prior",
    "check_positive",
    "check_prior",
    "shown",
]

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def shown(value: Any) -> str:
    """A value in a message: tensors by their shapes, others in one line."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    text = repr(value).split("\n")[0]
    return text if len(text) <= 80 else f"{text[:77]}..."


def _check_number(name: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {shown(value)}")
    return value


def check_finite(name: str, value: float) -> float:
    # comparisons, because they also trace a number that is dynamic under torch.compile
    if not -sys.float_info.max <= _check_number(name, value) <= sys.float_info.max:
        raise ValueError(f"{name}: expected a finite number, got {value}")
    return value


def check_positive(name: str, value: float) -> float:
    if not 0 < _check_number(name, value) <= sys.float_info.max:
        raise ValueError(f"{name}: expected a positive finite number, got {value}")
    return value


def check_prior(name: str, value: float) -> float:
    """mu_prior or std_prior, given as a number."""
    return check_positive(name, value) if name == "std_prior" else check_finite(name, value)


def check_one_prior(**given_and_default: tuple[Any, Any]) -> None:
    """Beside `prior`: mu_prior and std_prior are as they are by default."""
    for name, (value, default) in given_and_default.items():
        if value is not default and (isinstance(value, Tensor) or value != default):
            raise ValueError(f"{name}: expected none beside prior, which takes its place, got {shown(value)}")


def _check_integer(name: str, value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {value}")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {value!r}") from None


def check_int64(name: str, value: Any) -> int:
    """The signed integer of the same 64 bits."""
    number = _check_integer(name, value)
    if not -(2**63) <= number < 2**64:
        raise ValueError(f"{name}: expected an integer in [-2**63, 2**64), got {number}")
    return number - 2**64 if number >= 2**63 else number


def check_count(name: str, value: Any, least: int = 0) -> int:
    """`value` as a number of things."""
    number = _check_integer(name, value)
    if number < least:
        raise ValueError(f"{name}: must be at least {least}, got {number}")
    return number


def check_dtype(name: str, dtype: Any, advice: str = "") -> None:
    if dtype not in DTYPES:
        raise TypeError(f"{name}: expected float32, float64, float16 or bfloat16, got {dtype!r}{advice}")


def broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    return len(shape) <= len(target) and all(n in (1, m) for n, m in zip(reversed(shape), reversed(target)))


def check_key(key: Any, advice: str = "", dims: Sequence[int] = (), shape: str = "[..., 2]") -> Tensor:
    """`dims`: how many dimensions it may have, any if that is empty; `shape` says so in the message."""
    if not isinstance(key, Tensor):
        raise TypeError(f"key: expected a tensor, got {key!r}{advice}")
    if key.dtype not in (torch.int64, torch.uint64):
        raise TypeError(f"key: expected int64 or uint64, got {key.dtype}{advice}")
    if key.dim() == 0 or key.shape[-1] != 2 or (dims and key.dim() not in dims):
        raise ValueError(f"key: expected shape {shape}, got {list(key.shape)}")
    return key


def check_one_key(key: Any) -> Tensor:
    return check_key(key, dims=(1,), shape="[2]")
