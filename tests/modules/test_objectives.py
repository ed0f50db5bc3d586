"""The loss, and the measures of what a prediction is unsure of."""

import math
from typing import Any

import pytest
import torch
from helpers import FLOAT_DTYPES
from torch import Tensor

from illia_ext import elbo_loss, mutual_information, predictive_entropy

parametrize = pytest.mark.parametrize


@parametrize(("nll", "log_prob"), [(2.0, 30.0), ([1.0, 3.0], [20.0, 40.0]), (2.0, [20.0, 40.0]), ([1.0, 3.0], 30.0)])
def test_elbo(nll: Any, log_prob: Any, device: torch.device) -> None:
    nll, log_prob = torch.tensor(nll, device=device), torch.tensor(log_prob, device=device)
    assert elbo_loss(nll, log_prob, 60).item() == 2.5
    assert elbo_loss(nll, log_prob, 60, kl_weight=0.5).item() == 2.25
    assert elbo_loss(nll, log_prob, 60, kl_weight=0).item() == 2.0


@parametrize(
    ("arguments", "error", "message"),
    [
        ((1.0, torch.ones(())), TypeError, "nll: expected a tensor, got 1.0"),
        ((torch.ones(()), 1.0), TypeError, "log_prob: expected a tensor, got 1.0"),
        (
            (torch.ones(2, 8), torch.ones(2)),
            ValueError,
            r"nll: expected a scalar or .* got shape \[2, 8\]",
        ),
        ((torch.ones(()), torch.ones(2, 1)), ValueError, r"log_prob: expected a scalar .* got shape \[2, 1\]"),
        (
            (torch.ones(32), torch.ones(8)),
            ValueError,
            r"nll: .* samples of log_prob, \[8\], got shape \[32\]",
        ),
    ],
)
def test_bad_losses(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        elbo_loss(*arguments, 10)


@parametrize(
    ("arguments", "error", "message"),
    [
        ((0,), ValueError, "num_data: expected a positive finite number, got 0"),
        ((-5,), ValueError, "num_data: expected a positive finite number, got -5"),
        ((float("nan"),), ValueError, "num_data: expected a positive finite number, got nan"),
        ((None,), TypeError, "num_data: expected a number, got None"),
        ((10, -0.5), ValueError, "kl_weight: expected a non-negative number, got -0.5"),
        ((10, "1"), TypeError, "kl_weight: expected a number, got '1'"),
    ],
)
def test_bad_weights(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        elbo_loss(torch.ones(()), torch.ones(()), *arguments)


def by_definition(logits: Tensor) -> tuple[Tensor, Tensor]:
    """In float64: the entropy of the mean, and less the mean entropy."""
    p = logits.double().softmax(-1)
    total = torch.special.entr(p.mean(0)).sum(-1)
    return total, total - torch.special.entr(p).sum(-1).mean(0)


@parametrize("dtype", FLOAT_DTYPES)
def test_against_the_definitions(dtype: torch.dtype, device: torch.device) -> None:
    """In float32 for half types, so their logits are the only thing that was rounded; five terms of up to
    log p = -20 in float32 leave 1e-5."""
    logits = (torch.randn(7, 3, 2, 5, device=device) * 4).to(dtype)
    for ours, expected in zip((predictive_entropy(logits), mutual_information(logits)), by_definition(logits)):
        assert ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-5 if ours.dtype == torch.float32 else 1e-13)


def test_extremes(device: torch.device) -> None:
    sure = torch.tensor([[[1e4, 0.0, -1e4]]], device=device)
    split = torch.cat([sure, sure.flip(-1)])
    for logits, entropy, information in (
        (sure, 0.0, 0.0),
        (torch.zeros(4, 1, 3, device=device), math.log(3), 0.0),
        (split, math.log(2), math.log(2)),
        (split * torch.inf, math.nan, math.nan),
    ):
        assert predictive_entropy(logits).item() == pytest.approx(entropy, abs=1e-6, nan_ok=True)
        assert mutual_information(logits).item() == pytest.approx(information, abs=1e-6, nan_ok=True)


def test_small_information(device: torch.device) -> None:
    """For nearly equal samples p (1 - p) / 2 times the variance of their logits: 1.25e-9, of which a difference of
    entropies around 0.7 would keep nothing in float32. A rounding of log p, 6e-8, is 1e-3 of a ratio of 5e-5."""
    logits = torch.tensor([[[0.0, 1e-4]], [[0.0, -1e-4]]], device=device)
    assert mutual_information(logits).item() == pytest.approx(1.25e-9, rel=1e-2)


def test_a_class_that_cannot_be(device: torch.device) -> None:
    """Masked by -inf, in some samples or in all: no part of the sum, and no NaN in the gradients."""
    logits = torch.tensor([[[1.0, 2.0, -torch.inf, -torch.inf]], [[0.5, 0.1, 0.0, -torch.inf]]], device=device)
    logits.requires_grad_()
    expected = by_definition(logits.detach())
    for measure, value in zip((predictive_entropy, mutual_information), expected):
        ours = measure(logits)
        assert ours.item() == pytest.approx(value.item(), abs=1e-6)
        (grad,) = torch.autograd.grad(ours, logits)
        assert grad.isfinite().all() and grad[..., :2].all()


@parametrize("measure", [predictive_entropy, mutual_information])
@parametrize(
    ("logits", "error", "message"),
    [
        ([1.0], TypeError, "logits: expected a tensor"),
        (torch.ones(2, 3, dtype=torch.int64), TypeError, "logits: expected a floating dtype, got torch.int64"),
        (torch.ones(3), ValueError, r"logits: expected shape \[S, N, C\], .* got \[3\]"),
        (torch.ones(5, 3), ValueError, r"logits: .* got \[5, 3\]; write \[S, 1, C\] for one input, .* samples, not"),
        (torch.ones(0, 2, 3), ValueError, r"logits: expected shape .* got \[0, 2, 3\]"),
        (torch.ones(3, 2, 0), ValueError, r"logits: expected shape .* got \[3, 2, 0\]"),
    ],
)
def test_bad_logits(measure: Any, logits: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        measure(logits)
