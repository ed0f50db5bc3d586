"""Antithetic samples of a BayesianModule and of a GaussianDistribution: pairs of mu + sigma eps and mu - sigma eps."""

from typing import Any

import pytest
import torch
from helpers import DEVICE, same_bits
from module_cases import INPUTS, KEY, KEYS, convert
from torch import Tensor, nn

from illia_ext import BayesianModule, GaussianDistribution
from illia_ext.functional import foreach_gaussian_sample_and_log_prob, gaussian_sample_and_log_prob
from illia_ext.random import draw_key

parametrize = pytest.mark.parametrize


def pairs_of(bnn: BayesianModule, keys: Tensor) -> tuple[list[Tensor], Tensor]:
    """Weights and log_prob by the function."""
    _, mus, rhos = zip(*bnn.named_gaussians())
    return foreach_gaussian_sample_and_log_prob(mus, rhos, 0.0, 1.0, keys, antithetic=True)


@parametrize("grad", [True, False])
@parametrize("chunk_size", [1, 2, 3])
def test_antithetic_samples(chunk_size: int, grad: bool) -> None:
    bnn = convert(nn.Linear(3, 2), chunk_size=chunk_size)
    with torch.set_grad_enabled(grad):
        (weights, biases), expected = pairs_of(bnn, KEYS[:3])
        outputs, log_prob = bnn(INPUTS, key=KEYS[:3], antithetic=True)
        torch.testing.assert_close(outputs, torch.einsum("ni,soi->sno", INPUTS, weights) + biases[:, None])
        torch.testing.assert_close(log_prob, expected)
    assert (outputs[::2] + outputs[1::2] - 2 * bnn.mean_forward(INPUTS)).abs().max() < 1e-12
    prediction = bnn.predict(INPUTS, key=KEYS[:3], antithetic=True)
    torch.testing.assert_close(prediction.samples, outputs)
    torch.manual_seed(0)
    drawn = bnn(INPUTS, num_samples=6, antithetic=True)[0]
    torch.manual_seed(0)
    assert same_bits(drawn, bnn(INPUTS, key=draw_key(3, device=DEVICE), antithetic=True)[0])


def test_antithetic_samples_in_transforms_and_programs() -> None:
    bnn = convert(nn.Linear(3, 2))
    parameters = dict(bnn.named_parameters())

    def loss(parameters: dict[str, Tensor], inputs: Tensor = INPUTS) -> Tensor:
        arguments = {"key": KEYS[:2], "antithetic": True}
        output, log_prob = torch.func.functional_call(bnn, parameters, (inputs,), arguments)
        return (output**2).sum() + log_prob.sum()

    expected = torch.autograd.grad(loss(parameters), list(parameters.values()))
    for ours, theirs in zip(torch.func.grad(loss)(parameters).values(), expected):
        torch.testing.assert_close(ours, theirs)
    ones = {name: torch.ones_like(parameter) for name, parameter in parameters.items()}
    torch.testing.assert_close(torch.func.jvp(loss, (parameters,), (ones,))[1], sum(g.sum() for g in expected))
    compiled = torch.compile(lambda x, keys: bnn(x, key=keys, antithetic=True), fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(compiled(INPUTS, KEYS[:2]), bnn(INPUTS, key=KEYS[:2], antithetic=True)):
        torch.testing.assert_close(ours, theirs)


@parametrize(
    "arguments, error, message",
    [
        ({"num_samples": 3}, ValueError, "num_samples: expected an even number with antithetic=True, got 3"),
        ({}, ValueError, "num_samples: expected an even number with antithetic=True, got None"),
        ({"num_samples": -2}, ValueError, "num_samples: must be at least"),
        ({"num_samples": 4.0}, TypeError, "num_samples: expected an integer, got 4.0"),
        ({"key": KEY}, ValueError, r"key|antithetic: expected (shape|keys) \[k, 2\]"),
        ({"num_samples": 2, "antithetic": 1}, TypeError, "antithetic: expected True or False, got 1"),
    ],
)
def test_refusals_of_antithetic_samples(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"antithetic": True, **arguments}
    with pytest.raises(error, match=message):
        convert(nn.Linear(3, 2))(INPUTS, **arguments)
    with pytest.raises(error, match=message):
        GaussianDistribution((3,), device=DEVICE).sample(**arguments)


def test_a_frozen_module_has_no_antithetic_samples() -> None:
    bnn = convert(nn.Linear(3, 2))
    bnn.freeze(KEY)
    with pytest.raises(ValueError, match="antithetic: the weights are frozen"):
        bnn(INPUTS, antithetic=True)


@parametrize("scripted", [True, False])
def test_antithetic_samples_of_a_distribution(scripted: bool) -> None:
    plain = GaussianDistribution((5,), device=DEVICE)
    layer = torch.jit.script(plain) if scripted else plain
    expected = gaussian_sample_and_log_prob(
        plain.mu, plain.rho, plain.mu_prior, plain.std_prior, KEYS[:2], antithetic=True
    )
    for ours, theirs in zip(layer.sample_and_log_prob(None, KEYS[:2], False, True), expected):
        assert same_bits(ours, theirs)
    assert same_bits(layer.sample(None, KEYS[:2], True), expected[0])
    assert layer.sample(4, None, True).shape == (4, 5)
