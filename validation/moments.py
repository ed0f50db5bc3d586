"""The law of one normal at a time: moments, Kolmogorov-Smirnov, Anderson-Darling, chi-square and tails of a stream."""

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from validation.laws import MOMENTS, anderson_darling_p, moment_deviation, two_sided

__all__ = ["BINS", "CUTS", "Marginal"]

BINS = 1024  # equally likely
CUTS = (4.0, 4.5, 5.0, 5.5, 6.0)
EDGES = special.ndtri(np.arange(1, BINS) / BINS)


class Marginal:
    """Sums over the chunks of one stream."""

    def __init__(self) -> None:
        self.size = 0
        self.power_sums = np.zeros(len(MOMENTS))
        self.bins = np.zeros(BINS, dtype=np.int64)
        self.tails = np.zeros((len(CUTS), 2), dtype=np.int64)  # below -cut, above cut
        self.ks: list[float] = []  # a p-value a chunk
        self.ad: list[float] = []

    def add(self, eps: NDArray[np.floating]) -> None:
        x = np.sort(eps).astype(np.float64)
        self.size += x.size
        power = np.ones_like(x)
        for k in range(len(MOMENTS)):
            power *= x
            self.power_sums[k] += power.sum()
        self.bins += np.diff(np.searchsorted(x, EDGES), prepend=0, append=x.size)
        self.tails[:, 0] += np.searchsorted(x, np.negative(CUTS))
        self.tails[:, 1] += x.size - np.searchsorted(x, CUTS, side="right")
        uniform = special.ndtr(x)
        self.ks.append(float(stats.ks_1samp(uniform, lambda u: u, method="asymp").pvalue))
        rank = np.arange(1, 2 * x.size, 2)
        logs = np.log(uniform) + np.log1p(-uniform[::-1])
        self.ad.append(anderson_darling_p(-x.size - float(rank @ logs) / x.size))

    def moment_errors(self) -> NDArray[np.float64]:
        """Standard errors sqrt((2k - 1)!! - ((k - 1)!!)^2) / sqrt(n) of the means of x^k."""
        return np.array([moment_deviation(k) for k in MOMENTS]) / np.sqrt(self.size)

    def moment_z(self, expected: list[float]) -> NDArray[np.float64]:
        return (self.power_sums / self.size - expected) / self.moment_errors()

    def ks_p(self) -> float:
        """Of all chunks: their p-values are uniform, tested in the same way."""
        return float(stats.ks_1samp(self.ks, stats.uniform.cdf).pvalue)

    def ad_p(self) -> float:
        return float(stats.ks_1samp(self.ad, stats.uniform.cdf).pvalue)

    def chi_square_p(self) -> float:
        return two_sided(float(stats.chisquare(self.bins).pvalue))

    def tail_p(self, expected: list[float]) -> NDArray[np.float64]:
        """[cuts, 2]: exact binomial tests of the counts, two-sided."""
        return np.array(
            [
                [stats.binomtest(int(count), self.size, p).pvalue for count in counts]
                for counts, p in zip(self.tails, expected)
            ]
        )
