"""Are the numbers standard normal and independent? 10^9 of one key, and 10^8 each of float64, of consecutive seeds and
of split keys, in chunks of 10^6 from keys that stand in this file, looked at once.

Bounds. For normals, x^k has the standard deviation sqrt((2k - 1)!! - ((k - 1)!!)^2). The product of two independent
normals has mean 0 and variance 1, and so has that of their h(x) = (x^2 - 1) / sqrt(2): a sum of n of them over sqrt(n)
is standard normal. Chunks give one p-value each of Kolmogorov-Smirnov and of Cramer-von Mises, which must be uniform.
Chi-square is two-sided: too regular is wrong as well. Where several p-values share a figure, the smallest counts, times
their number (Bonferroni). float32 has normals of 32-bit words, whose longest is 6.76; what that moves in the moments up
to the eighth and in the tails up to 6 is below two thousandths of a standard error at 10^9.
"""

from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import special, stats
from significance import P_BOUND, least, two_sided
from torch import Tensor

from illia_ext import random

CHUNK, SEED, NUM_KEYS = 10**6, 2026, 64
NUM_BINS = 1024  # equally likely
EDGES = special.ndtri(np.arange(1, NUM_BINS) / NUM_BINS)
CUTS = np.array([4.0, 4.5, 5.0, 5.5, 6.0])
ORDERS = np.arange(1, 9)  # of the moments
# Blocks between the two factors of a correlation: normals 1 to 32 apart lie in blocks up to 8 apart; 16 and 256 blocks
# are a tile and a chunk of the kernels.
LAGS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 256)

Numbers = NDArray[np.floating]
standard_normal = torch.ops.illia_ext.standard_normal


def p_of_many(z: Numbers) -> float:
    """Of uncorrelated standard normals: the largest, and the sum of their squares, too large or too small."""
    largest = min(1, 2 * z.size * stats.norm.sf(np.abs(z).max()))
    return least([largest, two_sided(stats.chi2.sf(np.sum(z * z), z.size))])


def moment(k: NDArray[np.int64]) -> Numbers:
    return np.where(k % 2, 0.0, special.factorial2(k - 1))


def with_squares(rows: Numbers) -> Numbers:
    """[2 rows, n]: the rows, and h of them."""
    x = rows.astype(np.float64)
    return np.concatenate([x, (x * x - 1) * np.sqrt(0.5)])


def of_different_rows(products: Numbers) -> Numbers:
    """Of [2 rows, 2 rows] sums of products, those of two different rows, each pair once."""
    rows = len(products) // 2
    above = np.triu_indices(rows, 1)
    return np.concatenate([products[i : i + rows, j : j + rows][above] for i in (0, rows) for j in (0, rows)])


def p_values(chunks: Iterable[Numbers], lanes: int) -> dict[str, float]:
    """One p-value a test; `lanes` normals come of one block."""
    size, powers, bins = 0, np.zeros(len(ORDERS)), np.zeros(NUM_BINS, dtype=np.int64)
    tails = np.zeros((2, len(CUTS)), dtype=np.int64)  # below, above
    ks, cvm = [], []
    products, pairs = np.zeros((len(LAGS), 2 * lanes, 2 * lanes)), np.zeros((len(LAGS), 1, 1))
    for eps in chunks:
        x = np.sort(eps).astype(np.float64)
        size += x.size
        power = np.ones_like(x)
        for k in range(len(ORDERS)):
            power *= x
            powers[k] += power.sum()
        bins += np.diff(np.searchsorted(x, EDGES), prepend=0, append=x.size)
        tails += [np.searchsorted(x, -CUTS), x.size - np.searchsorted(x, CUTS, side="right")]
        uniform = special.ndtr(x)
        ks.append(stats.ks_1samp(uniform, lambda u: u, method="asymp").pvalue)
        cvm.append(stats.cramervonmises(uniform, lambda u: u).pvalue)
        blocks = with_squares(eps.reshape(-1, lanes).T)
        for i, lag in enumerate(LAGS):
            products[i] += blocks[:, : blocks.shape[1] - lag] @ blocks[:, lag:].T
            pairs[i] += blocks.shape[1] - lag
    moment_z = (powers / size - moment(ORDERS)) / np.sqrt((moment(2 * ORDERS) - moment(ORDERS) ** 2) / size)
    correlations = products / np.sqrt(pairs)
    return {
        "moments": least(2 * stats.norm.sf(np.abs(moment_z))),
        "Kolmogorov-Smirnov": float(stats.ks_1samp(ks, stats.uniform.cdf).pvalue),
        "Cramer-von Mises": float(stats.ks_1samp(cvm, stats.uniform.cdf).pvalue),
        "chi-square": two_sided(float(stats.chisquare(bins).pvalue)),
        "tails": least(
            stats.binomtest(int(n), size, special.ndtr(-cut)).pvalue for side in tails for n, cut in zip(side, CUTS)
        ),
        "correlations": p_of_many(np.concatenate([of_different_rows(correlations[0]), correlations[1:].ravel()])),
    }


