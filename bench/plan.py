"""The order of a run."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bench import works
from bench.counts import OURS
from bench.measure import Subject
from bench.setting import Scale, Setting
from bench.steps import steps
from bench.tensors import tensors
from bench.transforms import transforms

__all__ = ["Group", "plan"]


@dataclass(frozen=True)
class Group:
    """What is timed together."""

    title: str
    subjects: Callable[[], list[Subject]]


def plan(scale: Scale, setting: Setting) -> list[Group]:
    """All groups of a run, in their order; peers have layers only."""
    groups = []
    if setting.tensor_cases():
        groups += [Group(f"{numel:,} weights", partial(works.one_tensor, numel, setting)) for numel in scale.sizes]
        groups.append(Group("samples", partial(works.samples, scale.samples, scale.samples_numel, setting)))
        groups.append(Group(f"{scale.tensors} tensors", partial(tensors, scale.tensors, setting)))
    if OURS in setting.cases:
        groups += [Group(f"transforms, {n:,} weights", partial(transforms, n, setting)) for n in scale.transforms]
    groups.append(Group("training steps", partial(steps, scale.batches, setting)))
    return groups
