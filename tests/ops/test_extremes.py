"""The ends of every range: nothing finite turns infinite, and what is not finite behaves as PyTorch's functions do."""

import pytest
import torch
from agreement import Arguments
from exact import every_exact
from helpers import (
    FLOAT_DTYPES,
    HALF_DTYPES,
    UNIT_ROUNDOFF,
    arithmetic_dtype,
    function_roundoffs,
    make_key,
    noise,
    same_bits,
    sigma,
)
from torch import Tensor

from illia_ext import GaussianDistribution, functional

inf, nan = float("inf"), float("nan")
ops = torch.ops.illia_ext

# Around the places where exp, softplus or their products leave a type's range.
FINITE = [-1000, -746, -745.1, -709, -708.3, -104, -103.9, -88, -87.3, -40, -17, -7, -1, -1e-30, -0.0]
FINITE += [0, 1e-30, 0.5, 1, 17, 40, 63.9, 64.1, 87, 88.7, 89, 104, 709, 746, 1000]


def every_rho(dtype: torch.dtype, device: torch.device) -> Tensor:
    """All finite values of a half type; for the others FINITE, a grid and the largest numbers."""
    if dtype in HALF_DTYPES:
        rho = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
        return rho[rho.isfinite()].to(device)
    largest = torch.finfo(dtype).max
    points = [torch.tensor([*FINITE, -largest, largest], dtype=dtype), torch.linspace(-1000, 1000, 20011, dtype=dtype)]
    return torch.cat(points).to(device)


def assert_close(ours: Tensor, expected: Tensor, roundoffs: float) -> None:
    """`expected` is float64, `roundoffs` are the CPU's (see function_roundoffs). In a half type the stored result has
    one rounding more; an absolute error of 8 smallest subnormal numbers is that of one in sigma, times |eps| < 7."""
    precise, finfo = arithmetic_dtype(ours.dtype), torch.finfo(ours.dtype)
    roundoffs = function_roundoffs(roundoffs, ours)
    rtol = 2 * roundoffs * UNIT_ROUNDOFF[precise] if precise == torch.float64 else roundoffs * UNIT_ROUNDOFF[precise]
    rtol += 0 if ours.dtype == precise else UNIT_ROUNDOFF[ours.dtype]
    atol = 8 * finfo.smallest_normal * finfo.eps
    overflows = expected.to(ours.dtype).isinf()
    torch.testing.assert_close(ours[overflows], expected[overflows].to(ours.dtype), rtol=0, atol=0)
    torch.testing.assert_close(
        ours[~overflows].double(), expected[~overflows], rtol=rtol, atol=atol, equal_nan=True, check_device=False
    )


def sigmoid(rho: Tensor) -> Tensor:
    """In float64; torch.sigmoid is 0 where exp(-rho) overflows, and there exp(rho) is the same number."""
    rho = rho.double()
    return torch.where(rho < -40, rho.exp(), torch.sigmoid(rho))


def h_of(rho: Tensor) -> Tensor:
    """h = d log sigma / d rho through an op: KL's gradient to rho under an infinitely wide prior is -h."""
    rho = rho.detach().requires_grad_()
    flat = torch.tensor([inf], dtype=rho.dtype, device=rho.device)
    kl_divergence = functional.gaussian_kl_divergence(torch.zeros_like(rho), rho, 0.0, flat)
    return -torch.autograd.grad(kl_divergence, rho)[0]


def sigmoid_eps_of(rho: Tensor, key: Tensor) -> Tensor:
    """sigmoid(rho) eps through an op: the gradient of sum(x) to rho."""
    rho = rho.detach().requires_grad_()
    return torch.autograd.grad(functional.gaussian_sample(torch.zeros_like(rho), rho, key).sum(), rho)[0]


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_sigma_of_every_rho(dtype: torch.dtype, device: torch.device) -> None:
    """2.5 ulp <= 5 u, and the rounding of x = 0 + sigma eps."""
    rho, key = every_rho(dtype, device), make_key(1, device=device)
    x = functional.gaussian_sample(torch.zeros_like(rho), rho, key)
    assert_close(x, sigma(rho) * noise(key, rho), roundoffs=6)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_sigmoid_of_every_rho(dtype: torch.dtype, device: torch.device) -> None:
    """5 ulp <= 10 u, and the product with eps."""
    rho, key = every_rho(dtype, device), make_key(1, device=device)
    gradient = sigmoid_eps_of(rho, key)
    assert gradient.isfinite().all()
    assert_close(gradient, sigmoid(rho) * noise(key, rho), roundoffs=11)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_h_of_every_rho(dtype: torch.dtype, device: torch.device) -> None:
    """3 ulp <= 6 u. The reference is a quotient that float64 forms above -700; below, h is 1 to the last bit."""
    rho = every_rho(dtype, device)
    quotient = sigmoid(rho) / sigma(rho)
    h = h_of(rho)
    assert h.isfinite().all()
    assert_close(h, torch.where(rho > -700, quotient, 1.0), roundoffs=6)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("rho_value", FINITE)
