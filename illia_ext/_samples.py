"""One call for each sample of the weights: all at once by vmap, or one by one where that is not possible."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

__all__ = ["combine", "mean", "over_samples"]

_Call = Callable[[Sequence[Tensor]], Any]
_PLAIN_VALUES = (type(None), bool, int, float, str)


def _check_leaf(leaf: Any) -> None:
    if not isinstance(leaf, (Tensor, *_PLAIN_VALUES)):
        message = "for several samples expected tensors, in containers that torch.utils._pytree knows"
        raise TypeError(f"output: {message}, got {type(leaf).__name__}")


def combine(join: Callable[[Any], Tensor], outputs: Sequence[Any]) -> Any:
    """One output of several of one structure: `join` of their tensors; all other values must be the same."""
    all_leaves, specs = zip(*(tree_flatten(output) for output in outputs))
    for spec in specs:
        if spec != specs[0]:
            raise ValueError(f"output: expected one structure for all samples, got {specs[0]} and {spec}")
    joined: list[Any] = []
    for leaves in zip(*all_leaves):
        _check_leaf(leaves[0])
        if isinstance(leaves[0], Tensor):
            joined.append(join(leaves))
        elif all(leaf == leaves[0] for leaf in leaves):
            joined.append(leaves[0])
        else:
            raise ValueError(f"output: expected tensors, or values that all samples share, got {list(leaves)}")
    return tree_unflatten(joined, specs[0])


def mean(samples: Any) -> Any:
    """Over the first dimension of all tensors."""

    def of_one(outputs: Sequence[Tensor]) -> Tensor:
        has_mean = outputs[0].is_floating_point() or outputs[0].is_complex()
        return outputs[0].mean(0, dtype=None if has_mean else torch.float32)

    return combine(of_one, [samples])


def _needs_a_loop(module: nn.Module) -> bool:
    """Known in advance, which spares an attempt and is all that a compiled program can go by."""
    for part in module.modules():
        updates_statistics = part.training and part._buffers.get("running_mean") is not None
        if updates_statistics or isinstance(part, nn.RNNBase):
            return True
    return False


def _one_by_one(call: _Call, samples: Sequence[Tensor]) -> Any:
    # unbind, whose backward is one stack, where that of an index writes zeros for all samples
    return combine(torch.stack, [call(weights) for weights in zip(*(x.unbind() for x in samples))])


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear, as (W x^T)^T where the weight is larger than the output.

    Under vmap the gradient of every sample's weight then comes in the weight's own layout; otherwise it comes
    transposed, and a copy of it costs more than the product.
    """
    if weight.dim() < 2 or input.dim() < 2 or input.shape[:-1].numel() >= len(weight):
        return F.linear(input, weight, bias)
    output = (weight @ input.flatten(0, -2).mT).mT.contiguous().unflatten(0, input.shape[:-1])
    return output if bias is None else output + bias.to(output.dtype)


class _Linear(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_linear if func is F.linear else func)(*args, **(kwargs or {}))


def _at_once(call: _Call, samples: Sequence[Tensor]) -> Any:
    rest: list[Any] = []

    def tensors_of(weights: Sequence[Tensor]) -> list[Tensor]:
        leaves, spec = tree_flatten(call(weights))
        for leaf in leaves:
            _check_leaf(leaf)
        rest.extend([spec, [None if isinstance(leaf, Tensor) else [leaf] for leaf in leaves]])
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    tensors = iter(torch.vmap(tensors_of, randomness="different")(samples))
    spec, values = rest
    return tree_unflatten([next(tensors) if value is None else value[0] for value in values], spec)


class _Buffers:
    """What an attempt to run all samples at once may have changed."""

    def __init__(self, module: nn.Module) -> None:
        self.before = [
            (f"{path}.{name}".lstrip("."), part._buffers, name, buffer, buffer._version)
            for path, part in module.named_modules()
            for name, buffer in part._buffers.items()
            if buffer is not None and not buffer.is_inference()  # which has no version
        ]

    def check(self) -> None:
        for path, buffers, name, buffer, version in self.before:
            if buffers[name] is not buffer or buffer._version != version:
                buffers[name] = buffer
                message = "a forward pass of all samples at once has changed it, once in place of once a sample"
                raise RuntimeError(f"{path}: {message}; set chunk_size=1, which runs one sample after the other")


def over_samples(call: _Call, samples: Sequence[Tensor], module: nn.Module) -> Any:
    """What call(weights) gives for each of the S samples of all weights.

    Args:
        samples: for each weight, [S, *shape]; S >= 1.
        module: the one that `call` runs.

    Returns:
        The output, its tensors with a dimension [S] in front.
    """
    if len(samples[0]) == 1 or _needs_a_loop(module):
        return _one_by_one(call, samples)
    if is_compiling():
        return _at_once(call, samples)
    buffers = _Buffers(module)
    try:
        with _Linear():
            output = _at_once(call, samples)
    except RuntimeError:  # an operation without a batching rule, or one that fails in the loop as well
        buffers.check()
        return _one_by_one(call, samples)
    buffers.check()
    return output
