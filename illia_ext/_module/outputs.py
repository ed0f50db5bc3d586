"""The outputs of a module for several samples of its weights, in one."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from illia_ext._module.contents import reach

__all__ = ["PLAIN_VALUES", "PerSample", "Prediction", "join_samples", "mean", "refuse_lazy"]

PLAIN_VALUES = (type(None), bool, int, float, str)


class Prediction(NamedTuple):
    """The outputs for each sample of the weights, [S, ...], and their mean."""

    mean: Any
    samples: Any


class PerSample(tuple[Any, ...]):
    """One object per sample, such as a language model's cache: what is no tensor cannot be stacked."""


def join_samples(join: Callable[..., Tensor], outputs: Sequence[Any]) -> Any:
    """One output of several of one structure: `join` of their tensors, a value that all share, else PerSample."""
    all_leaves, specs = zip(*(tree_flatten(output) for output in outputs))
    for spec in specs:
        if spec != specs[0]:
            raise ValueError(f"output: expected one structure for all samples, got {specs[0]} and {spec}")
    joined: list[Any] = []
    for leaves in zip(*all_leaves):
        if all(isinstance(leaf, Tensor) for leaf in leaves):
            first = 1 if join is torch.cat else 0
            if any(leaf.shape[first:] != leaves[0].shape[first:] for leaf in leaves):
                shapes = sorted({tuple(leaf.shape) for leaf in leaves})
                raise ValueError(f"output: expected tensors of one shape for all samples, got {shapes}")
            joined.append(join(leaves))
        elif all(isinstance(leaf, PLAIN_VALUES) and leaf == leaves[0] for leaf in leaves):
            joined.append(leaves[0])
        else:
            joined.append(PerSample(leaves))
    return tree_unflatten(joined, specs[0])


def mean(samples: Any) -> Any:
    """Of all tensors over their first dimension, the samples; None in place of PerSample objects."""

    def of_leaf(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            has_mean = leaf.is_floating_point() or leaf.is_complex()
            return leaf.mean(0, dtype=None if has_mean else torch.float32)
        return None if isinstance(leaf, PerSample) else leaf

    leaves, spec = tree_flatten(samples)
    return tree_unflatten([of_leaf(leaf) for leaf in leaves], spec)


def refuse_lazy(output: Any, mus: Collection[Tensor]) -> None:
    """An output that holds a module with Gaussian weights would compute with mu, when the samples have gone."""
    if isinstance(output, Tensor) or is_compiling():
        return
    for item in reach([leaf for leaf in tree_leaves(output) if not isinstance(leaf, (Tensor, *PLAIN_VALUES))]):
        if isinstance(item, nn.Module) and not {id(mu) for mu in mus}.isdisjoint(map(id, item.parameters())):
            raise TypeError(
                f"output: expected tensors, got {type(output).__name__}, which holds {type(item).__name__}, a part of "
                "the module, and would compute later, with mu in place of the sample. Compute inside `with "
                "bnn.sampled():`, where bnn.module is the sample, or by bnn.predict(..., transform=lambda output: ...)"
            )