def one_key(chunk: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Each chunk continues the last one."""
    blocks = CHUNK // (2 if dtype == torch.float64 else 4)
    return standard_normal(random.advance(random.key(SEED), chunk * blocks), [CHUNK], dtype=dtype)


def first_blocks(keys: Tensor) -> Tensor:
    return standard_normal(keys, [4], dtype=torch.float32).flatten()


def consecutive_seeds(chunk: int) -> Tensor:
    seeds = SEED + chunk * (CHUNK // 4) + torch.arange(CHUNK // 4)
    return first_blocks(torch.stack([seeds, torch.zeros_like(seeds)], dim=1))


def split_keys(chunk: int) -> Tensor:
    return first_blocks(random.split(random.fold_in(random.key(SEED), chunk), CHUNK // 4))


STREAMS = {
    "one key": (one_key, 4, 1000),
    "one key, float64": (lambda chunk: one_key(chunk, torch.float64), 2, 100),
    "the first block of consecutive seeds": (consecutive_seeds, 4, 100),
    "the first block of split keys": (split_keys, 4, 100),
}


@pytest.mark.parametrize("name", STREAMS)
def test_normals_are_standard_and_independent(name: str, quick: bool, figure, record_property) -> None:
    draw, lanes, num_chunks = STREAMS[name]
    num_chunks //= 12 if quick else 1
    found = p_values((draw(chunk).numpy() for chunk in range(num_chunks)), lanes)
    record_property("p-values", found)
    worst = min(found, key=lambda test: found[test])
    what = f"{num_chunks * CHUNK:.2g} normals of {name}: {', '.join(found)}"
    figure(what, f"smallest p = {found[worst]:.2g} ({worst})", f"p > {P_BOUND}")
    assert all(p > P_BOUND for p in found.values()), found


def p_of_keys(eps: Tensor) -> float:
    """Correlations between the samples [S, n] of any two keys, place by place."""
    parts = (with_squares(part.numpy()) for part in eps.split(2**15, dim=1))
    return p_of_many(of_different_rows(sum(x @ x.T for x in parts) / np.sqrt(eps.shape[1])))


@pytest.mark.parametrize("kind", ["consecutive seeds", "consecutive offsets, a sample apart", "keys of split"])
def test_keys_are_independent(kind: str, quick: bool, figure) -> None:
    size = CHUNK // 10 if quick else CHUNK
    steps = torch.arange(NUM_KEYS)
    keys = {
        "consecutive seeds": torch.stack([SEED + steps, torch.zeros_like(steps)], dim=1),
        "consecutive offsets, a sample apart": torch.stack([torch.full_like(steps, SEED), steps * (size // 4)], dim=1),
        "keys of split": random.split(random.key(SEED), NUM_KEYS),
    }[kind]
    p = p_of_keys(standard_normal(keys, [size], dtype=torch.float32))
    figure(f"{NUM_KEYS} samples of {size:.2g} normals, {kind}: correlations", f"p = {p:.2g}", f"p > {P_BOUND}")
    assert p > P_BOUND


def quantiles(eps: Numbers) -> Numbers:
    """Too regular: the same number in each bin."""
    return special.ndtri((np.random.default_rng(0).permutation(eps.size) + 0.5) / eps.size).astype(np.float32)


def like_17_before(eps: Numbers) -> Numbers:
    return np.float32(0.9998) * eps + np.float32(0.02) * np.roll(eps, 17)


def size_of_the_block_before(eps: Numbers) -> Numbers:
    """Signs are independent and sizes are not, so the squares are correlated."""
    return np.copysign(np.where(np.arange(eps.size) % 50 < 4, np.roll(eps, 4), eps), eps)


@pytest.mark.parametrize(
    ("change", "accused"),
    [
        (lambda eps: eps, set()),
        (lambda eps: eps * np.float32(1.03), {"moments", "Kolmogorov-Smirnov", "Cramer-von Mises", "chi-square"}),
        (lambda eps: eps + np.float32(0.01), {"moments", "Kolmogorov-Smirnov", "Cramer-von Mises"}),
        (lambda eps: np.clip(eps, -3.9, 3.9), {"tails"}),
        (quantiles, {"Kolmogorov-Smirnov", "Cramer-von Mises", "chi-square"}),
        (like_17_before, {"correlations"}),
        (size_of_the_block_before, {"correlations"}),
    ],
)
def test_bad_normals_are_accused(change: Callable[[Numbers], Numbers], accused: set[str]) -> None:
    generator = np.random.default_rng(3)
    found = p_values((change(generator.standard_normal(20_000, dtype=np.float32)) for _ in range(40)), lanes=4)
    assert {test for test, p in found.items() if p < P_BOUND} >= accused
    assert accused or min(found.values()) > 0.001


@pytest.mark.parametrize(("shared", "good"), [(0.0, True), (0.03, False)])
def test_keys_that_share_noise_are_accused(shared: float, good: bool) -> None:
    eps = torch.randn(5, 2**17, generator=torch.Generator().manual_seed(1))
    eps[4] += shared * eps[0]
    assert (p_of_keys(eps) > P_BOUND) == good
