"""Our noise beside torch.func._random, in the Python of torch 2.15: `python -m validation.stateless_cases FILE` writes
the
section of the page. It needs torch and this library alone."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from torch.func import _random

from illia_ext import random
from validation.evidence import Finding, Section, Table

CASES = 20_000
SEED = 2026
WORD = 2**64
EDGES = (0, 2**31, 2**32, 2**63, WORD)  # of a seed or an offset: there a half of it, a sign or the whole wraps around
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Longest radius sqrt(-2 log u0) of the smallest u0, 2^-33 and 2^-65.
LONGEST = {torch.float32: math.sqrt(66 * math.log(2)), torch.float64: math.sqrt(130 * math.log(2))}

standard_normal = torch.ops.illia_ext.standard_normal


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def tolerance(dtype: torch.dtype) -> float:
    arithmetic_dtype = arithmetic(dtype)
    return (4 * math.pi + 11) * torch.finfo(arithmetic_dtype).eps / 2 * LONGEST[arithmetic_dtype]


@dataclass
class Tally:
    cases: int = 0
    values: int = 0
    equal: int = 0
    worst: float = 0.0  # largest difference as a part of its bound

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        """Of noise. Half types are float32's rounded: neighbours by one spacing may come out of a small difference."""
        self.cases += 1
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            self.worst = math.inf
        elif ours.numel():
            spacing = 0.0 if ours.dtype == arithmetic(ours.dtype) else torch.finfo(ours.dtype).eps
            bound = tolerance(ours.dtype) + spacing * theirs.double().abs()
            part = (ours.double() - theirs.double()).abs() / bound
            self.worst = max(self.worst, float(part.max())) if not part.isnan().any() else math.inf
            self.values += ours.numel()
            self.equal += int((ours == theirs).sum())

    def add_words(self, ours: Tensor, theirs: Tensor) -> None:
        self.cases += 1
        self.values += theirs.numel()
        if ours.shape == theirs.shape:
            self.equal += int((ours == theirs.view(torch.int64)).sum())


class Cases:
    """Random arguments of the same call to both."""

    def __init__(self) -> None:
        self.random = Random(SEED)
        self.tallies: dict[str, Tally] = {}

    def word(self, spread: int) -> int:
        """Any 64 bits, or within `spread` of an edge."""
        if self.random.random() < 0.3:
            return self.random.getrandbits(64)
        return (self.random.choice(EDGES) + self.random.randint(-spread, spread)) % WORD

    def key(self, batch: tuple[int, ...], spread: int) -> Tensor:
        words = [[self.word(2), self.word(spread)] for _ in range(math.prod(batch))]
        return torch.tensor(words, dtype=torch.uint64).reshape(*batch, 2)

    def shape(self) -> tuple[int, ...]:
        largest = self.random.choice((1, 3, 17, 70, 1100, 20_000))
        sizes = [self.random.randint(0 if largest == 3 else 1, largest) for _ in range(self.random.randint(0, 3))]
        while math.prod(sizes) > 60_000:
            sizes.pop()
        return tuple(sizes)

    def tally(self, kind: str) -> Tally:
        return self.tallies.setdefault(kind, Tally())

    def normals(self) -> None:
        """Of one key or several, signed or unsigned."""
        dtype, shape = self.random.choice(DTYPES), self.shape()
        batch = self.random.choice(((), (), (1,), (3,)))
        key = self.key(batch, math.prod(shape) // 2 + 2)  # so that the wrap often falls into the sample
        batched = key.reshape(*batch, *[1] * len(shape), 2) if batch else key
        theirs = _random.normal(batched, (*batch, *shape), dtype=dtype)
        ours = key.view(torch.int64) if self.random.random() < 0.5 else key
        self.tally(str(dtype).removeprefix("torch.")).add(standard_normal(ours, shape, dtype=dtype), theirs)

    def split(self) -> None:
        key, n = self.key(self.random.choice(((), (4,), (2, 3))), 20), self.random.randint(1, 40)
        self.tally("split").add_words(random.split(key, n), _random.split(key, n))

    def fold_in(self) -> None:
        key, data = self.key(self.random.choice(((), (4,), (2, 3))), 20), self.word(20)
        theirs = _random.fold_in(key, data)
        self.tally("fold_in").add_words(random.fold_in(key, data), theirs)
        signed = torch.tensor(data, dtype=torch.uint64).view(torch.int64)
        self.tally("fold_in").add_words(random.fold_in(key, signed), theirs)

    def words(self) -> None:
        blocks = self.random.randint(1, 500)
        key = self.key((), blocks + 2)
        seed, offset = key.view(torch.int64)
        ours = torch.stack(random.philox4x32(seed.expand(blocks), offset + torch.arange(blocks)), dim=1).flatten()
        theirs = _random.bits(key, (4 * blocks,), dtype=torch.uint32).to(torch.int64)
        self.tally("words").add_words(ours, theirs)

    def run(self) -> None:
        for _ in range(CASES):
            self.random.choices((self.normals, self.split, self.fold_in, self.words), (7, 1, 1, 1))[0]()


def section() -> Section:
    cases = Cases()
    cases.run()
    integers = [cases.tallies.pop(kind) for kind in ("words", "split", "fold_in")]
    differ = sum(tally.values - tally.equal for tally in integers)
    total = sum(tally.values for tally in integers)
    count = sum(tally.cases for tally in integers)
    what = f"Philox words and the keys of split and fold_in, {count} cases, {total} words"
    findings = [Finding(what, f"{differ} differ", "0", differ == 0)]
    rows = []
    for dtype, tally in sorted(cases.tallies.items()):
        bound = f"{tolerance(getattr(torch, dtype)):.2g}"
        if "float16" in dtype:
            bound += " and one spacing"
        what = f"{dtype}, {tally.cases} cases, {tally.values} normals"
        measured = f"largest difference {tally.worst:.3g} of the bound"
        findings.append(Finding(what, measured, bound, tally.worst <= 1))
        rows.append([dtype, f"{100 * tally.equal / tally.values:.2f} %"])
    table = Table("Equal to the last bit.", ["dtype", "of all normals"], rows)
    return Section(f"PyTorch's own stateless generator, torch {torch.__version__}", "", findings, [table])


if __name__ == "__main__":
    section().write(Path(sys.argv[1]))
