"""The multi-tensor functions: bit for bit what single calls with moved keys give, tensor by tensor."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from foreach_cases import PRIOR_KINDS, assert_is_sum, make_lists, make_priors, one_by_one, prior_of
from helpers import FLOAT_DTYPES, HALF_DTYPES, LAYOUTS, make_key, make_keys, make_parameters, make_strided, same_bits
from torch import Tensor

from illia_ext import functional, reference

parametrize = pytest.mark.parametrize
sample_and_log_prob = functional.foreach_gaussian_sample_and_log_prob
kl_divergence = functional.foreach_gaussian_kl_divergence
KEYS = {None: make_key(3, 7), 1: make_keys((1, 2**63)), 3: make_keys((1, 2), (2**64 - 1, 4), (5, 2**64 - 2))}


def cotangents(outputs: list[Tensor]) -> list[Tensor]:
    return [make_parameters(output.shape, output.dtype, output.device, seed=9)[0] for output in outputs]


def assert_same_as_single_calls(mu: list[Tensor], rho: list[Tensor], priors: Any, key: Tensor, *options: Any) -> None:
    leaves = [*mu, *rho]
    x, log_prob = sample_and_log_prob(mu, rho, *priors, key, *options)
    expected_x, parts = one_by_one(mu, rho, *priors, key, *options)
    assert all(map(same_bits, x, expected_x))
    assert all(sample.is_contiguous() for sample in x)
    assert log_prob.dtype == parts[0].dtype and log_prob.shape == parts[0].shape
    assert_is_sum(log_prob, parts)
    to_x, to_log_prob = cotangents(x), cotangents([log_prob])
    ours = torch.autograd.grad([*x, log_prob], leaves, [*to_x, *to_log_prob])
    expected = torch.autograd.grad([*expected_x, *parts], leaves, [*to_x, *to_log_prob * len(mu)])
    assert all(map(same_bits, ours, expected))


@parametrize("stick_the_landing", [False, True])
@parametrize("priors", PRIOR_KINDS)
@parametrize("num_samples", KEYS)
@parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_same_as_single_calls(
    dtype: torch.dtype, num_samples: int | None, priors: str, stick_the_landing: bool, device: torch.device
) -> None:
    mu, rho = make_lists(dtype, device)
    for sample_dtype in (None, *(HALF_DTYPES if dtype == torch.float32 else ())):
        arguments = (make_priors(priors, mu), KEYS[num_samples], sample_dtype, stick_the_landing)
        assert_same_as_single_calls(mu, rho, *arguments)


@parametrize("priors", PRIOR_KINDS)
@parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_kl_divergence(dtype: torch.dtype, priors: str, device: torch.device) -> None:
    mu, rho = make_lists(dtype, device)
    mu_prior, std_prior = make_priors(priors, mu)
    ours = kl_divergence(mu, rho, mu_prior, std_prior)
    parts = [
        functional.gaussian_kl_divergence(m, r, prior_of(mu_prior, k), prior_of(std_prior, k))
        for k, (m, r) in enumerate(zip(mu, rho))
    ]
    assert ours.dtype == parts[0].dtype and ours.shape == ()
    assert_is_sum(ours, parts)
    weight = torch.full_like(ours, 1.5)
    gradients = [torch.autograd.grad(o, [*mu, *rho], [weight] * len(o)) for o in ([ours], parts)]
    assert all(map(same_bits, *gradients))


@parametrize("layout", LAYOUTS)
def test_strided_tensors(layout: str, device: torch.device) -> None:
    """Parameters, a prior and the gradients to the samples."""
    mu = [make_strided(layout, torch.float32, device, seed).requires_grad_() for seed in (0, 1)]
    rho = [make_strided(layout, torch.float32, device, seed).requires_grad_() for seed in (2, 3)]
    prior = make_strided(layout, torch.float32, device, 4)
    x, log_prob = sample_and_log_prob(mu, rho, [prior, 0.25], 0.75, KEYS[None])
    expected_x, parts = one_by_one(mu, rho, [prior, 0.25], 0.75, KEYS[None])
    assert all(map(same_bits, x, expected_x))
    assert_is_sum(log_prob, parts)
    to_x = [make_strided(layout, torch.float32, device, seed) for seed in (5, 6)]
    gradients = [torch.autograd.grad(outputs, [*mu, *rho], to_x) for outputs in (x, expected_x)]
    assert all(map(same_bits, *gradients))


@parametrize("used", [[0], [3, 5], [6], [1, 6]])
def test_outputs_that_are_not_used(used: list[int], device: torch.device) -> None:
    """Their gradients are missing, which is zero. Output 6 is log_prob."""
    mu, rho = make_lists(torch.float32, device)
    x, log_prob = sample_and_log_prob(mu, rho, 0.25, 0.75, KEYS[3])
    ours = torch.autograd.grad(
        [[*x, log_prob][k] for k in used], [*mu, *rho], cotangents([[*x, log_prob][k] for k in used])
    )
    expected_x, parts = one_by_one(mu, rho, 0.25, 0.75, KEYS[3])
    outputs = [expected_x[k] for k in used if k < 6] + (parts if 6 in used else [])
    weights = cotangents([expected_x[k] for k in used if k < 6]) + (cotangents([log_prob]) * 6 if 6 in used else [])
    expected = torch.autograd.grad(outputs, [*mu, *rho], weights, allow_unused=True)
    assert all(same_bits(a, torch.zeros_like(a) if b is None else b) for a, b in zip(ours, expected, strict=True))


@parametrize("frozen", [0, 1])
def test_some_parameters_are_frozen(frozen: int, device: torch.device) -> None:
    lists = make_lists(torch.float32, device)
    whole = torch.autograd.grad(sample_and_log_prob(*lists, 0.25, 0.75, KEYS[3])[1].sum(), lists[1 - frozen])
    for parameter in lists[frozen]:
        parameter.requires_grad_(False)
    x, log_prob = sample_and_log_prob(*lists, 0.25, 0.75, KEYS[3])
    assert all(output.requires_grad for output in (*x, log_prob))
    assert all(map(same_bits, torch.autograd.grad(log_prob.sum(), lists[1 - frozen]), whole))


@parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nothing_recorded(mode: Callable[[], Any], device: torch.device) -> None:
    mu, rho = make_lists(torch.float32, device)
    recorded = sample_and_log_prob(mu, rho, 0.25, 0.75, KEYS[3])
    with mode():
        x, log_prob = sample_and_log_prob(mu, rho, 0.25, 0.75, KEYS[3])
    assert all(map(same_bits, (*x, log_prob), (*recorded[0], recorded[1])))
    assert not any(output.requires_grad for output in (*x, log_prob))


@parametrize("stick_the_landing", [False, True])
@parametrize("priors", PRIOR_KINDS)
def test_agrees_with_the_reference(priors: str, stick_the_landing: bool, device: torch.device) -> None:
    """In float64, where the libraries' functions differ by some 1e-15 and sums of 2000 terms add little to that."""
    mu, rho = make_lists(torch.float64, device)
    results = []
    for library in (functional, reference):
        x, log_prob = library.foreach_gaussian_sample_and_log_prob(
            mu, rho, *make_priors(priors, mu), KEYS[3], stick_the_landing=stick_the_landing
        )
        outputs = [*x, log_prob, library.foreach_gaussian_kl_divergence(mu, rho, *make_priors(priors, mu))]
        results.append([*outputs, *torch.autograd.grad(outputs, [*mu, *rho], cotangents(outputs))])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def test_other_sequences(device: torch.device) -> None:
    lists = make_lists(torch.float32, device)
    expected = sample_and_log_prob(*lists, 0.25, 0.75, KEYS[3])
    for kind in (tuple, torch.nn.ParameterList, iter):
        x, log_prob = sample_and_log_prob(*map(kind, lists), 0.25, (0.75,), KEYS[3].to(torch.uint64))
        assert isinstance(x, list)
        assert all(map(same_bits, (*x, log_prob), (*expected[0], expected[1])))


def test_a_lazily_negated_gradient(device: torch.device) -> None:
    """torch resolves lazily negated tensors in lists, but not in lists of optional tensors."""
    mu, rho = make_lists(torch.float32, device)
    x, _ = sample_and_log_prob(mu, rho, 0.25, 0.75, KEYS[None])
    weights = cotangents(x)
    negated = [torch._neg_view(-weight) for weight in weights]
    grads = [torch.autograd.grad(x, mu, given, retain_graph=True) for given in (negated, weights)]
    assert all(map(same_bits, *grads))
