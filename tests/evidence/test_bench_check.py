"""The benchmark's checks: right cases pass, and every kind of wrong one is found."""

from dataclasses import replace

import pytest
import torch

from bench.cases import eager, formulas, fused
from bench.check import Wrong, check_layer, check_network, check_noise, closed_form, sampled
from bench.layers import CaseLinear, Network
from bench.setting import Setting
from bench.works import Inputs

SETTING = Setting(["eager", "illia_ext"], {}, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", [eager, formulas, fused])
def test_right_cases_pass(case, dtype: torch.dtype) -> None:
    Inputs.make(1000, replace(SETTING, dtype=dtype)).check(case)


def test_several_samples_pass() -> None:
    Inputs.make(1000, SETTING, num_samples=3).check(fused)


def log_prob_of(x, mu, rho, mu_prior, std_prior):
    return sampled(x, mu, torch.nn.functional.softplus(rho), mu_prior, std_prior).sum()


def given_noise(eps: torch.Tensor):
    """A case that is right in all but its noise."""

    def case(mu, rho, *prior):
        x = mu + torch.nn.functional.softplus(rho) * eps
        return x, log_prob_of(x, mu, rho, *prior)

    return case


def with_log_prob(change):
    def case(*arguments):
        x, log_prob = fused(*arguments)
        return x, change(log_prob)

    return case


def in_half(*arguments):
    x, log_prob = fused(*(argument.half().to(argument.dtype) for argument in arguments))
    return x, log_prob


def without_gradient_to_rho(mu, rho, *prior):
    return fused(mu, rho * 0 + rho.detach(), *prior)


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        (with_log_prob(lambda log_prob: log_prob / 2), "log_prob is off by"),
        (with_log_prob(lambda log_prob: log_prob.detach() + 0 * log_prob), "grad_mu is off by"),
        (with_log_prob(lambda log_prob: 2 * log_prob.detach() - log_prob), "grad_mu is off by"),
        (without_gradient_to_rho, "grad_rho is off by"),
        (given_noise(torch.zeros(10**4)), "noise: mean square is off by"),
        (given_noise(torch.ones(10**4)), "noise: mean mean is off by"),
        (given_noise(torch.rand(10**4) * 12**0.5 - 3**0.5), "noise: mean fourth power is off by"),
        (given_noise(torch.randn(10**4)), "noise: two draws have a correlation of"),
    ],
)
def test_wrong_cases_are_found(case, sentence: str) -> None:
    with pytest.raises(Wrong, match=sentence):
        Inputs.make(10**4, SETTING).check(case)


def test_less_precision_than_asked_for_is_found() -> None:
    inputs = Inputs.make(1000, replace(SETTING, dtype=torch.float64))
    with pytest.raises(Wrong, match="is off by"):
        inputs.check(in_half)
    with pytest.raises(Wrong, match=r"x is torch\.float32"):
        inputs.check(lambda *arguments: tuple(out.float() for out in fused(*arguments)))


def test_samples_that_share_their_noise_are_found() -> None:
    eps = [torch.randn(1000), torch.randn(1000)]
    check_noise(eps, torch.float32)
    with pytest.raises(Wrong, match="correlation"):
        check_noise([*eps, eps[1]], torch.float32)


def test_densities() -> None:
    """One weight, by hand: q = N(1, 2^2), p = N(0, 1), x = 3, that is z = 1 and z_prior = 3."""
    mu, sigma, x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    log2 = 0.6931471805599453
    assert float(sampled(x, mu, sigma, 0.0, 1.0)) == pytest.approx(-log2 - 0.5 + 4.5)
    assert float(closed_form(mu, sigma, 0.0, 1.0)) == pytest.approx(-log2 + (4 + 1) / 2 - 0.5)


def test_layers_are_checked() -> None:
    torch.manual_seed(0)
    check_layer(CaseLinear(fused, 20, 10))

    class Doubled(CaseLinear):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y, cost = super().forward(x)
            return y, 2 * cost

    class Claimed(CaseLinear):
        density = "closed form"

    with pytest.raises(Wrong, match="cost is off by"):
        check_layer(Doubled(fused, 20, 10))
    with pytest.raises(Wrong, match="cost is off by"):
        check_layer(Claimed(fused, 20, 10))


def test_networks_are_checked() -> None:
    torch.manual_seed(0)
    network = Network([CaseLinear(fused, 20, 30), CaseLinear(fused, 30, 10)])
    for layer in network.layers:
        for gaussian in layer.gaussians():
            torch.nn.init.constant_(gaussian.raw, -16)
    x, target = torch.randn(5, 20), torch.arange(5)
    check_network(network(x, target), network, x, target)
    with pytest.raises(Wrong, match="loss is off by"):
        check_network(network(x, target) + 0.1, network, x, target)
    extra = network(-x, target)
    with pytest.raises(Wrong, match=r"gradient of layer 0's weight[.]mu is off by"):
        check_network(network(x, target) + extra - extra.detach(), network, x, target)
