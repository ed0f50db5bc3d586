"""The ops of many tensors: `torch.ops.illia_ext.foreach_*`, each the single op on each tensor, with moved keys.

The tensors share one stream: each starts at the first Philox block that those before it left unused. So the single ops
serve all that is rare: gradients to priors, forward mode, torch.func, second derivatives and DTensors.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from itertools import accumulate, islice
from typing import Any

import torch
from torch import Tensor

from illia_ext._expose import below_autograd, composite, dense
from illia_ext.ops import check, check_shape, contiguous, fake, key_samples, log_prob_dtype, op, refuse
from illia_ext.random import advance
from illia_ext.terms import save

__all__ = ["DECOMPOSED", "kl_divergence", "move_keys", "sample_and_log_prob"]

_Tensors = Sequence[Tensor]

_sample_and_log_prob = op("foreach_gaussian_sample_and_log_prob")
_sample_and_log_prob_backward = op("foreach_gaussian_sample_and_log_prob_backward")
_kl_divergence = op("foreach_gaussian_kl_divergence")
_kl_divergence_backward = op("foreach_gaussian_kl_divergence_backward")


def move_keys(mu: _Tensors, key: Tensor) -> list[Tensor]:
    """The key of each tensor."""
    per_block = 2 if mu[0].dtype == torch.float64 else 4
    blocks = [(tensor.numel() + per_block - 1) // per_block for tensor in mu]
    return [advance(key, start) for start in accumulate(blocks[:-1], initial=0)]


def _split(mu: _Tensors, rho: _Tensors, mu_prior: _Tensors, std_prior: _Tensors) -> Iterator[_Tensors]:
    """mu, rho, mu_prior and std_prior of each tensor."""
    for k, pair in enumerate(zip(mu, rho)):
        yield *pair, *(priors[k if len(priors) > 1 else 0] for priors in (mu_prior, std_prior))


def _check(
    mu: _Tensors, rho: _Tensors, mu_prior: _Tensors, std_prior: _Tensors, key: Tensor | None = None, grads: Any = None
) -> None:
    """What csrc/ops/foreach.h refuses; dtypes within a tensor's arguments are left to the kernel."""
    refuse(not mu, "mu: expected at least one tensor, got an empty list")
    refuse(len(rho) != len(mu), f"rho: expected as many tensors as mu, {len(mu)}, got {len(rho)}")
    for name, priors in (("mu_prior", mu_prior), ("std_prior", std_prior)):
        message = f"{name}: expected one tensor, or as many as mu, {len(mu)}, got {len(priors)}"
        refuse(len(priors) not in (1, len(mu)), message)
    grads = [None] * len(mu) if grads is None else grads
    refuse(len(grads) != len(mu), f"grad_x: expected as many gradients as mu has tensors, {len(mu)}, got {len(grads)}")
    for k, (tensors, grad) in enumerate(zip(_split(mu, rho, mu_prior, std_prior), grads)):
        try:
            check({"mu": tensors[0], "rho": tensors[1]}, mu_prior=tensors[2], std_prior=tensors[3])
            message = f"mu: expected the dtype of tensor 0, {mu[0].dtype}, got {mu[k].dtype}"
            refuse(mu[k].dtype != mu[0].dtype, message)
            check({"tensor 0": mu[0]}, grads={"mu": mu[k]})
            check({"rho": tensors[1]}, grads={"grad_x": grad})
            if key is not None:
                check_shape("grad_x", grad, [*key_samples(key), *mu[k].shape])
        except RuntimeError as error:
            raise RuntimeError(f"tensor {k}: {error}") from None
    check({"mu": mu[0]}, key)


def _add(parts: Sequence[Tensor]) -> Tensor:
    """In the order of the tensors, rounded once."""
    return reduce(torch.add, [part.double() for part in parts]).to(parts[0].dtype)


def _transpose(pairs: list[Any]) -> tuple[list[Tensor], list[Tensor]]:
    first, second, *_ = zip(*pairs)
    return list(first), list(second)


def _decomposed_sample_and_log_prob(
    mu: _Tensors, rho: _Tensors, mu_prior: _Tensors, std_prior: _Tensors, key: Tensor, **options: Any
) -> tuple[list[Tensor], Tensor]:
    _check(mu, rho, mu_prior, std_prior, key)
    single = op("gaussian_sample_and_log_prob")
    each = zip(_split(mu, rho, mu_prior, std_prior), move_keys(mu, key))
    x, parts = _transpose([single(*tensors, key, **options) for tensors, key in each])
    return x, _add(parts)


def _decomposed_sample_and_log_prob_backward(
    grad_x: Sequence[Tensor | None],
    grad_log_prob: Tensor | None,
    mu: _Tensors,
    rho: _Tensors,
    mu_prior: _Tensors,
    std_prior: _Tensors,
    key: Tensor,
    **options: Any,
) -> tuple[list[Tensor], list[Tensor]]:
    _check(mu, rho, mu_prior, std_prior, key, grad_x)
    single = op("gaussian_sample_and_log_prob_backward")
    each = zip(grad_x, _split(mu, rho, mu_prior, std_prior), move_keys(mu, key))
    return _transpose([single(grad, grad_log_prob, *tensors, key, **options) for grad, tensors, key in each])


def _decomposed_kl_divergence(mu: _Tensors, rho: _Tensors, mu_prior: _Tensors, std_prior: _Tensors) -> Tensor:
    _check(mu, rho, mu_prior, std_prior)
    return _add([op("gaussian_kl_divergence")(*tensors) for tensors in _split(mu, rho, mu_prior, std_prior)])


