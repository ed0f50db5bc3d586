"""Shapes and batching of torch.ops.illia_ext: what tracing, torch.compile and vmap need to know of each op.

What an op accepts is checked in C++ (csrc/ops/arguments.h): a traced program is refused when it runs. Checked here is
what C++ never sees: some tensors on the meta device.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

import illia_ext._native.library  # noqa: F401  (registers the ops)

__all__ = ["NAMES", "op"]

NAMES = (
    "standard_normal",
    "gaussian_sample",
    "gaussian_sample_backward",
    "gaussian_log_prob",
    "gaussian_log_prob_backward",
    "gaussian_sample_and_log_prob",
    "gaussian_sample_and_log_prob_backward",
    "gaussian_kl_divergence",
    "gaussian_kl_divergence_backward",
    "foreach_gaussian_sample_and_log_prob",
    "foreach_gaussian_sample_and_log_prob_backward",
    "foreach_gaussian_kl_divergence",
    "foreach_gaussian_kl_divergence_backward",
)


def op(name: str) -> Any:
    """The op `illia_ext::<name>`, looked up once instead of at each call."""
    return getattr(torch.ops.illia_ext, name).default


def _check_devices(types: Mapping[str, Any], args: Sequence[Any]) -> None:
    """That of mu, rho or key for all, as C++ has it; a prior may be a number on the CPU."""
    given = dict(zip(types, args))
    leader = next(argument for argument in ("mu", "rho", "key") if argument in given)
    leading: Any = given[leader]
    first: Any = next(iter(leading), None) if isinstance(leading, (list, tuple)) else leading
    if first is None:
        expected = "a tensor, got None" if leading is None else "at least one tensor, got an empty list"
        raise RuntimeError(f"{leader}: expected {expected}")
    for argument, value in given.items():
        if value is None and str(types[argument]) == "Tensor":
            raise RuntimeError(f"{argument}: expected a tensor, got None")
        for k, tensor in enumerate(value) if isinstance(value, (list, tuple)) else ((None, value),):
            if not isinstance(tensor, Tensor) or tensor.device == first.device:
                continue
            if argument.endswith("_prior") and tensor.dim() == 0 and tensor.device.type == "cpu":
                continue
            where = "" if k is None else f"tensor {k}: "
            other = "tensor 0" if argument == leader else leader
            expected = f"expected to be on the device of {other}, {first.device}, got {tensor.device}"
            raise RuntimeError(f"{where}{argument}: {expected}")


def _fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    types = {argument.name: argument.type for argument in op(name)._schema.arguments}

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        def on_one_device(*args: Any, **kwargs: Any) -> Any:
            """A call with one meta tensor runs this in place of the checks in C++."""
            _check_devices(types, args)
            return function(*args, **kwargs)

        torch.library.register_fake(f"illia_ext::{name}", on_one_device)
        return on_one_device

    return register


def _samples(key: Tensor) -> list[int]:
    """The sample dimension that a key adds in front: [] for one key, [S] for S."""
    return list(key.shape[:-1])


def _empty(like: Tensor, size: Sequence[int] | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """A contiguous tensor."""
    return like.new_empty(like.shape if size is None else size, dtype=dtype or like.dtype)


def _sums(mu: Tensor, size: Sequence[int]) -> Tensor:
    return _empty(mu, size, torch.float64 if mu.dtype == torch.float64 else torch.float32)


def _grads(tensors: Sequence[Tensor], asked: Sequence[bool], mu: Tensor) -> list[Tensor]:
    """An output that is not asked for is empty."""
    return [_empty(tensor) if wanted else _empty(mu, [0]) for tensor, wanted in zip(tensors, asked)]


@_fake("standard_normal")
def _(key: Tensor, size: Sequence[int], *, dtype: torch.dtype, full_size: Any = None, origin: Any = None) -> Tensor:
    return _empty(key, [*_samples(key), *size], dtype)


@_fake("gaussian_sample")
def _(mu: Tensor, rho: Tensor, key: Tensor, *, dtype: Any = None, **options: Any) -> Tensor:
    return _empty(mu, [*_samples(key), *mu.shape], dtype)


@_fake("gaussian_sample_backward")
def _(grad_x: Tensor, rho: Tensor, key: Tensor, **options: Any) -> Tensor:
    return _empty(rho)


@_fake("gaussian_log_prob")
def _(x: Tensor, mu: Tensor, rho: Tensor, mu_prior: Tensor, std_prior: Tensor, **options: Any) -> Tensor:
    return _sums(mu, x.shape[: x.dim() - mu.dim()])


@_fake("gaussian_log_prob_backward")
def _(grad_log_prob: Tensor, *tensors_and_mask: Any, **options: Any) -> tuple[Tensor, ...]:
    *tensors, output_mask = tensors_and_mask
    if len(output_mask) != 5:
        raise RuntimeError(f"output_mask: expected 5 values, got {len(output_mask)}")
    return tuple(_grads(tensors, output_mask, tensors[1]))


@_fake("gaussian_sample_and_log_prob")
def _(
    mu: Tensor, rho: Tensor, mu_prior: Tensor, std_prior: Tensor, key: Tensor, *, dtype: Any = None, **options: Any
) -> tuple[Tensor, Tensor]:
    return _empty(mu, [*_samples(key), *mu.shape], dtype), _sums(mu, _samples(key))


@_fake("gaussian_sample_and_log_prob_backward")
def _(
    grad_x: Any,
    grad_log_prob: Any,
    mu: Tensor,
    rho: Tensor,
    mu_prior: Tensor,
    std_prior: Tensor,
    key: Tensor,
    *,
    prior_grads: bool = False,
    **options: Any,
) -> tuple[Tensor, ...]:
    return _empty(mu), _empty(rho), *_grads((mu_prior, std_prior), [prior_grads] * 2, mu)


@_fake("gaussian_kl_divergence")
def _(mu: Tensor, rho: Tensor, mu_prior: Tensor, std_prior: Tensor) -> Tensor:
    return _sums(mu, [])


@_fake("gaussian_kl_divergence_backward")
def _(
    grad: Tensor, mu: Tensor, rho: Tensor, mu_prior: Tensor, std_prior: Tensor, prior_grads: bool = False
) -> tuple[Tensor, ...]:
    return _empty(mu), _empty(rho), *_grads((mu_prior, std_prior), [prior_grads] * 2, mu)


@_fake("foreach_gaussian_sample_and_log_prob")
def _(
    mu: Sequence[Tensor], rho: Any, mu_prior: Any, std_prior: Any, key: Tensor, *, dtype: Any = None, **options: Any
) -> tuple[list[Tensor], Tensor]:
    x = [_empty(tensor, [*_samples(key), *tensor.shape], dtype) for tensor in mu]
    return x, _sums(mu[0], _samples(key))


@_fake("foreach_gaussian_sample_and_log_prob_backward")
def _(
    grad_x: Any, grad_log_prob: Any, mu: Sequence[Tensor], rho: Sequence[Tensor], *others: Any, **options: Any
) -> tuple[list[Tensor], list[Tensor]]:
    return list(map(_empty, mu)), list(map(_empty, rho))


@_fake("foreach_gaussian_kl_divergence")
def _(mu: Sequence[Tensor], rho: Any, mu_prior: Any, std_prior: Any) -> Tensor:
    return _sums(mu[0], [])


@_fake("foreach_gaussian_kl_divergence_backward")
def _(
    grad: Tensor, mu: Sequence[Tensor], rho: Sequence[Tensor], mu_prior: Any, std_prior: Any
) -> tuple[list[Tensor], list[Tensor]]:
    return list(map(_empty, mu)), list(map(_empty, rho))


def _member(value: Any, dim: Any, index: int) -> Any:
    """Member `index` of a batched argument; of an empty batch, zeros that tell its members' shapes."""
    if dim is None:
        return value
    return value.select(dim, index) if value.shape[dim] else value.sum(dim)


