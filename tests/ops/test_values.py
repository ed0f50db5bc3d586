"""Values and gradients of every op against float64 arithmetic on the op's own noise, bounded by exact.py."""

import math

import pytest
import torch
from agreement import Arguments, every_output
from exact import assert_exact, drawn_terms, every_exact, exact_sum
from helpers import (
    FLOAT_DTYPES,
    LAYOUTS,
    SHAPES,
    UNIT_ROUNDOFF,
    make_parameters,
    make_strided,
    same_bits,
    sigma,
)
from hypothesis import given
from law_cases import arguments

from illia_ext import functional, reference

ops = torch.ops.illia_ext
PRIORS = (0.25, 0.125)  # mu_prior, std_prior: exact in every dtype
parametrize = pytest.mark.parametrize


def assert_every_output_is_exact(a: Arguments) -> None:
    ours, expected = every_output(a), every_exact(a)
    assert same_bits(ours["sample"], ours["fused x"])
    assert_exact(ours, expected)
    # where only the sample is used, its gradient is that of gaussian_sample
    mu, rho = (tensor.detach().requires_grad_() for tensor in (a.mu, a.rho))
    x = functional.gaussian_sample_and_log_prob(mu, rho, a.mu_prior, a.std_prior, a.key, a.x.dtype)[0]
    names = ("sample: grad_mu", "sample: grad_rho")
    grads = dict(zip(names, torch.autograd.grad(x, (mu, rho), a.grad_x)))
    assert_exact(grads, {name: expected[name] for name in names})


@parametrize("num_samples", [None, 0, 1, 3])
@parametrize("dtype", FLOAT_DTYPES)
@parametrize("shape", SHAPES)
def test_every_output(
    shape: tuple[int, ...], dtype: torch.dtype, num_samples: int | None, device: torch.device
) -> None:
    assert_every_output_is_exact(Arguments.make(shape, dtype, num_samples=num_samples).to(device))


@given(arguments())
def test_every_output_of_random_arguments(a: Arguments) -> None:
    """Strides, samples narrower than their parameters, and priors of another dtype among them."""
    assert_every_output_is_exact(a)


# mu's shape, and those of mu_prior and std_prior; 1025 is one more than a chunk of the CPU kernels
PRIOR_SHAPES = [
    ((5, 13), (), (5, 13)),
    ((5, 13), (5, 1), (13,)),
    ((5, 13), (1, 13), (1, 1, 1)),
    ((5, 13), (1,), ()),
    ((), (1,), (1, 1)),
    ((1025,), (1025,), (1025,)),
    ((1025,), (), ()),
    ((3, 7, 131), (7, 1), (3, 1, 1)),
    ((2, 0), (2, 1), (2, 0)),
]


@parametrize("num_samples", [None, 0, 3])
@parametrize("prior_dtype", FLOAT_DTYPES)
@parametrize("dtype", FLOAT_DTYPES)
@parametrize("shapes", PRIOR_SHAPES, ids=str)
def test_priors_of_every_shape(
    shapes: tuple[tuple[int, ...], ...],
    dtype: torch.dtype,
    prior_dtype: torch.dtype,
    num_samples: int | None,
    device: torch.device,
) -> None:
    a, (_, mu_shape, std_shape) = Arguments.make(shapes[0], dtype, num_samples=num_samples).to(device), shapes
    mu_prior = make_parameters(mu_shape, prior_dtype, device, seed=1)[0]
    std_prior = torch.exp2(make_parameters(std_shape, prior_dtype, device, seed=2)[0] * 2)
    assert_every_output_is_exact(a._replace(mu_prior=mu_prior, std_prior=std_prior))


@parametrize("dtype", FLOAT_DTYPES)
def test_broadcast_and_strided_priors_are_their_copies(dtype: torch.dtype, device: torch.device) -> None:
    """Bit for bit; gradients to a prior add up over its copies."""
    priors = make_parameters((7, 1), dtype, device, 1)[0], make_parameters((3, 1, 1), dtype, device, 2)[0].exp2()
    a = Arguments.make((3, 7, 131), dtype, num_samples=3).to(device)
    full = [prior.expand_as(a.mu).contiguous() for prior in priors]
    strided = [torch.stack([prior, prior + 1], dim=-1)[..., 0] for prior in full]
    outputs = [every_output(a._replace(mu_prior=m, std_prior=s), prior_grads=False) for m, s in (full, priors, strided)]
    for name, expected in outputs[0].items():
        assert all(same_bits(ours[name], expected) for ours in outputs[1:]), name


@pytest.mark.usefixtures("two_threads")
@parametrize("dtype", FLOAT_DTYPES)
def test_many_elements(dtype: torch.dtype, device: torch.device) -> None:
    """Two threads share 65 chunks and the head of another: each takes at least 16, if there are as many."""
    assert_every_output_is_exact(Arguments.make((2**16 + 1037,), dtype).to(device))


@parametrize("seed", range(50))
def test_sums_of_equal_elements(seed: int, device: torch.device) -> None:
    """Equal roundings add up: the worst case. Beside 1e-6 of the summands, sigma's 2.11 ulp shift each log sigma."""
    mu, rho = (tensor.expand(4096).contiguous() for tensor in make_parameters((1,), torch.float32, device, seed))
    x = mu + sigma(rho).float()
    z = (x.double() - mu.double()) / sigma(rho)
    prior = [torch.tensor(value, dtype=torch.float64, device=device) for value in PRIORS]
    total, bound, _ = exact_sum(drawn_terms(rho, z, x.double(), *prior), mu)
    assert (functional.gaussian_log_prob(x, mu, rho, *PRIORS).double() - total).abs() <= bound + 2.0**-22 * mu.numel()


