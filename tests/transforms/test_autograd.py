"""Derivatives of every op in float64: reverse mode, forward mode and their mixtures."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers import DEVICE, make_key, make_keys
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils._pytree import tree_leaves
from transform_cases import FOREACH_FUNCTIONS, FUNCTIONS, PRIOR

from illia_ext import functional, reference
from illia_ext._ops.fake import NAMES, op

Call = tuple[Callable[..., Any], tuple[Tensor, ...]]


def keys_for(num_samples: int | None, device: torch.device) -> Tensor:
    keys = make_keys(*[(42, i) for i in range(num_samples or 0)], device=device)
    return make_key(42, device=device) if num_samples is None else keys


def make_calls(shape: tuple[int, ...], key: Tensor) -> dict[str, Call]:
    """Each op as a function of what it can be differentiated to, and the point where."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*size: int) -> Tensor:
        value = torch.randn(size, generator=generator, dtype=torch.float64)
        return value.to(key.device).requires_grad_()

    samples = key.shape[:-1]
    mu, rho, x, grad_log_prob = leaf(*shape), leaf(*shape), leaf(*samples, *shape), leaf(*samples)
    prior = [torch.tensor([value], dtype=torch.float64, device=key.device) for value in PRIOR]
    backward_of_both = op("gaussian_sample_and_log_prob_backward")
    block = {"full_size": [n + 2 for n in shape], "origin": [1 for _ in shape]}
    mask = [True, True, True, False, False]
    lists = (mu, leaf(1), rho, leaf(1))  # of two tensors
    priors = [[tensor] for tensor in prior]
    foreach_backward = op("foreach_gaussian_sample_and_log_prob_backward")
    return {
        "gaussian_sample": (lambda mu, rho: op("gaussian_sample")(mu, rho, key), (mu, rho)),
        "gaussian_sample_backward": (lambda *a: op("gaussian_sample_backward")(*a, key), (x, rho)),
        "gaussian_log_prob": (lambda *a: op("gaussian_log_prob")(*a, *prior), (x, mu, rho)),
        "gaussian_log_prob_backward": (
            lambda *a: op("gaussian_log_prob_backward")(*a, *prior, mask)[:3],
            (grad_log_prob, x, mu, rho),
        ),
        "gaussian_sample_and_log_prob": (
            lambda mu, rho: op("gaussian_sample_and_log_prob")(mu, rho, *prior, key),
            (mu, rho),
        ),
        "gaussian_sample_and_log_prob_backward": (
            lambda *a: backward_of_both(*a, *prior, key)[:2],
            (x, grad_log_prob, mu, rho),
        ),
        "gaussian_sample_and_log_prob_backward, x alone": (
            lambda x, mu, rho: backward_of_both(x, None, mu, rho, *prior, key)[:2],
            (x, mu, rho),
        ),
        "gaussian_sample_and_log_prob_backward, log_prob alone": (
            lambda go, mu, rho: backward_of_both(None, go, mu, rho, *prior, key)[:2],
            (grad_log_prob, mu, rho),
        ),
        "gaussian_log_prob_backward, rho alone": (
            lambda *a: op("gaussian_log_prob_backward")(*a, *prior, [False, False, True, False, False])[2],
            (grad_log_prob, x, mu, rho),
        ),
        "gaussian_sample, a block": (lambda mu, rho: op("gaussian_sample")(mu, rho, key, **block), (mu, rho)),
        "gaussian_sample_and_log_prob, a block": (
            lambda mu, rho: op("gaussian_sample_and_log_prob")(mu, rho, *prior, key, **block),
            (mu, rho),
        ),
        "gaussian_kl_divergence": (lambda *a: op("gaussian_kl_divergence")(*a, *prior), (mu, rho)),
        "gaussian_kl_divergence_backward": (
            lambda *a: op("gaussian_kl_divergence_backward")(*a, *prior)[:2],
            (leaf(), mu, rho),
        ),
        "foreach_gaussian_sample_and_log_prob": (
            lambda *a: tree_leaves(op("foreach_gaussian_sample_and_log_prob")(a[:2], a[2:], *priors, key)),
            lists,
        ),
        "foreach_gaussian_sample_and_log_prob_backward": (
            lambda x, grad, *a: tree_leaves(foreach_backward([x, None], grad, a[:2], a[2:], *priors, key)),
            (x, grad_log_prob, *lists),
        ),
        "foreach_gaussian_kl_divergence": (
            lambda *a: op("foreach_gaussian_kl_divergence")(a[:2], a[2:], *priors),
            lists,
        ),
        "foreach_gaussian_kl_divergence_backward": (
            lambda grad, *a: tree_leaves(op("foreach_gaussian_kl_divergence_backward")(grad, a[:2], a[2:], *priors)),
            (leaf(), *lists),
        ),
    }


CALLS = tuple(make_calls((), make_key(0)))
parametrize = pytest.mark.parametrize


def test_every_op_is_differentiated() -> None:
    assert {name.split(",")[0] for name in CALLS} == set(NAMES) - {"standard_normal"}


@parametrize("num_samples", [None, 0, 2])
@parametrize("shape", [(), (3,)])
@parametrize("name", CALLS)
def test_first_derivatives(name: str, shape: tuple[int, ...], num_samples: int | None, device: torch.device) -> None:
    function, inputs = make_calls(shape, keys_for(num_samples, device))[name]
    modes = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(function, inputs, **modes)


