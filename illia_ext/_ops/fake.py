"""Shapes and batching of torch.ops.illia_ext: what tracing, torch.compile and vmap need to know of each op."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

import illia_ext._native.library  # noqa: F401  (registers the ops)

__all__ = [
    "NAMES",
    "check",
    "check_device",
    "check_shape",
    "contiguous",
    "fake",
    "key_samples",
    "log_prob_dtype",
    "op",
    "refuse",
]

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


def key_samples(key: Tensor) -> list[int]:
    """The sample dimension that a key adds in front: [] for one key, [S] for S."""
    return list(key.shape[:-1])


def log_prob_dtype(mu: Tensor) -> torch.dtype:
    return torch.float64 if mu.dtype == torch.float64 else torch.float32


def contiguous(like: Tensor, size: Sequence[int] | None = None, dtype: torch.dtype | None = None) -> Tensor:
    return like.new_empty(like.shape if size is None else size, dtype=dtype or like.dtype)


def refuse(holds: bool, message: str) -> None:
    if holds:
        raise RuntimeError(message)


def check_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    message = f"{name}: expected to be on the device of {other_name}, {other.device}, got {tensor.device}"
    refuse(tensor.device != other.device, message)


def check_shape(name: str, tensor: Tensor | None, shape: Sequence[int]) -> None:
    if tensor is not None:
        refuse(tensor.shape != torch.Size(shape), f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")


def _check_prior(name: str, prior: Tensor, mu: Tensor) -> None:
    """A 0-dim prior on the CPU is a number, for parameters on any device."""
    if prior.dim() > 0 or prior.device.type != "cpu":
        check_device(name, prior, "mu", mu)
    fits = prior.dim() <= mu.dim() and all(n in (1, m) for n, m in zip(reversed(prior.shape), reversed(mu.shape)))
    message = f"{name}: expected one element, or a shape that broadcasts to that of mu, {list(mu.shape)}"
    refuse(prior.numel() != 1 and not fits, f"{message}, got {list(prior.shape)}")


def _check_block(name: str, size: Sequence[int], full_size: Any, origin: Any) -> None:
    """That a block of `size`, which `name` has, lies inside a tensor of full_size."""
    if full_size is None and origin is None:
        return
    refuse(full_size is None, f"full_size: expected sizes beside origin, {origin}, got None")
    refuse(origin is None, f"origin: expected an index beside full_size, {full_size}, got None")
    for argument, values in (("full_size", full_size), ("origin", origin)):
        message = f"{argument}: expected one value for each dimension of {name}, {list(size)}, got {list(values)}"
        refuse(len(values) != len(size), message)
    message = f"got {list(origin)} for size {list(size)} and full_size {list(full_size)}"
    inside = all(start >= 0 and start + n <= full for start, n, full in zip(origin, size, full_size))
    refuse(not inside, f"origin: expected 0 <= origin and origin + size <= full_size, {message}")
    if all(isinstance(n, int) for n in full_size):  # a product of symbols would be a guard
        message = f"full_size: expected fewer than 2^63 elements, got {list(full_size)}"
        refuse(math.prod(max(n, 1) for n in full_size) >= 2**63, message)


def check(
    parameters: dict[str, Tensor],
    key: Tensor | None = None,
    x: Tensor | None = None,
    mu_prior: Tensor | None = None,
    std_prior: Tensor | None = None,
    grads: dict[str, Tensor | None] | None = None,
) -> None:
    """What csrc/ops/checks.h refuses, for traced programs and for arguments on the meta device.

    Devices and shapes; dtypes, and how many dimensions a block's rows may take, are left to the kernel, which runs
    later.
    """
    (first, leader), *others = parameters.items()
    for name, tensor in {**dict(others), "key": key, "x": x, **(grads or {})}.items():
        if tensor is not None:
            check_device(name, tensor, first, leader)
    for name, tensor in others:
        message = f"{name}: expected the shape of {first}, {list(leader.shape)}, got {list(tensor.shape)}"
        refuse(tensor.shape != leader.shape, message)
    if key is not None:
        message = f"key: expected shape [2] or [num_samples, 2], got {list(key.shape)}"
        refuse(key.dim() not in (1, 2) or key.shape[-1] != 2, message)
    if x is not None:
        message = f"x: expected the shape of {first}, {list(leader.shape)}, or one dimension more, got {list(x.shape)}"
        refuse(x.shape != leader.shape and x.shape[1:] != leader.shape, message)
    for name, prior in (("mu_prior", mu_prior), ("std_prior", std_prior)):
        if prior is not None:
            _check_prior(name, prior, leader)


def _prior_grads(mu_prior: Tensor, std_prior: Tensor, mu: Tensor, output_mask: Sequence[bool]) -> list[Tensor]:
    grads = []
    for name, prior, asked in zip(("mu_prior", "std_prior"), (mu_prior, std_prior), output_mask):
        message = (
            f"{name}: a gradient to a number on the CPU beside parameters on another device is not offered, it would "
            "have to wait for that device; move it to the device of mu, or detach it"
        )
        refuse(asked and prior.device != mu.device, message)
        grads.append(contiguous(prior) if asked else contiguous(mu, [0]))
    return grads


def fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    arguments = op(name)._schema.arguments

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        def refuse_none(*args: Any, **kwargs: Any) -> Any:
            for argument, value in zip(arguments, args):  # torch hands None on where the schema has a Tensor
                if value is None and str(argument.type) == "Tensor":
                    raise RuntimeError(f"{argument.name}: expected a tensor, got None")
            return function(*args, **kwargs)

        return torch.library.register_fake(f"illia_ext::{name}")(refuse_none)

    return register


@fake("standard_normal")
def _(key: Tensor, size: Sequence[int], *, dtype: torch.dtype, full_size: Any = None, origin: Any = None) -> Tensor:
    check({"key": key}, key)
    _check_block("size", size, full_size, origin)
    return contiguous(key, [*key_samples(key), *size], dtype)


@fake("gaussian_sample")
def _(mu: Tensor, rho: Tensor, key: Tensor, *, dtype: Any = None, full_size: Any = None, origin: Any = None) -> Tensor:
    check({"mu": mu, "rho": rho}, key)
    _check_block("mu", mu.shape, full_size, origin)
    return contiguous(mu, [*key_samples(key), *mu.shape], dtype)


@fake("gaussian_sample_backward")
def _(grad_x: Tensor, rho: Tensor, key: Tensor, *, full_size: Any = None, origin: Any = None) -> Tensor:
    check({"rho": rho}, key, grads={"grad_x": grad_x})
    _check_block("rho", rho.shape, full_size, origin)
    check_shape("grad_x", grad_x, [*key_samples(key), *rho.shape])
    return contiguous(rho)


@fake("gaussian_log_prob")
def _(x: Tensor, mu: Tensor, rho: Tensor, mu_prior: Tensor, std_prior: Tensor) -> Tensor:
    check({"mu": mu, "rho": rho}, None, x, mu_prior, std_prior)
    return contiguous(mu, x.shape[: x.dim() - mu.dim()], log_prob_dtype(mu))


@fake("gaussian_log_prob_backward")
def _(
    grad_log_prob: Tensor,
    x: Tensor,
    mu: Tensor,
    rho: Tensor,
    mu_prior: Tensor,
    std_prior: Tensor,
    output_mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    check({"mu": mu, "rho": rho}, None, x, mu_prior, std_prior, {"grad_log_prob": grad_log_prob})
    check_shape("grad_log_prob", grad_log_prob, x.shape[: x.dim() - mu.dim()])
    refuse(len(output_mask) != 5, f"output_mask: expected 5 values, got {len(output_mask)}")
    grads = [contiguous(a if asked else mu, None if asked else [0]) for a, asked in zip((x, mu, rho), output_mask)]
    return *grads, *_prior_grads(mu_prior, std_prior, mu, output_mask[3:])


@fake("gaussian_sample_and_log_prob")
def _(
    mu: Tensor,
    rho: Tensor,
    mu_prior: Tensor,
    std_prior: Tensor,
    key: Tensor,
    *,
    dtype: Any = None,
    stick_the_landing: bool = False,
    full_size: Any = None,
    origin: Any = None,
) -> tuple[Tensor, Tensor]:
    check({"mu": mu, "rho": rho}, key, None, mu_prior, std_prior)
    _check_block("mu", mu.shape, full_size, origin)
    samples = key_samples(key)
    return contiguous(mu, [*samples, *mu.shape], dtype), contiguous(mu, samples, log_prob_dtype(mu))


@fake("gaussian_sample_and_log_prob_backward")
def _(
    grad_x: Any,
    grad_log_prob: Any,
    mu: Tensor,
    rho: Tensor,
    mu_prior: Tensor,
    std_prior: Tensor,
    key: Tensor,
    *,
    stick_the_landing: bool = False,
    full_size: Any = None,
    origin: Any = None,
    prior_grads: bool = False,
) -> tuple[Tensor, ...]:
    check({"mu": mu, "rho": rho}, key, None, mu_prior, std_prior, {"grad_log_prob": grad_log_prob})
    check({"rho": rho}, grads={"grad_x": grad_x})
    _check_block("mu", mu.shape, full_size, origin)
    check_shape("grad_x", grad_x, [*key_samples(key), *mu.shape])
    check_shape("grad_log_prob", grad_log_prob, key_samples(key))
    return contiguous(mu), contiguous(rho), *_prior_grads(mu_prior, std_prior, mu, [prior_grads] * 2)


@fake("gaussian_kl_divergence")
def _(mu: Tensor, rho: Tensor, mu_prior: Tensor, std_prior: Tensor) -> Tensor:
    check({"mu": mu, "rho": rho}, None, None, mu_prior, std_prior)
    return contiguous(mu, [], log_prob_dtype(mu))


@fake("gaussian_kl_divergence_backward")
def _(
    grad: Tensor, mu: Tensor, rho: Tensor, mu_prior: Tensor, std_prior: Tensor, prior_grads: bool = False
) -> tuple[Tensor, ...]:
    check({"mu": mu, "rho": rho}, None, None, mu_prior, std_prior, {"grad": grad})
    check_shape("grad", grad, [])
    return contiguous(mu), contiguous(rho), *_prior_grads(mu_prior, std_prior, mu, [prior_grads] * 2)


def _member(value: Any, dim: Any, index: int) -> Any:
    """Member `index` of a batched argument; of an empty batch, zeros that tell its members' shapes."""
    if dim is None:
        return value
    return value.select(dim, index) if value.shape[dim] else value.sum(dim)


def _register_vmap(name: str) -> None:
    """Members are called one by one, but for keys: an op whose only batched argument is its key takes them all."""
    overload = op(name)
    names = [argument.name for argument in overload._schema.arguments]
    # a backward sums over its keys: one call would mix the members
    key_place = names.index("key") if "key" in names and not name.endswith("_backward") else -1

    def batch(info: Any, in_dims: tuple[Any, ...], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        batched = [i for i, dims in enumerate(in_dims) if any(dim is not None for dim in tree_leaves(dims))]
        if batched == [key_place] and args[key_place].dim() <= 3:  # else the loop, whose calls refuse it
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
