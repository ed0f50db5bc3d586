"""Forward values of every op against float64 arithmetic on the op's own noise."""

import math
from types import ModuleType

import pytest
import torch
from helpers import (
    FLOAT_DTYPES,
    HALF_DTYPES,
    LAYOUTS,
    SHAPES,
    UNIT_ROUNDOFF,
    arithmetic_dtype,
    function_roundoffs,
    log_prob_terms,
    make_key,
    make_keys,
    make_parameters,
    make_strided,
    noise,
    same_bits,
    same_sums,
    sigma,
)
from torch import Tensor

from illia_ext import functional, reference

PRIORS = (0.25, 0.125)  # mu_prior, std_prior: exact in every dtype
SAMPLES = [None, 0, 1, 3]

# In float64 our error and the reference's are of one size, and the two bounds add up.
REFERENCES = {torch.float32: 1, torch.float64: 2}


def keys_for(num_samples: int | None, device: torch.device) -> Tensor:
    if num_samples is None:
        return make_key(42, 2**32 - 1, device)
    return make_keys(*[(42 + i, 2**64 - 1 - i) for i in range(num_samples)], device=device)


def assert_x_close(x: Tensor, mu: Tensor, rho: Tensor, key: Tensor) -> None:
    """sigma errs by 2.5 ulp <= 5 u of itself (see function_roundoffs), fma rounds once, a half type once more."""
    precise = arithmetic_dtype(mu.dtype)
    spread = sigma(rho) * noise(key, mu)
    expected = mu.double() + spread
    bound = REFERENCES[precise] * UNIT_ROUNDOFF[precise] * (function_roundoffs(5, x) * spread.abs() + expected.abs())
    if x.dtype != precise:
        bound += UNIT_ROUNDOFF[x.dtype] * (expected.abs() + bound) + 2.0**-25  # half of float16's smallest number
    assert x.shape == expected.shape and x.is_contiguous()
    assert ((x.double() - expected).abs() <= bound).all()


