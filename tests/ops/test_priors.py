"""Priors of each element and the gradients to priors of any shape: the ops themselves, against formulas in float64."""

import pytest
import torch
from helpers import (
    FLOAT_DTYPES,
    UNIT_ROUNDOFF,
    function_roundoffs,
    make_parameters,
    noise,
    same_bits,
    sigma,
)
from prior_cases import SHAPES, PriorCase
from test_sentinels import enclose, surround
from torch import Tensor

from illia_ext import reference

ops = torch.ops.illia_ext
inf, nan = float("inf"), float("nan")
EVERYTHING = [True] * 5


@pytest.mark.parametrize("num_samples", [None, 0, 3])
@pytest.mark.parametrize("prior_dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_values_and_prior_gradients(
    shapes: tuple[tuple[int, ...], ...],
    dtype: torch.dtype,
    prior_dtype: torch.dtype,
    num_samples: int | None,
    device: torch.device,
) -> None:
    case = PriorCase(shapes, dtype, prior_dtype, num_samples, device)
    mu, rho, mu_prior, std_prior = case.mu, case.rho, *case.exact_priors()
    log_sigma, spread = reference.log_sigma(rho.double()), sigma(rho)

    # 1. a drawn x
    x, log_prob = ops.gaussian_sample_and_log_prob(mu, rho, *case.priors, case.key)
    exact_x, eps = case.drawn_x(), noise(case.key, mu)
    z_p = (exact_x - mu_prior) / std_prior
    case.assert_log_prob(log_prob, [z_p**2 / 2, -(eps**2) / 2, -log_sigma, std_prior.log()])
    assert same_bits(x, ops.gaussian_sample(mu, rho, case.key))
    arguments = (case.grad_x, case.grad_log_prob, mu, rho, *case.priors, case.key)
    grads = ops.gaussian_sample_and_log_prob_backward(*arguments, prior_grads=True)
    case.assert_prior_grads(grads[2:], exact_x, mu.double().abs() + spread * eps.abs(), 0.0)

    # 2. a given x
    log_prob = ops.gaussian_log_prob(x, mu, rho, *case.priors)
    z_p, z = (x.double() - mu_prior) / std_prior, (x.double() - mu.double()) / spread
    case.assert_log_prob(log_prob, [z_p**2 / 2, -(z**2) / 2, -log_sigma, std_prior.log()])
    grads = ops.gaussian_log_prob_backward(case.grad_log_prob, x, mu, rho, *case.priors, EVERYTHING)
    case.assert_prior_grads(grads[3:], x.double(), x.double().abs(), 0.0)


@pytest.mark.parametrize("prior_dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_kl_divergence(
    shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype, prior_dtype: torch.dtype, device: torch.device
) -> None:
    case = PriorCase(shapes, dtype, prior_dtype, None, device)
    mu, rho, mu_prior, std_prior = case.mu, case.rho, *case.exact_priors()
    z_mu, z_sigma = (mu.double() - mu_prior) / std_prior, sigma(rho) / std_prior
    terms = [z_mu**2 / 2, z_sigma**2 / 2, -reference.log_sigma(rho.double()), std_prior.log(), 0 * z_mu - 0.5]
    case.assert_log_prob(ops.gaussian_kl_divergence(mu, rho, *case.priors), terms)
    grads = ops.gaussian_kl_divergence_backward(case.grad_log_prob, mu, rho, *case.priors, True)
    case.assert_prior_grads(grads[2:], mu.double(), mu.double().abs(), z_sigma)


def every_output(
    case: PriorCase, priors: tuple[Tensor, Tensor], prior_grads: bool = True, stick: bool = False
) -> list[Tensor]:
    mu, rho, go = case.mu, case.rho, case.grad_log_prob
    return [
        *ops.gaussian_sample_and_log_prob(mu, rho, *priors, case.key, stick_the_landing=stick),
        ops.gaussian_log_prob(case.grad_x, mu, rho, *priors),
        ops.gaussian_kl_divergence(mu, rho, *priors),
        *ops.gaussian_sample_and_log_prob_backward(
            case.grad_x, go, mu, rho, *priors, case.key, stick_the_landing=stick, prior_grads=prior_grads
        ),
        *ops.gaussian_log_prob_backward(go, case.grad_x, mu, rho, *priors, [True] * 3 + [prior_grads] * 2),
        *ops.gaussian_kl_divergence_backward(go.flatten()[0], mu, rho, *priors, prior_grads),
    ]


