"""replace_distributions: a network built with illia goes on with our distributions; others are left or refused."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import same_bits
from illia_like import GaussianDistribution, IlliaModule, make_network
from torch import Tensor, nn
from torch.nn.utils import parametrize as parametrizations

import illia_ext
from illia_ext import replace_distributions

parametrize = pytest.mark.parametrize


def distributions_of(model: nn.Module) -> dict[str, Any]:
    kinds = (GaussianDistribution, illia_ext.GaussianDistribution)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def loss_of(network: Any, inputs: Tensor) -> Tensor:
    loss = network(inputs).square().sum()
    return loss + network[0].kl_cost()[0] + network[2][0].kl_cost()[0]


def test_everything_else_stays(device: torch.device) -> None:
    network = make_network(device)
    network[2].eval()
    before = distributions_of(network)
    parts = [*network.modules(), *network.parameters(), *network.buffers()]
    modes = [module.training for module in network.modules()]
    keys = list(network.state_dict())
    values = [distribution.log_prob(distribution.mu + 0.125) for distribution in before.values()]
    state = torch.random.get_rng_state()
    assert replace_distributions(network) == 4
    assert torch.equal(torch.random.get_rng_state(), state)
    after = distributions_of(network)
    assert list(after) == list(before)
    assert all(type(distribution) is illia_ext.GaussianDistribution for distribution in after.values())
    assert all(a is b for a, b in zip(parts, [*network.modules(), *network.parameters(), *network.buffers()]))
    assert modes == [module.training for module in network.modules()] and not all(modes)
    assert keys == list(network.state_dict())
    assert [type(distribution.shape) for distribution in after.values()] == [torch.Size] * 4
    # both sum up to 80 float32 terms below 10 in size, each within a few 2^-24 of itself
    for distribution, value in zip(after.values(), values):
        torch.testing.assert_close(distribution.log_prob(distribution.mu + 0.125), value, rtol=0, atol=80 * 10 * 2e-6)
    assert replace_distributions(network) == 0


def test_training_goes_on(device: torch.device) -> None:
    """The optimizer's state too; samples are ours from here on."""
    network, inputs = make_network(device), torch.ones(2, 4, device=device)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for step in range(4):
        if step == 2:
            assert replace_distributions(network) == 4
        optimizer.zero_grad()
        loss_of(network, inputs).backward()
        before = [parameter.detach().clone() for parameter in network.parameters()]
        optimizer.step()
        assert not any(map(torch.equal, before, network.parameters()))
    assert {int(state["step"]) for state in optimizer.state.values()} == {4}
    torch.manual_seed(3)
    network(inputs)
    torch.manual_seed(3)
    assert same_bits(network[0].weights, network[0].weights_distribution.sample())


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_what_comes_after(device: torch.device) -> None:
    network, inputs = make_network(device), torch.ones(2, 4, device=device)
    replace_distributions(network)
    with torch.no_grad():
        network(inputs)
    programs = (network, copy.deepcopy(network), pickle.loads(pickle.dumps(network)), torch.jit.script(network))
    outputs = []
    for program in programs:
        torch.manual_seed(7)
        outputs.append(program(inputs))
    assert all(same_bits(output, outputs[0]) for output in outputs)


def test_a_compiled_network_notices(device: torch.device) -> None:
    network, inputs = make_network(device), torch.ones(2, 4, device=device)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    compiled(inputs)
    assert replace_distributions(compiled) == 4
    outputs = []
    for program in (compiled, network):
        torch.manual_seed(7)
        outputs.append(program(inputs))
    assert same_bits(*outputs)


def test_shared_distributions_stay_shared(device: torch.device) -> None:
    network = make_network(device)
    network[2][0].bias_distribution = shared = network[0].bias_distribution
    aside = [shared]
    assert replace_distributions(network) == 3
    assert network[2][0].bias_distribution is network[0].bias_distribution is aside[0]
    assert type(aside[0]) is illia_ext.GaussianDistribution


