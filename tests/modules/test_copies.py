"""Copies and rearrangements: whatever torch makes of a distribution draws, trains and loads as it should."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import DEVICE
from module_cases import KEY, KEYS, assert_same
from torch import Tensor, nn
from torch.nn.utils import parametrize as parametrizations
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from illia_ext import GaussianDistribution

parametrize = pytest.mark.parametrize


def make_distribution(
    shape: Any, mu_prior: float | Tensor = 0.5, std_prior: float | Tensor = 0.25, **arguments: Any
) -> GaussianDistribution:
    torch.manual_seed(0)
    return GaussianDistribution(shape, mu_prior, std_prior, rho_init=-1.0, device=DEVICE, **arguments)


def loss_of(distribution: GaussianDistribution, key: Tensor = KEY) -> Tensor:
    x, log_prob = distribution.sample_and_log_prob(key=key)
    return x.square().sum() + log_prob.sum()


class Linear(nn.Module):
    """A layer that draws its weights from a key, or a new key at each call; it keeps nothing of them."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = make_distribution((3, 4))

    def forward(self, inputs: Tensor, key: Tensor | None = None) -> Tensor:
        return nn.functional.linear(inputs, self.weights.sample(key=key))


def through_file(value: Any, weights_only: bool = True) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    with torch.serialization.safe_globals([GaussianDistribution]):
        return torch.load(file, weights_only=weights_only)


def loaded(module: Any) -> Any:
    """Another one, which loads the state_dict of this one."""
    other = make_distribution(module.shape, *(torch.ones_like(prior) for prior in (module.mu_prior, module.std_prior)))
    other.double().load_state_dict(through_file(module.state_dict()))
    other.mu_init, other.rho_init = module.mu_init, module.rho_init
    return other


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": lambda module: through_file(module, weights_only=False),
    "torch.save, safe": through_file,
    "deepcopy of scripted": lambda module: copy.deepcopy(torch.jit.script(module)),
    "state_dict": loaded,
}
# for the shape (3, 2): numbers, tensors, and learned ones
PRIORS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "numbers": lambda: (0.5, 0.25),
    "tensors": lambda: (torch.rand(3, 1) + 0.5, torch.rand(2) + 0.5),
    "learned": lambda: tuple(nn.Parameter(torch.rand(shape, device=DEVICE) + 0.5) for shape in ((3, 1), (2,))),
}


@parametrize("priors", PRIORS)
@parametrize("used", [False, True])
@parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_copies_draw_the_same_and_train_apart(duplicate: Callable[[Any], Any], used: bool, priors: str) -> None:
    distribution = make_distribution((3, 2), *PRIORS[priors](), dtype=torch.float64)
    distribution.double()  # a learned prior keeps the dtype that it was given with
    if used:
        loss_of(distribution).backward()
    other = duplicate(distribution)
    assert list(other.state_dict()) == list(distribution.state_dict())
    assert (other.mu_init, other.rho_init) == (distribution.mu_init, distribution.rho_init)
    assert_same(other.sample_and_log_prob(key=KEYS), distribution.sample_and_log_prob(key=KEYS))
    assert_same(other.kl_divergence(), distribution.kl_divergence())
    with torch.no_grad():
        other.mu.add_(1)
    assert not torch.equal(other.mu, distribution.mu)


def illia_state_dict() -> dict[str, Tensor]:
    """What illia 0.2.4 writes for a distribution of shape (3, 2)."""
    generator = torch.Generator().manual_seed(0)
    return {
        "mu": torch.randn(3, 2, generator=generator),
        "rho": torch.randn(3, 2, generator=generator) - 7,
        "mu_prior": torch.tensor([0.5]),
        "std_prior": torch.tensor([0.25]),
    }


def test_state_dict_of_illia_loads() -> None:
    distribution = GaussianDistribution((3, 2), device=DEVICE)
    state = through_file(illia_state_dict())
    assert str(distribution.load_state_dict(state, strict=True)) == "<All keys matched successfully>"
    expected = GaussianDistribution((3, 2), mu_prior=0.5, std_prior=0.25, device=DEVICE)
    with torch.no_grad():
        expected.mu.copy_(state["mu"])
        expected.rho.copy_(state["rho"])
    assert_same([distribution.kl_divergence()], [expected.kl_divergence()])
    assert_same(distribution.sample_and_log_prob(key=KEY), expected.sample_and_log_prob(key=KEY))


def test_state_dict_is_one_of_illia() -> None:
    ours, illia = through_file(GaussianDistribution((3, 2)).state_dict()), illia_state_dict()
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in ours.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in illia.items()
    }


@parametrize("assign", [False, True])
def test_from_the_meta_device(assign: bool) -> None:
    """Shapes are computed there, priors unknown; what is loaded then brings them."""
    expected = make_distribution((3, 2))
    with torch.device("meta"):
        distribution = GaussianDistribution((3, 2))
    x, log_prob = distribution.sample_and_log_prob(2)
    assert (x.shape, log_prob.shape, x.device.type) == ((2, 3, 2), (2,), "meta")
    if not assign:
        distribution.to_empty(device=DEVICE)
    distribution.load_state_dict(expected.state_dict(), assign=assign)
    assert (distribution.mu.data_ptr() == expected.mu.data_ptr()) is assign
    assert_same(distribution.sample_and_log_prob(key=KEY), expected.sample_and_log_prob(key=KEY))
    assert all(parameter.requires_grad for parameter in distribution.parameters())


