"""Our noise beside that of torch.func._random, PyTorch's own stateless generator, which torch 2.15 has for the CPU.

`make test TORCH=2.15.0 TESTS=tests/ops/test_torch_stateless.py` runs it. Words and derived keys must be equal. Normals
come of the same words by other elementary functions: let u be half the machine epsilon and R the longest radius.
torch's angle 2 pi u1 has two roundings, so its sine errs by 2 pi 2u; the sines and cosines of both add 4u at most,
logarithm, square root and product of both 7u of the normal: (4 pi + 11) u R in all. A wrong word would differ by about
1. Half types are rounded float32, so they may lie one spacing apart besides.
"""

import math

import pytest
import torch
from helpers import FLOAT_DTYPES, arithmetic_dtype
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from illia_ext import random

if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 15):
    pytest.skip(f"torch {torch.__version__} has no stateless generator for the CPU", allow_module_level=True)
from torch.func import _random

pytestmark = pytest.mark.usefixtures("cpu")
# Longest radius sqrt(-2 log u0), of the smallest u0: 2^-33 and 2^-65.
LONGEST = {torch.float32: math.sqrt(66 * math.log(2)), torch.float64: math.sqrt(130 * math.log(2))}
EDGES = (0, 2**31, 2**32, 2**63, 2**64)  # of a seed or an offset: there a half of it, a sign or the whole wraps around
BATCHES = ((), (1,), (3,), (2, 3))
MANY = settings(max_examples=10 * settings.default.max_examples)


def words(spread: int) -> st.SearchStrategy[int]:
    """Any 64 bits, or within `spread` of an edge, so that a wrap falls into a sample."""
    near = st.builds(lambda edge, step: (edge + step) % 2**64, st.sampled_from(EDGES), st.integers(-spread, spread))
    return st.one_of(near, st.integers(0, 2**64 - 1))


def keys(batch: tuple[int, ...], spread: int) -> st.SearchStrategy[Tensor]:
    pairs = st.lists(st.tuples(words(2), words(spread)), min_size=math.prod(batch), max_size=math.prod(batch))
    return pairs.map(lambda found: torch.tensor(found, dtype=torch.uint64).reshape(*batch, 2))


def as_signed(words: Tensor) -> Tensor:
    return words.view(torch.int64) if words.dtype == torch.uint64 else words.to(torch.int64)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@MANY
@given(data=st.data(), signed=st.booleans())
def test_normals(dtype: torch.dtype, data: st.DataObject, signed: bool) -> None:
    largest = data.draw(st.sampled_from((3, 17, 70, 1100)))
    shape = tuple(data.draw(st.lists(st.integers(0, largest), max_size=2 if largest > 17 else 3)))[
        : 1 + (largest < 1100)
    ]
    batch = data.draw(st.sampled_from(BATCHES[:3]))
    key = data.draw(keys(batch, math.prod(shape) // 2 + 2))
    theirs = _random.normal(key.reshape(*batch, *[1] * len(shape), 2) if batch else key, (*batch, *shape), dtype=dtype)
    ours = torch.ops.illia_ext.standard_normal(key.view(torch.int64) if signed else key, shape, dtype=dtype)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    arithmetic = arithmetic_dtype(dtype)
    bound = (4 * math.pi + 11) * torch.finfo(arithmetic).eps / 2 * LONGEST[arithmetic]
    spacing = 0.0 if dtype == arithmetic else torch.finfo(dtype).eps
    assert ((ours.double() - theirs.double()).abs() <= bound + spacing * theirs.double().abs()).all()


@MANY
@given(data=st.data(), blocks=st.integers(1, 500))
def test_words(data: st.DataObject, blocks: int) -> None:
    key = data.draw(keys((), blocks + 2))
    seed, offset = key.view(torch.int64)
    ours = torch.stack(random.philox4x32(seed.expand(blocks), offset + torch.arange(blocks)), dim=1).flatten()
    assert torch.equal(ours, as_signed(_random.bits(key, (4 * blocks,), dtype=torch.uint32)))


@MANY
@given(data=st.data(), batch=st.sampled_from(BATCHES), count=st.integers(1, 40))
def test_split(data: st.DataObject, batch: tuple[int, ...], count: int) -> None:
    key = data.draw(keys(batch, 20))
    assert torch.equal(random.split(key, count), as_signed(_random.split(key, count)))


@MANY
@given(data=st.data(), batch=st.sampled_from(BATCHES), word=words(20))
def test_fold_in(data: st.DataObject, batch: tuple[int, ...], word: int) -> None:
    key = data.draw(keys(batch, 20))
    expected = as_signed(_random.fold_in(key, word))
    signed = torch.tensor(word, dtype=torch.uint64).view(torch.int64)
    assert torch.equal(random.fold_in(key, word), expected) and torch.equal(random.fold_in(key, signed), expected)
