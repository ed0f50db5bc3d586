"""The benchmark's peers compute what their docstrings say, and one that cannot be imported is skipped with a reason."""

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.layers import BayesianLinear
from bench.peers import PEERS, Blitz, Peer, TorchBNN, load_peers

MU_PRIOR, STD_PRIOR = 0.02, 0.1
COST_WEIGHT = 0.3
BLITZ_FLOOR = 1e-6


@pytest.fixture(params=PEERS)
def peer(request: pytest.FixtureRequest) -> type[Peer]:
    skipped = load_peers()[1]
    if request.param in skipped:
        pytest.skip(skipped[request.param])
    return PEERS[request.param]


def draw(layer: BayesianLinear) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, bias and cost of one forward, differentiable: the weights are read from y at x = [0; I]."""
    mu = layer.gaussians()[0].mu
    x = torch.cat([mu.new_zeros(1, mu.shape[1]), torch.eye(mu.shape[1], dtype=mu.dtype, device=mu.device)])
    y, cost = layer(x)
    return (y[1:] - y[0]).T, y[0], cost


def expected_cost(layer: BayesianLinear, drawn: Tensor, mu: Tensor, sigma: Tensor, floor: float) -> Tensor:
    if layer.density == "closed form":
        second_moment = (sigma**2 + (mu - MU_PRIOR) ** 2) / STD_PRIOR**2
        return ((second_moment - 1) / 2 - sigma.log() + math.log(STD_PRIOR)).sum()
    log_p = torch.distributions.Normal(torch.full_like(mu, MU_PRIOR), STD_PRIOR).log_prob(drawn)
    log_p = torch.log(log_p.exp() + floor) if floor else log_p
    return (torch.distributions.Normal(mu, sigma).log_prob(drawn) - log_p).sum()


def errors(layer: BayesianLinear, floor: float = 0.0) -> dict[str, float]:
    """Of the cost and of the gradients, relative and in norm, against float64 at the layer's own draw."""
    *drawn, cost = draw(layer)
    generator = torch.Generator(cost.device).manual_seed(1)
    slopes = [torch.randn(w.shape, generator=generator, dtype=w.dtype, device=w.device) for w in drawn]
    leaves = [leaf for gaussians in layer.gaussians() for leaf in gaussians]
    loss = sum((w * slope).sum() for w, slope in zip(drawn, slopes)) + COST_WEIGHT * cost
    grads = torch.autograd.grad(loss, leaves)

    wanted_leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    wanted_loss, wanted_cost = cost.new_zeros((), dtype=torch.float64), cost.new_zeros((), dtype=torch.float64)
    for w, slope, mu, raw in zip(drawn, slopes, wanted_leaves[::2], wanted_leaves[1::2]):
        sigma = layer.sigma(raw)
        sample = mu + sigma * ((w.double() - mu) / sigma).detach()
        wanted_cost = wanted_cost + expected_cost(layer, sample, mu, sigma, floor)
        wanted_loss = wanted_loss + (sample * slope.double()).sum()
    wanted_grads = torch.autograd.grad(wanted_loss + COST_WEIGHT * wanted_cost, wanted_leaves)

    names = ("cost", "mu of weight", "raw of weight", "mu of bias", "raw of bias")
    pairs = zip(names, [cost.detach(), *grads], [wanted_cost.detach(), *wanted_grads])
    return {name: float((got.double() - wanted).norm() / wanted.norm()) for name, got, wanted in pairs}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cost_and_gradients(peer: type[Peer], dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(0)
    layer = peer(40, 30, MU_PRIOR, STD_PRIOR, device=device, dtype=dtype)
    assert {(leaf.dtype, leaf.device.type) for g in layer.gaussians() for leaf in g} == {(dtype, device.type)}
    found = errors(layer, BLITZ_FLOOR if peer is Blitz else 0)
    bound = {torch.float32: 1e-5, torch.float64: 1e-6 if peer is TorchBNN else 1e-12}[dtype]
    assert max(found.values()) < bound, found


def test_what_blitz_adds_to_the_prior(peer: type[Peer], device: torch.device) -> None:
    """A floor under the prior's density: far out its weights feel no prior, and those of the others do."""
    layer = peer(40, 30, MU_PRIOR, STD_PRIOR, device=device, dtype=torch.float64)
    with torch.no_grad():
        for gaussians in layer.gaussians():
            gaussians.mu.fill_(MU_PRIOR + 10 * STD_PRIOR)
    assert (errors(layer)["mu of weight"] > 0.9) == (peer is Blitz)


def test_initial_values_and_shapes(peer: type[Peer], device: torch.device) -> None:
    layer = peer(200, 300, device=device)
    y, cost = layer(torch.zeros(7, 200, device=device))
    assert y.shape == (7, 300)
    assert cost.shape == ()
    assert [tuple(mu.shape) for mu, raw in layer.gaussians()] == [(300, 200), (300,)]
    for mu, raw in layer.gaussians():
        assert mu.std().item() == pytest.approx(0.1, rel=0.2)
        assert layer.sigma(raw).log().mean().item() == pytest.approx(math.log(math.log1p(math.exp(-5))), abs=0.05)


def test_noise(peer: type[Peer], device: torch.device) -> None:
    """It is new at each call, with and without gradients, and torch's seed governs it."""
    layer = peer(20, 30, device=device)
    torch.manual_seed(0)
    first, second = draw(layer), draw(layer)
    torch.manual_seed(0)
    with torch.no_grad():
        again = draw(layer)
    assert not torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not again[0].requires_grad


def test_the_default_dtype_stays(peer: type[Peer]) -> None:
    peer(2, 3, dtype=torch.float64)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("missing", [True, False])
def test_a_peer_that_cannot_be_imported(
    name: str, missing: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = PEERS[name].imports[0].partition(".")[0]
    for module in [module for module in sys.modules if module.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    if missing:
        monkeypatch.setitem(sys.modules, package, None)
    else:
        (tmp_path / f"{package}.py").write_text("raise RuntimeError('made for\\nanother torch')\n")
        monkeypatch.syspath_prepend(tmp_path)
    loaded, skipped = load_peers()
    assert name not in loaded
    assert {*loaded, *skipped} == set(PEERS)
    reason = skipped[name]
    assert (package in reason and "\n" not in reason) if missing else reason == "RuntimeError: made for another torch"
