"""What is compared: sampling weights with log q(x) - log p(x), forward and backward, in three ways.

Every case has the signature case(mu, rho, mu_prior, std_prior) -> (x, log_prob) and draws its own noise.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from illia_ext import functional, random

__all__ = ["CASES", "Case", "eager", "fused"]

Case = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def _log_density(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    pi = torch.acos(torch.zeros(1)) * 2  # illia makes its pi anew at each call
    return -torch.log(torch.sqrt(2 * pi)) - torch.log(std) - (x - mean) ** 2 / (2 * std**2) - 0.5


def eager(mu: Tensor, rho: Tensor, mu_prior: Tensor, std_prior: Tensor) -> tuple[Tensor, Tensor]:
    """illia 0.2.4's formulas, as its layers run them: softplus twice, two densities, two sums."""
    x = mu + torch.randn_like(rho) * torch.log1p(torch.exp(rho))
    log_p = _log_density(x, mu_prior, std_prior)
    log_q = _log_density(x, mu, torch.log1p(torch.exp(rho)))
    return x, log_q.sum() - log_p.sum()


def fused(mu: Tensor, rho: Tensor, mu_prior: Tensor, std_prior: Tensor) -> tuple[Tensor, Tensor]:
    """illia_ext, the key's draw included."""
    return functional.gaussian_sample_and_log_prob(mu, rho, mu_prior, std_prior, random.draw_key())


CASES: dict[str, Case] = {
    "eager": eager,
    "compile": torch.compile(eager, fullgraph=True, dynamic=False),
    "illia_ext": fused,
}
