"""What the tests of priors share: priors, a network, comparisons."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from helpers import make_key
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Categorical,
    Distribution,
    Independent,
    Laplace,
    MixtureSameFamily,
    Normal,
    StudentT,
    TransformedDistribution,
)

from illia_ext import BayesianModule, ScaleMixture

KEY = make_key(7)


def f64(*values: float) -> list[Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


class Logistic(Distribution):
    """A user's own, with log_prob alone. Its scale is a tensor, or in a list, or what a function gives."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, scale: Any) -> None:
        self.scale = scale
        super().__init__()

    def log_prob(self, value: Tensor) -> Tensor:
        scale = self.scale[0] if isinstance(self.scale, list) else self.scale() if callable(self.scale) else self.scale
        z = value / scale
        return -z - 2 * nn.functional.softplus(-z, threshold=60) - scale.log()


class Learned(nn.Module):
    """A distribution of parameters, made anew at each call."""

    def __init__(self, make: Callable[..., Distribution], *values: float) -> None:
        super().__init__()
        self.make = make
        self.values = nn.ParameterList([nn.Parameter(value) for value in f64(*values)])

    def forward(self) -> Distribution:
        return self.make(*self.values)


def two_gaussians() -> Distribution:
    return MixtureSameFamily(
        Categorical(torch.stack(f64(0.3, 0.7))), Normal(*map(torch.stack, (f64(0, 0.1), f64(1, 0.2))))
    )


def distribution_of(prior: Distribution | nn.Module) -> Distribution:
    return prior() if isinstance(prior, nn.Module) else prior


def parameters_of(*modules: Any) -> list[Tensor]:
    return [p for module in modules if isinstance(module, nn.Module) for p in module.parameters()]


def assert_near(actual: Tensor | None, expected: Tensor | None, size: float = 1.0) -> None:
    """Both sides add at most 3 * 7 * 131 terms of at most `size`, with some ten roundings of 2^-53 each: 3e-12 size."""
    if actual is None or expected is None:
        assert actual is None and (expected is None or not expected.any())
        return
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11 * size)


def make_network() -> nn.Module:
    """With an embedding that has a padding row, and a norm."""
    torch.manual_seed(0)
    layers = nn.Embedding(11, 8, padding_idx=2), nn.Flatten(), nn.Linear(24, 16), nn.LayerNorm(16), nn.Linear(16, 3)
    return nn.Sequential(*layers).double()


def expected_log_prob(bnn: BayesianModule, prior: Any, key: Tensor) -> Tensor:
    """By torch.distributions, without the padding row."""
    weights = dict(bnn.sample_module(key).named_parameters())
    total = torch.zeros((), dtype=torch.float64)
    for name, mu, rho in bnn.named_gaussians():
        each = distribution_of(prior(name, mu.detach()) if not isinstance(prior, (Distribution, nn.Module)) else prior)
        terms = Normal(mu, nn.functional.softplus(rho)).log_prob(weights[name]) - each.log_prob(weights[name])
        total += terms[[0, 1, *range(3, 11)]].sum() if name == "0.weight" else terms.sum()
    return total.detach()


PRIORS: dict[str, Callable[[], Distribution | nn.Module]] = {
    "normal": lambda: Normal(*f64(0.1, 0.3)),
    "laplace": lambda: Laplace(*f64(0.1, 0.3)),
    "scale mixture": lambda: ScaleMixture(*f64(0.4, 1.0, 0.05)),
    "scale mixture, the narrow one first": lambda: ScaleMixture(*f64(0.4, 0.05, 1.0)),
    "scale mixture beyond the kernels": lambda: ScaleMixture(*f64(0.4, 1.0, 1e-12)),
    "student": lambda: StudentT(*f64(3, 0.1, 0.5)),
    "mixture": two_gaussians,
    "own class": lambda: Logistic(f64(0.4)[0]),
    "own class, a list": lambda: Logistic(f64(0.4)),
    "transformed": lambda: TransformedDistribution(StudentT(*f64(3, 0, 1)), [AffineTransform(*f64(0.1, 0.4))]),
    "independent": lambda: Independent(Laplace(*f64(0.1, 0.3)), 0),
    "learned normal": lambda: Learned(Normal, 0.1, 0.3),
    "learned laplace": lambda: Learned(Laplace, 0.1, 0.3),
    "learned student": lambda: Learned(StudentT, 3.0, 0.1, 0.5),
    "learned scale mixture": lambda: Learned(ScaleMixture, 0.4, 1.0, 0.05),
}
FUSED = ("normal", "laplace", "scale mixture", "independent", "learned normal", "learned laplace")


INPUTS = torch.tensor([[1, 2, 3], [4, 2, 10]])
OF_A_MODULE = {
    **PRIORS,
    "around each weight": lambda: lambda name, weight: Laplace(weight, 0.3),
    "normal around each weight": lambda: lambda name, weight: Normal(weight, 0.3),
    "of two families": lambda: lambda name, w: Laplace(*f64(0, 1)) if "bias" in name else ScaleMixture(0.5, 1.0, 0.1),
}
