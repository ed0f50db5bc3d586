"""What a run compares, where, and at which points."""

from dataclasses import dataclass

import torch

from bench.cases import CASES, Case
from bench.layers import BayesianLinear

__all__ = ["AXES", "Scale", "Setting"]

# The works, and what a point of each counts.
AXES = {
    "forward": "weights",
    "forward + backward": "weights",
    "samples": "samples",
    "tensors": "tensors",
    "training step": "batch",
}


@dataclass(frozen=True)
class Scale:
    """The points of every work."""

    sizes: list[int]  # weights of one tensor
    samples: list[int]  # of samples_numel weights
    samples_numel: int
    tensors: int  # the first so many of ResNet-50
    batches: list[int]  # of a training step


@dataclass(frozen=True)
class Setting:
    """What is compared, and where."""

    cases: list[str]
    peers: dict[str, type[BayesianLinear]]
    device: torch.device
    dtype: torch.dtype
    compile_once: bool = False  # for all sizes: it takes less time, and the code that comes of it may be slower

    def tensor_cases(self) -> list[tuple[str, Case]]:
        """Those that draw one tensor."""
        return [(name, CASES[name]) for name in self.cases if name in CASES]
