"""Where errors are looked for, and what the ops should give there: textbook formulas with 60 digits, by mpmath, with
none of csrc/core's rearrangements.

Each exact value comes with a scale: the sum of the absolute values of what is added up on the way to it. The unit of an
error is u * scale, where u is half the distance from 1 to the next number of the result's type: a correctly rounded
result errs by at most 1 unit if nothing cancels. Where sigma or sigmoid(rho) is subnormal, the scale has the smallest
normal number in its place, because u times that is half the distance of two subnormal numbers.
"""

from collections.abc import Iterator
from typing import NamedTuple

import mpmath
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from illia_ext import random

__all__ = ["RANGES", "SETTINGS", "Cell", "Exact", "Points", "arithmetic", "cells", "draw", "exact", "exact_normals"]

mpmath.mp.dps = 60
# rho, each range up to the number that it names; in the first exp(rho) is 0 in the arithmetic type
RANGES = ("sigma is 0", "subnormal", "to -20", "to -1", "to 1", "to 20", "to 40", "to 1000", "to the largest")
SETTINGS = ("usual", "far x", "large", "small", "tiny", "wide", "each", "q = p", "own")

to_mpmath = np.frompyfunc(mpmath.mpf, 1, 1)
exp, log, log1p, sqrt, sin, cos = (
    np.frompyfunc(getattr(mpmath, name), 1, 1) for name in ("exp", "log", "log1p", "sqrt", "sin", "cos")
)


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """The type in which the ops compute; log densities have it too."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Cell(NamedTuple):
    dtype: torch.dtype
    rho_range: str
    setting: str


class Points(NamedTuple):
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
    def group(self) -> int:
        """Elements of one log density: the op takes priors of each element where it gets more than one."""
        return 2 if self.mu_prior.dim() else 1


class Exact(NamedTuple):
    """Arrays of mpmath's numbers; a scale is infinite where no error counts."""

    value: np.ndarray
    scale: np.ndarray


def cells(dtype: torch.dtype) -> Iterator[Cell]:
    yield from (Cell(dtype, rho_range, setting) for rho_range in RANGES for setting in SETTINGS)


def draw_rho(cell: Cell, count: int, generator: torch.Generator) -> Tensor:
    """By the logarithm of |rho| where a range spans decades; its ends and 0 are among the points."""
    zero, subnormal = (-745.2, -708.3) if cell.dtype == torch.float64 else (-104.0, -87.3)
    largest = torch.finfo(cell.dtype).max
    edges = (-largest, zero, subnormal, -20, -1, 1, 20, 40, 1000, largest)
    low, high = edges[RANGES.index(cell.rho_range) :][:2]
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
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(count, generator=generator, dtype=torch.float64)

    info = torch.finfo(cell.dtype)
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
    key, total = random.key(seed), arithmetic(cell.dtype)
    eps = torch.ops.illia_ext.standard_normal(key, [count], dtype=total)
    grad_x, priors = normal().to(cell.dtype), (mu_prior.to(cell.dtype), std_prior.to(cell.dtype))
    return Points(mu, rho, x, eps, grad_x, *priors, torch.tensor(0.7, dtype=total), key)


def widen(tensor: Tensor) -> np.ndarray:
    return np.asarray(to_mpmath(tensor.detach().double().numpy()), dtype=object)


