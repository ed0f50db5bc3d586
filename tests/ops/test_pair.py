"""x = sample() and then log_prob(x), as illia's layers call them: two passes, and what would break if they were one.

sample() could keep the density of one fused pass, for log_prob(x) to hand out, or share that pass's graph with it. Each
test here fails where one of these is done.
"""

from collections.abc import Callable

import pytest
import torch
from helpers import make_key, same_bits, sigma
from illia_like import Linear
from torch import Tensor

from illia_ext import GaussianDistribution, functional, replace_distributions

parametrize = pytest.mark.parametrize


def make_distribution(device: torch.device) -> GaussianDistribution:
    torch.manual_seed(0)
    return GaussianDistribution((3, 2), 0.5, 0.25, rho_init=-1.0, dtype=torch.float64, device=device)


def write_through_numpy(tensor: Tensor) -> None:
    """As another process writes into shared memory."""
    if tensor.device.type != "cpu":
        pytest.skip("numpy sees the memory of the CPU alone")
    tensor.detach().numpy()[...] += 0.125


UNCOUNTED: dict[str, Callable[[GaussianDistribution, Tensor], object]] = {
    "mu.data": lambda distribution, x: distribution.mu.data.add_(0.125),
    "std_prior.data": lambda distribution, x: distribution.std_prior.data.mul_(2),
    "x.data": lambda distribution, x: x.data.clamp_(max=0.0),
    "numpy": lambda distribution, x: write_through_numpy(distribution.rho),
}


@parametrize("write", UNCOUNTED.values(), ids=UNCOUNTED)
def test_writes_that_no_version_counts_are_seen(
    write: Callable[[GaussianDistribution, Tensor], object], device: torch.device
) -> None:
    """A density kept from sample() would be out of date, with nothing that tells."""
    distribution = make_distribution(device)
    x = distribution.sample()
    tensors = (x, distribution.mu, distribution.rho, distribution.mu_prior, distribution.std_prior)
    before, kept = [(t._version, t.data_ptr()) for t in tensors], distribution.log_prob(x)
    write(distribution, x)
    assert [(t._version, t.data_ptr()) for t in tensors] == before
    log_prob = distribution.log_prob(x)
    assert same_bits(log_prob, functional.gaussian_log_prob(*(t.detach().clone() for t in tensors)))
    assert not torch.equal(log_prob, kept)


def test_x_has_its_share_of_the_gradient(device: torch.device) -> None:
    """Where sample and density are one pass the density's graph goes past x, whose gradient then lacks that part."""
    distribution, key = make_distribution(device), make_key(1)
    x = distribution.sample(key=key)
    z_by_sigma = ((x - distribution.mu) / sigma(distribution.rho) ** 2).detach()
    expected = (x.detach() - 0.5) / 0.25**2 - z_by_sigma
    close = {"rtol": 0, "atol": 1e-12}  # a few operations on summands below 100, each within 2^-53 of itself
    (grad_x,) = torch.autograd.grad(distribution.log_prob(x), x, retain_graph=True)
    torch.testing.assert_close(grad_x, expected, **close)

    x.retain_grad()
    (x.sum() + distribution.log_prob(x)).backward()
    torch.testing.assert_close(x.grad, 1 + expected, **close)

    fused, log_prob = distribution.sample_and_log_prob(key=key)
    fused.retain_grad()
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        torch.autograd.grad(log_prob, fused, retain_graph=True)
    (fused.sum() + log_prob).backward()
    assert torch.equal(fused.grad, torch.ones_like(x))
    assert same_bits(fused, x)


def test_hooks_on_x_see_the_density_too(device: torch.device) -> None:
    distribution = make_distribution(device)
    x = distribution.sample()
    x.register_hook(torch.zeros_like)
    distribution.log_prob(x).backward()
    expected = ((x - distribution.mu) / sigma(distribution.rho) ** 2).detach()
    torch.testing.assert_close(distribution.mu.grad, expected, rtol=1e-12, atol=0)


def test_the_cost_may_be_asked_for_and_added_to_again(device: torch.device) -> None:
    """A layer of illia adds its bias' cost in place, and its loss asks once for each of its samples."""
    layer = Linear(4, 3).to(device)
    assert replace_distributions(layer) == 2
    layer(torch.ones(2, 4, device=device))
    costs = [layer.kl_cost()[0].clone() for _ in range(2)]
    assert same_bits(*costs)
    gradients = [torch.autograd.grad(cost, list(layer.parameters()), retain_graph=True) for cost in costs]
    assert all(map(same_bits, *gradients))


def test_an_embedding_that_rescales_its_rows(device: torch.device) -> None:
    """max_norm changes x between the two calls, in place."""
    distribution = make_distribution(device)
    x = distribution.sample()
    drawn = x.detach().clone()
    torch.nn.functional.embedding(torch.tensor([0, 2], device=device), x, max_norm=0.125)
    assert not torch.equal(x, drawn)
    assert same_bits(distribution.log_prob(x), distribution.log_prob(x.detach().clone()))