OF_PRIORS = (6, 7, 11, 12, 15, 16)  # places of their gradients among every output


@pytest.mark.parametrize("stick", [False, True])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_equal_priors_are_one_prior(dtype: torch.dtype, stick: bool, device: torch.device) -> None:
    """With a power of two every quotient is exact, and gradients of each element have the same bits. One prior's
    gradient adds those of each in 32 lanes of float, which lose 1e-6 of their sizes, and is rounded once. The values
    are compared with float64 above."""
    case = PriorCase(((3, 7, 131), (1,), (1,)), dtype, dtype, 3, device)
    one = (torch.tensor(0.25, device=device), torch.tensor(0.125, device=device))
    each = tuple(prior.expand_as(case.mu) for prior in one)
    for place, (a, b) in enumerate(zip(every_output(case, one, True, stick), every_output(case, each, True, stick))):
        if place in OF_PRIORS:
            lost = (1e-6 + 2.0**-24) * b.double().abs().sum() + 2.0**-24 * a.double().abs()
            assert ((b.double().sum() - a.double()).abs() <= lost).all()
        elif a.numel() > 3:
            assert same_bits(a, b)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_broadcast_and_strided_priors_are_their_copies(dtype: torch.dtype, device: torch.device) -> None:
    case = PriorCase(((3, 7, 131), (7, 1), (3, 1, 1)), dtype, dtype, 3, device)
    full = tuple(prior.expand_as(case.mu).contiguous() for prior in case.priors)
    outputs = zip(every_output(case, case.priors), every_output(case, full))
    for place, (ours, expected) in enumerate(outputs):
        if place not in OF_PRIORS:
            assert same_bits(ours, expected)
    larger = tuple(torch.stack([prior, prior + 1, prior - 1], dim=-1) for prior in full)
    strided = tuple(prior[..., 0] for prior in larger)
    assert all(map(same_bits, every_output(case, strided), every_output(case, full)))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("numel", [1, 17, 1023, 1025])
def test_nothing_around_priors_is_read_or_written(numel: int, dtype: torch.dtype, device: torch.device) -> None:
    case = PriorCase(((numel,), (numel,), (numel,)), dtype, dtype, 3, device)
    expected = every_output(case, case.priors)
    surrounded = [surround(prior) for prior in case.priors]
    before = [outside.clone() for _, outside in surrounded]
    assert all(map(same_bits, every_output(case, tuple(inside for inside, _ in surrounded)), expected))
    assert all(same_bits(outside, copy) for (_, outside), copy in zip(surrounded, before))
    assert all(map(same_bits, every_output(case, tuple(map(enclose, case.priors))), expected))


@pytest.mark.parametrize("stick", [False, True])
@pytest.mark.parametrize("shapes", [SHAPES[0], SHAPES[6]], ids=str)
def test_gradients_to_priors_only_when_asked_for(
    shapes: tuple[tuple[int, ...], ...], stick: bool, device: torch.device
) -> None:
    """And whether they are changes no bit of the others."""
    case = PriorCase(shapes, torch.float32, torch.float64, 3, device)
    asked, plain = (every_output(case, case.priors, prior_grads, stick) for prior_grads in (True, False))
    for place, (a, b) in enumerate(zip(asked, plain)):
        assert (b.shape == (0,) and b.dtype == case.mu.dtype) if place in OF_PRIORS else same_bits(a, b)
    for place in (3, 4):
        mask = [i == place for i in range(5)]
        grads = ops.gaussian_log_prob_backward(case.grad_log_prob, case.grad_x, case.mu, case.rho, *case.priors, mask)
        assert same_bits(grads[place], asked[8 + place])
        assert all(grad.shape == (0,) for i, grad in enumerate(grads) if i != place)


