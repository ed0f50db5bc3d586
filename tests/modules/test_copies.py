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


def test_state_dict_of_illia() -> None:
    """What illia 0.2.4 writes for a distribution of shape (3, 2) loads, and ours has the same names and shapes."""
    mu, rho, mu_prior, std_prior = torch.randn(3, 2), torch.randn(3, 2) - 7, torch.tensor([0.5]), torch.tensor([0.25])
    state = through_file({"mu": mu, "rho": rho, "mu_prior": mu_prior, "std_prior": std_prior})
    distribution, expected = GaussianDistribution((3, 2), device=DEVICE), make_distribution((3, 2))
    ours = through_file(distribution.state_dict())
    assert {n: (t.shape, t.dtype) for n, t in ours.items()} == {n: (t.shape, t.dtype) for n, t in state.items()}
    assert str(distribution.load_state_dict(state, strict=True)) == "<All keys matched successfully>"
    with torch.no_grad():
        expected.mu.copy_(mu)
        expected.rho.copy_(rho)
    assert_same(distribution.kl_divergence(), expected.kl_divergence())
    assert_same(distribution.sample_and_log_prob(key=KEY), expected.sample_and_log_prob(key=KEY))


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


def test_clipped_gradients_and_a_foreach_optimizer() -> None:
    """The optimizer's implementations agree within float32's rounding."""
    distributions = [make_distribution((3, 2)) for _ in range(2)]
    for distribution, foreach in zip(distributions, (False, True)):
        optimizer = torch.optim.Adam(distribution.parameters(), lr=0.1, foreach=foreach)
        for key in KEYS[:3]:
            optimizer.zero_grad()
            loss_of(distribution, key).backward()
            assert nn.utils.clip_grad_norm_(distribution.parameters(), 0.5) > 1
            norm = torch.cat([parameter.grad.flatten() for parameter in distribution.parameters()]).norm()
            torch.testing.assert_close(norm.item(), 0.5)
            optimizer.step()
    torch.testing.assert_close(*(list(distribution.parameters()) for distribution in distributions))
