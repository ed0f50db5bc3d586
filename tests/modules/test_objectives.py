"""The loss, and the measures of what a prediction is unsure of."""

import math
from typing import Any

import pytest
import torch
from helpers import FLOAT_DTYPES
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from illia_ext import BayesianModule, elbo_loss, mutual_information, predictive_entropy

parametrize = pytest.mark.parametrize


@parametrize(("nll", "log_prob"), [(2.0, 30.0), ([1.0, 3.0], [20.0, 40.0]), (2.0, [20.0, 40.0]), ([1.0, 3.0], 30.0)])
def test_elbo(nll: Any, log_prob: Any, device: torch.device) -> None:
    nll, log_prob = torch.tensor(nll, device=device), torch.tensor(log_prob, device=device)
    assert elbo_loss(nll, log_prob, 60).item() == 2.5
    assert elbo_loss(nll, log_prob, 60, kl_weight=0.5).item() == 2.25
    assert elbo_loss(nll, log_prob, 60, kl_weight=0).item() == 2.0


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
@parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_probabilities_in_place_of_logits(measure: Any, dtype: torch.dtype, cpu: object) -> None:
    logits = torch.randn(7, 5, 3)
    with pytest.raises(ValueError, match=r"logits: expected logits, got probabilities .*; pass their logarithms"):
        measure(logits.softmax(-1).to(dtype))
    torch.testing.assert_close(measure(logits.log_softmax(-1)), measure(logits))
    assert measure(torch.zeros(7, 0, 3)).shape == (0,)
    for other in (logits.abs(), torch.zeros(2, 1, 3), torch.ones(2, 5, 1), logits - logits.mean(-1, True) + 1 / 3):
        assert measure(other).isfinite().all()


@parametrize("measure", [predictive_entropy, mutual_information])
def test_values_that_no_check_can_look_at(measure: Any, cpu: object) -> None:
    """Under transforms, traces and compilers the checks of values step aside; in a device context they do not."""
    logits = torch.randn(7, 5, 3)
    expected = measure(logits)
    torch.testing.assert_close(torch.func.vmap(measure, 1)(logits[:, :, None])[:, 0], expected)
    torch.testing.assert_close(make_fx(measure)(logits)(logits), expected)
    torch.testing.assert_close(torch.compile(measure, fullgraph=True, backend="eager")(logits), expected)
    torch.func.grad(lambda x: elbo_loss(x.sum(), x.sum(), 10))(torch.ones(3))
    torch.func.vmap(lambda x: elbo_loss(x, x, 10))(torch.tensor([1.0, torch.nan]))
    torch.compile(elbo_loss, fullgraph=True, backend="eager")(torch.ones(()), torch.tensor(torch.nan), 10)
    with torch.device("cpu"), pytest.raises(ValueError, match="log_prob: expected numbers, got nan"):
        elbo_loss(torch.ones(()), torch.tensor(torch.nan), 10)


def test_samples_and_a_loss(cpu: object) -> None:
    """The line that README shows."""
    bayesian, x, y = BayesianModule(nn.Linear(4, 3)), torch.randn(5, 4), torch.randint(3, (5,))
    logits, log_prob = bayesian(x, num_samples=6)
    nll = nn.functional.cross_entropy(logits.flatten(0, 1), y.repeat(6))
    each = torch.stack([nn.functional.cross_entropy(one, y) for one in logits])
    # one mean of 30 and means of 5: a few roundings apart
    torch.testing.assert_close(elbo_loss(nll, log_prob, 5), elbo_loss(each, log_prob, 5))
