"""Priors of a module: numbers, a value for each weight, and learned ones. And stick_the_landing of a module."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import DEVICE, FLOAT_DTYPES, arithmetic_dtype, make_key, same_bits
from module_cases import KEYS
from torch import Tensor, nn
from torch.nn.utils import parametrize as torch_parametrize
from torch.utils.checkpoint import checkpoint

from illia_ext import BayesianModule, GaussianDistribution, functional

parametrize = pytest.mark.parametrize


def make_prior(*shape: int) -> Tensor:
    """Positive: it serves as either prior."""
    return torch.linspace(0.25, 1.5, max(1, torch.Size(shape).numel())).reshape(shape).to(DEVICE)


METHODS: dict[str, Callable[[Any, Any, Any, Any], Any]] = {
    "log_prob": lambda d, m, s, x: d.log_prob(x) if m is None else functional.gaussian_log_prob(x, d.mu, d.rho, m, s),
    "sample_and_log_prob": lambda d, m, s, x: (
        d.sample_and_log_prob(key=KEYS)[1].sum()
        if m is None
        else functional.gaussian_sample_and_log_prob(d.mu, d.rho, m, s, KEYS)[1].sum()
    ),
    "kl_divergence": lambda d, m, s, x: (
        d.kl_divergence() if m is None else functional.gaussian_kl_divergence(d.mu, d.rho, m, s)
    ),
}


@parametrize("method", METHODS.values(), ids=METHODS)
@parametrize("shapes", [((), ()), ((1,), (1, 1)), ((3,), (2, 1)), ((2, 3), (2, 3)), ((2, 3), ())])
@parametrize("learned", [False, True])
def test_priors_of_every_shape(method: Any, shapes: Any, learned: bool) -> None:
    """The module's methods are the functions of its priors, gradients to learned priors included."""
    priors = [make_prior(*shape) for shape in shapes]
    kept = [nn.Parameter(prior) for prior in priors] if learned else priors
    distribution = GaussianDistribution((2, 3), *kept, rho_init=-1.0, device=DEVICE)
    assert list(distribution.state_dict()) == ["mu", "rho", "mu_prior", "std_prior"]
    assert len(list(distribution.parameters())) == (4 if learned else 2)

    x = torch.ones(2, 3, device=DEVICE)
    method(distribution, None, None, x).backward()
    leaves = [distribution.mu, distribution.rho, *(prior.requires_grad_(learned) for prior in priors)]
    expected = torch.autograd.grad(method(distribution, *priors, x), leaves[: 4 if learned else 2])
    for parameter, grad in zip(distribution.parameters(), expected, strict=True):
        assert same_bits(parameter.grad, grad) and grad.any()


def test_buffers_are_copies_of_the_modules_dtype() -> None:
    prior = make_prior(3)
    distribution = GaussianDistribution((2, 3), prior, prior.double(), device=DEVICE)
    prior.zero_()
    assert same_bits(distribution.mu_prior, make_prior(3)) and same_bits(distribution.std_prior, make_prior(3))
    assert GaussianDistribution(3, torch.tensor(0.5)).mu_prior.shape == (1,)  # as a number
    for dtype in FLOAT_DTYPES:
        distribution.to(dtype)
        assert distribution.mu_prior.dtype == distribution.std_prior.dtype == dtype
        assert distribution.log_prob().dtype == arithmetic_dtype(dtype)


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


@parametrize(
    ("arguments", "expected"),
    [
        ({}, "(2, 3), mu_prior=0, std_prior=0.1, mu_init=0, rho_init=-7"),
        (
            {"mu_prior": 0.5, "std_prior": 0.25, "mu_init": 1, "rho_init": -3.5},
            "(2, 3), mu_prior=0.5, std_prior=0.25, mu_init=1, rho_init=-3.5",
        ),
        (
            {"mu_prior": make_prior(2, 1), "std_prior": nn.Parameter(make_prior(3))},
            "(2, 3), mu_prior=Tensor[2, 1], std_prior=Parameter[3], mu_init=0, rho_init=-7",
        ),
        ({"device": "meta"}, "(2, 3), mu_init=0, rho_init=-7"),
    ],
)
def test_repr(arguments: Any, expected: str) -> None:
    layer = nn.ModuleDict({"weights": GaussianDistribution((2, 3), **{"device": DEVICE, **arguments})})
    assert f"(weights): GaussianDistribution({expected})" in repr(layer)


def test_values_on_the_meta_device_are_not_read() -> None:
    prior = torch.zeros(3, device="meta")
    distribution = GaussianDistribution(3, prior, nn.Parameter(prior), device="meta")
    assert distribution.sample_and_log_prob(4)[1].shape == (4,)


@parametrize("scripted", [False, True])
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_stick_the_landing(scripted: bool) -> None:
    """Where q is the prior the score term is all that is left of the gradient, and all of its noise."""
    distribution = GaussianDistribution((50,), std_prior=1.0, device=DEVICE)
    with torch.no_grad():
        distribution.mu.zero_()
        distribution.rho.fill_(torch.tensor(1.0).expm1().log())  # sigma = 1
    module = torch.jit.script(distribution) if scripted else distribution
    gradients = {}
    for stick_the_landing in (False, True):
        x, log_prob = module.sample_and_log_prob(None, make_key(1), stick_the_landing)
        gradients[stick_the_landing] = torch.cat(torch.autograd.grad(log_prob, list(distribution.parameters())))
    # -eps / sigma + x / std_prior^2 = 0 but for the rounding of sigma and x: 4 units in the last place of |eps| < 4
    assert gradients[True].abs().max() < 16 * 2**-23
    assert gradients[False].abs().max() > 1


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