def _register_vmap(name: str) -> None:
    """Members are called one by one, but for keys: an op whose only batched argument is its key takes them all.

    An antithetic member's keys are an even number, which those of all members may be without it.
    """
    overload = op(name)
    names = [argument.name for argument in overload._schema.arguments]
    # a backward sums over its keys: one call would mix the members
    key_place = names.index("key") if "key" in names and not name.endswith("_backward") else -1

    def batch(info: Any, in_dims: tuple[Any, ...], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        batched = [i for i, dims in enumerate(in_dims) if any(dim is not None for dim in tree_leaves(dims))]
        takes_all = batched == [key_place] and not kwargs.get("antithetic")
        if takes_all and args[key_place].dim() <= 3:  # else the loop, whose calls refuse it
            keys = args[key_place].movedim(in_dims[key_place], 0)
            flat = (*args[:key_place], keys.reshape(-1, 2), *args[key_place + 1 :])
            output = tree_map(lambda out: out.unflatten(0, keys.shape[:-1]), overload(*flat, **kwargs))
        else:
            members = [
                overload(*tree_map(lambda value, dim, i=i: _member(value, dim, i), args, in_dims), **kwargs)
                for i in range(max(info.batch_size, 1))
            ]
            output = tree_map(lambda *outs: torch.stack(outs)[: info.batch_size], *members)
        return output, tree_map(lambda _: 0, output)

    torch.library.register_vmap(overload, batch)


for _name in NAMES:
    _register_vmap(_name)
