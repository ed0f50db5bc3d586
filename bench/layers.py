"""Linear layers with Gaussian weights, one for every case, and the networks whose training step is timed."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.cases import Case
from illia_ext import BayesianModule, GaussianDistribution, elbo_loss

__all__ = ["CaseLinear", "Layer", "Network", "Pair", "PlainLinear", "Sigma", "WholeNetwork"]

MU_PRIOR, STD_PRIOR = 0.0, 0.1
RHO_INIT = -5.0
NUM_DATA = 60000  # the complexity cost counts once an epoch of this many data points

Pair = tuple[Tensor, Tensor]  # mu and raw of one tensor of weights, whose standard deviations are sigma(raw)
Sigma = Callable[[Tensor], Tensor]


class Layer(nn.Module):
    """y = x W^T + b with W and b drawn anew at each call, and the complexity cost of that draw, in nats.

    forward: [batch, in_features] -> ([batch, out_features], scalar).
    """

    closed = False  # whether the cost is KL(q || p) in closed form; else it is log q - log p at the drawn weights
    gradient_error = 0.0  # relative, that the layer's own formulas bring with them
    sigma: Sigma = staticmethod(F.softplus)

    def pairs(self) -> list[Pair]:
        """Of the weight [out_features, in_features] and of the bias [out_features]; none if it is not Bayesian."""
        return []


class CaseLinear(Layer):
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

    def pairs(self) -> list[Pair]:
        return [(w.mu, w.rho) for w in (self.weight, self.bias)]


class PlainLinear(Layer):
    """Not Bayesian: torch's own layer, at no cost."""

    def __init__(self, in_features: int, out_features: int, **to: torch.device | torch.dtype) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, **to)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x), x.new_zeros(())


class Network(nn.Module):
    """A classifier of 784 pixels; forward gives the loss per data point, cross entropy + cost / NUM_DATA."""

    WIDTHS = (784, 1024, 1024, 10)

    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.sigma = layers[0].sigma

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        cost = x.new_zeros(())
        for index, layer in enumerate(self.layers):
            x, layer_cost = layer(x.relu() if index else x)
            cost = cost + layer_cost
        return F.cross_entropy(x, target) + cost / NUM_DATA

    def pairs(self) -> list[Pair]:
        return [pair for layer in self.layers for pair in layer.pairs()]


class WholeNetwork(nn.Module):
    """The same classifier in plain layers, made Bayesian as a whole; the loss is averaged over samples."""

    sigma: Sigma = staticmethod(F.softplus)

    def __init__(self, num_samples: int | None = None, **to: torch.device | torch.dtype) -> None:
        super().__init__()
        first, second, third = (nn.Linear(*widths, **to) for widths in pairwise(Network.WIDTHS))
        plain = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        self.bnn = BayesianModule(plain, MU_PRIOR, STD_PRIOR, RHO_INIT)
        self.num_samples = num_samples

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        logits, log_prob = self.bnn(x, num_samples=self.num_samples)
        targets = target.expand(logits.shape[:-1])
        return elbo_loss(F.cross_entropy(logits.flatten(0, -2), targets.flatten()), log_prob, NUM_DATA)

    def pairs(self) -> list[Pair]:
        return [(mu, rho) for _, mu, rho in self.bnn.named_gaussians()]
