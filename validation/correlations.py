"""Correlations of normals and of their squares: between the places of a stream, and between keys.

Where x and y are independent normals, x y, x h(y), h(x) y and h(x) h(y) with h(x) = (x^2 - 1) / sqrt(2) all have mean 0
and variance 1, and any two such products of different pairs are uncorrelated: sum / sqrt(n) is z, nothing is estimated.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["LAGS", "Correlations", "keys_z"]

# In blocks: normals 1 to 32 apart lie in blocks up to 8 apart; 16 and 256 blocks are a tile and a chunk of the kernels.
LAGS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 256)


def features(eps: NDArray[np.floating]) -> NDArray[np.float64]:
    """[2 rows, n]: the rows of eps, and h of them."""
    x = eps.astype(np.float64)
    return np.concatenate([x, (x * x - 1) * np.sqrt(0.5)])


def pairs(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of [2 rows, 2 rows] those of different rows, each pair once: x y, x h(y), h(x) y and h(x) h(y)."""
    rows = len(z) // 2
    above = np.triu_indices(rows, 1)
    return np.concatenate([z[i : i + rows, j : j + rows][above] for i in (0, rows) for j in (0, rows)])


class Correlations:
    """Within a stream, by lane: normal a of a block with normal b of the block `lag` further on."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.sums = np.zeros((len(LAGS), 2 * lanes, 2 * lanes))
        self.counts = np.zeros(len(LAGS))

    def add(self, eps: NDArray[np.floating]) -> None:
        x = features(eps.reshape(-1, self.lanes).T)
        blocks = x.shape[1]
        for i, lag in enumerate(LAGS):
            self.sums[i] += x[:, : blocks - lag] @ x[:, lag:].T
            self.counts[i] += blocks - lag

    def z(self) -> NDArray[np.float64]:
        z = self.sums / np.sqrt(self.counts)[:, None, None]
        return np.concatenate([pairs(z[0]), z[1:].ravel()])


def keys_z(draw: Callable[[Tensor, int], Tensor], keys: Tensor, size: int, chunk: int = 2**15) -> NDArray[np.float64]:
    """Between the samples of any two of the keys, place by place. `draw(keys, n)` gives [S, n]."""
    eps = draw(keys, size)
    sums = sum(x @ x.T for x in (features(part.numpy()) for part in eps.split(chunk, dim=1)))
    return pairs(sums / np.sqrt(size))
