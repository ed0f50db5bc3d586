"""Families of priors, the prior left out, and antithetic samples: what the ops make of them."""

from typing import Any

import pytest
import torch
from helpers import FLOAT_DTYPES, UNIT_ROUNDOFF, arithmetic_dtype, make_keys, make_parameters, same_bits
from torch import Tensor

from illia_ext import functional, reference

parametrize = pytest.mark.parametrize
KEYS = make_keys((1, 2), (3, 2**64 - 1))
FAMILIES: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "flat": {"mu_prior": None, "std_prior": None},
    "laplace": {"family": "laplace"},
    "scale mixture": {"family": "scale_mixture", "family_parameters": (0.3, 0.01)},
}


def arguments_of(family: str, mu: Tensor, each: bool = False) -> dict[str, Any]:
    priors = {"mu_prior": mu.roll(1, 0), "std_prior": 0.1 + mu.abs()} if each else {"mu_prior": 0.25, "std_prior": 0.5}
    return {**priors, **FAMILIES[family]}


@parametrize("antithetic", [False, True])
@parametrize("each", [False, True])
@parametrize("family", FAMILIES)
@parametrize("dtype", FLOAT_DTYPES)
def test_values_and_gradients_are_the_references(
    dtype: torch.dtype, family: str, each: bool, antithetic: bool, device: torch.device
) -> None:
    mu, rho = (tensor.requires_grad_() for tensor in make_parameters((3, 700), dtype, device))
    arguments = arguments_of(family, mu.detach(), each)
    keys = KEYS.to(device)
    x, log_prob = functional.gaussian_sample_and_log_prob(mu, rho, key=keys, antithetic=antithetic, **arguments)
    exact_mu, exact_rho = (tensor.detach().to(arithmetic_dtype(dtype)).requires_grad_() for tensor in (mu, rho))
    exact = {name: v.to(exact_mu.dtype) if isinstance(v, Tensor) else v for name, v in arguments.items()}
    expected_x, expected = reference.gaussian_sample_and_log_prob(
        exact_mu, exact_rho, key=keys, antithetic=antithetic, **exact
    )
    # Sums of 2100 terms of at most 1e3 or, in the mixture's narrow part, 1e5: within 1e-6 of their absolute values, and
    # as far off as the reference in float32, which adds about as well.
    u = UNIT_ROUNDOFF[arithmetic_dtype(dtype)]
    torch.testing.assert_close(log_prob, expected, rtol=64 * u, atol=2e6 * u)
    torch.testing.assert_close(x, expected_x.to(dtype), rtol=4 * UNIT_ROUNDOFF[dtype], atol=64 * u)
    grads = torch.autograd.grad(log_prob.sum(), (mu, rho))
    of_reference = torch.autograd.grad(expected.sum(), (exact_mu, exact_rho), allow_unused=True)
    expected_grads = [torch.zeros_like(mu) if grad is None else grad for grad in of_reference]  # log q has none to mu
    for ours, theirs in zip(grads, expected_grads):
        size = theirs.abs().max().item()  # of the summands, which cancel: by 1e3 in the mixture, whose slope is steep
        torch.testing.assert_close(
            ours, theirs.to(dtype), rtol=4 * UNIT_ROUNDOFF[dtype], atol=2048 * u * max(1.0, size)
        )


