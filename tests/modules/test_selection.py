"""Which parameters BayesianModule makes Gaussian, what they start at, and modules that it refuses or warns of."""

import copy
import dataclasses
import functools
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import DEVICE, make_key, same_bits
from module_cases import INPUTS, Holder, convert, make_network
from torch import Tensor, nn
from torch.nn.utils import parametrize as torch_parametrize
from torch.nn.utils import prune

from illia_ext import BayesianModule, relative_rho

parametrize = pytest.mark.parametrize


class Tied(nn.Module):
    """A weight with two names, a module at two places, and a parameter of the root."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.again.weight = self.first.weight
        self.scale = nn.Parameter(torch.ones(3))
        self.shared = self.first

    def forward(self, inputs: Tensor) -> Tensor:
        return self.shared(self.again(self.first(inputs).tanh())) * self.scale


def names_of(bayesian: BayesianModule) -> list[str]:
    return [name for name, _, _ in bayesian.named_gaussians()]


@parametrize(
    ("select", "expected"),
    [
        (None, ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]),
        (lambda name, parameter: parameter.dim() == 2, ["0.weight", "3.weight"]),
        (["3.bias", "0.weight"], ["0.weight", "3.bias"]),
        ((name for name in ["3.bias"]), ["3.bias"]),
    ],
)
def test_select(select: Any, expected: list[str]) -> None:
    """In the module's order; what is left out stays a parameter without a rho."""
    network = make_network()
    bayesian = BayesianModule(network, select=select)
    assert names_of(bayesian) == expected
    assert [name for name, _ in bayesian.rho.named_parameters()] == expected
    assert [name for name, _ in bayesian.module.named_parameters()] == [name for name, _ in network.named_parameters()]
    assert bayesian.num_params() == sum(network.get_parameter(name).numel() for name in expected)


@parametrize(
    ("select", "expected"),
    [
        (None, ["scale", "first.weight", "first.bias"]),
        (["again.weight"], ["first.weight"]),
        (["shared.weight", "first.weight"], ["first.weight"]),
        (lambda name, _: name.startswith("shared"), ["first.weight", "first.bias"]),
    ],
)
def test_tied_weights(select: Any, expected: list[str]) -> None:
    """One mu, one rho and one sample; any of its names selects it."""
    bayesian = convert(Tied(), select=select)
    assert names_of(bayesian) == expected
    assert bayesian.module.again.weight is bayesian.module.first.weight
    sampled = bayesian.sample_module(make_key(1))
    assert sampled.again.weight is sampled.first.weight
    assert same_bits(bayesian(INPUTS, key=make_key(1))[0], sampled(INPUTS))
    assert bayesian.module.shared is bayesian.module.first
    assert bayesian.module.first.weight is next(
        mu for name, mu, _ in bayesian.named_gaussians() if name == "first.weight"
    )


def test_a_tie_that_was_cut() -> None:
    bayesian = convert(Tied())
    bayesian.module.again.weight = nn.Parameter(torch.ones(3, 3).to(bayesian.module.scale))
    with pytest.raises(RuntimeError, match=r"module.again.weight: expected to be tied to module.first.weight"):
        bayesian(INPUTS)