def test_averaged_models() -> None:
    """The moving average of mu and of rho; the prior stays as it is."""
    layer = Linear()
    averaged = AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.75))
    averaged.update_parameters(layer)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    inputs = torch.ones(2, 4, device=DEVICE)
    layer(inputs).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=1.0).step()
    averaged.update_parameters(layer)
    for ours, old, new in zip(averaged.parameters(), before, layer.parameters(), strict=True):
        assert not torch.equal(old, new)
        torch.testing.assert_close(ours, 0.75 * old + 0.25 * new)
    assert_same([averaged.module.weights.mu_prior], [layer.weights.mu_prior])
    expected = nn.functional.linear(inputs, averaged.module.weights.sample(key=KEY))
    assert_same([averaged(inputs, KEY)], [expected])


@parametrize("fused", [False, True])
def test_channels_last(fused: bool) -> None:
    """An element's noise goes by its place in the shape, not in memory; gradients come in the parameters' layout."""
    plain, other = (make_distribution((4, 3, 5, 5)) for _ in range(2))
    other.to(DEVICE, memory_format=torch.channels_last)
    assert other.mu.is_contiguous(memory_format=torch.channels_last) and not other.mu.is_contiguous()
    assert other.num_params() == 300
    for distribution in (plain, other):
        optimizer = torch.optim.Adam(distribution.parameters(), lr=0.1, fused=fused)
        for _ in range(2):
            optimizer.zero_grad()
            loss_of(distribution, KEYS).backward()
            optimizer.step()
    assert other.rho.grad.stride() == other.rho.stride()
    assert_same([other.mu.grad, other.rho.grad], [plain.mu.grad, plain.rho.grad])
    assert_same(other.state_dict(), plain.state_dict())
    assert_same(other.sample_and_log_prob(key=KEY), plain.sample_and_log_prob(key=KEY))
    assert other.sample().is_contiguous()


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x

    def right_inverse(self, x: Tensor) -> Tensor:
        return x / 2


@parametrize("name", ["mu", "rho"])
def test_parametrizations(name: str) -> None:
    """Twice a parameter's half is the parameter, in bits; the half gets twice its gradient."""
    plain, other = (make_distribution((3, 2)) for _ in range(2))
    parametrizations.register_parametrization(other, name, Double())
    for distribution in (plain, other):
        loss_of(distribution).backward()
    assert_same([loss_of(other)], [loss_of(plain)])
    assert_same([other.parametrizations[name].original.grad], [2 * getattr(plain, name).grad])
    assert_same([loss_of(copy.deepcopy(other))], [loss_of(plain)])
    parametrizations.remove_parametrizations(other, name)
    assert_same(other.state_dict()[name][None], plain.state_dict()[name][None])


def test_tied_parameters() -> None:
    """Two distributions with one mu: it gets both gradients, and copies are tied too."""
    tied = nn.ModuleList([make_distribution((3, 2)) for _ in range(2)])
    tied[1].mu = tied[0].mu
    tied = copy.deepcopy(tied)
    assert tied[1].mu is tied[0].mu and len(list(tied.parameters())) == 3
    apart = [torch.autograd.grad(loss_of(part, key), part.mu)[0] for part, key in zip(tied, KEYS)]
    (loss_of(tied[0], KEYS[0]) + loss_of(tied[1], KEYS[1])).backward()
    assert_same([tied[0].mu.grad], [apart[0] + apart[1]])


def test_functional_call_swaps_parameters() -> None:
    layer = Linear()
    before = copy.deepcopy(layer)
    inputs = torch.ones(2, 4, device=DEVICE)
    swapped = {name: (parameter.detach() + 1).requires_grad_() for name, parameter in layer.named_parameters()}
    outputs = torch.func.functional_call(layer, swapped, (inputs, KEY))
    outputs.sum().backward()
    other = copy.deepcopy(layer)
    other.load_state_dict(swapped, strict=False)
    expected = torch.autograd.grad(other(inputs, KEY).sum(), list(other.parameters()))
    assert_same([tensor.grad for tensor in swapped.values()], expected)
    assert_same([outputs], [other(inputs, KEY)])
    assert all(parameter.grad is None for parameter in layer.parameters())
    assert_same(layer.state_dict(), before.state_dict())


def test_hooks() -> None:
    """Of the layer that holds a distribution, and of the parameters."""
    layer = Linear()
    inputs = torch.ones(2, 4, device=DEVICE, requires_grad=True)
    expected = torch.autograd.grad(layer(inputs, KEY).sum(), list(layer.parameters()))
    seen: list[Tensor] = []
    layer.register_forward_pre_hook(lambda module, args: (args[0], KEY))
    layer.register_forward_hook(lambda module, args, output: 2 * output)
    layer.register_full_backward_hook(lambda module, grad_inputs, grad_outputs: seen.append(grad_outputs[0]))
    layer.weights.mu.register_hook(lambda grad: grad / 2)
    layer.weights.rho.register_post_accumulate_grad_hook(lambda rho: seen.append(rho.grad / 2))
    layer(inputs).sum().backward()
    assert len(seen) == 2
    assert_same([layer.weights.mu.grad, next(g for g in seen if g.shape == (3, 4))], expected)