def test_log_prob_of_one_element(rho_value: float, dtype: torch.dtype, device: torch.device) -> None:
    """Within the bounds of all other values, drawn and in closed form."""
    a = Arguments.make((1,), dtype).to(device)
    std_prior = torch.tensor([max(1.0, rho_value)], dtype=torch.float64, device=device)
    a = a._replace(mu=torch.zeros_like(a.mu), rho=torch.full_like(a.rho, rho_value), std_prior=std_prior)
    expected = every_exact(a)
    log_prob = functional.gaussian_sample_and_log_prob(*a[:2], a.mu_prior, std_prior, a.key)[1]
    kl_divergence = functional.gaussian_kl_divergence(*a[:2], a.mu_prior, std_prior)
    for name, total in (("fused log_prob", log_prob), ("kl_divergence", kl_divergence)):
        assert (total.double() - expected[name].value).abs() <= expected[name].bound, name


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_log_sigma_of_the_most_negative_rho(dtype: torch.dtype, device: torch.device) -> None:
    rho, key = torch.tensor([torch.finfo(dtype).min], dtype=dtype, device=device), make_key(1, device=device)
    log_prob = functional.gaussian_sample_and_log_prob(torch.zeros_like(rho), rho, 0.0, 1.0, key)[1]
    expected = -rho.double() - noise(key, rho) ** 2 / 2
    torch.testing.assert_close(log_prob.double(), expected[0], rtol=UNIT_ROUNDOFF[log_prob.dtype], atol=0)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_infinite_and_nan_rho(dtype: torch.dtype, device: torch.device) -> None:
    """sigma and sigmoid are those of torch; h has its limit."""
    rho = torch.tensor([-inf, inf, nan, -1.0], dtype=dtype, device=device)
    key = make_key(1, device=device)
    x = functional.gaussian_sample(torch.zeros_like(rho), rho, key)
    assert_close(x, sigma(rho) * noise(key, rho), roundoffs=6)
    assert_close(sigmoid_eps_of(rho, key), sigmoid(rho) * noise(key, rho), roundoffs=11)
    assert h_of(rho)[0] == 1 and h_of(rho)[2].isnan()


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize(
    ("mu", "rho"), [(0, -inf), (0, inf), (0, nan), (inf, 0), (-inf, 0), (nan, 0), (inf, inf), (inf, -inf), (-inf, nan)]
)
@pytest.mark.parametrize("place", [0, 1030])
def test_sums_that_are_not_finite(mu: float, rho: float, place: int, dtype: torch.dtype, device: torch.device) -> None:
    """One such element among 1031 decides the sum as in plain PyTorch, and touches no other element of x."""
    mus, rhos = torch.zeros(1031, dtype=dtype, device=device), torch.zeros(1031, dtype=dtype, device=device)
    key = make_key(1, device=device)
    usual = functional.gaussian_sample(mus, rhos, key)
    mus[place], rhos[place] = mu, rho
    x, log_prob = functional.gaussian_sample_and_log_prob(mus, rhos, 0.0, 1.0, key)

    mu64, eps = mus.double(), noise(key, mus)
    terms = -sigma(rhos).log() - eps**2 / 2 + (mu64 + sigma(rhos) * eps) ** 2 / 2
    torch.testing.assert_close(log_prob.double(), terms.sum(), equal_nan=True, rtol=1e-5, atol=0)
    kl_divergence = functional.gaussian_kl_divergence(mus, rhos, 0.0, 1.0)
    terms = -sigma(rhos).log() + (sigma(rhos) ** 2 + mu64**2 - 1) / 2
    torch.testing.assert_close(kl_divergence.double(), terms.sum(), equal_nan=True, rtol=1e-5, atol=0)
    others = torch.arange(1031, device=device) != place
    assert same_bits(x[others], usual[others])
    assert_close(x[place], mu64[place] + sigma(rhos)[place] * eps[place], roundoffs=6)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("rho", [-inf, inf, nan])
def test_log_prob_of_a_given_x_at_infinite_rho(rho: float, dtype: torch.dtype, device: torch.device) -> None:
    """-inf, nan or inf, as in plain PyTorch: log sigma is added to squares that may be 0."""
    mus, rhos = torch.zeros(2, 1031, dtype=dtype, device=device)
    xs, rhos[1030] = torch.ones_like(mus), rho
    ours = functional.gaussian_log_prob(xs, mus, rhos, 0.0, 1.0)
    terms = -sigma(rhos).log() - (xs.double() / sigma(rhos)) ** 2 / 2 + xs.double() ** 2 / 2
    assert not terms.sum().isfinite()
    torch.testing.assert_close(ours.double(), terms.sum(), equal_nan=True)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("std_prior", [0.0, -0.0, -1.0, -inf, inf, nan])
