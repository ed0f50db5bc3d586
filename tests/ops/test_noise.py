"""Noise is a pure function of a key: against torch's own stateless generator, the reference, and its laws."""

from pathlib import Path

import pytest
import torch
from helpers import DEVICES_AGREE, make_key, make_keys, rng_state, same_bits

from illia_ext import GaussianDistribution, functional, random, reference
from illia_ext._native import library

standard_normal = torch.ops.illia_ext.standard_normal
core = library._C.core

# Offsets at which a carry into the high counter word or the wrap at 2^64 falls into the first blocks.
OFFSETS = (0, 1, 2**32 - 3, 2**32, 2**63 - 2, 2**63, 2**64 - 3)
SEEDS = (0, 42, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
NORMALS_PER_BLOCK = {torch.float32: 4, torch.float64: 2}

# float: the contract between devices. double: |eps| <= R <= 9.5; the reference's angle 2 pi u1 carries two roundings
# of at most 2 pi, so its sine errs by 2 pi 2^-52, ours by 2^-52.5; log, sqrt and products add less than 2^-50 of eps.
NOISE_TOLERANCE = {torch.float32: DEVICES_AGREE, torch.float64: 9.5 * (2 * torch.pi + 1) * 2.0**-52 + 2.0**-50}


def goldens(kind: str) -> list[list[int | float]]:
    """[seed, offset, argument, *values] of each line of this kind."""
    lines = (Path(__file__).parents[1] / "data" / "torch_func_random.txt").read_text().splitlines()
    fields = [line.replace(" =", "").split() for line in lines if line.startswith(kind + " ")]
    return [[*map(int, line[1:4]), *map(float if "float" in kind else int, line[4:])] for line in fields]


def assert_noise_close(eps: torch.Tensor, expected: torch.Tensor) -> None:
    error = (eps.double() - expected.double()).abs() / expected.double().abs().clamp(min=1)
    assert eps.dtype == expected.dtype and eps.shape == expected.shape
    assert error.max() <= NOISE_TOLERANCE[eps.dtype]


@pytest.mark.parametrize("dtype", NORMALS_PER_BLOCK)
@pytest.mark.parametrize("line", range(8))
def test_normals_are_those_of_torch(dtype: torch.dtype, line: int, device: torch.device) -> None:
    seed, offset, n, *values = goldens(str(dtype).removeprefix("torch."))[line]
    eps = standard_normal(make_key(seed, offset, device), [n], dtype=dtype)
    assert_noise_close(eps.cpu(), torch.tensor(values, dtype=dtype))


def test_first_normals_of_key_42(device: torch.device) -> None:
    eps = standard_normal(random.key(42, device), [6], dtype=torch.float32)
    assert eps.tolist() == pytest.approx([-0.9702, 0.1940, -1.2356, 1.9239, -0.0732, 0.1391], abs=5e-5)
    eps = standard_normal(random.key(42, device), [2], dtype=torch.float64)
    assert eps.tolist() == pytest.approx([0.886497505901441, 0.4393560694379269], abs=NOISE_TOLERANCE[torch.float64])


def test_uniform_that_rounds_to_one_gives_zero(device: torch.device) -> None:
    block = 52825872  # of seed 42: its word 2 is 2^32 - 66, and u0 = 1 in float
    assert core.philox4x32([block, 0, 0, 0], [42, 0])[2] == 2**32 - 66
    eps = standard_normal(make_key(42, block, device), [4], dtype=torch.float32)
    assert eps[2:].tolist() == [0, 0] and eps[:2].abs().min() > 0


def test_smallest_uniform_gives_the_longest_radius(device: torch.device) -> None:
    block = 85359727  # of seed 42: its word 0 is 11, so R = 6.283
    key = make_key(42, block, device)
    eps = standard_normal(key, [2], dtype=torch.float32)
    assert_noise_close(eps, reference.standard_normal(key, [2]))
    assert eps.norm() > 6.28


@pytest.mark.parametrize("dtype", NORMALS_PER_BLOCK)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("offset", OFFSETS)
def test_noise_against_reference(dtype: torch.dtype, seed: int, offset: int, device: torch.device) -> None:
    key = make_key(seed, offset, device)
    assert_noise_close(standard_normal(key, [67], dtype=dtype), reference.standard_normal(key, [67], dtype))


@pytest.mark.parametrize("dtype", NORMALS_PER_BLOCK)
def test_a_million_normals_against_reference(dtype: torch.dtype, device: torch.device) -> None:
    key = make_key(2**63 + 5, 2**32 - 1000, device)
    eps = standard_normal(key, [2**20 + 1], dtype=dtype)
    assert_noise_close(eps, reference.standard_normal(key, [2**20 + 1], dtype))
    assert abs(eps.mean()) < 5 * 2.0**-10 and abs(eps.var() - 1) < 5 * 2.0**-9.5  # five standard errors


@pytest.mark.parametrize("line", range(8))
def test_split_is_that_of_torch(line: int, device: torch.device) -> None:
    seed, offset, n, *words = goldens("split")[line]
    expected = make_keys(*zip(words[::2], words[1::2]), device=device)
    assert torch.equal(random.split(make_key(seed, offset, device), n), expected)


def test_fold_in_is_that_of_torch(device: torch.device) -> None:
    lines = goldens("fold_in")
    assert len(lines) == 28
    for seed, offset, data, *words in lines:
        assert torch.equal(random.fold_in(make_key(seed, offset, device), data), make_key(*words, device))


def test_fold_in_is_philox_at_offset_plus_data(device: torch.device) -> None:
    seed, offset, data = 2**63 + 2**35 + 9, 2**64 - 5, 2**33 + 6
    counter = (offset + data) % 2**64
    r = core.philox4x32([counter % 2**32, counter >> 32, 0, 0], [seed % 2**32, seed >> 32])
    expected = make_key(r[0] + (r[1] << 32), r[2] + (r[3] << 32))
    assert torch.equal(random.fold_in(make_key(seed, offset), data), expected)
    assert torch.equal(random.fold_in(make_key(seed, offset), torch.tensor(data, device=device)), expected)


def test_split_and_fold_in_treat_keys_of_a_batch_alone(device: torch.device) -> None:
    keys = random.split(make_key(42, 0, device), 6).reshape(2, 3, 2)
    folded, split = random.fold_in(keys, 7), random.split(keys, 4)
    assert folded.shape == (2, 3, 2) and split.shape == (4, 2, 3, 2)
    for i in range(2):
        for j in range(3):
            assert torch.equal(folded[i, j], random.fold_in(keys[i, j], 7))
            assert torch.equal(split[:, i, j], random.split(keys[i, j], 4))
    assert random.split(keys, 0).shape == (0, 2, 3, 2)


def test_key_is_seed_and_zero(device: torch.device) -> None:
    assert random.key(5, device).tolist() == [5, 0]
    assert torch.equal(random.key(2**64 - 1), random.key(-1))


@pytest.mark.parametrize("num_keys", [None, 0, 1, 5])
def test_draw_key_is_randint(num_keys: int | None, device: torch.device) -> None:
    torch.manual_seed(17)
    keys = random.draw_key(num_keys, device=device)
    torch.manual_seed(17)
    expected = torch.randint(2**63 - 1, [2] if num_keys is None else [num_keys, 2], device=device)
    assert torch.equal(keys, expected) and keys.dtype == torch.int64


def test_draw_key_takes_a_generator(device: torch.device) -> None:
    generator = torch.Generator(device).manual_seed(3)
    before = rng_state(device)
    keys = random.draw_key(2, device=device, generator=generator)
    assert torch.equal(keys, torch.randint(2**63 - 1, [2, 2], generator=generator.manual_seed(3), device=device))
    assert torch.equal(rng_state(device), before)


@pytest.mark.parametrize("num_samples", [None, 3])
def test_distribution_draws_one_key_a_call(num_samples: int | None, device: torch.device) -> None:
    distribution = GaussianDistribution((5, 13), device=device)
    torch.manual_seed(29)
    samples = [distribution.sample(num_samples) for _ in range(2)]
    torch.manual_seed(29)
    for x in samples:
        key = random.draw_key(num_samples, device=device)
        assert same_bits(x, functional.gaussian_sample(distribution.mu, distribution.rho, key))


def test_different_keys_give_independent_noise(device: torch.device) -> None:
    keys = random.split(random.key(0, device), 8)
    eps = standard_normal(keys, [2**14], dtype=torch.float64)
    correlations = torch.corrcoef(eps) - torch.eye(8, dtype=torch.float64, device=device)
    assert correlations.abs().max() < 5 * 2.0**-7  # five standard errors
