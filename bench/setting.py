"""What a run compares, where, and at which points."""

from dataclasses import dataclass, replace
from functools import partial

import torch

from bench.cases import CASES, Case

__all__ = ["CPU_SCALE", "CUDA_SCALE", "OURS", "QUICK_SCALE", "Scale", "Setting"]

OURS = "illia_ext"  # rows of its own begin with this name


@dataclass(frozen=True)
class Scale:
    """The points of every work."""

    sizes: list[int]  # weights of one tensor
    samples: list[int]  # of samples_numel weights
    samples_numel: int
    tensors: int  # the first so many of ResNet-50
    priors: int  # weights of one tensor
    transforms: list[int]  # weights of one tensor
    batches: list[int]  # of a training step


QUICK_SCALE = Scale(
    sizes=[2**12, 2**18],
    samples=[2],
    samples_numel=2**18,
    tensors=33,
    priors=2**18,
    transforms=[2**10],
    batches=[32],
)
CPU_SCALE = Scale(
    sizes=[2**10, 2**16, 2**20],
    samples=[1, 2, 8, 32],
    samples_numel=2**18,
    tensors=161,
    priors=2**20,
    transforms=[2**10, 2**16],
    batches=[32, 256, 1024],
)
CUDA_SCALE = replace(CPU_SCALE, sizes=[2**12, 2**16, 2**20, 2**24, 2**28])


@dataclass(frozen=True)
class Setting:
    """What is compared, and where."""

    cases: list[str]
    peers: dict[str, partial]  # makes a peer's layer
    device: torch.device
    dtype: torch.dtype
    compile_once: bool = False  # for all sizes: it takes less time, and the code that comes of it may be slower

    def tensor_cases(self) -> list[tuple[str, Case]]:
        """Those that draw one tensor."""
        return [(name, CASES[name]) for name in self.cases if name in CASES]
