"""What the ops should give: textbook formulas in a wider type, with none of csrc/core's rearrangements.

Each quantity comes with a scale: the sum of the absolute values of what is added up on the way to it. The unit of an
error is u * scale, where u is half the distance from 1 to the next number of the result's type: a correctly rounded
result errs by at most 1 unit if nothing cancels. Where sigma or sigmoid is subnormal, the scale has the smallest normal
number in its place, because u times that is half the distance of two subnormal numbers.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import mpmath
import numpy as np
import torch

from validation.points import Points

__all__ = ["LONG_DOUBLE", "MPMATH", "Exact", "Wide", "exact", "exact_normals"]


class Exact(NamedTuple):
    value: np.ndarray
    scale: np.ndarray


class Wide(NamedTuple):
    """A number type wider than those under test."""

    convert: Callable[[np.ndarray], np.ndarray]  # from float64
    functions: Any  # has exp, log, log1p, sqrt, sin and cos
    pi: Callable[[], Any]


def mpmath_function(name: str) -> Callable[[np.ndarray], np.ndarray]:
    return np.frompyfunc(getattr(mpmath.mp, name), 1, 1)


LONG_DOUBLE = Wide(lambda numbers: numbers.astype(np.longdouble), np, lambda: 4 * np.arctan(np.longdouble(1)))
MPMATH = Wide(
    np.frompyfunc(mpmath.mpf, 1, 1),
    SimpleNamespace(**{name: mpmath_function(name) for name in ("exp", "log", "log1p", "sqrt", "sin", "cos")}),
    lambda: +mpmath.mp.pi,
)


def widen(tensor: torch.Tensor, wide: Wide) -> np.ndarray:
    return wide.convert(tensor.detach().double().numpy())


def exact(points: Points, wide: Wide = LONG_DOUBLE) -> dict[str, Exact]:
    """Every quantity of Points, log densities of each element by itself."""
    f = wide.functions
    mu, rho, x, eps, grad_x, mu_prior, std, go = (widen(tensor, wide) for tensor in points.inputs)
    t = f.exp(-np.abs(rho))
    sigma = f.log1p(t) + np.maximum(rho, 0)
    far = rho < -11000  # exp(rho) leaves the long double: log sigma is rho, and its derivative 1
    log_sigma = np.where(far, rho, f.log(np.where(far, 1, sigma)))
    largest = float(torch.finfo(points.eps.dtype).max) / 4
    p = np.where(rho < 0, t, 1) / (1 + t)
    h = np.where(far, 1, p / np.where(far, 1, sigma))
    tiny = torch.finfo(points.eps.dtype).tiny
    sigma_scale, p_scale = np.maximum(sigma, tiny), np.maximum(p, tiny)
    size, log_std, var = np.abs(go), f.log(std), std**2

    drawn, spread = mu + sigma * eps, np.abs(mu) + sigma_scale * np.abs(eps)
    deviation = mu - mu_prior
    drawn_deviation = deviation + sigma * eps  # of drawn itself a small sigma would leave nothing
    z_drawn, w_drawn = drawn_deviation / std, drawn_deviation / var
    reach = (spread + np.abs(mu_prior)) / std
    logs = 1 + np.abs(log_sigma) + np.abs(log_std)  # 1: sigma's own rounding, seen through the logarithm
    squares = (sigma**2 + deviation**2) / var
    score_rho, score_rho_scale = p * eps * w_drawn, p_scale * np.abs(eps) * reach / std
    quantities = {
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
    normal = sigma >= tiny  # below, no number of the type stands for sigma, and a quotient by it has no digits
    safe = np.where(normal, sigma, 1)
    z, z_prior, w = (x - mu) / safe, (x - mu_prior) / std, (x - mu_prior) / var
    given = {
        "log_prob": (-log_sigma - z**2 / 2 + log_std + z_prior**2 / 2, logs + z**2 / 2 + z_prior**2 / 2),
        "log_prob: grad_x": (go * (w - z / safe), size * (np.abs(w) + np.abs(z / safe))),
        "log_prob: grad_mu": (go * z / safe, size * np.abs(z / safe)),
        "log_prob: grad_rho": (go * h * (z**2 - 1), size * h * (z**2 + 1)),
        "log_prob: grad_mu_prior": (-go * w, size * np.abs(w)),
        "log_prob: grad_std_prior": (go * (1 - z_prior**2) / std, size * (1 + z_prior**2) / std),
        "stick_the_landing: grad_mu": (go * (w_drawn - eps / safe), size * (reach / std + np.abs(eps / safe))),
        "stick_the_landing: grad_rho": (go * (score_rho - eps**2 * h), size * (score_rho_scale + eps**2 * h)),
    }
    quantities |= {name: (value, np.where(normal, scale, np.inf)) for name, (value, scale) in given.items()}
    found = {}
    for name, (value, scale) in quantities.items():
        way = []  # what has to fit into the type as well: x, the gradient to x, and the density derived
        if name.startswith(("drawn", "stick_the_landing")):
            way += [spread, size * reach / std] if "grad" in name else [spread]
        if name.endswith("grad_std_prior"):
            way.append(quantities[name.split(":")[0]][1])
        for step in way:
            scale = np.where(step <= largest, scale, np.inf)
        found[name] = Exact(value, scale)
    return found


def exact_normals(uniforms: torch.Tensor, wide: Wide = LONG_DOUBLE) -> Exact:
    """Box and Muller's transform of pairs [n, 2]; the scale is the radius."""
    f = wide.functions
    u = widen(uniforms, wide)
    turns = u[:, 1] - np.round(uniforms[:, 1].double().numpy())  # exact, and so small that pi's rounding is too
    radius, angle = f.sqrt(-2 * f.log(u[:, 0])), 2 * wide.pi() * turns
    return Exact(np.stack([radius * f.cos(angle), radius * f.sin(angle)], -1).ravel(), np.repeat(radius, 2))