def test_hooks_stay(device: torch.device) -> None:
    distribution = GaussianDistribution((3, 2)).to(device)
    seen: list[Any] = []
    distribution.register_state_dict_post_hook(lambda module, *_: seen.append(module))
    distribution.register_load_state_dict_pre_hook(lambda module, *_: seen.append(module))
    handle = distribution.register_load_state_dict_post_hook(lambda module, keys: seen.append(module))
    distribution.mu.register_hook(lambda grad: seen.append(distribution))
    assert replace_distributions(distribution) == 1  # the model itself
    distribution.load_state_dict(distribution.state_dict())
    distribution.log_prob().backward()
    assert len(seen) == 4 and all(module is distribution for module in seen)
    handle.remove()
    distribution.load_state_dict({name: value.clone() for name, value in distribution.named_parameters()}, strict=False)
    assert len(seen) == 5


def test_a_learned_prior_is_learned_on(device: torch.device) -> None:
    distribution = GaussianDistribution(3)
    del distribution.std_prior
    distribution.std_prior = nn.Parameter(torch.tensor([0.5]))
    replace_distributions(distribution.to(device))
    distribution.log_prob().backward()
    assert distribution.std_prior.grad.ne(0).all()


@parametrize("device_of", [lambda device: device, lambda device: torch.device("meta")], ids=["device", "meta"])
@parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_defaults(dtype: torch.dtype, device_of: Callable[[Any], Any], device: torch.device) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device_of(device):
            distribution = GaussianDistribution((3, 2))
            assert replace_distributions(distribution) == 1
            assert distribution.sample().dtype == dtype
    finally:
        torch.set_default_dtype(before)


class Constructed(GaussianDistribution):
    """With nothing of its own but what is done when it is built."""

    def __init__(self) -> None:
        super().__init__((3, 2))


def test_a_subclass_without_a_behaviour_of_its_own() -> None:
    distribution = Constructed()
    assert replace_distributions(distribution) == 1 and type(distribution) is illia_ext.GaussianDistribution


class Ours(illia_ext.DistributionModule):
    """Of a user, beside our GaussianDistribution."""

    sample = GaussianDistribution.sample
    log_prob = GaussianDistribution.log_prob
    num_params = GaussianDistribution.num_params

    def __init__(self) -> None:
        super().__init__()
        vars(self).update(vars(GaussianDistribution((3, 2))))


class Variational(nn.Module):
    """Of somebody else, with illia's names for its tensors."""

    mu_prior = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.mu, self.rho = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))

    @property
    def std_prior(self) -> float:
        raise NotImplementedError

    def sample(self) -> Tensor:
        return self.mu


class Categorical(nn.Module):
    """With illia's names for its methods."""

    log_prob = num_params = sample = nn.Module.extra_repr


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_others_are_left_alone() -> None:
    scripted = torch.jit.script(illia_ext.GaussianDistribution(3))
    ours = [illia_ext.GaussianDistribution(3), Ours(), scripted]
    model = nn.ModuleList([*ours, Variational(), Categorical(), nn.LSTM(2, 2)])
    kinds = [type(module) for module in model.modules()]
    assert replace_distributions(model) == 0
    assert kinds == [type(module) for module in model.modules()]


class Clipped(GaussianDistribution):
    def sample(self) -> Tensor:
        return super().sample().clamp(-1, 1)


class Called(GaussianDistribution):
    def forward(self) -> Tensor:
        return self.sample()


class Exponential(IlliaModule):
    """sigma = exp(rho)."""

    sample, num_params = GaussianDistribution.sample, GaussianDistribution.num_params

    def __init__(self) -> None:
        super().__init__()
        vars(self).update(vars(GaussianDistribution((3, 2))), base=torch.e)

    def log_prob(self, x: Tensor | None = None) -> Tensor:
        sigma = self.base**self.rho
        q, p = torch.distributions.Normal(self.mu, sigma), torch.distributions.Normal(self.mu_prior, self.std_prior)
        return (q.log_prob(x) - p.log_prob(x)).sum()