@parametrize("antithetic", [False, True])
@parametrize("each", [False, True])
@parametrize("family", FAMILIES)
def test_many_tensors_are_single_ones(family: str, each: bool, antithetic: bool, device: torch.device) -> None:
    mus, rhos = zip(
        *(make_parameters(shape, torch.float32, device, seed) for seed, shape in enumerate([(5, 8), (1100,)]))
    )
    single = [arguments_of(family, mu, each) for mu in mus]
    lists = {
        name: [one[name] for one in single] if name.endswith("_prior") and value is not None else value
        for name, value in single[0].items()
    }
    keys = KEYS.to(device)
    leaves = [[tensor.requires_grad_() for tensor in tensors] for tensors in (mus, rhos)]
    x, log_prob = functional.foreach_gaussian_sample_and_log_prob(*leaves, key=keys, antithetic=antithetic, **lists)
    grads = torch.autograd.grad([*x, log_prob], [*mus, *rhos], [*map(torch.ones_like, x), torch.ones_like(log_prob)])
    total = torch.zeros_like(log_prob, dtype=torch.float64)
    for k, offset in enumerate((0, 10)):  # 40 elements are 10 Philox blocks
        moved = torch.stack([keys[:, 0], keys[:, 1] + offset], 1)
        one, its_log_prob = functional.gaussian_sample_and_log_prob(
            mus[k], rhos[k], key=moved, antithetic=antithetic, **single[k]
        )
        its_grads = torch.autograd.grad(
            [one, its_log_prob], [mus[k], rhos[k]], [torch.ones_like(one), torch.ones_like(its_log_prob)]
        )
        assert same_bits(one, x[k]) and same_bits(its_grads[0], grads[k]) and same_bits(its_grads[1], grads[k + 2])
        total += its_log_prob.double()
    torch.testing.assert_close(log_prob.double(), total, rtol=2.0**-22, atol=0)  # each rounded once, and their sum


def test_a_family_for_each_tensor(device: torch.device) -> None:
    mus, rhos = zip(*(make_parameters((8,), torch.float64, device, seed) for seed in range(4)))
    leaves = [[tensor.requires_grad_() for tensor in tensors] for tensors in (mus, rhos)]
    families = ["scale_mixture", None, "laplace", "scale_mixture"]
    pairs = [(0.3, 0.1), None, None, (0.6, 0.5)]
    numbers = [number for pair in pairs for number in pair or ()]
    for arguments in ({}, {"stick_the_landing": True}, {"is_repeatable": True}):
        x, log_prob = functional.foreach_gaussian_sample_and_log_prob(
            *leaves, 0.1, 0.5, KEYS.to(device), family=families, family_parameters=numbers, **arguments
        )
        grads = torch.autograd.grad(
            [x[1].sum() + log_prob.sum()], [*mus, *rhos], retain_graph="is_repeatable" in arguments
        )
        expected = sum(
            functional.gaussian_log_prob(one, mu, rho, 0.1, 0.5, family=family, family_parameters=pair)
            for one, mu, rho, family, pair in zip(x, mus, rhos, families, pairs)
        )
        torch.testing.assert_close(log_prob, expected, rtol=1e-10, atol=1e-10)
        decomposed = torch.func.grad(
            lambda mus, arguments=arguments: functional.foreach_gaussian_sample_and_log_prob(
                mus, rhos, 0.1, 0.5, KEYS.to(device), family=families, family_parameters=numbers, **arguments
            )[1].sum()
        )(mus)
        for k, grad in enumerate(decomposed):
            torch.testing.assert_close(grads[k], grad + (len(KEYS) if k == 1 else 0), rtol=1e-12, atol=1e-12)
        if "is_repeatable" in arguments:  # of a part of the tensors, without log_prob
            (to_last,) = torch.autograd.grad(x[3].sum(), mus[3])
            assert torch.equal(to_last, torch.full_like(mus[3], len(KEYS)))
    for wrong, message in (
        ({"family": families[:3]}, "family: expected one name, or as many as mu has tensors, 4, got 3"),
        ({"family": families, "family_parameters": numbers[:3]}, "family_parameters: expected 4 numbers"),
    ):
        for call in (lambda f: f(mus), lambda f: torch.func.grad(f)(mus)):
            with pytest.raises(ValueError, match=message):
                call(
                    lambda mus, wrong=wrong: functional.foreach_gaussian_sample_and_log_prob(
                        mus, rhos, 0.1, 0.5, KEYS.to(device), **wrong
                    )[1].sum()
                )


