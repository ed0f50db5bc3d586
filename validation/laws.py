"""What is expected of normals made by Box and Muller's transform from 32-bit words, and how figures become p-values."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, special, stats

__all__ = [
    "MOMENTS",
    "anderson_darling_p",
    "drawn_moments",
    "drawn_tail",
    "moment",
    "moment_deviation",
    "worst_of",
    "z_family",
]

MOMENTS = range(1, 9)


def moment(k: int) -> float:
    """E[x^k] of a normal: (k - 1)!! for even k."""
    return 0.0 if k % 2 else float(special.factorial2(k - 1)) if k else 1.0


def moment_deviation(k: int) -> float:
    """Standard deviation of x^k."""
    return math.sqrt(moment(2 * k) - moment(k) ** 2)


def drawn_moments() -> list[float]:
    """E[x^k] for k in MOMENTS of float32's normals when all 2^32 words are equally likely.

    Radius and angle come of different words, so their moments multiply. Of the radius sqrt(-2 log u) it is a sum over
    the words below 2^23, whose u = (word + 1/2) 2^-32 is exact, and the integral over the rest, where u lies on a grid
    of 2^-24 of itself: that moves a mean by less than 1e-9. The angle goes evenly around.
    """
    square = -2 * np.log((np.arange(2**23) + 0.5) * 2.0**-32)
    moments, power = [], np.full_like(square, 2.0**-32)
    for k in MOMENTS:
        if k % 2:
            moments.append(0.0)
            continue
        power *= square
        ideal = 2.0 ** (k // 2) * float(special.gamma(k // 2 + 1))
        of_rest = ideal * float(special.gammainc(k // 2 + 1, 9 * math.log(2)))
        moments.append(moment(k) * (float(power.sum()) + of_rest) / ideal)
    return moments


def drawn_tail(cut: float) -> float:
    """P(x > cut) of float32's normals, cut >= 4: words below 2^32 exp(-cut^2 / 2) have a radius beyond it, and of
    their angles a part arccos(cut / radius) / pi. The longest radius is 6.76."""
    words = np.arange(math.ceil(2.0**32 * math.exp(-(cut**2) / 2))) + 0.5
    radius = np.sqrt(-2 * np.log(words * 2.0**-32))
    return float(np.sum(np.arccos(np.minimum(cut / radius, 1)))) / math.pi * 2.0**-32


def anderson_darling_p(statistic: float) -> float:
    """P(A^2 > statistic) where the law is wholly given, by Anderson and Darling's series for many values ("A test of
    goodness of fit", JASA 49, 1954). The law of n values differs from it by some 0.04 / n (Marsaglia and Marsaglia,
    "Evaluating the Anderson-Darling distribution", JSS 9(2), 2004)."""
    if statistic > 40:  # p is below 1e-17, which a difference from 1 cannot show
        return 0.0
    total = 0.0
    for j in range(8):
        decay = (4 * j + 1) ** 2 * math.pi**2 / (8 * statistic)
        inner = integrate.quad(
            lambda w, decay=decay: math.exp(statistic / (8 * (w * w + 1)) - decay * (1 + w * w)), 0, np.inf
        )[0]
        total += (4 * j + 1) * special.binom(-0.5, j) * inner
    return min(max(1 - math.sqrt(2 * math.pi) / statistic * total, 0.0), 1.0)


def at_most_1(p: float) -> float:
    """NaN stays NaN, which no bound holds; Python's own min and max may lose it."""
    return float(np.minimum(1.0, p))


def two_sided(p: float) -> float:
    """Of a p-value that is suspicious near 1 as well: noise that is too regular."""
    return at_most_1(2 * min(p, 1 - p))


def worst_of(p_values: list[float]) -> float:
    """P-value of the smallest of them: Bonferroni's bound, right for any dependence."""
    return at_most_1(len(p_values) * float(np.min(p_values)))


def z_family(z: NDArray[np.float64]) -> tuple[float, float]:
    """(worst |z|, p-value) of many uncorrelated z: the worst of them, and the sum of their squares, too large or too
    small."""
    worst = float(np.abs(z).max())
    squares = two_sided(float(stats.chi2.sf(np.sum(z * z), z.size)))
    return worst, worst_of([at_most_1(z.size * 2 * float(special.ndtr(-worst))), squares])