def test_without_a_gradient_to_log_prob_priors_get_zeros(device: torch.device) -> None:
    case = PriorCase(((5, 13), (13,), ()), torch.float32, torch.bfloat16, 3, device)
    arguments = (case.grad_x, None, case.mu, case.rho, *case.priors, case.key)
    grads = ops.gaussian_sample_and_log_prob_backward(*arguments, prior_grads=True)
    for grad, prior in zip(grads[2:], case.priors):
        assert grad.dtype == prior.dtype and torch.equal(grad, torch.zeros_like(prior))
    expected = ops.gaussian_sample_and_log_prob_backward(*arguments)
    assert all(map(torch.equal, grads[:2], expected[:2]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [1e-42, 1e-38, 1e-30, 1e30, 3e38, 0.0, -0.0, -1.0, inf, nan])
def test_extreme_std_prior_of_each_element(value: float, dtype: torch.dtype, device: torch.device) -> None:
    """As the same value as one prior has it: sums within 1e-5, nothing finite turns infinite, and of x = mu_prior no
    gradient to x. A subnormal std_prior has an inverse of at most the largest number."""
    mu, rho = torch.zeros(40, device=device, dtype=dtype), torch.full((40,), -1.0, device=device, dtype=dtype)
    std, ordinary = mu.new_full((1,), value), torch.ones_like(mu)
    each = torch.where(torch.arange(40, device=device) == 17, std, ordinary)
    mu_prior = torch.zeros_like(mu)
    go = mu.new_ones(())

    def outputs(std_prior: Tensor, count: slice) -> list[Tensor]:
        args = (mu[count], rho[count], mu_prior[count], std_prior)
        return [
            ops.gaussian_log_prob(mu[count], *args),
            ops.gaussian_kl_divergence(*args),
            *ops.gaussian_log_prob_backward(go, mu[count], *args, EVERYTHING),
            *ops.gaussian_kl_divergence_backward(go, *args, True),
        ]

    rest = torch.arange(40, device=device) != 17
    ours, others = outputs(each, slice(None)), outputs(ordinary, slice(None))
    alone = outputs(std, slice(17, 18))
    one = [other / 40 for other in others[:2]]
    for total, other, share, single in zip(ours[:2], others[:2], one, alone[:2]):
        torch.testing.assert_close(total, other - share + single, rtol=1e-5, atol=1e-5, equal_nan=True)
    for grad, other, single in zip(ours[2:], others[2:], alone[2:]):
        assert same_bits(grad[rest], other[rest])
        torch.testing.assert_close(grad[17], single[0], rtol=1e-5, atol=0, equal_nan=True)
    assert not ours[0].isnan() if value > 0 else not ours[0].isfinite()
    if 0 < value < inf:
        assert all(output.isfinite().all() for output in (ours[0], *ours[2:8]))  # the rest holds sigma / std_prior


def test_a_double_prior_of_each_element_is_rounded(device: torch.device) -> None:
    """To the arithmetic type, beside float32: 1e-50 becomes 0, whose logarithm is -inf."""
    mu, rho = make_parameters((65,), device=device)
    std_prior = torch.linspace(0.1, 3, 65, dtype=torch.float64, device=device)
    case = (mu, rho, mu.double(), std_prior)
    assert same_bits(ops.gaussian_kl_divergence(*case), ops.gaussian_kl_divergence(mu, rho, mu, std_prior.float()))
    std_prior[3] = 1e-50
    assert not ops.gaussian_kl_divergence(*case).isfinite()


@pytest.mark.parametrize("num_samples", [None, 0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stick_the_landing(dtype: torch.dtype, num_samples: int | None, device: torch.device) -> None:
    """grad_mu = g - go eps / sigma and grad_rho = sigmoid(rho) eps g - go eps^2 h, g the gradient to x. Bounds as of
    test_backward.py: 3 functions of 8 u and S additions, of the sizes of the summands."""
    case = PriorCase(((5, 13), (5, 1), (13,)), dtype, dtype, num_samples, device)
    arguments = (case.grad_x, case.grad_log_prob, case.mu, case.rho, *case.priors, case.key)
    grads = ops.gaussian_sample_and_log_prob_backward(*arguments, stick_the_landing=True)
    mu_prior, std_prior = case.exact_priors()
    eps, go, spread, slope = (
        noise(case.key, case.mu),
        case.per_sample(),
        sigma(case.rho),
        torch.sigmoid(case.rho.double()),
    )
    pull = go * (case.drawn_x() - mu_prior) / std_prior**2
    size = go.abs() * (case.mu.double().abs() + spread * eps.abs() + mu_prior.abs()) / std_prior**2
    held, h = go * eps / spread, slope / spread
    g, g_size = case.grad_x.double() + pull, case.grad_x.double().abs() + size
    exact = (g - held, slope * eps * g - go * eps**2 * h)
    sizes = (g_size + held.abs(), slope * eps.abs() * g_size + go.abs() * eps**2 * h)
    u = UNIT_ROUNDOFF[dtype] * (2 if dtype == torch.float64 else 1)
    for grad, expected, scale in zip(grads, map(case.sum_samples, exact), map(case.sum_samples, sizes)):
        roundoffs = 3 * function_roundoffs(8, grad) + (num_samples or 1)
        assert ((grad.double() - expected).abs() <= roundoffs * u * scale).all()