class Peer(nn.Module):
    """A Bayesian layer as other libraries have them."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.zeros(2, 2)))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


@parametrize(
    "names",
    [
        ("weight_mu", "weight_log_sigma", "bias_mu", "bias_log_sigma"),  # torchbnn
        ("mu_weight", "rho_weight"),  # bayesian-torch
        ("mu_kernel", "rho_kernel"),
        ("mu", "rho"),  # illia, blitz
        ("weight_mu", "weight_sigma"),  # torch-uncertainty, noisy networks
    ],
)
def test_bayesian_layers_of_other_libraries(names: tuple[str, ...]) -> None:
    """They would be made Gaussian once more; left out, they go on."""
    network = nn.Sequential(Peer(*names), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=rf"0.{names[0]}: Peer '0' draws it by itself, .*; leave both out by select"):
        BayesianModule(network)
    assert names_of(BayesianModule(network, select=[f"0.{names[0]}"])) == [f"0.{names[0]}"]
    bayesian = BayesianModule(network, select=lambda name, _: name.startswith("1"))
    assert bayesian(torch.ones(1, 2))[0].shape == (1, 2)


def test_layers_of_torchbnn_and_bayesian_torch() -> None:
    torchbnn = pytest.importorskip("torchbnn")
    bayesian_torch = pytest.importorskip("bayesian_torch.layers")
    for layer in (torchbnn.BayesLinear(0, 0.1, 2, 2), bayesian_torch.LinearReparameterization(2, 2)):
        with pytest.raises(ValueError, match=f"{type(layer).__name__} '0' draws it by itself"):
            BayesianModule(nn.Sequential(layer, nn.Linear(2, 2)))


def test_a_mean_and_a_width_that_are_no_gaussian() -> None:
    """Such as of radial basis functions; and those of one module say nothing of the modules inside it."""
    assert names_of(BayesianModule(Peer("mu", "sigma"))) == ["mu", "sigma"]
    network = Peer("mu", "rho")  # viscosity and density, say
    network.add_module("inner", nn.Linear(2, 2))
    bayesian = BayesianModule(network, select=lambda name, _: name.startswith("inner"))
    assert names_of(bayesian) == ["inner.weight", "inner.bias"]


def test_two_parameters_in_one_memory() -> None:
    """Would be two Gaussians; parts of one memory that do not overlap are their own."""
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[1].weight = nn.Parameter(network[0].weight.data)
    with pytest.raises(
        ValueError, match=r"1\.weight: expected memory of its own, got that of 0\.weight; make them one"
    ):
        BayesianModule(network)
    network[1].weight = nn.Parameter(network[0].weight.data.T)
    with pytest.raises(ValueError, match=r"expected memory of its own"):
        BayesianModule(network)
    whole = torch.randn(4, 4)
    BayesianModule(Holder(whole[:2], whole[2:])), BayesianModule(Holder(whole[:, :2], whole[:, 2:]))
    BayesianModule(Holder(whole[:0], whole[:0], whole))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@parametrize(
    "change", [lambda layer: prune.l1_unstructured(layer, "weight", 0.5), nn.utils.weight_norm, nn.utils.spectral_norm]
)
def test_a_weight_that_is_computed_by_a_hook(change: Callable[[nn.Module], object]) -> None:
    """As of pruning; when that is permanent, the network is a plain one."""
    network = nn.Sequential(nn.Linear(2, 2))
    change(network[0])
    network(torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"0\.weight: expected no tensor with a graph.*prune\.remove"):
        BayesianModule(network)
    prune.l1_unstructured(plain := nn.Linear(2, 2), "weight", 0.5)
    assert (BayesianModule(prune.remove(plain, "weight")).module.weight == 0).sum() == 2


def test_frozen_parameters_stay_plain() -> None:
    """As of a LoRA model's base; select may name them."""
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    network[0].requires_grad_(False)
    bayesian = BayesianModule(network)
    assert names_of(bayesian) == ["1.weight", "1.bias"]
    assert not bayesian.module[0].weight.requires_grad
    assert all(parameter.requires_grad for group in bayesian.param_groups() for parameter in group["params"])
    assert names_of(BayesianModule(network, select=["0.weight"])) == ["0.weight"]
    message = r"select: expected at least one parameter that requires a gradient, got none of \['0.weight'"
    with pytest.raises(ValueError, match=message):
        BayesianModule(network.requires_grad_(False))


def test_without_a_copy() -> None:
    """The module's own parameters are mu, in their memory; what is frozen has no second copy anywhere."""
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    network[0].requires_grad_(False)
    parameters = list(network.parameters())
    bayesian = BayesianModule(network, copy=False, rho_init=-1.0)
    assert bayesian.module is network
    assert [mu for _, mu, _ in bayesian.named_gaussians()] == parameters[2:]
    bayesian(torch.ones(1, 3))[0].sum().backward()
    assert parameters[2].grad is not None and parameters[0].grad is None
    assert all(map(lambda ours, own: ours is own, network.parameters(), parameters))


def test_reset_parameters() -> None:
    """Selected submodules draw anew, and attention by its own way; the module that was given keeps its weights."""
    network = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "last": nn.Linear(4, 2)})
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.5)
    bayesian = BayesianModule(network, select=lambda name, _: "last" not in name, reset_parameters=True)
    assert all((parameter == 0.5).all() for parameter in [*network.parameters(), *bayesian.module["last"].parameters()])
    assert bayesian.module["attention"].in_proj_weight.unique().numel() > 1
    assert not bayesian.module["attention"].out_proj.bias.any()  # attention sets it after its layer has drawn it
    with pytest.raises(
        ValueError, match=r"reset_parameters: ParameterList 'held', which holds held.0, has no reset_parameters"
    ):
        BayesianModule(Holder(torch.ones(2)), reset_parameters=True)


@parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_relative_rho(dtype: torch.dtype) -> None:
    """sigma comes back from rho to the rounding of rho, of which it takes up to |rho| times the relative part."""
    weight = torch.tensor([1e-9, -1e-4, 0.3, -2.0, 500.0], dtype=dtype, device=DEVICE)
    ((_, _, rho),) = BayesianModule(Holder(weight), rho_init=relative_rho(0.1, smallest=1e-12)).named_gaussians()
    expected = (0.1 * weight.double().abs()).clamp(min=1e-12)
    ours = nn.functional.softplus(rho.double(), threshold=60)
    bound = 4 * torch.finfo(dtype).eps * rho.double().abs().clamp(min=1) * expected.clamp(max=1) + 1e-7 * expected
    assert rho.dtype == dtype and ((ours - expected).abs() <= bound + torch.finfo(dtype).eps * expected).all()
    assert relative_rho(0.1)("bias", torch.zeros(1)).item() == pytest.approx(-9.21029, abs=1e-5)  # log(1e-4) + 5e-5


