"""GaussianDistribution.to_distribution: the same q among torch.distributions."""

import math

import pytest
import torch
from helpers import make_keys
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from illia_ext import GaussianDistribution

parametrize = pytest.mark.parametrize
each_shape = parametrize("shape", [(), (5,), (2, 3), (0,)])


def make_distribution(shape: tuple[int, ...], device: torch.device) -> GaussianDistribution:
    """Where 1 / sigma is no large number: plain formulas then lose no digits."""
    torch.manual_seed(0)
    return GaussianDistribution(shape, 0.25, 0.75, 0.5, -1.0, device=device, dtype=torch.float64)


def prior_of(distribution: GaussianDistribution) -> Independent:
    mu, mu_prior, std_prior = distribution.mu, distribution.mu_prior, distribution.std_prior
    loc, scale = (prior.reshape([1] * mu.dim()).expand(mu.shape) for prior in (mu_prior, std_prior))
    return Independent(Normal(loc, scale), mu.dim())


@each_shape
def test_shapes(shape: tuple[int, ...], device: torch.device) -> None:
    q = make_distribution(shape, device).to_distribution()
    assert isinstance(q, Independent)
    assert (q.event_shape, q.batch_shape) == (shape, ())
    assert q.rsample((4,)).shape == (4, *shape) and q.rsample((4,)).requires_grad


@each_shape
@parametrize("samples", [(), (3,)])
def test_log_prob_is_ours(shape: tuple[int, ...], samples: tuple[int, ...], device: torch.device) -> None:
    distribution = make_distribution(shape, device)
    x = torch.randn((*samples, *shape), device=device, dtype=torch.float64)
    ours = distribution.log_prob(x)
    expected = distribution.to_distribution().log_prob(x) - prior_of(distribution).log_prob(x)
    assert_same_with_gradients(ours, expected, distribution)


@each_shape
def test_kl_divergence_is_ours(shape: tuple[int, ...], device: torch.device) -> None:
    distribution = make_distribution(shape, device)
    expected = kl_divergence(distribution.to_distribution(), prior_of(distribution))
    assert_same_with_gradients(distribution.kl_divergence(), expected, distribution)


def assert_same_with_gradients(ours: Tensor, expected: Tensor, distribution: GaussianDistribution) -> None:
    """Sums of at most 12 terms of order 10 in float64, which may cancel to 0.01."""
    parameters = list(distribution.parameters())
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
    grads = (torch.autograd.grad(output.sum(), parameters) for output in (ours, expected))
    for ours, expected in zip(*grads):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_samples_have_our_moments(device: torch.device) -> None:
    """Within 5 standard errors of the difference of two means, and of two standard deviations, of 20000 draws."""
    distribution, n = make_distribution((3,), device), 20_000
    theirs = distribution.to_distribution().sample((n,))
    ours = distribution.sample(key=make_keys(*[(1, 3 * i) for i in range(n)], device=device))
    sigma = theirs.std(0)
    assert ((theirs.mean(0) - ours.mean(0)).abs() < 5 * sigma * (2 / n) ** 0.5).all()
    assert ((sigma - ours.std(0)).abs() < 5 * sigma * (1 / n) ** 0.5).all()


def test_no_threshold(device: torch.device) -> None:
    """torch's softplus is by default rho itself above 20, 2e-9 off there; and a tiny sigma is exp(rho)."""
    distribution = GaussianDistribution(2, device=device, dtype=torch.float64)
    with torch.no_grad():
        distribution.rho.copy_(torch.tensor([20.5, -40.0]))
    sigma = distribution.to_distribution().stddev.tolist()
    assert sigma[0] - 20.5 == pytest.approx(math.exp(-20.5), rel=1e-5)  # 1.25e-9, of which the sum keeps 4e-15
    assert math.log(sigma[1]) == pytest.approx(-40)
