"""From p-values and z to a verdict, for many of them at once."""

from collections.abc import Iterable

import numpy as np
from scipy import stats

__all__ = ["P_BOUND", "least", "two_sided", "z_bound"]

# |z| > 5 of one normal: how often chance would accuse a good key. Keys are fixed in the source and nothing runs twice.
P_BOUND = 5.7e-7


def two_sided(p: float) -> float:
    """p where values near 1 are suspicious as well."""
    return 2 * min(p, 1 - p)


def least(p_values: Iterable[float]) -> float:
    """The smallest of several p-values as one (Bonferroni), right for any dependence; NaN stays NaN."""
    values = np.array(list(p_values))
    return float(np.minimum(1, values.size * np.min(values)))


def z_bound(count: int) -> float:
    """|z| that the largest of `count` normals exceeds with a probability of at most P_BOUND."""
    return float(stats.norm.isf(P_BOUND / (2 * count)))