def test_chunks_are_added_without_loss(cpu: torch.device) -> None:
    """The sum of 2000 chunks in float64, added plainly, is off by some 10 of its ulps; a chunk by itself shows its own
    sum."""
    mu, rho = make_parameters((2000 * 1024,), torch.float64, cpu)
    parts = [functional.gaussian_kl_divergence(m, r, *PRIORS).item() for m, r in zip(mu.split(1024), rho.split(1024))]
    total = functional.gaussian_kl_divergence(mu, rho, *PRIORS).item()
    assert abs(total - math.fsum(parts)) <= math.ulp(total)


@parametrize("dtype", FLOAT_DTYPES)
@parametrize("layout", LAYOUTS)
def test_strides_do_not_matter(layout: str, dtype: torch.dtype, device: torch.device) -> None:
    """Neither of inputs nor of gradients to x; one input alone may have them, too."""
    mu, rho, x, grad_x, mu_prior = (make_strided(layout, dtype, device, seed) for seed in range(5))
    std_prior = LAYOUTS[layout](torch.exp2(make_parameters((2, 10, 6, 34), dtype, device, seed=5)[0]))
    given = {"mu": mu, "rho": rho, "x": x, "grad_x": grad_x, "mu_prior": mu_prior, "std_prior": std_prior}
    a = Arguments.make(mu.shape, dtype).to(device)._replace(**given)
    expected = every_output(Arguments(*(tensor.contiguous() for tensor in a)))
    for ours in (every_output(a), every_output(a._replace(rho=rho.contiguous()))):
        for name, output in ours.items():
            assert same_bits(output, expected[name]) and output.is_contiguous(), name


# Priors that are one for all elements


@parametrize("prior_dtype", FLOAT_DTYPES)
@parametrize("prior_shape", [(), (1,), (1, 1)])
@parametrize("dtype", FLOAT_DTYPES)
def test_priors_of_any_kind_are_one(
    dtype: torch.dtype, prior_shape: tuple[int, ...], prior_dtype: torch.dtype, device: torch.device
) -> None:
    a = Arguments.make((65,), dtype, num_samples=2).to(device)
    where = "cpu" if prior_shape == () else device
    tensors = [torch.full(prior_shape, value, dtype=prior_dtype, device=where) for value in PRIORS]
    for function in (
        lambda *priors: functional.gaussian_sample_and_log_prob(a.mu, a.rho, *priors, a.key)[1],
        lambda *priors: functional.gaussian_log_prob(a.x, a.mu, a.rho, *priors),
        lambda *priors: functional.gaussian_kl_divergence(a.mu, a.rho, *priors),
    ):
        expected = function(*PRIORS)
        assert same_bits(function(*tensors), expected) and same_bits(function(PRIORS[0], tensors[1]), expected)


def test_prior_numbers_keep_float64(device: torch.device) -> None:
    mu, rho = make_parameters((65,), torch.float64, device)
    rounded = torch.tensor([0.1], dtype=torch.float32, device=device)
    precise = functional.gaussian_kl_divergence(mu, rho, 0.0, 0.1)
    torch.testing.assert_close(precise, reference.gaussian_kl_divergence(mu, rho, 0.0, 0.1), rtol=1e-14, atol=0)
    assert precise != functional.gaussian_kl_divergence(mu, rho, 0.0, rounded)


def test_a_double_prior_of_each_element_is_rounded(device: torch.device) -> None:
    """To the arithmetic type, beside float32: 1e-50 becomes 0, whose logarithm is -inf."""
    mu, rho = make_parameters((65,), device=device)
    std_prior = torch.linspace(0.1, 3, 65, dtype=torch.float64, device=device)
    case = (mu, rho, mu.double(), std_prior)
    assert same_bits(ops.gaussian_kl_divergence(*case), ops.gaussian_kl_divergence(mu, rho, mu, std_prior.float()))
    std_prior[3] = 1e-50
    assert not ops.gaussian_kl_divergence(*case).isfinite()


@parametrize("dtype", FLOAT_DTYPES)
def test_equal_priors_are_one_prior(dtype: torch.dtype, device: torch.device) -> None:
    """With a power of two every quotient is exact, and gradients of each element have the same bits. One prior's
    gradient adds those of each in 32 lanes of float, which lose 1e-6 of their sizes, and is rounded once. The values
    are compared with float64 above."""
    a = Arguments.make((3, 7, 131), dtype, num_samples=3).to(device)
    each = every_output(a._replace(mu_prior=a.mu_prior.expand_as(a.mu), std_prior=a.std_prior.expand_as(a.mu)))
    for name, one in every_output(a).items():
        if name.endswith("_prior"):
            sizes, once = each[name].double(), UNIT_ROUNDOFF[one.dtype] * one.double().abs()
            # of each element, too, a half type stores a rounded gradient
            lost = (1e-6 + 2 * UNIT_ROUNDOFF[dtype]) * sizes.abs().sum() + once
            assert ((sizes.sum() - one.double()).abs() <= lost).all(), name
        elif one.dim():
            assert same_bits(one, each[name]) or one.shape == (3,), name


def test_without_a_gradient_to_log_prob_priors_get_zeros(device: torch.device) -> None:
    a = Arguments.make((5, 13), num_samples=3).to(device)
    priors = (make_parameters((13,), torch.bfloat16, device)[0], torch.ones((), dtype=torch.bfloat16, device=device))
    arguments = (a.grad_x, None, a.mu, a.rho, *priors, a.key)
    grads = ops.gaussian_sample_and_log_prob_backward(*arguments, prior_grads=True)
    for grad, prior in zip(grads[2:], priors):
        assert same_bits(grad, torch.zeros_like(prior))
    assert all(map(same_bits, grads[:2], ops.gaussian_sample_and_log_prob_backward(*arguments)[:2]))
