"""Learned priors of distributions, and stick_the_landing of a network."""

import pytest
import torch
from helpers import DEVICE, same_bits
from module_cases import KEYS
from torch import Tensor, nn
from torch.nn.utils import parametrize as torch_parametrize
from torch.utils.checkpoint import checkpoint

from illia_ext import BayesianModule, GaussianDistribution, functional

parametrize = pytest.mark.parametrize


def test_learned_priors_are_the_parameters_given() -> None:
    """So modules may share one, which then gets the gradients of all."""
    std_prior = nn.Parameter(torch.ones(1, device=DEVICE))
    layers = nn.ModuleList([GaussianDistribution(3, std_prior=std_prior, device=DEVICE) for _ in range(2)])
    assert layers[0].std_prior is layers[1].std_prior is std_prior
    assert len(list(layers.parameters())) == 5
    sum(layer.kl_divergence() for layer in layers).backward()
    alone = [torch.autograd.grad(layer.kl_divergence(), std_prior)[0] for layer in layers]
    torch.testing.assert_close(std_prior.grad, sum(alone))


def test_empirical_bayes_finds_the_moments() -> None:
    """KL(q || p) is least in the prior at the mean of mu and at the mean of sigma^2 + (mu - that mean)^2."""
    priors = [nn.Parameter(torch.zeros(1, device=DEVICE)), nn.Parameter(torch.ones(1, device=DEVICE))]
    torch.manual_seed(0)
    distribution = GaussianDistribution(50, *priors, mu_init=2.0, rho_init=-2.0, device=DEVICE)
    torch_parametrize.register_parametrization(distribution, "std_prior", nn.Softplus(), unsafe=True)
    hyper = [distribution.mu_prior, distribution.parametrizations.std_prior.original]
    optimizer = torch.optim.LBFGS(hyper, max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        kl_divergence = distribution.kl_divergence()
        kl_divergence.backward()
        return kl_divergence

    optimizer.step(closure)
    mu, sigma = distribution.mu.detach(), nn.functional.softplus(distribution.rho.detach())
    assert distribution.mu_prior.item() == pytest.approx(mu.mean().item(), rel=1e-3)
    second_moment = (sigma**2 + (mu - mu.mean()) ** 2).mean()
    assert distribution.std_prior.item() == pytest.approx(second_moment.sqrt().item(), rel=1e-3)


@parametrize("way", ["call", "samples", "at once", "block", "reentrant parts"])
@parametrize("learned", [False, True])
def test_stick_the_landing_of_a_network(way: str, learned: bool) -> None:
    """The gradients are those of the functional, and the values those without it."""
    torch.manual_seed(0)
    prior = nn.Parameter(torch.full((1,), 0.5, device=DEVICE)) if learned else 0.5
    chunk_size = 2 if way == "at once" else 1
    bayesian = BayesianModule(nn.Linear(3, 2, device=DEVICE), std_prior=prior, rho_init=-1.0, chunk_size=chunk_size)
    key = KEYS[:2] if way in ("samples", "at once") else KEYS[0]
    _, mus, rhos = zip(*bayesian.named_gaussians())
    parameters, gradients, values = list(bayesian.parameters()), {}, []
    for bayesian.stick_the_landing in (False, True):
        if way in ("block", "reentrant parts"):
            with bayesian.sampled(key) as log_prob:
                if way == "reentrant parts":  # whose backward leaves the draw's graph to log_prob's
                    hidden = torch.ones(1, 3, device=DEVICE, requires_grad=True)
                    (0 * checkpoint(bayesian.module, hidden, use_reentrant=True).sum()).backward()
        else:
            _, log_prob = bayesian(torch.ones(1, 3, device=DEVICE), key=key)
        values.append(log_prob)
        gradients[bayesian.stick_the_landing] = torch.autograd.grad(log_prob.sum(), parameters)
    _, expected = functional.foreach_gaussian_sample_and_log_prob(
        mus, rhos, bayesian.mu_prior, bayesian.std_prior, key, stick_the_landing=True
    )
    assert same_bits(*values)
    # the sums over samples may be rounded in another order: 2^-24 of some ten terms of size 1
    torch.testing.assert_close(gradients[True], torch.autograd.grad(expected.sum(), parameters), rtol=1e-5, atol=1e-5)
    assert not any(torch.allclose(a, b) for a, b in list(zip(*gradients.values()))[-4:])


def test_stick_the_landing_of_a_network_has_no_second_derivatives() -> None:
    bayesian = BayesianModule(nn.Linear(3, 2, device=DEVICE), stick_the_landing=True)
    _, log_prob = bayesian(torch.ones(1, 3, device=DEVICE))
    parameters = list(bayesian.parameters())
    first = torch.autograd.grad(log_prob, parameters, create_graph=True)
    with pytest.raises(RuntimeError, match=r"^stick_the_landing: second derivatives are not offered"):
        torch.autograd.grad(sum(gradient.sum() for gradient in first), parameters)