def assert_sum_close(total: Tensor, terms: tuple[Tensor, ...], mu: Tensor) -> None:
    """design.md, section 5: 1e-6 of the sum of absolute values (2^-29 of that in double) and one final rounding."""
    precise = arithmetic_dtype(mu.dtype)
    samples = terms[0].shape[: terms[0].dim() - mu.dim()]
    rows = torch.stack([term.reshape(*samples, mu.numel()) for term in terms])
    expected, scale = rows.sum((0, -1)), rows.abs().sum((0, -1))
    bound = REFERENCES[precise] * 1e-6 * (UNIT_ROUNDOFF[precise] * 2**24) * scale
    bound += UNIT_ROUNDOFF[precise] * expected.abs()
    assert total.dtype == precise and total.shape == samples
    assert ((total.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("num_samples", SAMPLES)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_sample(shape: tuple[int, ...], dtype: torch.dtype, num_samples: int | None, device: torch.device) -> None:
    mu, rho = make_parameters(shape, dtype, device)
    key = keys_for(num_samples, device)
    x = functional.gaussian_sample(mu, rho, key)
    assert x.dtype == dtype
    assert_x_close(x, mu, rho, key)


@pytest.mark.parametrize("num_samples", SAMPLES)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_sample_and_log_prob(
    shape: tuple[int, ...], dtype: torch.dtype, num_samples: int | None, device: torch.device
) -> None:
    mu, rho = make_parameters(shape, dtype, device)
    key = keys_for(num_samples, device)
    x, log_prob = functional.gaussian_sample_and_log_prob(mu, rho, *PRIORS, key)
    assert same_bits(x, functional.gaussian_sample(mu, rho, key))
    eps = noise(key, mu)
    assert_sum_close(log_prob, log_prob_terms(mu.double() + sigma(rho) * eps, mu, rho, *PRIORS, eps), mu)


@pytest.mark.parametrize("num_samples", SAMPLES)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_log_prob(shape: tuple[int, ...], dtype: torch.dtype, num_samples: int | None, device: torch.device) -> None:
    mu, rho = make_parameters(shape, dtype, device)
    samples = () if num_samples is None else (num_samples,)
    x = make_parameters((*samples, *shape), dtype, device, seed=1)[0]
    log_prob = functional.gaussian_log_prob(x, mu, rho, *PRIORS)
    assert_sum_close(log_prob, log_prob_terms(x, mu, rho, *PRIORS), mu)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_kl_divergence(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    mu, rho = make_parameters(shape, dtype, device)
    mu_prior, std_prior = PRIORS
    squares = [(sigma(rho) / std_prior) ** 2 / 2, ((mu.double() - mu_prior) / std_prior) ** 2 / 2]
    constant = torch.full_like(squares[0], std_prior).log() - 0.5
    kl_divergence = functional.gaussian_kl_divergence(mu, rho, *PRIORS)
    assert_sum_close(kl_divergence, (-reference.log_sigma(rho.double()), constant, *squares), mu)


@pytest.mark.parametrize("seed", range(50))
def test_sums_of_equal_elements(seed: int, device: torch.device) -> None:
    """Equal roundings add up: the worst case. Beside 1e-6 of the summands, sigma's 2.11 ulp shift each log sigma."""
    mu, rho = (tensor.expand(4096).contiguous() for tensor in make_parameters((1,), torch.float32, device, seed))
    x = mu + sigma(rho).float()
    terms = log_prob_terms(x, mu, rho, *PRIORS)
    bound = sum(1e-6 * term.abs().sum() for term in terms) + 2.0**-22 * mu.numel()
    error = functional.gaussian_log_prob(x, mu, rho, *PRIORS).double() - sum(term.sum() for term in terms)
    assert error.abs() <= bound + UNIT_ROUNDOFF[torch.float32] * sum(term.sum() for term in terms).abs()


def every_output(x: Tensor, mu: Tensor, rho: Tensor, key: Tensor, module: ModuleType = functional) -> list[Tensor]:
    return [
        module.gaussian_sample(mu, rho, key),
        *module.gaussian_sample_and_log_prob(mu, rho, *PRIORS, key),
        module.gaussian_log_prob(x, mu, rho, *PRIORS),
        module.gaussian_kl_divergence(mu, rho, *PRIORS),
    ]


@pytest.mark.parametrize("num_samples", [None, 3])
def test_public_reference_says_the_same(num_samples: int | None, device: torch.device) -> None:
    """Noise differs by 2e-14 and each element's log_prob, some 10^3, has a slope of some 10^3 to it: 1e-12 is ample."""
    mu, rho = make_parameters((5, 13), torch.float64, device)
    args = (mu + 1, mu, rho, keys_for(num_samples, device))
    torch.testing.assert_close(every_output(*args), every_output(*args, reference), rtol=1e-12, atol=1e-12)


def test_ten_million_elements(device: torch.device) -> None:
    mu, rho = make_parameters((10**7 + 3,), torch.float32, device)
    key = keys_for(None, device)
    x, log_prob = functional.gaussian_sample_and_log_prob(mu, rho, *PRIORS, key)
    assert_x_close(x, mu, rho, key)
    eps = noise(key, mu)
    assert_sum_close(log_prob, log_prob_terms(mu.double() + sigma(rho) * eps, mu, rho, *PRIORS, eps), mu)


@pytest.mark.parametrize("num_samples", [None, 3])
@pytest.mark.parametrize("dtype", HALF_DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (17,), (1025,)])
def test_half_sample_beside_float32_parameters(
    shape: tuple[int, ...], dtype: torch.dtype, num_samples: int | None, device: torch.device
) -> None:
    mu, rho = make_parameters(shape, torch.float32, device)
    key = keys_for(num_samples, device)
    x, log_prob = functional.gaussian_sample_and_log_prob(mu, rho, *PRIORS, key)
    half_x, half_log_prob = functional.gaussian_sample_and_log_prob(mu, rho, *PRIORS, key, dtype=dtype)
    assert same_bits(half_x, x.to(dtype)) and same_sums(half_log_prob, log_prob)
    assert same_bits(functional.gaussian_sample(mu, rho, key, dtype=dtype), half_x)


@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_half_parameters_are_read_exactly(dtype: torch.dtype, device: torch.device) -> None:
    mu, rho = make_parameters((1025,), dtype, device)
    key = keys_for(3, device)
    x, log_prob = functional.gaussian_sample_and_log_prob(mu.float(), rho.float(), *PRIORS, key)
    half_x, half_log_prob = functional.gaussian_sample_and_log_prob(mu, rho, *PRIORS, key)
    assert same_bits(half_x, x.to(dtype)) and same_sums(half_log_prob, log_prob)


@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_log_prob_of_half_x_beside_float32_parameters(dtype: torch.dtype, device: torch.device) -> None:
    mu, rho = make_parameters((3, 1025), torch.float32, device)
    x = make_parameters((2, 3, 1025), dtype, device, seed=1)[0]
    expected = functional.gaussian_log_prob(x.float(), mu, rho, *PRIORS)
    assert same_sums(functional.gaussian_log_prob(x, mu, rho, *PRIORS), expected)


@pytest.mark.parametrize("prior_dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("prior_shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_priors_of_any_kind_are_one(
    dtype: torch.dtype, prior_shape: tuple[int, ...], prior_dtype: torch.dtype, device: torch.device
) -> None:
    mu, rho = make_parameters((65,), dtype, device)
    key = keys_for(2, device)
    where = "cpu" if prior_shape == () else device
    tensors = [torch.full(prior_shape, value, dtype=prior_dtype, device=where) for value in PRIORS]
    x, by_numbers = functional.gaussian_sample_and_log_prob(mu, rho, *PRIORS, key)
    assert same_bits(functional.gaussian_sample_and_log_prob(mu, rho, *tensors, key)[1], by_numbers)
    assert same_bits(functional.gaussian_sample_and_log_prob(mu, rho, PRIORS[0], tensors[1], key)[1], by_numbers)
    for op, args in ((functional.gaussian_log_prob, (x, mu, rho)), (functional.gaussian_kl_divergence, (mu, rho))):
        assert same_bits(op(*args, *tensors), op(*args, *PRIORS))


def test_prior_numbers_keep_float64(device: torch.device) -> None:
    mu, rho = make_parameters((65,), torch.float64, device)
    rounded = torch.tensor([0.1], dtype=torch.float32, device=device)
    precise = functional.gaussian_kl_divergence(mu, rho, 0.0, 0.1)
    torch.testing.assert_close(precise, reference.gaussian_kl_divergence(mu, rho, 0.0, 0.1), rtol=1e-14, atol=0)
    assert precise != functional.gaussian_kl_divergence(mu, rho, 0.0, rounded)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_matter(layout: str, dtype: torch.dtype, device: torch.device) -> None:
    x, mu, rho = strided = [make_strided(layout, dtype, device, seed) for seed in range(3)]
    key = keys_for(2, device)
    expected = every_output(*[tensor.contiguous() for tensor in strided], key)
    for outputs in (every_output(x, mu, rho, key), every_output(x, mu, rho.contiguous(), key)):
        assert all(map(same_bits, outputs, expected))
        assert all(output.is_contiguous() for output in outputs)


def test_chunks_are_added_without_loss(cpu: torch.device) -> None:
    """The sum of 2000 chunks in float64, added plainly, is off by some 10 of its ulps; a chunk by itself shows its own
    sum."""
    mu, rho = make_parameters((2000 * 1024,), torch.float64, cpu)
    parts = [functional.gaussian_kl_divergence(m, r, *PRIORS).item() for m, r in zip(mu.split(1024), rho.split(1024))]
    total = functional.gaussian_kl_divergence(mu, rho, *PRIORS).item()
    assert abs(total - math.fsum(parts)) <= math.ulp(total)