def _decomposed_kl_divergence_backward(
    grad: Tensor, mu: _Tensors, rho: _Tensors, mu_prior: _Tensors, std_prior: _Tensors
) -> tuple[list[Tensor], list[Tensor]]:
    _check(mu, rho, mu_prior, std_prior)
    single = op("gaussian_kl_divergence_backward")
    return _transpose([single(grad, *tensors) for tensors in _split(mu, rho, mu_prior, std_prior)])


DECOMPOSED: dict[Any, Callable[..., Any]] = {
    _sample_and_log_prob: _decomposed_sample_and_log_prob,
    _sample_and_log_prob_backward: _decomposed_sample_and_log_prob_backward,
    _kl_divergence: _decomposed_kl_divergence,
    _kl_divergence_backward: _decomposed_kl_divergence_backward,
}


@fake("foreach_gaussian_sample_and_log_prob")
def _(
    mu: _Tensors,
    rho: _Tensors,
    mu_prior: _Tensors,
    std_prior: _Tensors,
    key: Tensor,
    *,
    dtype: Any = None,
    stick_the_landing: bool = False,
) -> tuple[list[Tensor], Tensor]:
    _check(mu, rho, mu_prior, std_prior, key)
    samples = key_samples(key)
    x = [contiguous(tensor, [*samples, *tensor.shape], dtype) for tensor in mu]
    return x, contiguous(mu[0], samples, log_prob_dtype(mu[0]))


@fake("foreach_gaussian_sample_and_log_prob_backward")
def _(
    grad_x: Sequence[Tensor | None],
    grad_log_prob: Tensor | None,
    mu: _Tensors,
    rho: _Tensors,
    mu_prior: _Tensors,
    std_prior: _Tensors,
    key: Tensor,
    *,
    stick_the_landing: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    _check(mu, rho, mu_prior, std_prior, key, grad_x)
    check({"mu": mu[0]}, grads={"grad_log_prob": grad_log_prob})
    check_shape("grad_log_prob", grad_log_prob, key_samples(key))
    return list(map(contiguous, mu)), list(map(contiguous, rho))


@fake("foreach_gaussian_kl_divergence")
def _(mu: _Tensors, rho: _Tensors, mu_prior: _Tensors, std_prior: _Tensors) -> Tensor:
    _check(mu, rho, mu_prior, std_prior)
    return contiguous(mu[0], [], log_prob_dtype(mu[0]))


@fake("foreach_gaussian_kl_divergence_backward")
def _(
    grad: Tensor, mu: _Tensors, rho: _Tensors, mu_prior: _Tensors, std_prior: _Tensors
) -> tuple[list[Tensor], list[Tensor]]:
    _check(mu, rho, mu_prior, std_prior)
    check({"mu": mu[0]}, grads={"grad": grad})
    check_shape("grad", grad, [])
    return list(map(contiguous, mu)), list(map(contiguous, rho))


_apply_sample_and_log_prob_backward, _apply_kl_divergence_backward = (
    composite(overload, DECOMPOSED[overload]) for overload in (_sample_and_log_prob_backward, _kl_divergence_backward)
)


def _saved_lists(ctx: Any) -> list[list[Tensor]]:
    tensors = iter(ctx.saved_tensors)
    return [list(islice(tensors, size)) for size in ctx.sizes]


def _input_gradients(ctx: Any, grad_mu: _Tensors, grad_rho: _Tensors) -> tuple[Tensor | None, ...]:
    """Of a Function's inputs: the op's own, and then the tensors of its lists."""
    others = len(ctx.needs_input_grad) - sum(ctx.sizes)
    return *[None] * others, *grad_mu, *grad_rho, *[None] * sum(ctx.sizes[2:])


class ForeachGaussianSampleAndLogProb(torch.autograd.Function):
    """Reverse mode to mu and rho. The tensors stand beside their lists because autograd does not look into those."""

    @staticmethod
    def forward(ctx: Any, lists: Any, options: dict[str, Any], *tensors: Tensor) -> tuple[Tensor, ...]:
        with below_autograd():
            x, log_prob = _sample_and_log_prob(*lists, tensors[-1], **options)
        save(ctx, *tensors)
        ctx.sizes = [*map(len, lists), 1]
        ctx.stick_the_landing = options.get("stick_the_landing", False)
        return *x, log_prob

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *lists, (key,) = _saved_lists(ctx)
        options = {"stick_the_landing": ctx.stick_the_landing}
        gradients = _apply_sample_and_log_prob_backward(
            [dense(grad) for grad in grads[:-1]], grads[-1], *lists, key, **options
        )
        return _input_gradients(ctx, *gradients)


class ForeachGaussianKLDivergence(torch.autograd.Function):
    """Reverse mode to mu and rho."""

    @staticmethod
    def forward(ctx: Any, lists: Any, *tensors: Tensor) -> Tensor:
        with below_autograd():
            kl_divergence = _kl_divergence(*lists)
        save(ctx, *tensors)
        ctx.sizes = [*map(len, lists)]
        return kl_divergence

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        return _input_gradients(ctx, *_apply_kl_divergence_backward(grad, *_saved_lists(ctx)))


def _record_sample_and_log_prob(*lists_and_key: Any, **options: Any) -> tuple[list[Tensor], Tensor]:
    *lists, key = lists_and_key
    tensors = [tensor for tensors in lists for tensor in tensors]
    *x, log_prob = ForeachGaussianSampleAndLogProb.apply(lists, options, *tensors, key)
    return x, log_prob


def _record_kl_divergence(*lists: Any) -> Tensor:
    return ForeachGaussianKLDivergence.apply(lists, *[tensor for tensors in lists for tensor in tensors])


sample_and_log_prob = composite(_sample_and_log_prob, _decomposed_sample_and_log_prob, _record_sample_and_log_prob)
kl_divergence = composite(_kl_divergence, _decomposed_kl_divergence, _record_kl_divergence)
