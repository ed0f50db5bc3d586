"""What new users get wrong: each ends in a sentence, or works as meant."""

import copy
import math
import warnings
from typing import Any

import pytest
import torch
from module_cases import INPUTS, make_network
from torch import nn
from torch.nn.utils import parametrize as torch_parametrize

from illia_ext import BayesianModule, GaussianDistribution, Positive, elbo_loss

parametrize = pytest.mark.parametrize


def test_predict_in_training_mode(cpu: object) -> None:
    bayesian, inputs = BayesianModule(make_network()), INPUTS.float()
    with pytest.warns(UserWarning, match=r"predict: the module is in training mode, .*; call eval\(\) first") as caught:
        bayesian.predict(inputs)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bayesian.eval().predict(inputs)
        torch.compile(bayesian.predict, backend="eager")(inputs, num_samples=2)
    bayesian.module[1].train()
    with pytest.warns(UserWarning, match="predict: the module is in training mode"):
        bayesian.predict(inputs)


def test_a_frozen_checkpoint(cpu: object) -> None:
    bayesian = BayesianModule(make_network())
    bayesian.freeze()
    state = bayesian.state_dict()
    inputs = INPUTS.float()
    with pytest.warns(UserWarning, match=r"the weights are frozen, .*; unfreeze\(\) them") as caught:
        bayesian(inputs)
    assert caught[0].filename == __file__
    other = BayesianModule(make_network())
    with pytest.warns(UserWarning, match=r"load_state_dict: .* saved frozen, .* unfreeze\(\) them") as caught:
        other.load_state_dict(state)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.load_state_dict(state)  # it is frozen already
    other.unfreeze()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other(inputs)
        other.load_state_dict(other.state_dict())
        bayesian.eval()(inputs)
        with torch.no_grad():
            bayesian.train()(inputs)


@parametrize("strict", [True, False])
def test_the_state_dict_of_a_plain_network(strict: bool, cpu: object) -> None:
    """Not strict it would load nothing."""
    network = make_network()
    bayesian = BayesianModule(make_network())
    before = copy.deepcopy(bayesian.state_dict())
    with pytest.raises(RuntimeError, match=r"0\.weight: a weight of the plain .* bnn\.module\.load_state_dict"):
        bayesian.load_state_dict(network.state_dict(), strict=strict)
    with pytest.raises(RuntimeError, match=r"0\.weight: a weight of the plain network"):  # as a part of another module
        nn.Sequential(bayesian).load_state_dict({f"0.{name}": x for name, x in network.state_dict().items()}, strict)
    assert all(torch.equal(x, before[name]) for name, x in bayesian.state_dict().items())
    bayesian.module.load_state_dict(network.state_dict())
    assert all(map(torch.equal, bayesian.module.parameters(), network.parameters()))


class Holder(nn.Module):
    """Names as a BayesianModule has them."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(2, 2)
        self.a = nn.Linear(2, 2)
        self.rho = nn.ModuleDict({"a": nn.Linear(2, 2)})
        self.std_prior, self.tied = nn.Parameter(torch.ones(1)), self.a


def test_names_that_look_like_a_plain_network(cpu: object) -> None:
    """A part that is named module is told apart, and a part of the own state is no plain network."""
    bayesian = BayesianModule(Holder())
    with pytest.raises(RuntimeError, match=r"module\.weight: a weight of the plain network"):
        bayesian.load_state_dict(Holder().state_dict(), strict=False)
    with pytest.raises(RuntimeError, match=r"a\.weight: a weight of the plain network"):  # a part of one
        bayesian.load_state_dict({"a.weight": torch.ones(2, 2)}, strict=False)
    with pytest.raises(RuntimeError, match=r"0\.tied\.weight: a weight of the plain network"):
        nn.Sequential(bayesian).load_state_dict({"0.tied.weight": torch.ones(2, 2)}, strict=False)
    bayesian.load_state_dict(bayesian.state_dict())
    for part in ("rho.", "module."):
        state = {name: torch.ones_like(x) for name, x in bayesian.state_dict().items() if name.startswith(part)}
        bayesian.load_state_dict(state, strict=False)
    assert all((parameter == 1).all() for parameter in bayesian.parameters())


def test_a_prior_that_has_become_negative(cpu: object) -> None:
    bayesian = BayesianModule(nn.Linear(4, 3), std_prior=nn.Parameter(torch.tensor(0.5)))
    with torch.no_grad():
        bayesian.std_prior -= 1
    output, log_prob = bayesian(torch.ones(2, 4))
    for value in (log_prob, bayesian(torch.ones(2, 4), num_samples=2)[1], bayesian.kl_divergence()):
        with pytest.raises(ValueError, match=r"log_prob: expected numbers, got nan: .* illia_ext.Positive prevents"):
            elbo_loss(output.sum(), value, 10)


@parametrize("make", [lambda prior: GaussianDistribution((4, 3), std_prior=prior, rho_init=-1.0), None])
@parametrize("start", [1e-4, 0.1, 1.0, 50.0])
def test_a_learned_prior_that_stays_positive(make: Any, start: float, cpu: object) -> None:
    """It starts where it was, up to a rounding of its logarithm, and does not cross 0."""
    prior = nn.Parameter(torch.tensor(start))
    module = make(prior) if make else BayesianModule(nn.Linear(4, 3), std_prior=prior, rho_init=-1.0)
    torch_parametrize.register_parametrization(module, "std_prior", Positive())
    assert module.std_prior.item() == pytest.approx(start, rel=2**-23 * (2 + abs(math.log(start))))
    if not make:
        assert "std_prior: learned" in repr(module)
    optimizer = torch.optim.Adam(module.parameters(), lr=start / 2)
    for _ in range(4):  # of half of it each
        optimizer.zero_grad()
        (1e4 * module.std_prior.sum()).backward()
        optimizer.step()
        assert module.std_prior.item() > 0
    assert module.kl_divergence().isfinite()
