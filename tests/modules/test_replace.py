"""replace_distributions: a network built with illia goes on with our distributions."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import same_bits
from illia_like import GaussianDistribution, make_network
from torch import Tensor, nn

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
    assert replace_distributions(network) == 4
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


def test_the_generator_is_left_alone() -> None:
    distribution, state = GaussianDistribution(3), torch.random.get_rng_state()
    replace_distributions(distribution)
    assert torch.equal(torch.random.get_rng_state(), state)