@parametrize("num_samples", [None, 2])
@parametrize("shape", [(), (3,)])
@parametrize("name", CALLS)
def test_second_derivatives(name: str, shape: tuple[int, ...], num_samples: int | None, device: torch.device) -> None:
    function, inputs = make_calls(shape, keys_for(num_samples, device))[name]
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, check_batched_grad=True)


def differentiate(function: Callable[..., Tensor], library: Any, key: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """To x, mu and rho, so that it can be done again."""
    value = function(library, key, *inputs).sum()
    return list(torch.autograd.grad(value, inputs, create_graph=True, materialize_grads=True))


@parametrize("function", {**FUNCTIONS, **FOREACH_FUNCTIONS}.values(), ids=[*FUNCTIONS, *FOREACH_FUNCTIONS])
def test_third_derivatives(function: Callable[..., Tensor], device: torch.device) -> None:
    key = keys_for(2, device)
    inputs = make_calls((2, 3), key)["gaussian_log_prob"][1]

    def third(library: Any) -> list[Tensor]:
        grads = differentiate(function, library, key, inputs)
        for _ in range(2):
            value = sum((grad * torch.arange(1.0, 4.0, dtype=grad.dtype, device=device)).sum() for grad in grads)
            grads = torch.autograd.grad(value, inputs, create_graph=True, materialize_grads=True)
        return list(grads)

    torch.testing.assert_close(third(functional), third(reference), rtol=1e-9, atol=1e-9)


@parametrize("rho", [-40.0, 0.0, 40.0])
@parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_second_derivatives_at_extreme_rho(function: Callable[..., Tensor], rho: float, device: torch.device) -> None:
    """Down to sigma = 4e-18, where the given x stays 1.5 sigma from mu."""
    scale = torch.nn.functional.softplus(torch.tensor(rho, dtype=torch.float64), threshold=60)
    inputs = tuple(value.to(device).requires_grad_() for value in (1.5 * scale, 0 * scale, 0 * scale + rho))

    def second(library: Any) -> list[Tensor]:
        grads = differentiate(function, library, make_key(1, device=device), inputs)
        recorded = [grad for grad in grads if grad.requires_grad]
        rows = (torch.autograd.grad(grad, inputs, retain_graph=True, materialize_grads=True) for grad in recorded)
        return [entry for row in rows for entry in row]

    actual, expected = second(functional), second(reference)
    assert all(entry.isfinite() for entry in actual)
    # absolute: what the reference itself loses where 1 - h is below its unit roundoff
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-14)


@parametrize("sample_dtype", [None, torch.bfloat16, torch.float16])
@parametrize("num_samples", [None, 3])
def test_tangents_of_narrow_samples_agree_with_backward(
    sample_dtype: torch.dtype | None, num_samples: int | None, device: torch.device
) -> None:
    """<g, J v> = <J^T g, v>, to the rounding of the sample's dtype."""
    key = keys_for(num_samples, device)
    generator = torch.Generator().manual_seed(1)
    mu, rho, mu_tangent, rho_tangent = (torch.randn(50, generator=generator).to(device) for _ in range(4))
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(mu, mu_tangent), forward_ad.make_dual(rho, rho_tangent)]
        outputs = functional.gaussian_sample_and_log_prob(*duals, *PRIOR, key, dtype=sample_dtype)
        tangents = [forward_ad.unpack_dual(output).tangent for output in outputs]
    assert [tangent.dtype for tangent in tangents] == [sample_dtype or torch.float32, torch.float32]
    leaves = [mu.requires_grad_(), rho.requires_grad_()]
    outputs = functional.gaussian_sample_and_log_prob(*leaves, *PRIOR, key, dtype=sample_dtype)
    weights = [torch.randn(output.shape, generator=generator).to(output) for output in outputs]
    grads = torch.autograd.grad(outputs, leaves, weights)
    forward = sum((w.double() * t.double()).sum() for w, t in zip(weights, tangents))
    reverse = (grads[0].double() * mu_tangent).sum() + (grads[1].double() * rho_tangent).sum()
    torch.testing.assert_close(forward, reverse, rtol=2e-2 if sample_dtype else 1e-4, atol=0)


THREE, ONE = torch.ones(3, device=DEVICE), torch.ones(1, device=DEVICE)

BACKWARD_ARGUMENTS: dict[str, Callable[[Tensor], tuple[Any, ...]]] = {  # with outputs that are not asked for
    "gaussian_log_prob_backward": lambda t: (t[0], t, t, t, ONE, ONE, [False, True, True, False, False]),
    "gaussian_sample_and_log_prob_backward": lambda t: (t, t[0], t, t, ONE, ONE, make_key(1)),
    "gaussian_kl_divergence_backward": lambda t: (t[0], t, t, ONE, ONE),
}


@parametrize("name", BACKWARD_ARGUMENTS)
def test_empty_outputs_hand_nothing_on(name: str) -> None:
    """A cotangent of theirs, which compiled programs make, is as empty."""
    leaf = THREE.clone().requires_grad_()
    outputs = op(name)(*BACKWARD_ARGUMENTS[name](leaf))
    ours, expected = (
        torch.autograd.grad(sum(output.sum() for output in used), leaf, retain_graph=True)[0]
        for used in (outputs, [output for output in outputs if output.numel()])
    )
    assert torch.equal(ours, expected)


def test_a_prior_that_requires_grad_is_read_under_no_grad() -> None:
    prior = ONE.clone().requires_grad_()
    with torch.no_grad():
        assert functional.gaussian_kl_divergence(THREE, THREE, prior, prior).isfinite()
