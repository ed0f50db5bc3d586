"""Linear layers with Gaussian weights, one for every case, and the networks whose training step is timed."""

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.cases import Case
from illia_ext import BayesianModule, GaussianDistribution, elbo_loss

__all__ = ["BayesianLinear", "CaseLinear", "Gaussians", "Network", "PlainLinear", "WholeNetwork"]

MU_PRIOR, STD_PRIOR = 0.0, 0.1
RHO_INIT = -5.0
NUM_DATA = 60000  # the complexity cost counts once an epoch of this many data points


class Gaussians(NamedTuple):
    """Parameters of one tensor of weights; its standard deviations are `layer.sigma(raw)`."""

    mu: Tensor
    raw: Tensor


class BayesianLinear(nn.Module, ABC):
    """y = x W^T + b with W and b drawn anew at each call, and the complexity cost of that draw."""

    # "sampled": log q - log p at the drawn weights; "closed form": KL(q || p). Both in nats, summed over all weights.
    density: ClassVar[str] = "sampled"

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, in_features] -> ([batch, out_features], scalar)."""

    @abstractmethod
    def gaussians(self) -> list[Gaussians]:
        """Of the weight [out_features, in_features] and of the bias [out_features]."""

    @staticmethod
    def sigma(raw: Tensor) -> Tensor:
        return F.softplus(raw)


class CaseLinear(BayesianLinear):
    """A layer whose weights and densities are computed by one of `bench.cases`."""

    def __init__(self, case: Case, in_features: int, out_features: int, **to: torch.device | torch.dtype) -> None:
        super().__init__()
        self.case = case
        self.weight = GaussianDistribution((out_features, in_features), MU_PRIOR, STD_PRIOR, rho_init=RHO_INIT, **to)
        self.bias = GaussianDistribution((out_features,), MU_PRIOR, STD_PRIOR, rho_init=RHO_INIT, **to)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        drawn = [self.case(w.mu, w.rho, w.mu_prior, w.std_prior) for w in (self.weight, self.bias)]
        (weight, weight_cost), (bias, bias_cost) = drawn
        return F.linear(x, weight, bias), weight_cost + bias_cost

    def gaussians(self) -> list[Gaussians]:
        return [Gaussians(w.mu, w.rho) for w in (self.weight, self.bias)]


class PlainLinear(BayesianLinear):
    """Not Bayesian: torch's own layer, at no cost."""

    def __init__(self, in_features: int, out_features: int, **to: torch.device | torch.dtype) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, **to)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x), x.new_zeros(())

    def gaussians(self) -> list[Gaussians]:
        return []


class Network(nn.Module):
    """A classifier of 784 pixels; forward gives the loss per data point, cross entropy + cost / NUM_DATA."""

    WIDTHS = (784, 1024, 1024, 10)

    def __init__(self, layers: list[BayesianLinear]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        cost = x.new_zeros(())
        for index, layer in enumerate(self.layers):
            x, layer_cost = layer(x.relu() if index else x)
            cost = cost + layer_cost
        return F.cross_entropy(x, target) + cost / NUM_DATA

    def gaussians(self) -> list[Gaussians]:
        return [gaussian for layer in self.layers for gaussian in layer.gaussians()]

    def sigma(self, raw: Tensor) -> Tensor:
        return self.layers[0].sigma(raw)


class WholeNetwork(nn.Module):
    """The same classifier in plain layers, made Bayesian as a whole; the loss is averaged over samples."""

    def __init__(self, num_samples: int | None = None, **to: torch.device | torch.dtype) -> None:
        super().__init__()
        first, second, third = (nn.Linear(*pair, **to) for pair in pairwise(Network.WIDTHS))
        plain = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        self.bnn = BayesianModule(plain, MU_PRIOR, STD_PRIOR, RHO_INIT)
        self.num_samples = num_samples

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        logits, log_prob = self.bnn(x, num_samples=self.num_samples)
        targets = target.expand(logits.shape[:-1])
        return elbo_loss(F.cross_entropy(logits.flatten(0, -2), targets.flatten()), log_prob, NUM_DATA)

    def gaussians(self) -> list[Gaussians]:
        return [Gaussians(mu, rho) for _, mu, rho in self.bnn.named_gaussians()]

    @staticmethod
    def sigma(raw: Tensor) -> Tensor:
        return F.softplus(raw)