def exact(points: Points) -> dict[str, Exact]:
    """Every result of the ops; log densities are those of each element."""
    mu, rho, x, eps, grad_x, mu_prior, std, go = map(widen, points[:-1])
    info = torch.finfo(points.eps.dtype)
    tiny, largest, inf = mpmath.mpf(info.tiny), mpmath.mpf(info.max) / 4, mpmath.inf
    t = exp(-np.abs(rho))
    sigma = log1p(t) + np.maximum(rho, 0)
    log_sigma = log(sigma)
    p = np.where(rho < 0, t, 1) / (1 + t)
    h = p / sigma
    sigma_scale, p_scale = np.maximum(sigma, tiny), np.maximum(p, tiny)
    size, log_std, var = np.abs(go), log(std), std**2

    drawn, spread = mu + sigma * eps, np.abs(mu) + sigma_scale * np.abs(eps)
    deviation = mu - mu_prior
    z_drawn, w_drawn = (deviation + sigma * eps) / std, (deviation + sigma * eps) / var
    reach = (spread + np.abs(mu_prior)) / std
    logs = 1 + np.abs(log_sigma) + np.abs(log_std)  # 1: sigma's own rounding, seen through the logarithm
    squares = (sigma**2 + deviation**2) / var
    score_rho, score_rho_scale = p * eps * w_drawn, p_scale * np.abs(eps) * reach / std
    results = {
        "sample": (drawn, spread),
        "sample: grad_mu": (grad_x, np.abs(grad_x)),
        "sample: grad_rho": (grad_x * p * eps, np.abs(grad_x * eps) * p_scale),
        "drawn": (
            -log_sigma - eps**2 / 2 + log_std + z_drawn**2 / 2,
            logs + eps**2 / 2 + z_drawn**2 / 2 + np.abs(z_drawn) * spread / std,
        ),
        "drawn: grad_mu": (go * w_drawn, size * reach / std),
        "drawn: grad_rho": (go * (score_rho - h), size * (score_rho_scale + h)),
        "drawn: grad_mu_prior": (-go * w_drawn, size * reach / std),
        "drawn: grad_std_prior": (go * (1 - z_drawn**2) / std, size * (1 + reach**2) / std),
        "kl_divergence": (log_std - log_sigma + (squares - 1) / 2, logs + squares / 2),
        "kl_divergence: grad_mu": (go * deviation / var, size * np.abs(deviation) / var),
        "kl_divergence: grad_rho": (go * (sigma * p / var - h), size * (sigma_scale * p_scale / var + h)),
        "kl_divergence: grad_mu_prior": (-go * deviation / var, size * np.abs(deviation) / var),
        "kl_divergence: grad_std_prior": (go * (1 - squares) / std, size * (1 + squares) / std),
    }
    z, z_prior, w = (x - mu) / sigma, (x - mu_prior) / std, (x - mu_prior) / var
    by_sigma = {  # where no number of the type stands for sigma, a quotient by it has no digits
        "log_prob": (-log_sigma - z**2 / 2 + log_std + z_prior**2 / 2, logs + z**2 / 2 + z_prior**2 / 2),
        "log_prob: grad_x": (go * (w - z / sigma), size * (np.abs(w) + np.abs(z / sigma))),
        "log_prob: grad_mu": (go * z / sigma, size * np.abs(z / sigma)),
        "log_prob: grad_rho": (go * h * (z**2 - 1), size * h * (z**2 + 1)),
        "log_prob: grad_mu_prior": (-go * w, size * np.abs(w)),
        "log_prob: grad_std_prior": (go * (1 - z_prior**2) / std, size * (1 + z_prior**2) / std),
        "stick_the_landing: grad_mu": (go * (w_drawn - eps / sigma), size * (reach / std + np.abs(eps / sigma))),
        "stick_the_landing: grad_rho": (go * (score_rho - eps**2 * h), size * (score_rho_scale + eps**2 * h)),
    }
    results |= {name: (value, np.where(sigma >= tiny, scale, inf)) for name, (value, scale) in by_sigma.items()}
    found = {}
    for name, (value, scale) in results.items():
        way = []  # what has to fit into the type as well: x, the gradient to x, and the density derived
        if name.startswith(("drawn", "stick_the_landing")):
            way += [spread, size * reach / std] if "grad" in name else [spread]
        if name.endswith("grad_std_prior"):
            way.append(results[name.split(":")[0]][1])
        for step in way:
            scale = np.where(step <= largest, scale, inf)
        group = points.group if name in ("drawn", "log_prob", "kl_divergence") else 1
        found[name] = Exact(*(terms.reshape(-1, group).sum(1) for terms in np.broadcast_arrays(value, scale)))
    return found


def exact_normals(uniforms: Tensor) -> Exact:
    """Box and Muller's transform of pairs [n, 2]; the scale is the radius."""
    radius_uniform, angle_uniform = widen(uniforms).T
    radius, angle = sqrt(-2 * log(radius_uniform)), 2 * mpmath.pi * angle_uniform
    return Exact(np.stack([radius * cos(angle), radius * sin(angle)], -1).ravel(), np.repeat(radius, 2))
