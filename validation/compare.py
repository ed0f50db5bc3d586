"""Our errors and eager PyTorch's on the grid of validation/points.py, cell by cell."""

from collections.abc import Iterator
from dataclasses import dataclass

import mpmath
import numpy as np
import torch
from torch import Tensor

from illia_ext import random
from illia_ext._ops.fake import op
from validation.contenders import eager, ours
from validation.oracle import LONG_DOUBLE, MPMATH, Exact, Wide, exact, exact_normals
from validation.points import HALF_DTYPES, Cell, Points, cells, draw

__all__ = ["ALLOWED", "CellError", "cell_errors", "normal_errors", "oracle_error"]

# Roundings on the way to each result, in units of u: see the page's text. Of the parts of a sum the largest counts.
# sigma errs by S, h by H, the sigmoid by P; a drawn x by S + 1; grad / std_prior by 2; a density's sums take 5.
S, H, P = 4.8, 7.2, 9.2
Z = 1 + S + 1  # (x - mu) / sigma
DRAWN = (S + 1) + 1 + 2 + 1 + 1 + 1  # ((x - mu_prior) * prior_scale) * inverse_std, added
ALLOWED = {
    "sample": S + 1,
    "sample: grad_mu": 0,
    "sample: grad_rho": 1 + P + 1,
    "drawn": 2 * 3 + 1 + 5,
    "drawn: grad_mu": DRAWN,
    "drawn: grad_rho": DRAWN + 1 + P + 1 + 1,
    "drawn: grad_mu_prior": (S + 1) + 3 + 1 + 1 + 1,
    "drawn: grad_std_prior": 2 * (S + 1 + 3) + 1 + 1 + 1 + 1 + 1,
    "stick_the_landing: grad_mu": DRAWN + 1,
    "stick_the_landing: grad_rho": DRAWN + 1 + P + 1 + 1,
    "log_prob": 2 * Z + 1 + 5,
    "log_prob: grad_x": Z + S + 1 + 1 + 1,
    "log_prob: grad_mu": Z + S + 1 + 1,
    "log_prob: grad_rho": 2 * Z + 1 + 1 + H + 1,
    "log_prob: grad_mu_prior": 3 + 1 + 1 + 1,
    "log_prob: grad_std_prior": 2 * 3 + 1 + 1 + 1 + 1 + 1,
    "kl_divergence": 2 * (S + 2) + 1 + 5,
    "kl_divergence: grad_mu": 1 + 2 + 1 + 1 + 1,
    "kl_divergence: grad_rho": S + 2 + 1 + P + 1 + 1 + 1 + 1,
    "kl_divergence: grad_mu_prior": 3 + 1 + 1 + 1,
    "kl_divergence: grad_std_prior": 2 * (S + 2) + 1 + 1 + 1 + 1 + 1 + 1,
}
ONCE_ROUNDED = 1.01  # a float32 result of up to 30 of its u is 30 * 2^-13 of float16's u away, then rounded


@dataclass(frozen=True)
class CellError:
    """The worst errors of one quantity in one cell; of results that are not finite, their number."""

    cell: Cell
    quantity: str
    returned: torch.dtype
    count: int
    ours: float
    eager: float
    ours_lost: int
    eager_lost: int

    @property
    def bound(self) -> float:
        """Beyond which ours counts as worse, wherever eager's results are."""
        if self.returned in HALF_DTYPES:
            return max(2 * self.eager, ONCE_ROUNDED)
        return max(self.eager, ALLOWED[self.quantity])

    @property
    def worse(self) -> bool:
        return self.ours_lost > self.eager_lost or not self.ours <= self.bound


def errors(got: Tensor, value: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """In the unit, where the exact value and what leads to it fit into the type; inf where `got` is not finite."""
    info = torch.finfo(got.dtype)
    scale = np.maximum(scale, float(info.tiny))
    error = np.abs(got.double().numpy() - value) / (scale * (float(info.eps) / 2))
    return np.where(got.isfinite().numpy(), error, np.inf)[scale <= float(info.max) / 4]


def of_groups(terms: np.ndarray, group: int) -> np.ndarray:
    return terms.reshape(-1, group).sum(1)


def exact_results(points: Points, wide: Wide = LONG_DOUBLE) -> dict[str, Exact]:
    """As the ops return them: log densities of one element or of a pair."""
    found = exact(points, wide)
    for name in ("drawn", "log_prob", "kl_divergence"):
        value, scale = found[name]
        found[name] = Exact(of_groups(value, points.group), of_groups(scale, points.group))
    return found


def worst(error: np.ndarray) -> tuple[float, int]:
    """Of the finite results, and the number of others."""
    finite = error[np.isfinite(error)]
    return float(finite.max(initial=0)), len(error) - len(finite)


def cell_errors(dtype: torch.dtype, count: int) -> Iterator[CellError]:
    for seed, cell in enumerate(cells(dtype)):
        points = draw(cell, count, seed)
        with np.errstate(all="ignore"):
            wanted, mine, plain = exact_results(points), ours(points), eager(points)
            for name, got in mine.items():
                error = errors(got, *wanted[name])
                if len(error):
                    mine_worst, plain_worst = worst(error), worst(errors(plain[name], *wanted[name]))
                    pairs = zip(mine_worst, plain_worst)
                    yield CellError(cell, name, got.dtype, len(error), *(value for pair in pairs for value in pair))


def normal_errors(dtype: torch.dtype, count: int) -> tuple[float, float]:
    """Of `count` normals against Box and Muller's transform of their uniforms; the unit is u times the radius."""
    key = random.key(2026)
    words = random.philox4x32(key[0], torch.arange(count // (2 if dtype == torch.float64 else 4)))
    if dtype == torch.float64:
        uniforms = [
            high.double() * 2.0**-32 + (low.double() * 2.0**-64 + 2.0**-65) for high, low in (words[:2], words[2:])
        ]
        pairs = torch.stack(uniforms, 1)
    else:
        pairs = torch.stack([word.float() * 2.0**-32 + 2.0**-33 for word in words], 1).reshape(-1, 2)
    radius, angle = torch.sqrt(-2 * torch.log(pairs[:, 0])), 2 * torch.pi * pairs[:, 1]
    plain = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], 1).flatten()
    wanted = exact_normals(pairs)
    mine = op("standard_normal")(key, [count], dtype=dtype)
    return tuple(errors(got, *wanted).max() for got in (mine, plain))


def as_mpmath(number: np.longdouble) -> mpmath.mpf:
    mantissa, exponent = np.frexp(number)
    return mpmath.ldexp(mpmath.mpf(float(mantissa)) + float(mantissa - float(mantissa)), int(exponent))


def oracle_error(count: int) -> float:
    """Of the long double against 60 digits, `count` points a cell, in the unit of float64."""
    found = []
    for dtype in (torch.float32, torch.float64):
        for seed, cell in enumerate(cells(dtype)):
            points = draw(cell, count, seed)
            with np.errstate(all="ignore"), mpmath.workdps(60):
                digits = exact(points, MPMATH)
                for name, (value, scale) in exact(points).items():
                    inside = np.flatnonzero(scale <= torch.finfo(dtype).max)
                    for n in inside:
                        difference = abs(digits[name].value[n] - as_mpmath(value[n]))
                        found.append(float(difference / max(as_mpmath(scale[n]), torch.finfo(dtype).tiny)))
    return float(np.max(found)) * 2.0**53
