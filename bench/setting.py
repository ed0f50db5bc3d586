"""What a run compares, where, and at which points."""

from dataclasses import dataclass

import torch

from bench.cases import CASES, Case
from bench.counts import OURS
from bench.layers import BayesianLinear

__all__ = ["AXES", "BASES", "BUDGETS", "TARGETS", "Scale", "Setting"]

# Rows beside those of the cases: what a case is compared with, and illia_ext in other ways.
PLAIN = "not Bayesian"
BY_LAYER, EIGHT_SAMPLES = f"{OURS}, by layer", f"{OURS}, 8 samples"
WHOLE_MODEL, FORWARD = f"{OURS}, BayesianModule", f"{OURS}, forward"
ONE_BY_ONE, FLAT = f"{OURS}, one by one", f"{OURS}, one flat tensor"

# The works, and what a point of each counts.
AXES = {
    "forward": "weights",
    "forward + backward": "weights",
    "samples": "samples",
    "tensors": "tensors",
    "transforms": "weights",
    "training step": "batch",
}

# What a row of the transforms is compared with; the others are whole calls by themselves.
BASES = {
    "module, forward": "forward",
    "module, forward + backward": "forward + backward",
    **dict.fromkeys(("functional_call", "torch.func.grad", "jvp", "double backward", "checkpoint"), "a loss"),
    **dict.fromkeys(("autocast", "torch.compile", "8 calls"), "a loss"),
    **dict.fromkeys(("8 samples", "vmap over 8 keys", "vmap over 8 parameters"), "8 calls"),
}
# Microseconds that one call of 2^10 weights may take on one thread of a CPU; of a row with a base, that it may add.
BUDGETS = {"no gradients": 10, "forward": 20, "forward + backward": 90}
BUDGETS |= {"module, forward": 8, "module, forward + backward": 8}

# How many times the time of a row of the same point a row may take: a whole model on one thread of a CPU.
TARGETS = {("training step", batch, OURS): (PLAIN, most) for batch, most in {32: 3, 256: 1.8, 1024: 1.3}.items()}
TARGETS |= {("training step", 32, EIGHT_SAMPLES): (OURS, 5)}
TARGETS |= {("tensors", 161, case): (FLAT, 1.1) for case in (OURS, WHOLE_MODEL)}


@dataclass(frozen=True)
class Scale:
    """The points of every work."""

    sizes: list[int]  # weights of one tensor
    samples: list[int]  # of samples_numel weights
    samples_numel: int
    tensors: int  # the first so many of ResNet-50
    transforms: list[int]  # weights of one tensor
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