def with_method(name: str, method: Callable[..., Any]) -> Callable[[], nn.Module]:
    """illia's distribution but for one method."""
    methods = {other: getattr(GaussianDistribution, other) for other in ("sample", "log_prob", "num_params")}

    def make() -> nn.Module:
        distribution: Any = type("Other", (IlliaModule,), {**methods, name: method})()
        vars(distribution).update(vars(GaussianDistribution((3, 2))))
        return distribution

    return make


def changed(change: Callable[[Any], Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        distribution = GaussianDistribution((3, 2))
        change(distribution)
        return distribution

    return make


def through_file(module: Any) -> Any:
    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    return torch.jit.load(file)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "method overridden": (lambda: Clipped((3, 2)), r"of class Clipped: .* its own \['sample'\]"),
    "method added": (lambda: Called((3, 2)), r"its own \['forward'\]"),
    "method of the object": (changed(lambda d: setattr(d, "log_prob", lambda x: x)), r"its own \['log_prob'\]"),
    "attribute that hides ours": (changed(lambda d: setattr(d, "kl_divergence", 0)), r"its own \['kl_divergence'\]"),
    "another density": (Exponential, "expected illia's log_prob, 4.05.* got 3.08"),
    "mean in eval": (
        with_method("sample", lambda d: GaussianDistribution.sample(d) if d.training else d.mu),
        r"expected illia's sample, mu \+ softplus\(rho\) \* eps in train and in eval mode",
    ),
    "another sample": (with_method("sample", lambda d: d.mu + d.rho.exp() * torch.randn(3)), "expected illia's sample"),
    "another count": (with_method("num_params", lambda d: 2 * d.mu.numel()), "num_params, 3 for mu .* got 6"),
    "fails": (with_method("log_prob", lambda d, x: d.missing), "has no attribute 'missing'"),
    "scripted": (lambda: torch.jit.script(GaussianDistribution((3, 2))), "replace first, then script"),
    "scripted, loaded": (lambda: through_file(torch.jit.script(GaussianDistribution(3))), "replace first, then script"),
    "parametrized": (
        changed(lambda d: parametrizations.register_parametrization(d, "mu", nn.Tanh())),
        "unparametrized, .* got .*'parametrizations'",
    ),
    "buffer added": (changed(lambda d: d.register_buffer("mask", torch.ones(2))), "nothing else, got .*'mask'"),
    "module added": (changed(lambda d: d.add_module("child", nn.ReLU())), "nothing else, got .*'child'"),
    "attribute missing": (changed(lambda d: delattr(d, "rho_init")), r"got none of \['rho_init'\]"),
    "shapes": (changed(lambda d: setattr(d, "rho", nn.Parameter(torch.ones(3)))), r"\[3, 2\] on cpu and .* \[3\]"),
    "complex": (changed(lambda d: d.to(torch.complex64)), "one floating dtype, .* got torch.complex64"),
    "std_prior": (lambda: GaussianDistribution((3, 2), std_prior=-0.5), "std_prior: expected positive .* got -0.5"),
    "mu_prior": (changed(lambda d: d.mu_prior.fill_(torch.inf)), "mu_prior: expected finite values .* got inf"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:Complex modules")
@parametrize("make, message", REFUSED.values(), ids=REFUSED)
def test_refused_with_nothing_changed(make: Callable[[], nn.Module], message: str) -> None:
    model = nn.ModuleDict({"first": GaussianDistribution(3), "second": nn.ModuleList([make()])})
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=rf"model: cannot replace second.0 .*{message}"):
        replace_distributions(model)
    assert kinds == [type(module) for module in model.modules()]
    assert model["first"].shape == 3


@parametrize("model", [3, None, GaussianDistribution, [nn.Linear(2, 2)]])
def test_no_model(model: Any) -> None:
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got "):
        replace_distributions(model)
