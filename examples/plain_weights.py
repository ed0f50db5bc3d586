"""The weights that `illia_ext.GaussianDistribution` is compared with in digits.py."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

__all__ = ["PointWeight", "ReferenceGaussian"]


class ReferenceGaussian(nn.Module):
    """The part of `GaussianDistribution` that this file uses, as one writes it by hand in plain PyTorch."""

    def __init__(self, shape: tuple[int, ...], std_prior: float, rho_init: float) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.empty(shape).normal_(0, 0.1))
        self.rho = nn.Parameter(torch.empty(shape).normal_(rho_init, 0.1))
        self.std_prior = std_prior

    def sample_and_log_prob(self) -> tuple[Tensor, Tensor]:
        sigma = softplus(self.rho)
        eps = torch.randn_like(self.mu)
        x = self.mu + sigma * eps
        log_q = -torch.log(sigma) - eps**2 / 2  # both without -log(2 pi) / 2, which cancels
        log_p = -math.log(self.std_prior) - (x / self.std_prior) ** 2 / 2
        return x, (log_q - log_p).sum()

    def kl_divergence(self) -> Tensor:
        scale = softplus(self.rho) / self.std_prior
        return (-torch.log(scale) + (scale**2 + (self.mu / self.std_prior) ** 2 - 1) / 2).sum()


class PointWeight(nn.Module):
    """An ordinary weight, for a network that is not Bayesian: always the same sample."""

    def __init__(self, shape: tuple[int, ...], std_prior: float, rho_init: float) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.empty(shape).normal_(0, 0.1))

    def sample_and_log_prob(self) -> tuple[Tensor, Tensor]:
        return self.x, self.x.new_zeros(())

    def kl_divergence(self) -> Tensor:
        return self.x.new_full((), math.nan)
