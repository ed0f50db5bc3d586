"""The elementary functions of csrc/core keep, over their whole valid range, the errors that their comments state."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mpmath as mp
import numpy as np
import pytest

from illia_ext._native.library import _C

pytestmark = pytest.mark.usefixtures("cpu")
DTYPES = (np.float32, np.float64)
HEADERS = [Path(__file__).resolve().parents[2] / "csrc" / "core" / name for name in ("elementary.h", "softplus.h")]
POINTS = {np.float32: 2**19, np.float64: 1000}  # of each kind in `make_points`; mpmath takes 0.1 ms each


class Domain(NamedTuple):
    """Where a function is valid in each type, an interval to look at more closely, and points not to miss."""

    valid: Callable[[np.finfo], tuple[float, float]]
    dense: tuple[float, float]
    special: tuple[float, ...]


class Case(NamedTuple):
    """A function's textbook definition in mpmath and in float64, and its worst points.

    `worst` is that of all float32 of the domain, then that of 10^7 float64.
    """

    exact: Callable[[mp.mpf], mp.mpf]
    double: Callable[[np.ndarray], np.ndarray]
    domain: Domain
    worst: tuple[float, float]


LIMITS = (-746, -745, -709, -708, -104, -103, -88, -87, 64)  # exp is subnormal, or 0; sigmoid is 1
RHOS = (*range(-1000, 1001, 10), *LIMITS)
EIGHTHS = tuple(k / 8 for k in range(-16, 17))
POWERS_OF_TWO = tuple(2.0**k for k in range(-1022, 1024))

NONPOSITIVE = Domain(lambda t: (-t.max, 0), (-40, 0), RHOS)
UNIT = Domain(lambda t: (0, 1), (0, 1), ())
NORMAL = Domain(lambda t: (t.tiny, t.max), (0.5, 2), (2 / 3, 4 / 3, *POWERS_OF_TWO))
TURNS = Domain(lambda t: (-(2**20), 2**20), (-1, 1), (2.0**-33, 2.0**-65, *EIGHTHS, *(2**20 - x for x in EIGHTHS)))
RHO = Domain(lambda t: (-t.max, t.max), (-10, 10), RHOS)


def exact_softplus(x: mp.mpf) -> mp.mpf:
    return mp.log1p(mp.exp(x))


def exact_sigmoid(x: mp.mpf) -> mp.mpf:
    return 1 / (1 + mp.exp(-x))


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, x)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def with_limit(x: np.ndarray, limit: np.ndarray | float, function: np.ndarray) -> np.ndarray:
    """`function`, or its limit for x < -40: log sigma and its derivative differ from theirs by exp(-40) < 2^-57."""
    return np.where(x < -40, limit, function)


CASES = {
    "exp_nonpositive": Case(mp.exp, np.exp, NONPOSITIVE, (-27.379135, -4.450457842479601)),
    "log1p_ratio": Case(
        lambda t: mp.log1p(t) / t if t else mp.mpf(1),
        lambda t: np.where(t == 0, 1, np.log1p(t) / t),
        UNIT,
        (0.9987255, 0.9992723504604072),
    ),
    "log_normal": Case(mp.log, np.log, NORMAL, (0.63202375, 0.6319035126948285)),
    "sin_turns": Case(
        lambda t: mp.sinpi(2 * t),
        lambda t: np.sin(2 * np.pi * (t - np.rint(t))),
        TURNS,
        (0.12496849, 0.12498028152785985),
    ),
    "cos_turns": Case(
        lambda t: mp.cospi(2 * t),
        lambda t: np.cos(2 * np.pi * (t - np.rint(t))),
        TURNS,
        (0.12516333, 0.1250003580073896),
    ),
    "softplus": Case(exact_softplus, softplus, RHO, (-0.43911496, -0.43407000680824154)),
    "log_sigma": Case(
        lambda x: mp.log(exact_softplus(x)),
        lambda x: with_limit(x, x, np.log(softplus(x))),
        RHO,
        (0.020532912, 8.827822128781827e-11),
    ),
    "log_sigma_derivative": Case(
        lambda x: exact_sigmoid(x) / exact_softplus(x),
        lambda x: with_limit(x, 1, sigmoid(x) / softplus(x)),
        RHO,
        (8.068202, 16.038631448225917),
    ),
    "sigmoid": Case(exact_sigmoid, sigmoid, RHO, (-3.446234, -3.436141334541523)),
}
HEADER_NAMES = {"sin_turns": "sin_cos_turns", "cos_turns": "sin_cos_turns"}  # where it is another than here


def read_stated_errors() -> dict[str, tuple[float, float, bool]]:
    """For each function in csrc/core: its error in float and double, and whether in ulp of max(1, |exact|)."""
    text = "".join(header.read_text() for header in HEADERS)
    pattern = r"Error: <= ([\d.]+) / ([\d.]+) ulp( of max)?.*?ILLIA_FUNCTION \S+ (\w+)\("
    return {name: (float(f), float(d), bool(of)) for f, d, of, name in re.findall(pattern, text, re.DOTALL)}


STATED = read_stated_errors()


def make_points(case: Case, dtype: Any) -> np.ndarray:
    """Points of every exponent, points in the dense interval, and special points with their neighbours."""
    generator, info = np.random.default_rng(0), np.finfo(dtype)
    integer = np.int32 if dtype == np.float32 else np.int64
    low, high = case.domain.valid(info)

    def ordinal(x: float) -> int:
        """Of x among all floating-point numbers; that of 0 is 0."""
        return int(np.copysign(1, x)) * int(np.abs(dtype(x)).view(integer))

    ordinals = generator.integers(ordinal(low), ordinal(high), POINTS[dtype], dtype=integer, endpoint=True)
    every_exponent = np.copysign(np.abs(ordinals).view(dtype), ordinals, dtype=dtype)
    dense = generator.uniform(*case.domain.dense, POINTS[dtype]).astype(dtype)
    special = np.array([low, high, 0.0, -0.0, *case.worst, *case.domain.special]).astype(dtype)
    neighbours = [np.nextafter(special, dtype(towards)) for towards in (-np.inf, np.inf)]
    points = np.concatenate([every_exponent, dense, special, *neighbours])
    return points[(low <= points) & (points <= high)]


def errors_in_ulp(case: Case, dtype: Any, x: np.ndarray, computed: np.ndarray, of_max: bool) -> np.ndarray:
    """|computed - exact| / ulp; the ulp of a subnormal number is the smallest of them.

    float32: float64 computes the exact value to a few of its own ulp, 2^-29 of a float32 ulp each, while the
    stated errors are rounded up at the second decimal.
    """
    info = np.finfo(dtype)
    floor = 1.0 if of_max else float(info.tiny)
    if dtype == np.float32:
        exact = case.double(x.astype(np.float64))
        _, exponent = np.frexp(np.maximum(np.abs(exact), floor))
        return np.abs(computed - exact) / np.ldexp(1.0, exponent - 1 - info.nmant)
    with mp.workdps(40):
        exact = [case.exact(mp.mpf(float(x_i))) for x_i in x]
        exponent = [mp.mag(max(abs(exact_i), floor)) for exact_i in exact]
        pairs = zip(computed, exact, exponent, strict=True)
        return np.array([float(mp.ldexp(abs(float(y) - e), 1 + info.nmant - n)) for y, e, n in pairs])


@pytest.mark.filterwarnings("ignore:(overflow|divide by zero|invalid value):RuntimeWarning")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_error_is_the_stated_one(name: str, dtype: Any) -> None:
    case = CASES[name]
    *stated, of_max = STATED[HEADER_NAMES.get(name, name)]
    x = make_points(case, dtype)
    error = errors_in_ulp(case, dtype, x, getattr(getattr(_C.core, dtype.__name__), name)(x), of_max)
    worst = np.argmax(error)  # NaN counts as the largest
    assert error[worst] <= stated[DTYPES.index(dtype)], f"{name}({float(x[worst]).hex()})"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "at_minus_infinity", "at_infinity"),
    [
        ("exp_nonpositive", 0, None),
        ("softplus", 0, np.inf),
        ("log_sigma", -np.inf, np.inf),
        ("log_sigma_derivative", 1, 0),
        ("sigmoid", 0, 1),
    ],
)
def test_infinities_and_nan(name: str, dtype: Any, at_minus_infinity: float, at_infinity: float | None) -> None:
    function = getattr(getattr(_C.core, dtype.__name__), name)
    assert function(-np.inf) == at_minus_infinity
    assert at_infinity is None or function(np.inf) == at_infinity
    assert np.isnan(function(np.nan))


def test_every_function_is_tested() -> None:
    assert {HEADER_NAMES.get(name, name) for name in CASES} == set(STATED)
    for dtype in DTYPES:
        names = {name for name in vars(getattr(_C.core, dtype.__name__)) if not name.startswith("_")}
        assert names == {*CASES, "box_muller"}
