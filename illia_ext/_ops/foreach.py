"""The ops of many tensors: `torch.ops.illia_ext.foreach_*`, each the single op on each tensor with moved keys, added.

The tensors share one stream: each starts at the first Philox block that those before it left unused. So the single ops
serve all that is rare: gradients to priors, forward mode, torch.func, second derivatives and DTensors.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from itertools import accumulate, groupby, islice
from typing import Any

import torch
from torch import Tensor

from illia_ext._ops.dispatch import EagerFunction, below_autograd, composite, dense
from illia_ext._ops.fake import op
from illia_ext._ops.formulas import save
from illia_ext.random import advance

__all__ = ["DECOMPOSED", "Apart", "RepeatableDraw"]

_Tensors = Sequence[Tensor]

_sample_and_log_prob = op("foreach_gaussian_sample_and_log_prob")
_sample_and_log_prob_backward = op("foreach_gaussian_sample_and_log_prob_backward")
_kl_divergence = op("foreach_gaussian_kl_divergence")
_kl_divergence_backward = op("foreach_gaussian_kl_divergence_backward")


def _split_lists(mu: _Tensors, rho: _Tensors, mu_prior: _Tensors, std_prior: _Tensors) -> Iterator[_Tensors]:
    """mu, rho, mu_prior and std_prior of each tensor. Refuses what C++ would, did it see the lists."""
    if not mu:
        raise RuntimeError("mu: expected at least one tensor, got an empty list")
    if len(rho) != len(mu):
        raise RuntimeError(f"rho: expected as many tensors as mu, {len(mu)}, got {len(rho)}")
    for name, priors in (("mu_prior", mu_prior), ("std_prior", std_prior)):
        if len(priors) not in (1, len(mu)):
            raise RuntimeError(f"{name}: expected one tensor, or as many as mu, {len(mu)}, got {len(priors)}")
    for k, tensor in enumerate(mu):
        if tensor.dtype != mu[0].dtype:
            expected = f"expected the dtype of tensor 0, {mu[0].dtype}, got {tensor.dtype}"
            raise RuntimeError(f"tensor {k}: mu: {expected}")
        if tensor.device != mu[0].device:
            expected = f"expected to be on the device of tensor 0, {mu[0].device}, got {tensor.device}"
            raise RuntimeError(f"tensor {k}: mu: {expected}")
    return zip(mu, rho, *(list(priors) * (len(mu) // len(priors)) for priors in (mu_prior, std_prior)))


_SHARED = ("key:", "dtype:", "grad:", "grad_log_prob:", "family:", "family_parameters:", "antithetic:")


def _families(mu: _Tensors, family: Sequence[str] | None, parameters: Sequence[float] | None) -> list[dict[str, Any]]:
    """What the single op is told of each tensor's prior, by one name for all or one for each."""
    names, numbers = list(family or ["normal"]), list(parameters or [])
    if len(names) not in (1, len(mu)):
        raise RuntimeError(f"family: expected one name, or as many as mu has tensors, {len(mu)}, got {len(names)}")
    expected = 2 * names.count("scale_mixture")
    if len(numbers) != expected:
        message = f"expected {expected} numbers, two for each scale_mixture, got {len(numbers)}"
        raise RuntimeError(f"family_parameters: {message}")
    pairs = iter([numbers[i : i + 2] for i in range(0, expected, 2)])
    each = [(name, next(pairs) if name == "scale_mixture" else None) for name in names]
    return [{"family": name, "family_parameters": pair} for name, pair in each] * (len(mu) // len(names))


def _call_each(
    single: Any,
    arguments: Iterable[Sequence[Any]],
    mu: _Tensors = (),
    family: Sequence[str] | None = None,
    family_parameters: Sequence[float] | None = None,
    **options: Any,
) -> list[Any]:
    """The single op on each tensor; with mu, one that is told of the priors' families. Its errors get the tensor's
    number, unless they are about what all share."""
    families, results = _families(mu, family, family_parameters) if mu else [], []
    for k, each in enumerate(arguments):
        try:
            results.append(single(*each, **options, **(families[k] if families else {})))
        except RuntimeError as error:
            if type(error) is RuntimeError and not str(error).startswith(_SHARED):
                error.args = (f"tensor {k}: {error}",)
            raise
    return results


def _move_keys(mu: _Tensors, key: Tensor) -> Iterator[Tensor]:
    """The key of each tensor: the first one's as it is, so that the op refuses a bad one."""
    per_block = 2 if mu[0].dtype == torch.float64 else 4
    blocks = [(tensor.numel() + per_block - 1) // per_block for tensor in mu]
    yield key
    for start in accumulate(blocks[:-1]):
        yield advance(key, start)


def _add(parts: Sequence[Tensor]) -> Tensor:
    """In the order of the tensors, rounded once."""
    return reduce(torch.add, [part.double() for part in parts]).to(parts[0].dtype)


def _transpose(pairs: list[Any]) -> tuple[list[Tensor], list[Tensor]]:
    first, second, *_ = zip(*pairs)
    return list(first), list(second)


def _decomposed_sample_and_log_prob(
    mu: _Tensors,
    rho: _Tensors,
    mu_prior: _Tensors,
    std_prior: _Tensors,
    key: Tensor,
    **options: Any,
) -> tuple[list[Tensor], Tensor]:
    single = op("gaussian_sample_and_log_prob")
    split = _split_lists(mu, rho, mu_prior, std_prior)
    each = ((*tensors, key) for tensors, key in zip(split, _move_keys(mu, key)))
    x, parts = _transpose(_call_each(single, each, mu, **options))
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
    single = op("gaussian_sample_and_log_prob_backward")
    split = _split_lists(mu, rho, mu_prior, std_prior)
    if len(grad_x) != len(mu):
        raise RuntimeError(f"grad_x: expected as many gradients as mu has tensors, {len(mu)}, got {len(grad_x)}")
    each = zip(grad_x, split, _move_keys(mu, key))
    arguments = ((grad, grad_log_prob, *tensors, key) for grad, tensors, key in each)
    return _transpose(_call_each(single, arguments, mu, **options))


def _decomposed_kl_divergence(mu: _Tensors, rho: _Tensors, mu_prior: _Tensors, std_prior: _Tensors) -> Tensor:
    return _add(_call_each(op("gaussian_kl_divergence"), _split_lists(mu, rho, mu_prior, std_prior)))


def _decomposed_kl_divergence_backward(
    grad: Tensor, mu: _Tensors, rho: _Tensors, mu_prior: _Tensors, std_prior: _Tensors
) -> tuple[list[Tensor], list[Tensor]]:
    split = _split_lists(mu, rho, mu_prior, std_prior)
    return _transpose(_call_each(op("gaussian_kl_divergence_backward"), ((grad, *tensors) for tensors in split)))


DECOMPOSED: dict[Any, Callable[..., Any]] = {
    _sample_and_log_prob: _decomposed_sample_and_log_prob,
    _sample_and_log_prob_backward: _decomposed_sample_and_log_prob_backward,
    _kl_divergence: _decomposed_kl_divergence,
    _kl_divergence_backward: _decomposed_kl_divergence_backward,
}


def _saved_lists(ctx: Any) -> list[list[Tensor]]:
    tensors = iter(ctx.saved_tensors)
    return [list(islice(tensors, size)) for size in ctx.sizes]


def _input_gradients(ctx: Any, grad_mu: _Tensors, grad_rho: _Tensors) -> tuple[Tensor | None, ...]:
    """Of a Function's inputs: the op's own, and then the tensors of its lists."""
    others = len(ctx.needs_input_grad) - sum(ctx.sizes)
    return *[None] * others, *grad_mu, *grad_rho, *[None] * sum(ctx.sizes[2:])


def _of_backward(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a draw that its backward has too."""
    return {name: value for name, value in options.items() if name != "dtype"}


class ForeachGaussianSampleAndLogProb(EagerFunction):
    """Reverse mode to mu and rho. The tensors stand beside their lists because autograd does not look into those."""

    @staticmethod
    def forward(ctx: Any, lists: Any, options: dict[str, Any], *tensors: Tensor) -> tuple[Tensor, ...]:
        with below_autograd():
            x, log_prob = _sample_and_log_prob(*lists, tensors[-1], **options)
        save(ctx, *tensors)
        ctx.sizes = [*map(len, lists), 1]
        ctx.options = _of_backward(options)
        return *x, log_prob

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(grad is None for grad in grads):
            return (None,) * len(ctx.needs_input_grad)
        *lists, (key,) = _saved_lists(ctx)
        grad_x = [dense(grad) for grad in grads[:-1]]
        gradients = _sample_and_log_prob_backward(grad_x, grads[-1], *lists, key, **ctx.options)
        return _input_gradients(ctx, *gradients)


class ForeachGaussianKLDivergence(EagerFunction):
    """Reverse mode to mu and rho."""

    @staticmethod
    def forward(ctx: Any, lists: Any, *tensors: Tensor) -> Tensor:
        with below_autograd():
            kl_divergence: Tensor = _kl_divergence(*lists)
        save(ctx, *tensors)
        ctx.sizes = [*map(len, lists)]
        return kl_divergence

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        return _input_gradients(ctx, *_kl_divergence_backward(grad, *_saved_lists(ctx)))


def _record_sample_and_log_prob(*lists_and_key: Any, **options: Any) -> tuple[list[Tensor], Tensor]:
    *lists, key = lists_and_key
    tensors = [tensor for tensors in lists for tensor in tensors]
    *x, log_prob = ForeachGaussianSampleAndLogProb.apply(lists, options, *tensors, key)
    return x, log_prob


def _record_kl_divergence(*lists: Any) -> Tensor:
    tensors = [tensor for tensors in lists for tensor in tensors]
    kl_divergence: Tensor = ForeachGaussianKLDivergence.apply(lists, *tensors)
    return kl_divergence


class Apart(EagerFunction):
    """From [S, *shape] of each weight, tensors [*shape] of their own: all weights of a sample, then of the next.

    No views, so that a module may change them in place as it may change those of a single call.
    """

    @staticmethod
    def forward(ctx: Any, *samples: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            x.new_empty(0).set_(x.untyped_storage(), part.storage_offset(), part.shape, part.stride())
            for parts in zip(*(x.unbind() for x in samples))
            for x, part in zip(samples, parts)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, ...]:
        num_weights = len(ctx.needs_input_grad)
        return tuple(torch.stack([*map(dense, grads[i::num_weights])]) for i in range(num_weights))  # type: ignore


def _runs(grads: Sequence[Tensor | None]) -> Iterator[slice]:
    """The tensors that have a gradient, consecutive ones as one slice."""
    for has_gradient, group in groupby(range(len(grads)), lambda k: grads[k] is not None):
        if has_gradient:
            run = list(group)
            yield slice(run[0], run[-1] + 1)


class RepeatableDraw(EagerFunction):
    """Reverse mode that may run several times, each time for the tensors that have a gradient then.

    Each reentrant checkpoint reaches the draw by a backward pass of its own. So mu, rho and priors are kept beside
    autograd's saved tensors, which go after the first pass, and their versions are compared here.
    """

    @staticmethod
    def forward(ctx: Any, lists: Any, key: Tensor, options: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        with below_autograd():
            x, log_prob = _sample_and_log_prob(*lists, key, **options)
        ctx.set_materialize_grads(False)
        ctx.lists, ctx.key, ctx.options = lists, key, options
        ctx.versions = [tensor._version for tensor in tensors]
        return *x, log_prob

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors = [tensor for tensors in ctx.lists for tensor in tensors]
        if [tensor._version for tensor in tensors] != ctx.versions:
            raise RuntimeError(
                "mu, rho, mu_prior or std_prior has been changed in place, as by an optimizer's step, since the sample "
                "was drawn; run backward before"
            )
        grad_x, grad_log_prob = [dense(grad) for grad in grads[:-1]], grads[-1]
        wanted = ctx.needs_input_grad[3:]
        if any(wanted[2 * len(ctx.lists[0]) :]):
            return *[None] * 3, *RepeatableDraw.draw_again(ctx, wanted, [*grad_x, grad_log_prob])
        mu, rho, *priors = ctx.lists
        keys = list(_move_keys(mu, ctx.key))
        found: list[Tensor | None] = [None] * len(tensors)
        options = _of_backward(ctx.options)
        if grad_log_prob is None:  # whose gradient alone a prior has a part in
            options = {name: value for name, value in options.items() if not name.startswith("family")}
        for run in [slice(0, len(mu))] if grad_log_prob is not None else _runs(grad_x):
            part = [prior if len(prior) == 1 else prior[run] for prior in priors]
            arguments = grad_x[run], grad_log_prob, mu[run], rho[run], *part, keys[run.start]
            found[run], found[run.start + len(mu) : run.stop + len(mu)] = _sample_and_log_prob_backward(
                *arguments, **options
            )
        return *[None] * 3, *found

    @staticmethod
    def draw_again(ctx: Any, wanted: Sequence[bool], grads: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """With gradients to priors: what is rare is drawn again, by the op and its own derivatives."""
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            lists = [[tensor.view_as(tensor) for tensor in tensors] for tensors in ctx.lists]
            x, log_prob = _sample_and_log_prob(*lists, ctx.key, **ctx.options)
        outputs, given = zip(*((o, g) for o, g in zip([*x, log_prob], grads) if g is not None))
        inputs = [tensor for tensor, is_wanted in zip([t for tensors in lists for t in tensors], wanted) if is_wanted]
        found = iter(torch.autograd.grad(outputs, inputs, given, allow_unused=True, create_graph=create_graph))
        return tuple(next(found) if is_wanted else None for is_wanted in wanted)


_RECORD: dict[Any, Callable[..., Any]] = {
    _sample_and_log_prob: _record_sample_and_log_prob,
    _kl_divergence: _record_kl_divergence,
}
for _overload, _decomposed in DECOMPOSED.items():
    composite(_overload, _decomposed, _RECORD.get(_overload))
