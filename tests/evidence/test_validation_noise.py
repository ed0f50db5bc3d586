"""The tests of the evidence about noise pass good normals and accuse bad ones."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import special

from validation import battery
from validation.correlations import Correlations, keys_z
from validation.estimates import Scores
from validation.evidence import P_BOUND
from validation.laws import MOMENTS, anderson_darling_p, drawn_moments, drawn_tail, moment, worst_of, z_family
from validation.moments import CUTS, Marginal

pytestmark = pytest.mark.usefixtures("cpu")
CHUNKS, SIZE = 40, 20_000
Change = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def p_values(change: Change) -> dict[str, float]:
    """Of normals by numpy, each chunk changed."""
    generator = np.random.default_rng(3)
    marginal, correlations = Marginal(), Correlations(4)
    for _ in range(CHUNKS):
        eps = change(generator.standard_normal(SIZE, dtype=np.float32))
        marginal.add(eps)
        correlations.add(eps)
    z = marginal.moment_z([moment(k) for k in MOMENTS])
    return {
        "moments": float(2 * special.ndtr(-np.abs(z).max())),
        "Kolmogorov-Smirnov": marginal.ks_p(),
        "Anderson-Darling": marginal.ad_p(),
        "chi-square": marginal.chi_square_p(),
        "tails": marginal.tail_p([float(special.ndtr(-cut)) for cut in CUTS]).min(),
        "correlations": z_family(correlations.z())[1],
    }


def quantiles(eps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Too regular: the same number in each bin."""
    return special.ndtri((np.random.default_rng(0).permutation(eps.size) + 0.5) / eps.size).astype(np.float32)


def like_17_before(eps: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.float32(0.9998) * eps + np.float32(0.02) * np.roll(eps, 17)


def size_of_the_block_before(eps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Signs are independent, sizes are not: squares tell."""
    return np.copysign(np.where(np.arange(eps.size) % 50 < 4, np.roll(eps, 4), eps), eps)


def test_good_normals_pass() -> None:
    assert min(p_values(lambda eps: eps).values()) > 0.001


@pytest.mark.parametrize(
    ("change", "accused"),
    [
        (lambda eps: eps * np.float32(1.03), {"moments", "Kolmogorov-Smirnov", "Anderson-Darling", "chi-square"}),
        (lambda eps: eps + np.float32(0.01), {"moments", "Kolmogorov-Smirnov", "Anderson-Darling"}),
        (lambda eps: np.clip(eps, -3.9, 3.9), {"tails"}),
        (quantiles, {"Kolmogorov-Smirnov", "Anderson-Darling", "chi-square"}),
        (like_17_before, {"correlations"}),
        (size_of_the_block_before, {"correlations"}),
    ],
)
def test_bad_normals_are_accused(change: Change, accused: set[str]) -> None:
    found = {test for test, p in p_values(change).items() if p < P_BOUND}
    assert found >= accused


@pytest.mark.parametrize(("change", "good"), [(0.0, True), (0.03, False)])
def test_keys_that_share_noise_are_accused(change: float, good: bool) -> None:
    eps = torch.randn(5, 2**17, generator=torch.Generator().manual_seed(1))
    eps[4] += change * eps[0]
    assert (z_family(keys_z(lambda keys, n: eps[:, :n], eps, 2**17))[1] > P_BOUND) == good


@pytest.mark.parametrize(("statistic", "p"), [(1.9330, 0.10), (2.4924, 0.05), (3.8781, 0.01), (1e9, 0)])
def test_anderson_darling_law(statistic: float, p: float) -> None:
    assert anderson_darling_p(statistic) == pytest.approx(p, rel=1e-4)  # published to five digits


def test_laws_of_32_bit_words() -> None:
    for k, drawn in zip(MOMENTS, drawn_moments()):
        assert drawn == pytest.approx(moment(k), rel=1e-6)  # eighth: what lies beyond 6.76 is 2e-7 of it
    assert drawn_moments()[7] < moment(8)
    assert drawn_tail(5.0) == pytest.approx(special.ndtr(-5.0), rel=1e-5)  # 16,000 words are beyond, half a word off
    assert drawn_tail(6.8) == 0


@pytest.mark.parametrize(("p", "holds"), [(0.0, False), (0.5, True), (1.0, False)])
def test_battery_looks_at_both_ends(p: float, holds: bool) -> None:
    assert battery.finding({"a": [0.3, 0.9], "b": [p]}, "words").holds == holds


def test_nan_is_accused() -> None:
    assert not worst_of([0.5, math.nan]) > P_BOUND and not worst_of([math.nan, 0.5]) > P_BOUND
    assert not z_family(np.array([0.3, math.nan, 0.1]))[1] > P_BOUND
    assert not battery.finding({"a": [0.3], "b": [math.nan]}, "words").holds


def test_one_bad_score_among_many_is_accused() -> None:
    scores = Scores()
    for where, value in (("first", 0.1), ("bad", math.nan), ("last", 0.2)):
        scores.add("means", where, torch.tensor([value]))
    (finding,) = scores.findings()
    assert not finding.holds and "bad" in finding.measured
