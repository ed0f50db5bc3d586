"""What is compared: drawing weights and their log q(x) - log p(x), each case its own noise.

One signature: case(mu, rho, mu_prior, std_prior) -> (x, log_prob). illia_ext takes num_samples too.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from illia_ext import functional, random

__all__ = ["CASES", "COMPILE_OPTIONS", "Case", "eager", "formulas", "fused"]

Case = Callable[..., tuple[Tensor, Tensor]]


def _log_density(x: Tensor, mu: Tensor, sigma: Tensor, log_sqrt_two_pi: Tensor | float) -> Tensor:
    return -log_sqrt_two_pi - torch.log(sigma) - (x - mu) ** 2 / (2 * sigma**2) - 0.5


def _illia(
    mu: Tensor, rho: Tensor, mu_prior: Tensor, std_prior: Tensor, log_sqrt_two_pi: Callable[[], Tensor | float]
) -> tuple[Tensor, Tensor]:
    x = mu + torch.randn_like(rho) * torch.log1p(torch.exp(rho))
    log_p = _log_density(x, mu_prior, std_prior, log_sqrt_two_pi())
    log_q = _log_density(x, mu, torch.log1p(torch.exp(rho)), log_sqrt_two_pi())
    return x, log_q.sum() - log_p.sum()


def eager(mu: Tensor, rho: Tensor, mu_prior: Tensor, std_prior: Tensor) -> tuple[Tensor, Tensor]:
    """illia 0.2.4's formulas, as its layers run them: softplus twice, two densities, two sums."""
    pi = torch.acos(torch.zeros(1)) * 2  # illia makes its pi anew at each call, on the CPU
    return _illia(mu, rho, mu_prior, std_prior, lambda: torch.log(torch.sqrt(2 * pi)).to(mu.device))


def formulas(mu: Tensor, rho: Tensor, mu_prior: Tensor, std_prior: Tensor) -> tuple[Tensor, Tensor]:
    """What `torch.compile` compiles: the same with pi as a number, because a tensor from the CPU slows a GPU down."""
    return _illia(mu, rho, mu_prior, std_prior, lambda: math.log(math.sqrt(2 * math.pi)))


def fused(
    mu: Tensor,
    rho: Tensor,
    mu_prior: Tensor,
    std_prior: Tensor,
    num_samples: int | None = None,
    antithetic: bool = False,
) -> tuple[Tensor, Tensor]:
    """illia_ext, the key's draw included; an antithetic pair of samples has one key."""
    key = random.draw_key(num_samples // 2 if antithetic else num_samples, device=mu.device)
    return functional.gaussian_sample_and_log_prob(mu, rho, mu_prior, std_prior, key, antithetic=antithetic)


# On a CPU inductor's own noise is a scalar loop; with this option the compiled program calls torch's vectorised randn.
COMPILE_OPTIONS: dict[str, dict[str, bool]] = {"compile": {}, "compile-randn": {"fallback_random": True}}

CASES: dict[str, Case] = {
    "eager": eager,
    **{name: torch.compile(formulas, fullgraph=True, options=options) for name, options in COMPILE_OPTIONS.items()},
    "illia_ext": fused,
}