@parametrize("dtype", FLOAT_DTYPES)
def test_antithetic_samples_are_mirrored(dtype: torch.dtype, device: torch.device) -> None:
    mu, rho = (tensor.requires_grad_() for tensor in make_parameters((1500,), dtype, device))
    keys = KEYS.to(device)
    x, log_prob = functional.gaussian_sample_and_log_prob(mu, rho, None, None, keys, antithetic=True)
    assert same_bits(x, functional.gaussian_sample(mu, rho, keys, antithetic=True))
    plain, plain_log_q = functional.gaussian_sample_and_log_prob(mu, rho, None, None, keys)
    assert same_bits(x[::2], plain)
    assert same_bits(log_prob[::2], plain_log_q) and same_bits(log_prob[1::2], plain_log_q)  # log q is even
    zero = functional.gaussian_sample(torch.zeros_like(mu), rho, keys, antithetic=True)
    assert same_bits(zero[1::2], -zero[::2])
    # of a linear loss eps and -eps cancel, to the last bit
    (grad_rho,) = torch.autograd.grad(x.sum(), rho)
    assert not grad_rho.any()
    (grad_rho,) = torch.autograd.grad(functional.gaussian_sample(mu, rho, keys).sum(), rho)
    assert grad_rho.any()


def test_vmap_over_antithetic_keys(device: torch.device) -> None:
    mu, rho = make_parameters((70,), torch.float32, device)
    keys = make_keys(*((i, 0) for i in range(6)), device=device).reshape(3, 2, 2)

    def draw(keys: Tensor) -> tuple[Tensor, Tensor]:
        return functional.gaussian_sample_and_log_prob(mu, rho, 0.0, 1.0, keys, antithetic=True)

    for together, one_by_one in zip(torch.vmap(draw)(keys), zip(*map(draw, keys))):
        assert same_bits(together, torch.stack(one_by_one))
    op = torch.ops.illia_ext.gaussian_sample
    with pytest.raises(RuntimeError, match="antithetic: expected an even number"):
        torch.vmap(lambda keys: op(mu, rho, keys, antithetic=True))(keys.reshape(2, 3, 2))


@parametrize(
    "arguments, message",
    [
        ({"family": "cauchy"}, "family: expected normal, flat, laplace or scale_mixture, got cauchy"),
        ({"family": "scale_mixture"}, "family_parameters: expected 2 numbers, two for each scale_mixture, got 0"),
        (
            {"family": "laplace", "family_parameters": (1.0,)},
            "family_parameters: expected 0 numbers, two for each scale_mixture, got 1",
        ),
        ({"family_parameters": (1.0,)}, "family_parameters: expected 0 numbers, two for each scale_mixture, got 1"),
        ({"family": "scale_mixture", "family_parameters": (0.0, 0.1)}, "expected a weight between 0 and 1, got 0"),
        ({"family": "scale_mixture", "family_parameters": (1.0, 0.1)}, "expected a weight between 0 and 1, got 1"),
        ({"family": "scale_mixture", "family_parameters": (0.5, 0.0)}, "expected a ratio from 1e-9 to 1, got 0"),
        ({"family": "scale_mixture", "family_parameters": (0.5, 1.5)}, "expected a ratio from 1e-9 to 1, got 1.5"),
        ({"family": "scale_mixture", "family_parameters": (float("nan"), 0.5)}, "expected a weight between 0 and 1"),
        ({"mu_prior": None, "std_prior": None, "family": "laplace"}, "family: expected None without mu_prior"),
        ({"antithetic": True, "key": KEYS[0]}, r"antithetic: expected keys \[k, 2\]"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], message: str, device: torch.device) -> None:
    mu, rho = make_parameters((4,), torch.float32, device)
    call = {"mu_prior": 0.0, "std_prior": 1.0, "key": KEYS, **arguments}
    call["key"] = call["key"].to(device)
    with pytest.raises(ValueError, match=message):
        functional.gaussian_sample_and_log_prob(mu, rho, **call)
    with pytest.raises(ValueError, match=message):
        functional.foreach_gaussian_sample_and_log_prob([mu], [rho], **call)


def test_what_an_op_refuses(device: torch.device) -> None:
    mu, rho = make_parameters((4,), torch.float32, device)
    op, prior = torch.ops.illia_ext, torch.ones((), device=device)
    for keys in (KEYS[0], torch.cat([KEYS, KEYS[:1]])):
        with pytest.raises(RuntimeError, match=r"antithetic: expected an even number of keys, \[2 k, 2\]"):
            op.gaussian_sample(mu, rho, keys.to(device), antithetic=True)
    prior.requires_grad_()
    log_q = op.gaussian_log_prob(mu, mu, rho, prior, prior, family="flat")
    with pytest.raises(RuntimeError, match="family: expected a prior, whose gradients are asked for, got flat"):
        log_q.backward()
