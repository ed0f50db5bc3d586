"""Derives the polynomial coefficients in csrc/core/elementary.h. Run: python tools/minimax.py (needs mpmath).

Remez exchange in 60 digits, minimising the relative error of the whole function; each coefficient is then
rounded to the target precision. Prints the coefficients, lowest power first, and the largest relative error
of the rounded polynomial as a power of two (float rounds at 2^-24, double at 2^-53).
"""

from collections.abc import Callable
from typing import NamedTuple

import mpmath as mp
import numpy as np

mp.mp.dps = 60
TAU = 2 * mp.pi


class Target(NamedTuple):
    """`polynomial` is fitted on `interval`; `weight` turns its error into the function's relative error."""

    polynomial: Callable[[mp.mpf], mp.mpf]
    weight: Callable[[mp.mpf], mp.mpf]
    interval: tuple[mp.mpf, mp.mpf]
    constant: tuple[mp.mpf, ...]  # a lowest coefficient that is not to be fitted
    num_coefficients: dict[str, int]


TARGETS = {
    "exp(r) = 1 + r + r^2 P(r)": Target(
        lambda r: (mp.exp(r) - 1 - r) / r**2,
        lambda r: r**2 / mp.exp(r),
        (-mp.log(2) / 2, mp.log(2) / 2),
        (),
        {"float": 5, "double": 11},
    ),
    "log(1 + f) = f - f^2/2 + f^3 P(f)": Target(
        lambda f: (mp.log1p(f) - f + f**2 / 2) / f**3,
        lambda f: f**3 / mp.log1p(f),
        (-mp.mpf(1) / 3, mp.mpf(1) / 3),
        (),
        {"float": 8, "double": 20},
    ),
    "log1p(t) = t P(t)": Target(
        lambda t: mp.log1p(t) / t,
        lambda t: t / mp.log1p(t),
        (mp.mpf(0), mp.mpf(1)),
        (mp.mpf(1),),
        {"float": 11, "double": 23},
    ),
    "sin(2 pi f) = f P(f^2)": Target(
        lambda z: mp.sin(TAU * mp.sqrt(z)) / mp.sqrt(z),
        lambda z: mp.sqrt(z) / mp.sin(TAU * mp.sqrt(z)),
        (mp.mpf(0), mp.mpf(1) / 64),
        (),
        {"float": 4, "double": 8},
    ),
    "cos(2 pi f) = P(f^2)": Target(
        lambda z: mp.cos(TAU * mp.sqrt(z)),
        lambda z: 1 / mp.cos(TAU * mp.sqrt(z)),
        (mp.mpf(0), mp.mpf(1) / 64),
        (mp.mpf(1),),
        {"float": 5, "double": 9},
    ),
}


def evaluate(coefficients: list[mp.mpf], x: mp.mpf) -> mp.mpf:
    return mp.polyval(coefficients[::-1], x)


def chebyshev_points(interval: tuple[mp.mpf, mp.mpf], n: int) -> list[mp.mpf]:
    """n points, denser at the ends, none of them 0 (where the quotients above are 0/0)."""
    a, b = interval
    points = [(a + b) / 2 - (b - a) / 2 * mp.cos(mp.pi * i / (n - 1)) for i in range(n)]
    return [x if abs(x) > mp.mpf(10) ** -18 else mp.mpf(10) ** -18 for x in points]


def remez(target: Target, n: int, iterations: int = 12) -> list[mp.mpf]:
    """Coefficients whose weighted error equioscillates at as many points as it can (the best iterate)."""
    low = len(target.constant)
    free = n - low
    grid = chebyshev_points(target.interval, 601)
    extrema = chebyshev_points(target.interval, free + 1)
    best, best_error = list(target.constant), mp.inf
    for _ in range(iterations):
        system = mp.matrix(free + 1, free + 1)
        right = mp.matrix(free + 1, 1)
        for i, x in enumerate(extrema):
            for j in range(free):
                system[i, j] = x ** (low + j)
            system[i, free] = (-1) ** i / target.weight(x)
            right[i] = target.polynomial(x) - evaluate(list(target.constant), x)
        solution = mp.lu_solve(system, right)
        coefficients = [*target.constant, *(solution[j] for j in range(free))]
        error = [target.weight(x) * (target.polynomial(x) - evaluate(coefficients, x)) for x in grid]
        if max(map(abs, error)) < best_error:
            best, best_error = coefficients, max(map(abs, error))
        peaks: list[int] = []  # the largest error of each run of equal sign
        for i, e in enumerate(error):
            if peaks and (e > 0) == (error[peaks[-1]] > 0):
                peaks[-1] = max(peaks[-1], i, key=lambda k: abs(error[k]))
            else:
                peaks.append(i)
        while len(peaks) > free + 1:
            peaks.pop(0 if abs(error[peaks[0]]) < abs(error[peaks[-1]]) else -1)
        if len(peaks) < free + 1:
            break
        extrema = [grid[i] for i in peaks]
    return best


def main() -> None:
    for name, target in TARGETS.items():
        for precision, n in target.num_coefficients.items():
            rounder = np.float32 if precision == "float" else np.float64
            rounded = [mp.mpf(float(rounder(c))) for c in remez(target, n)]
            error = max(
                abs(target.weight(x) * (target.polynomial(x) - evaluate(rounded, x)))
                for x in chebyshev_points(target.interval, 2001)
            )
            print(f"{name}, {precision}, error 2^{mp.nstr(mp.log(error, 2), 4)}")
            print("   ", ", ".join(float(c).hex() for c in rounded))


if __name__ == "__main__":
    main()
