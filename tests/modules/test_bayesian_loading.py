"""What is loaded into a BayesianModule, from the meta device and frozen ones too; scripted and parametrized parts."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import DEVICE, make_key, same_bits
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


def test_a_frozen_checkpoint(cpu: object) -> None:
    bayesian = BayesianModule(make_network())
    bayesian.freeze()
    state = bayesian.state_dict()
    with pytest.warns(UserWarning, match=r"the weights are frozen, .*; unfreeze\(\) them") as caught:
        bayesian(INPUTS)
    assert caught[0].filename == __file__
    other = BayesianModule(make_network())
    with pytest.warns(UserWarning, match=r"load_state_dict: .* saved frozen, .* unfreeze\(\) them") as caught:
        other.load_state_dict(state)
    assert other.frozen and same_bits(other.eval()(INPUTS)[0], bayesian.eval()(INPUTS)[0])
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.load_state_dict(state)  # it is frozen already
    other.train().unfreeze()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other(INPUTS)
        bayesian.load_state_dict(other.state_dict())
        assert not bayesian.frozen
        bayesian.freeze()
        bayesian.eval()(INPUTS)
        with torch.no_grad():
            bayesian.train()(INPUTS)


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


class Named(nn.Module):
    """Names as a BayesianModule has them."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(2, 2)
        self.a = nn.Linear(2, 2)
        self.rho = nn.ModuleDict({"a": nn.Linear(2, 2)})
        self.std_prior, self.tied = nn.Parameter(torch.ones(1)), self.a


def test_names_that_look_like_a_plain_network(cpu: object) -> None:
    """A part that is named module is told apart, and a part of the own state is no plain network."""
    bayesian = BayesianModule(Named())
    with pytest.raises(RuntimeError, match=r"module\.weight: a weight of the plain network"):
        bayesian.load_state_dict(Named().state_dict(), strict=False)
    with pytest.raises(RuntimeError, match=r"a\.weight: a weight of the plain network"):  # a part of one
        bayesian.load_state_dict({"a.weight": torch.ones(2, 2)}, strict=False)
    with pytest.raises(RuntimeError, match=r"0\.tied\.weight: a weight of the plain network"):
        nn.Sequential(bayesian).load_state_dict({"0.tied.weight": torch.ones(2, 2)}, strict=False)
    bayesian.load_state_dict(bayesian.state_dict())
    for part in ("rho.", "module."):
        state = {name: torch.ones_like(x) for name, x in bayesian.state_dict().items() if name.startswith(part)}
        bayesian.load_state_dict(state, strict=False)
    assert all((parameter == 1).all() for parameter in bayesian.parameters())
