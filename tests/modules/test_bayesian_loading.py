"""A BayesianModule on the meta device, and what is loaded into it; scripted parts; parametrized rho and priors."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import DEVICE, make_key
from module_cases import KEY, KEYS, assert_same, make_network, results_of
from torch import Tensor, nn
from torch.nn.utils import parametrize as parametrizations

from illia_ext import BayesianModule

parametrize = pytest.mark.parametrize
INPUTS = torch.linspace(-1, 1, 15, device=DEVICE).reshape(5, 3)


def make(device: Any = DEVICE, **arguments: Any) -> BayesianModule:
    return BayesianModule(make_network().to(device), rho_init=-1.0, **arguments).eval()


def assert_equal(ours: BayesianModule, expected: BayesianModule) -> None:
    results = []
    for bayesian in (ours, expected):
        key = None if bayesian.frozen else KEY
        samples = [bayesian(INPUTS, key=key), bayesian.sample_module(key)(INPUTS)]
        results.append([*samples, bayesian.mean_forward(INPUTS), bayesian.kl_divergence()])
    assert_same(*results)


def load(bayesian: BayesianModule, state: dict[str, Any], way: str) -> None:
    if way == "assign":
        bayesian.load_state_dict(state, assign=True)
    elif way == "assign and move":
        bayesian.load_state_dict(state, assign=True)
        bayesian.to(DEVICE)
    else:
        bayesian.to_empty(device=DEVICE)
        bayesian.load_state_dict(state)


@parametrize("frozen_first", [False, True])
@parametrize("frozen", [False, True])
@parametrize("way", ["assign", "assign and move", "to_empty"])
def test_from_the_meta_device(way: str, frozen: bool, frozen_first: bool) -> None:
    """Whatever it was there, it is then what is loaded, and can be frozen and sampled."""
    expected = make()
    if frozen:
        expected.freeze(KEY)
    bayesian = make("meta")
    assert bayesian(INPUTS.to("meta"))[0].shape == (5, 2)
    if frozen_first:
        bayesian.freeze(make_key(9, device="cpu"))
        assert bayesian(INPUTS.to("meta"))[0].shape == (5, 2)
    load(bayesian, copy.deepcopy(expected.state_dict()), way)
    assert bayesian.frozen is frozen
    assert_equal(bayesian, expected)
    for module in (bayesian, expected):
        module.unfreeze()
        module.freeze(KEY)
    assert_equal(bayesian, expected)


def test_a_frozen_key_outlives_the_meta_device() -> None:
    """to_empty leaves parameters unset, and must not unset the key."""
    bayesian = make()
    bayesian.freeze(KEY)
    state = {name: tensor for name, tensor in bayesian.state_dict().items() if name != "_extra_state"}
    bayesian.to("meta").to_empty(device=DEVICE)
    bayesian.load_state_dict(state, strict=False)
    expected = make()
    expected.freeze(KEY)
    assert_equal(bayesian, expected)


@parametrize("frozen", [False, True])
def test_a_state_dict_on_the_meta_device(frozen: bool) -> None:
    """Has shapes alone: it can be taken and assigned, and says nothing of whether the weights are frozen."""
    bayesian, other = make("meta"), make()
    if frozen:
        bayesian.freeze(make_key(9, device="cpu"))
    other.load_state_dict(bayesian.state_dict(), assign=True)
    assert other.frozen is frozen and other.module[0].weight.is_meta
    other.load_state_dict({name: tensor.to("meta") for name, tensor in other.state_dict().items()}, assign=True)
    assert other.frozen is frozen
    other.load_state_dict(make().state_dict(), assign=True)
    assert_equal(other, make())


@pytest.mark.filterwarnings("ignore:`torch.jit")
@parametrize("select", [None, ["1.weight"]], ids=["all", "the other"])
@parametrize("make_part", [lambda: nn.Linear(3, 3), lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh())])
def test_scripted_parts(make_part: Callable[[], nn.Module], select: Any, cpu: torch.device) -> None:
    """Give outputs, gradients and copies of the same network without TorchScript."""
    torch.manual_seed(0)
    part, last = make_part(), nn.Linear(3, 2)
    results = []
    for first in (torch.jit.script(part), part):
        network = nn.Sequential(first, last)
        bayesian = BayesianModule(network, rho_init=-1.0, select=select)
        results.append(results_of(bayesian, bayesian, INPUTS, key=KEYS))
        results[-1] += [bayesian.mean_forward(INPUTS), bayesian.kl_divergence(), bayesian.sample_module(KEY)(INPUTS)]
        assert all(parameter.grad is None for parameter in network.parameters())
    torch.testing.assert_close(*results)
    assert all(isinstance(parameter, nn.Parameter) for parameter in bayesian.parameters())


class Bounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(max=-2.0)


class Positive(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp()

    def right_inverse(self, x: Tensor) -> Tensor:
        return x.log()


def test_a_parametrized_rho() -> None:
    """Is the rho that is drawn with, and what it is computed from is trained."""
    bayesian = make()
    expected = make()
    parametrizations.register_parametrization(bayesian.rho.get_submodule("0"), "weight", Bounded())
    with torch.no_grad():
        expected.rho.get_parameter("0.weight").clamp_(max=-2.0)
    assert_equal(bayesian, expected)
    groups = bayesian.param_groups()
    torch.optim.SGD(groups, lr=0.1)
    original = bayesian.rho.get_submodule("0").parametrizations.weight.original
    assert any(parameter is original for parameter in groups[1]["params"])
    with torch.no_grad():
        original.fill_(-3.0)
    bayesian(INPUTS, key=KEYS)[1].sum().backward()
    assert original.grad.all()


@parametrize("shared", [True, False])
def test_a_parametrized_prior(shared: bool) -> None:
    """A learned std_prior stays positive; one for all weights, or one of each."""
    value = torch.tensor([0.5], device=DEVICE)
    prior = nn.Parameter(value)
    bayesian = make(std_prior=prior if shared else lambda name, weight: nn.Parameter(value.clone()))
    owner, name = (bayesian, "std_prior") if shared else (bayesian.std_prior.get_submodule("0"), "weight")
    parametrizations.register_parametrization(owner, name, Positive())
    torch.testing.assert_close(bayesian.kl_divergence(), make(std_prior=0.5).kl_divergence())
    bayesian(INPUTS, key=KEYS)[1].sum().backward()
    assert owner.parametrizations[name].original.grad.any()
    assert len(bayesian.param_groups()[-1]["params"]) == (1 if shared else 6)
