"""Stand-ins for illia's classes: their names, tensors, attributes and methods, in our own code."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class IlliaModule(nn.Module, ABC):
    @abstractmethod
    def sample(self) -> Tensor: ...

    @abstractmethod
    def log_prob(self, x: Tensor | None = None) -> Tensor: ...

    @abstractmethod
    def num_params(self) -> int: ...


class GaussianDistribution(IlliaModule):
    def __init__(self, shape: Any, mu_prior: float = 0.0, std_prior: float = 0.1) -> None:
        super().__init__()
        self.shape, self.mu_init, self.rho_init = shape, 0.0, -2.0
        self.register_buffer("mu_prior", torch.tensor([mu_prior]))
        self.register_buffer("std_prior", torch.tensor([std_prior]))
        self.mu = nn.Parameter(torch.randn(shape) / 10)
        self.rho = nn.Parameter(torch.randn(shape) / 10 - 2)

    @torch.jit.export
    def sample(self) -> Tensor:
        return self.mu + self.rho.exp().log1p() * torch.randn_like(self.mu)

    @torch.jit.export
    def log_prob(self, x: Tensor | None = None) -> Tensor:
        if x is None:
            x = self.sample()
        sigma = self.rho.exp().log1p()
        log_q = -sigma.log() - ((x - self.mu) / sigma) ** 2 / 2
        log_p = -self.std_prior.log() - ((x - self.mu_prior) / self.std_prior) ** 2 / 2
        return (log_q - log_p).sum()

    @torch.jit.export
    def num_params(self) -> int:
        return self.mu.numel()


class Linear(nn.Module):
    """A layer as illia writes them: it draws its weights in forward, keeps them, and asks for their cost later."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.weights_distribution = GaussianDistribution((num_out, num_in), 0.25, 0.75)
        self.bias_distribution = GaussianDistribution(num_out)
        self.register_buffer("weights", self.weights_distribution.sample())
        self.register_buffer("bias", self.bias_distribution.sample())

    def forward(self, inputs: Tensor) -> Tensor:
        self.weights = self.weights_distribution.sample()
        self.bias = self.bias_distribution.sample()
        return nn.functional.linear(inputs, self.weights, self.bias)

    @torch.jit.export
    def kl_cost(self) -> tuple[Tensor, int]:
        log_probs = self.weights_distribution.log_prob(self.weights)
        log_probs += self.bias_distribution.log_prob(self.bias)
        return log_probs, self.weights_distribution.num_params() + self.bias_distribution.num_params()


def make_network(device: torch.device) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Linear(4, 5), nn.Tanh(), nn.Sequential(Linear(5, 3))).to(device)