class Closure(nn.Module):
    """Calls a part of its own through a function, which a copy shares with the original."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.function = lambda inputs: self.linear(inputs)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


class Hidden(nn.Module):
    """Has the parameters of a module that is no part."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = [nn.Linear(2, 2)]
        self.held = nn.ParameterList(self.parts[0].parameters())


@parametrize(("make_module", "place"), [(Closure, "function"), (Hidden, "parts")])
def test_a_module_that_is_reached_another_way(make_module: Callable[[], nn.Module], place: str) -> None:
    with pytest.warns(
        UserWarning, match=rf"(weight|held\.0): {place} refers to \w+, which holds it and gets no sample"
    ):
        BayesianModule(make_module())


def test_a_list_of_own_parts_is_no_other_place(recwarn: pytest.WarningsRecorder) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network.parts = [network[0], network[1]]
    BayesianModule(network)
    assert not recwarn.list


@dataclasses.dataclass
class Held:
    weight: Tensor


@parametrize(
    "hold",
    [
        lambda weight: {"mine": [weight]},
        lambda weight: functools.partial(nn.functional.linear, weight=weight),
        Held,
        lambda weight: types.SimpleNamespace(inner=Held(weight)),
        lambda weight: lambda inputs: inputs @ weight,
    ],
)
def test_a_weight_that_is_kept_elsewhere_too(hold: Any) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2))  # the latter keeps its own list, which follows
    network[0].weights = hold(network[0].weight)
    with pytest.warns(UserWarning, match=r"0\.weight: 0\.weights holds it too; .* gets mu, not the sample") as warned:
        BayesianModule(network)
    assert len(warned) == 1 and warned[0].filename == __file__


def test_weights_that_are_kept_together_are_named_once() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network.optimizer = torch.optim.SGD(network.parameters())  # type: ignore[assignment]
    with pytest.warns(UserWarning, match=r"^0\.weight: optimizer holds it and 3 other Gaussian weights too") as warned:
        BayesianModule(network)
    assert len(warned) == 1


def test_weak_proxies() -> None:
    """As Lightning keeps them, of an object that lives or is gone (which copy.deepcopy refuses)."""
    owner = nn.ReLU()
    network = nn.Sequential(nn.Linear(2, 2))
    network.kept = types.SimpleNamespace(owner=weakref.proxy(owner))  # type: ignore[assignment]
    network.direct = weakref.proxy(owner)  # type: ignore[assignment]
    BayesianModule(network, copy=False)
    network = nn.Sequential(nn.Linear(2, 2))
    vars(network)["gone"] = weakref.proxy(nn.ReLU())
    bnn = BayesianModule(network, copy=False)
    assert bnn(torch.ones(2))[0].shape == (2,)


class RMSNormalization(nn.Module):
    """A normalisation layer of somebody's own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((4,), 2.0))


class NormalHead(nn.Linear):
    """Of a distribution, and no normalisation."""


def test_the_default_prior(cpu: object) -> None:
    """N(0, 1), and around their own value for the weights of normalisation layers, which start at 1."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), RMSNormalization(), nn.GroupNorm(2, 4), nn.Linear(4, 2)
    )
    nn.init.normal_(network[1].weight)
    bayesian = BayesianModule(network)
    assert bayesian.std_prior.tolist() == [1.0]
    means = dict(bayesian.mu_prior.named_buffers())
    own = {"1.weight", "1.bias", "2.scale", "3.weight", "3.bias"}
    for name, mu, rho in bayesian.named_gaussians():
        assert torch.equal(means[name], mu) if name in own else means[name].tolist() == [0.0]
        assert (rho == -5).all()
    with torch.no_grad():  # it stays where it was
        bayesian.module[1].weight += 1
    assert torch.equal(means["1.weight"], network[1].weight)
    other = BayesianModule(copy.deepcopy(network))
    other.load_state_dict(bayesian.state_dict())
    reset = BayesianModule(nn.Sequential(network[1]), reset_parameters=True)
    assert dict(reset.mu_prior.named_buffers())["0.weight"].tolist() == [1.0] * 4
    parametrized = nn.Sequential(torch_parametrize.register_parametrization(nn.LayerNorm(3), "weight", nn.Identity()))
    original = "0.parametrizations.weight.original"
    assert dict(BayesianModule(parametrized).mu_prior.named_buffers())[original].tolist() == [1.0] * 3
    assert BayesianModule(nn.Sequential(NormalHead(3, 2))).mu_prior.tolist() == [0.0]
    assert BayesianModule(nn.Sequential(network[0], network[4])).mu_prior.tolist() == [0.0]
    assert BayesianModule(network, mu_prior=0.0).mu_prior.tolist() == [0.0]
    assert BayesianModule(network, select=["0.weight"]).mu_prior.tolist() == [0.0]
