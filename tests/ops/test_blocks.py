"""A block of a larger tensor draws the larger tensor's noise: of `full_size` and `origin`, the slice bit for bit."""

from collections.abc import Sequence

import pytest
import torch
from helpers import FLOAT_DTYPES, make_key, make_keys, make_parameters, same_bits
from torch import Tensor

from illia_ext import reference

ops = torch.ops.illia_ext
PRIORS = (torch.tensor(0.25), torch.tensor(0.125))

# full_size, origin, size. 4 (float64: 2) normals a Philox block, 128 drawn at once, tiles of 256, chunks of 1024.
BLOCKS = [
    # one row
    ((5000,), (0,), (5000,)),
    ((5000,), (128,), (3000,)),
    ((5000,), (1,), (1024,)),
    ((5000,), (1023,), (1026,)),
    ((5000,), (4999,), (1,)),
    ((6, 1000), (2, 0), (3, 1000)),
    ((6, 1, 1000), (5, 0, 37), (1, 1, 700)),
    # rows: short, around a Philox block, around a batch of normals, of a chunk and longer
    *[((20, 1201), (3, 5), (17, count)) for count in (1, 2, 3, 4, 5, 7, 8, 127, 128, 129, 1196)],
    *[((20, 1201), (0, start), (19, 64)) for start in (0, 1, 2, 3, 4, 1137)],
    ((1500, 2), (0, 1), (1500, 1)),
    ((1500, 3), (1, 0), (1499, 2)),
    ((4, 3000), (1, 1), (2, 2500)),
    # more dimensions: rows of whole trailing ones, neighbours that lie as one, and none that does
    ((5, 7, 11), (1, 2, 0), (3, 4, 11)),
    ((5, 7, 11), (0, 0, 3), (5, 7, 6)),
    ((5, 7, 11), (1, 2, 3), (3, 4, 5)),
    ((6, 5, 4, 3), (0, 1, 0, 1), (6, 3, 4, 2)),
    ((9, 8, 7, 6), (2, 1, 3, 2), (7, 6, 3, 3)),
    ((3,) * 8, (1, 0, 1, 0, 1, 0, 1, 0), (2,) * 8),
    # nothing, and one
    ((), (), ()),
    ((0,), (0,), (0,)),
    ((5, 7), (5, 2), (0, 3)),
    ((5, 7), (2, 7), (3, 0)),
]


def slices(origin: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(start, start + count) for start, count in zip(origin, size))


def draws(
    mu: Tensor, rho: Tensor, grad_x: Tensor, key: Tensor, grad_log_prob: Tensor, **block: Sequence[int]
) -> list[Tensor]:
    """What each op makes of every element: all but log_prob."""
    priors = [prior.to(mu.device) for prior in PRIORS]
    return [
        ops.standard_normal(key, mu.shape, dtype=mu.dtype, **block),
        ops.gaussian_sample(mu, rho, key, **block),
        ops.gaussian_sample_and_log_prob(mu, rho, *priors, key, **block)[0],
        ops.gaussian_sample_backward(grad_x, rho, key, **block),
        *ops.gaussian_sample_and_log_prob_backward(grad_x, grad_log_prob, mu, rho, *priors, key, **block)[:2],
    ]


@pytest.mark.parametrize("num_samples", [None, 0, 3])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_block_is_a_slice_of_the_whole(
    block: tuple[tuple[int, ...], ...], dtype: torch.dtype, num_samples: int | None, device: torch.device
) -> None:
    full_size, origin, size = block
    key = make_keys(*[(42 + i, 2**64 - 5 - i) for i in range(num_samples or 0)], device=device)
    key = make_key(42, 2**32 - 5, device) if num_samples is None else key
    mu, rho = make_parameters(full_size, dtype, device)
    grad_x = make_parameters((*key.shape[:-1], *full_size), dtype, device, seed=1)[0]
    grad_log_prob = make_parameters(key.shape[:-1], torch.float64, device, seed=2)[0]
    grad_log_prob = grad_log_prob.to(torch.float64 if dtype == torch.float64 else torch.float32)

    whole = draws(mu, rho, grad_x, key, grad_log_prob)
    inside = slices(origin, size)
    local = (mu[inside], rho[inside], grad_x[(..., *inside)])
    for ours, expected in zip(draws(*local, key, grad_log_prob, full_size=full_size, origin=origin), whole):
        assert same_bits(ours, expected[(..., *inside)])


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_log_prob_sums_over_local_elements(dtype: torch.dtype, device: torch.device) -> None:
    """In float64, where the parts of a sum of some 10^3 terms add up to the whole within 10^3 roundings of 2^-53."""
    full_size, parts = (37, 29), [(0, 0, 20, 11), (0, 11, 20, 18), (20, 0, 17, 29)]
    mu, rho = (parameter.double() for parameter in make_parameters(full_size, dtype, device))
    key, priors = make_keys((1, 2), (3, 4), device=device), [prior.to(device) for prior in PRIORS]
    whole = ops.gaussian_sample_and_log_prob(mu, rho, *priors, key)[1]
    total, largest = torch.zeros_like(whole), 0.0
    for row, column, height, width in parts:
        inside = slices((row, column), (height, width))
        block = {"full_size": full_size, "origin": (row, column)}
        log_prob = ops.gaussian_sample_and_log_prob(mu[inside], rho[inside], *priors, key, **block)[1]
        total, largest = total + log_prob, largest + log_prob.abs().max().item()
    assert ((total - whole).abs() <= 1e3 * 2.0**-53 * largest).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_place_beyond_any_memory(dtype: torch.dtype, device: torch.device) -> None:
    """Places are 64-bit: the same block, where its counters are the offset of a key."""
    per_block = 2 if dtype == torch.float64 else 4
    rows, columns = 2**31 - 1, 2**30
    full_size, origin, size = (rows, columns), (rows - 3, columns - 40), (3, 40)
    eps = ops.standard_normal(make_key(9, 7, device), size, dtype=dtype, full_size=full_size, origin=origin)
    for row in range(3):
        counter = 7 + ((rows - 3 + row) * columns + columns - 40) // per_block
        assert same_bits(eps[row], ops.standard_normal(make_key(9, counter, device), [40], dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_block_against_the_reference(dtype: torch.dtype, device: torch.device) -> None:
    """2e-6 and 1e-12 of max(1, |eps|): what two implementations of the stream may differ by (test_noise.py)."""
    key, block = make_key(5, 6, device), {"full_size": (9, 13, 5), "origin": (2, 1, 3)}
    eps = ops.standard_normal(key, [7, 11, 2], dtype=dtype, **block)
    expected = reference.standard_normal(key, [7, 11, 2], dtype, **block)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    assert ((eps - expected).abs() <= tolerance * expected.abs().clamp(min=1)).all()
