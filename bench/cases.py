"""What is compared: drawing weights and their log q(x) - log p(x), each case its own noise.

One signature: case(mu, rho, mu_prior, std_prior, num_samples=None) -> (x, log_prob), x of [*shape] or
[num_samples, *shape], log_prob a scalar or [num_samples].
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from illia_ext import functional, random

__all__ = ["CASES", "Case", "eager", "formulas", "fused"]

Case = Callable[..., tuple[Tensor, Tensor]]


def _log_density(x: Tensor, mean: Tensor, std: Tensor, log_sqrt_two_pi: Tensor | float) -> Tensor:
    return -log_sqrt_two_pi - torch.log(std) - (x - mean) ** 2 / (2 * std**2) - 0.5


def _illia(
    mu: Tensor,
    rho: Tensor,
    mu_prior: Tensor,
    std_prior: Tensor,
    num_samples: int | None,
    log_sqrt_two_pi: Callable[[], Tensor | float],
) -> tuple[Tensor, Tensor]:
    samples = [] if num_samples is None else [num_samples]
    eps = torch.randn([*samples, *mu.shape], device=mu.device, dtype=mu.dtype)
    x = mu + eps * torch.log1p(torch.exp(rho))
    log_p = _log_density(x, mu_prior, std_prior, log_sqrt_two_pi())
    log_q = _log_density(x, mu, torch.log1p(torch.exp(rho)), log_sqrt_two_pi())
    weights = tuple(range(len(samples), x.dim()))
    return x, log_q.sum(weights) - log_p.sum(weights)


def eager(
    mu: Tensor, rho: Tensor, mu_prior: Tensor, std_prior: Tensor, num_samples: int | None = None
) -> tuple[Tensor, Tensor]:
    """illia 0.2.4's formulas, as its layers run them: softplus twice, two densities, two sums.

    illia draws one sample at a time; several are drawn here by broadcasting, which is faster than a loop.
    """

    def log_sqrt_two_pi() -> Tensor:  # illia makes its pi anew for each density, on the CPU
        return torch.log(torch.sqrt(2 * (torch.acos(torch.zeros(1)) * 2))).to(mu.device)

    return _illia(mu, rho, mu_prior, std_prior, num_samples, log_sqrt_two_pi)


def formulas(
    mu: Tensor, rho: Tensor, mu_prior: Tensor, std_prior: Tensor, num_samples: int | None = None
) -> tuple[Tensor, Tensor]:
    """What `torch.compile` compiles: the same with pi as a number, because a tensor from the CPU slows a GPU down."""
    return _illia(mu, rho, mu_prior, std_prior, num_samples, lambda: math.log(math.sqrt(2 * math.pi)))


def fused(
    mu: Tensor, rho: Tensor, mu_prior: Tensor, std_prior: Tensor, num_samples: int | None = None
) -> tuple[Tensor, Tensor]:
    """illia_ext, the key's draw included."""
    key = random.draw_key(num_samples, device=mu.device)
    return functional.gaussian_sample_and_log_prob(mu, rho, mu_prior, std_prior, key)


CASES: dict[str, Case] = {"eager": eager, "compile": torch.compile(formulas, fullgraph=True), "illia_ext": fused}