def test_std_prior_tensor_is_never_inspected(std_prior: float, dtype: torch.dtype, device: torch.device) -> None:
    """It goes where its logarithm goes."""
    mu = torch.linspace(-1, 1, 65, dtype=dtype, device=device)
    rho, key = torch.zeros_like(mu), make_key(1, device=device)
    prior = torch.tensor([std_prior], dtype=dtype, device=device)
    x, log_prob = functional.gaussian_sample_and_log_prob(mu, rho, 0.0, prior, key)
    eps, prior64 = noise(key, mu), prior.double()
    exact = mu.double() + sigma(rho) * eps
    expected = (-sigma(rho).log() - eps**2 / 2 + prior64.log() + (exact / prior64) ** 2 / 2).sum()
    assert not expected.isfinite() and same_bits(x, functional.gaussian_sample(mu, rho, key))
    torch.testing.assert_close(log_prob.double(), expected, equal_nan=True)
    torch.testing.assert_close(functional.gaussian_log_prob(x, mu, rho, 0.0, prior), log_prob, equal_nan=True)
    torch.testing.assert_close(functional.gaussian_kl_divergence(mu, rho, 0.0, prior), log_prob, equal_nan=True)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("std_prior", [1e-40, 1e-160, 5e-324])
def test_no_gradient_is_0_under_any_std_prior(std_prior: float, dtype: torch.dtype, device: torch.device) -> None:
    """1 / std_prior^2 is beyond float64, and 0 times infinity would be NaN."""
    mu = torch.linspace(-1, 1, 65, dtype=dtype, device=device).requires_grad_()
    rho, key = torch.zeros_like(mu).requires_grad_(), make_key(1, device=device)
    x, log_prob = functional.gaussian_sample_and_log_prob(mu, rho, 0.0, std_prior, key)
    given = functional.gaussian_log_prob(x.detach(), mu, rho, 0.0, std_prior)
    for total in (log_prob, given, functional.gaussian_kl_divergence(mu, rho, 0.0, std_prior)):
        for gradient in torch.autograd.grad(total, (mu, rho), torch.zeros_like(total)):
            assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("sign", [-1, 1])
def test_gradients_where_std_prior_squared_leaves_the_range(
    sign: int, each: bool, dtype: torch.dtype, device: torch.device
) -> None:
    """They are quotients by it of numbers as small or large as std_prior. In units of 1 / std_prior, a power of 2."""
    exponent = sign * (700 if dtype == torch.float64 else 90)
    std = 2.0**exponent
    mu = torch.full((65,), 3 * std, dtype=dtype, device=device).requires_grad_()
    rho = torch.full_like(mu, min(0, exponent) * 0.6875)  # sigma is some std_prior, or much less
    priors = [torch.full((65 if each else 1,), std, dtype=dtype, device=device)] * 2
    key = make_key(1, device=device)
    x, log_prob = functional.gaussian_sample_and_log_prob(mu, rho, *priors, key)
    given = mu.detach().requires_grad_()
    grads = {
        "drawn": torch.autograd.grad(log_prob, mu)[0],
        "given": torch.autograd.grad(functional.gaussian_log_prob(given, mu, rho, *priors), given)[0],
        "kl_divergence": torch.autograd.grad(functional.gaussian_kl_divergence(mu, rho, *priors), mu)[0],
    }
    expected = dict.fromkeys(grads, torch.full_like(mu, 2).double())
    expected["drawn"] = 2 + sigma(rho) / std * noise(key, mu)
    for name, grad in grads.items():  # 12 roundings, of which x has 6 of its size and a GPU's eps more
        rtol = function_roundoffs(12, mu) * UNIT_ROUNDOFF[arithmetic_dtype(dtype)]
        rtol += 0 if dtype == arithmetic_dtype(dtype) else UNIT_ROUNDOFF[dtype]
        assert ((grad.double() * std - expected[name]).abs() <= rtol * (3 + expected[name].abs())).all(), name


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_default_initial_values_have_finite_gradients(dtype: torch.dtype, device: torch.device) -> None:
    """In float16 too, where exp(-7) squared leaves the range."""
    torch.manual_seed(0)
    distribution = GaussianDistribution((5, 13), dtype=dtype, device=device)
    x, log_prob = distribution.sample_and_log_prob()
    (x.sum() + log_prob + distribution.log_prob(x.detach()) + distribution.kl_divergence()).backward()
    assert log_prob.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in distribution.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_a_number_beyond_float32_beside_a_prior_for_each_element(dtype: torch.dtype, device: torch.device) -> None:
    """It becomes infinite in float32, as in the conversion of a tensor."""
    mu, rho = torch.zeros(2, 3, dtype=dtype, device=device), torch.zeros(2, 3, dtype=dtype, device=device)
    each = torch.ones(3, dtype=dtype, device=device)
    far, wide = (
        functional.gaussian_kl_divergence(mu, rho, 1e39, each),
        functional.gaussian_kl_divergence(mu, rho, each, 1e39),
    )
    assert far.isfinite() == wide.isfinite() == (dtype == torch.float64)


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
            *ops.gaussian_log_prob_backward(go, mu[count], *args, [True] * 5),
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
