"""Where errors are looked for: a grid of ranges of rho and of settings of mu, x and the priors, in every dtype."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from illia_ext import random

__all__ = ["HALF_DTYPES", "RANGES", "SETTINGS", "Cell", "Points", "arithmetic", "cells", "draw"]

HALF_DTYPES = (torch.float16, torch.bfloat16)
# Of rho, each up to the number that it names; in the first exp(rho) is 0 in the arithmetic type.
RANGES = ("sigma is 0", "subnormal", "to -20", "to -1", "to 1", "to 20", "to 40", "to 1000", "to the largest")
SETTINGS = ("usual", "far x", "large", "small", "tiny", "wide", "each", "q = p", "own")


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """In which the ops compute; log densities have it too."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Points:
    """Arguments of every op for n elements. Priors are numbers [], or of each element [n]."""

    mu: Tensor
    rho: Tensor
    x: Tensor
    eps: Tensor  # what the key draws, in the arithmetic type
    grad_x: Tensor
    mu_prior: Tensor
    std_prior: Tensor
    grad_log_prob: Tensor  # []
    key: Tensor

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        density = (self.mu_prior, self.std_prior, self.grad_log_prob)
        return (self.mu, self.rho, self.x, self.eps, self.grad_x, *density)

    @property
    def group(self) -> int:
        """Elements of one log density: the op takes priors of each element where it gets more than one."""
        return 2 if self.mu_prior.dim() else 1


@dataclass(frozen=True)
class Cell:
    dtype: torch.dtype
    rho_range: str
    setting: str


def cells(dtype: torch.dtype) -> Iterator[Cell]:
    yield from (Cell(dtype, rho_range, setting) for rho_range in RANGES for setting in SETTINGS)


def rho_limits(cell: Cell) -> tuple[float, float]:
    zero, subnormal = (-745.2, -708.3) if cell.dtype == torch.float64 else (-104.0, -87.3)
    largest = torch.finfo(cell.dtype).max
    edges = (-largest, zero, subnormal, -20, -1, 1, 20, 40, 1000, largest)
    n = RANGES.index(cell.rho_range)
    return edges[n], edges[n + 1]


def draw_rho(cell: Cell, count: int, generator: torch.Generator) -> Tensor:
    """By the logarithm of |rho| where a range spans decades; its ends and 0 are among the points."""
    low, high = rho_limits(cell)
    unit = torch.rand(count, generator=generator, dtype=torch.float64)
    if cell.rho_range == "to 1":  # down to the smallest normal number, of both signs
        rho = torch.finfo(cell.dtype).tiny ** unit
        rho[::2] *= -1
    elif max(-low, high) > 1000:
        rho = low * (high / low) ** unit
    else:
        rho = low + (high - low) * unit
    rho[:3] = torch.tensor([low, high, min(max(low, 0), high)], dtype=torch.float64)
    return rho.to(cell.dtype)


def draw(cell: Cell, count: int, seed: int) -> Points:
    """count elements, with what their cell says of them."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(count, generator=generator, dtype=torch.float64)

    total, info = arithmetic(cell.dtype), torch.finfo(cell.dtype)
    rho = draw_rho(cell, count, generator)
    sigma = softplus(rho.double(), threshold=60)
    far, tiny = info.max**0.78, 4 * info.tiny  # 1e30 in float32
    unit = {"large": far, "small": 1 / far, "tiny": tiny}.get(cell.setting, 1.0)
    mu = (unit * normal()).to(cell.dtype)
    z = normal() * (10 ** (6 * torch.rand(count, generator=generator)) if cell.setting == "far x" else 1)
    mu_prior = torch.tensor(0.25 * unit, dtype=torch.float64)
    std_prior = torch.tensor(far if cell.setting == "wide" else 0.5 * unit, dtype=torch.float64)
    if cell.setting == "each":
        mu_prior = normal()
        std_prior = far ** (2 * torch.rand(count, generator=generator, dtype=torch.float64) - 1)
    elif cell.setting == "q = p":
        mu_prior, std_prior = mu, sigma.clamp(min=info.tiny)
    elif cell.setting == "own":
        mu_prior, std_prior = normal(), normal().exp()
    x = (mu.double() + sigma * z).clamp(-info.max, info.max).to(cell.dtype)
    key = random.key(seed)
    return Points(
        *(mu, rho, x, torch.ops.illia_ext.standard_normal(key, [count], dtype=total), normal().to(cell.dtype)),
        *(mu_prior.to(cell.dtype), std_prior.to(cell.dtype), torch.tensor(0.7, dtype=total), key),
    )
