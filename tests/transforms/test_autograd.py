"""Derivatives of every op in float64: reverse mode, forward mode and their mixtures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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


def keys_for(num_samples: int | None, device: torch.device) -> Tensor:
    keys = make_keys(*[(42, i) for i in range(num_samples or 0)], device=device)
    return make_key(42, device=device) if num_samples is None else keys


@dataclass
class Fixed:
    """What is not differentiated to."""

    key: Tensor
    prior: list[Tensor]
    block: dict[str, list[int]]

    @property
    def priors(self) -> list[list[Tensor]]:
        return [[tensor] for tensor in self.prior]


MASK = [True, True, True, False, False]
RHO_ALONE = [False, False, True, False, False]
BOTH_BACKWARD, FOREACH_BACKWARD = (f"{name}gaussian_sample_and_log_prob_backward" for name in ("", "foreach_"))
# The inputs that each op is differentiated to, and how it takes them.
CALLS: dict[str, tuple[str, Callable[..., Any]]] = {
    "gaussian_sample": ("mu rho", lambda op, f, *a: op(*a, f.key)),
    "gaussian_sample, a block": ("mu rho", lambda op, f, *a: op(*a, f.key, **f.block)),
    "gaussian_sample_backward": ("x rho", lambda op, f, *a: op(*a, f.key)),
    "gaussian_log_prob": ("x mu rho", lambda op, f, *a: op(*a, *f.prior)),
    "gaussian_log_prob_backward": ("grads x mu rho", lambda op, f, *a: op(*a, *f.prior, MASK)[:3]),
    "gaussian_log_prob_backward, rho": ("grads x mu rho", lambda op, f, *a: op(*a, *f.prior, RHO_ALONE)[2]),
    "gaussian_sample_and_log_prob": ("mu rho", lambda op, f, *a: op(*a, *f.prior, f.key)),
    "gaussian_sample_and_log_prob, a block": ("mu rho", lambda op, f, *a: op(*a, *f.prior, f.key, **f.block)),
    BOTH_BACKWARD: ("x grads mu rho", lambda op, f, *a: op(*a, *f.prior, f.key)[:2]),
    f"{BOTH_BACKWARD}, x": ("x mu rho", lambda op, f, x, *a: op(x, None, *a, *f.prior, f.key)[:2]),
    f"{BOTH_BACKWARD}, log_prob": ("grads mu rho", lambda op, f, *a: op(None, *a, *f.prior, f.key)[:2]),
    "gaussian_kl_divergence": ("mu rho", lambda op, f, *a: op(*a, *f.prior)),
    "gaussian_kl_divergence_backward": ("grad mu rho", lambda op, f, *a: op(*a, *f.prior)[:2]),
    "foreach_gaussian_sample_and_log_prob": (
        "mu mu_1 rho rho_1",
        lambda op, f, *a: tree_leaves(op(a[:2], a[2:], *f.priors, f.key)),
    ),
    FOREACH_BACKWARD: (
        "x grads mu mu_1 rho rho_1",
        lambda op, f, x, g, *a: tree_leaves(op([x, None], g, a[:2], a[2:], *f.priors, f.key)),
    ),
    "foreach_gaussian_kl_divergence": ("mu mu_1 rho rho_1", lambda op, f, *a: op(a[:2], a[2:], *f.priors)),
    "foreach_gaussian_kl_divergence_backward": (
        "grad mu mu_1 rho rho_1",
        lambda op, f, g, *a: tree_leaves(op(g, a[:2], a[2:], *f.priors)),
    ),
}
parametrize = pytest.mark.parametrize


def make_leaves(shape: tuple[int, ...], key: Tensor) -> dict[str, Tensor]:
    generator, samples = torch.Generator().manual_seed(0), key.shape[:-1]
    shapes = {"mu": shape, "rho": shape, "x": (*samples, *shape), "grads": samples, "grad": (), "mu_1": (1,)}
    shapes["rho_1"] = (1,)
    values = {name: torch.randn(size, generator=generator, dtype=torch.float64) for name, size in shapes.items()}
    return {name: value.to(key.device).requires_grad_() for name, value in values.items()}


def make_call(name: str, shape: tuple[int, ...], key: Tensor) -> tuple[Callable[..., Any], list[Tensor]]:
    """The op as a function of what it can be differentiated to, and the point where."""
    prior = [torch.tensor([value], dtype=torch.float64, device=key.device) for value in PRIOR]
    fixed = Fixed(key, prior, {"full_size": [n + 2 for n in shape], "origin": [1 for _ in shape]})
    names, call = CALLS[name]
    leaves = make_leaves(shape, key)
    return partial(call, op(name.split(",")[0]), fixed), [leaves[leaf] for leaf in names.split()]


def test_every_op_is_differentiated() -> None:
    assert {name.split(",")[0] for name in CALLS} == set(NAMES) - {"standard_normal"}


@parametrize("num_samples", [None, 0, 2])
@parametrize("shape", [(), (3,)])
@parametrize("name", CALLS)
def test_first_derivatives(name: str, shape: tuple[int, ...], num_samples: int | None, device: torch.device) -> None:
    function, inputs = make_call(name, shape, keys_for(num_samples, device))
    modes = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(function, inputs, **modes)


@parametrize("num_samples", [None, 2])
@parametrize("shape", [(), (3,)])
@parametrize("name", CALLS)
def test_second_derivatives(name: str, shape: tuple[int, ...], num_samples: int | None, device: torch.device) -> None:
    function, inputs = make_call(name, shape, keys_for(num_samples, device))
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, check_batched_grad=True)


def differentiate(function: Callable[..., Tensor], library: Any, key: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """To x, mu and rho, so that it can be done again."""
    value = function(library, key, *inputs).sum()
    return list(torch.autograd.grad(value, inputs, create_graph=True, materialize_grads=True))


@parametrize("function", {**FUNCTIONS, **FOREACH_FUNCTIONS}.values(), ids=[*FUNCTIONS, *FOREACH_FUNCTIONS])
def test_third_derivatives(function: Callable[..., Tensor], device: torch.device) -> None:
    key = keys_for(2, device)
    _, inputs = make_call("gaussian_log_prob", (2, 3), key)

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
