"""Philox against random123's published answers, and what its words become: uniforms, then normals."""

from pathlib import Path
from typing import Any

import mpmath as mp
import numpy as np
import pytest

from illia_ext._native.library import _C

pytestmark = pytest.mark.usefixtures("cpu")
core = _C.core
KNOWN_ANSWERS = Path(__file__).parents[1] / "data" / "philox_known_answers.txt"

# An error of R cos, R <= 6.8 (9.5 in double), is R times that of cos, 0.68 (0.75) ulp of 1, plus |eps| times those of
# log (halved by the root), root and product, 1.5 (1.7) ulp: 7.3e-7 (2.0e-15) for |eps| = 1. The contract leaves room
# for a GPU.
CONTRACT = {np.float32: 2e-6, np.float64: 2e-6 * 2.0**-29}


def test_known_answers() -> None:
    lines = [line.split() for line in KNOWN_ANSWERS.read_text().splitlines() if not line.startswith("#")]
    assert [line[:2] for line in lines] == [["philox4x32", "10"]] * 3
    for line in lines:
        words = [int(word, 16) for word in line[2:]]
        counter, key, expected = words[:4], words[4:6], words[6:]
        assert core.philox4x32(counter, key) == expected


@pytest.mark.parametrize(
    ("words", "uniform"),
    [
        ([0], 2.0**-33),
        ([1], 2.0**-32 + 2.0**-33),
        ([2**31], 0.5),
        ([2**32 - 129], 1 - 2.0**-24),
        ([2**32 - 128], 1.0),
        ([2**32 - 1], 1.0),
        ([0, 0], 2.0**-65),
        ([0, 1], 2.0**-64 + 2.0**-65),
        ([1, 0], 2.0**-32 + 2.0**-65),
        ([2**31, 0], 0.5),
        ([2**32 - 1, 0], 1 - 2.0**-32),
        ([2**32 - 1, 2**10], 1 - 2.0**-32 + 2.0**-53),  # a tie but for the 2^-65
        ([2**32 - 1, 2**32 - 1], 1.0),
    ],
)
def test_uniform(words: list[int], uniform: float) -> None:
    assert core.uniform(*words) == uniform


def make_words(generator: np.random.Generator) -> np.ndarray:
    """The smallest words, those around eighths of 2^32 and its end, where uniforms are next to 1, and random ones."""
    borders = [k * 2**29 + offset for k in range(9) for offset in (-256, -129, -128, -2, -1, 0, 1, 2, 256)]
    near_one = [2**32 - 2**k for k in range(7, 24)]
    words = np.array([*borders, *near_one, *generator.integers(0, 2**32, 200)])
    return words[(words >= 0) & (words < 2**32)]


@pytest.mark.parametrize("dtype", CONTRACT)
def test_box_muller(dtype: Any) -> None:
    generator = np.random.default_rng(0)
    words = make_words(generator)
    low_words = [] if dtype == np.float32 else [generator.permutation(words)]
    uniforms = core.uniform(words, *low_words)
    for radius_uniform, angle_uniform in zip(uniforms, generator.permutation(uniforms), strict=True):
        eps = getattr(core, dtype.__name__).box_muller(radius_uniform, angle_uniform)
        with mp.workdps(40):
            radius, turns = mp.sqrt(-2 * mp.log(float(radius_uniform))), 2 * mp.mpf(float(angle_uniform))
            expected = (radius * mp.cospi(turns), radius * mp.sinpi(turns))
            error = [abs(a - b) / max(1, abs(b)) for a, b in zip(eps, expected, strict=True)]
        assert max(error) <= CONTRACT[dtype], f"box_muller({radius_uniform!r}, {angle_uniform!r})"


@pytest.mark.parametrize("dtype", CONTRACT)
def test_radius_uniform_of_one_gives_zero(dtype: Any) -> None:
    for angle_uniform in (2.0**-33, 0.125, 0.3, 0.5, 0.75, 1.0):
        assert getattr(core, dtype.__name__).box_muller(1.0, angle_uniform) == (0, 0)
