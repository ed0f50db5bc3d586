"""What follows training: the posterior as the next prior, which weights matter, and schedules of kl_weight."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from helpers import FLOAT_DTYPES, UNIT_ROUNDOFF, arithmetic_dtype
from torch import Tensor, nn

from illia_ext import BayesianModule, elbo_loss, reference

parametrize = pytest.mark.parametrize


def make_network(dtype: torch.dtype = torch.float32) -> nn.Module:
    """With an embedding that has a padding row, and a norm, whose prior is of each weight."""
    torch.manual_seed(0)
    layers = nn.Embedding(11, 8, padding_idx=2), nn.Flatten(), nn.Linear(24, 16), nn.LayerNorm(16), nn.Linear(16, 3)
    return nn.Sequential(*layers).to(dtype)


INPUTS, LABELS = torch.tensor([[1, 2, 3], [4, 2, 10]]), torch.tensor([0, 2])


def make(dtype: torch.dtype = torch.float32, **options: object) -> BayesianModule:
    return BayesianModule(make_network(dtype), **{"rho_init": -2.0, **options})


def train(bnn: BayesianModule) -> None:
    optimizer = torch.optim.SGD(bnn.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        output, log_prob = bnn(INPUTS)
        elbo_loss(nn.functional.cross_entropy(output, LABELS), log_prob, 10).backward()
        optimizer.step()


@parametrize("dtype", FLOAT_DTYPES)
def test_the_posterior_becomes_the_prior(dtype: torch.dtype) -> None:
    bnn = make(dtype)
    train(bnn)
    before = {name: parameter.clone() for name, parameter in bnn.named_parameters()}
    assert bnn.kl_divergence() > 100
    bnn.posterior_to_prior()
    assert all(torch.equal(parameter, before[name]) for name, parameter in bnn.named_parameters())
    # sigma and std_prior differ by 4 roundings at most; the terms of a weight, 1/2 and 1/2, by as many
    u = UNIT_ROUNDOFF[arithmetic_dtype(dtype)]
    assert abs(bnn.kl_divergence().item()) <= 10 * u * bnn.num_params()
    for _, mu, _ in bnn.named_gaussians():
        mu.data.add_(1)
    assert bnn.kl_divergence() > 100
    priors = dict(bnn.mu_prior.named_buffers())
    for name, mu, rho in bnn.named_gaussians():  # a copy: training moves the posterior alone
        assert not torch.equal(priors[name], mu) and rho.requires_grad


def test_log_prob_is_that_of_the_new_prior() -> None:
    bnn = make(torch.float64)
    train(bnn)
    bnn.posterior_to_prior()
    train(bnn)
    priors = [dict(prior.named_buffers()) for prior in (bnn.mu_prior, bnn.std_prior)]
    expected = sum(
        reference.gaussian_kl_divergence(*(t[torch.arange(len(t)) != 2] if name == "0.weight" else t for t in tensors))
        for name, mu, rho in bnn.named_gaussians()
        for tensors in [(mu, rho, priors[0][name], priors[1][name])]
    )
    torch.testing.assert_close(bnn.kl_divergence(), expected)


@parametrize("change", [copy.deepcopy, lambda bnn: pickle.loads(pickle.dumps(bnn)), lambda bnn: bnn.to(torch.float64)])
def test_it_is_carried_along(change: Callable[[BayesianModule], BayesianModule]) -> None:
    bnn = make()
    bnn.posterior_to_prior()
    train(bnn)
    expected = bnn.kl_divergence().double()
    torch.testing.assert_close(change(bnn).kl_divergence().double(), expected, rtol=1e-4, atol=0)  # of float32 sums


@parametrize("assign", [False, True])
@parametrize("default", [False, True], ids=["numbers", "norms with priors of their own"])
def test_states_of_both_kinds_are_loaded(default: bool, assign: bool) -> None:
    options = {} if default else {"mu_prior": 0.25, "std_prior": 0.5}
    early, late, other = make(**options), make(**options), make(**options)
    late.posterior_to_prior()
    train(late)
    states = [copy.deepcopy(bnn.state_dict()) for bnn in (late, early)]
    for state, bnn in zip(states, (late, early)):
        expected = bnn.kl_divergence()
        loaded = other.load_state_dict(copy.deepcopy(state), assign=assign)
        assert not loaded.missing_keys and not loaded.unexpected_keys
        assert torch.equal(other.kl_divergence(), expected)
        assert {name: tensor.shape for name, tensor in other.state_dict().items()} == {
            name: tensor.shape for name, tensor in state.items()
        }


def test_a_learned_prior_is_neither_replaced_nor_loaded_over() -> None:
    learned = make(std_prior=nn.Parameter(torch.tensor(0.5)))
    with pytest.raises(RuntimeError, match=r"^std_prior: expected a fixed prior, .* got a learned one$"):
        learned.posterior_to_prior()
    each = make(mu_prior=lambda name, weight: nn.Parameter(weight.clone()))
    with pytest.raises(RuntimeError, match=r"^mu_prior: expected a fixed prior"):
        each.posterior_to_prior()
    state = make()
    state.posterior_to_prior()
    with pytest.raises(RuntimeError, match="std_prior"):
        learned.load_state_dict(state.state_dict())
    assert isinstance(learned.std_prior, nn.Parameter)


def test_refused_where_mu_is_not_in_place_or_not_whole() -> None:
    bnn = make()
    with bnn.sampled(), pytest.raises(RuntimeError, match="posterior_to_prior: refused while"):
        bnn.posterior_to_prior()
    next(bnn.parameters()).device_mesh = None  # as a sharded one has it
    with pytest.raises(RuntimeError, match="gather them, call this and shard again"):
        bnn.posterior_to_prior()
    assert bnn.std_prior.numel() == 1


def test_compiled() -> None:
    bnn = make()
    step = torch.compile(lambda key: bnn(INPUTS, key=key)[1], backend="aot_eager")
    key = torch.tensor([5, 0])
    for _ in range(2):
        torch.testing.assert_close(step(key), bnn(INPUTS, key=key)[1])
        bnn.posterior_to_prior()


@parametrize("dtype", FLOAT_DTYPES)
def test_signal_to_noise(dtype: torch.dtype) -> None:
    bnn = make(dtype)
    ratios = bnn.signal_to_noise()
    assert list(ratios) == [name for name, *_ in bnn.named_gaussians()]
    for name, mu, rho in bnn.named_gaussians():
        expected = (mu.double().abs() / nn.functional.softplus(rho.double())).detach()
        if name == "0.weight":
            expected[2] = torch.inf  # no weight
        assert ratios[name].dtype == arithmetic_dtype(dtype) and not ratios[name].requires_grad
        torch.testing.assert_close(ratios[name].double(), expected, rtol=1e-6, atol=0)  # a few roundings of float32


def test_pruning_by_it() -> None:
    """As the docstring does it."""
    bnn = make()
    ratios = bnn.signal_to_noise()
    least = torch.cat([ratio.flatten() for ratio in ratios.values()]).quantile(0.75)
    for name, mu, _ in bnn.named_gaussians():
        mu.data[ratios[name] < least] = 0.0
    weights = torch.cat([mu.flatten() for _, mu, _ in bnn.named_gaussians()])
    assert (weights == 0).double().mean().item() == pytest.approx(0.75, abs=0.02)  # biases of a norm and the row are 0
    assert bnn.module(INPUTS).isfinite().all()


def test_schedules_of_kl_weight() -> None:
    """Those that elbo_loss names: a warm-up ends at 1, and Blundell's weights of an epoch add up to its batches."""
    assert [min(1, step / 1000) for step in (0, 500, 1000, 5000)] == [0, 0.5, 1, 1]
    for batches in (1, 7, 2000):
        weights = [batches * 2**-i / (1 - 2**-batches) for i in range(1, batches + 1)]
        assert sum(weights) == pytest.approx(batches)
    nll, log_prob = torch.tensor(2.0), torch.tensor(30.0)
    total: Tensor = sum(elbo_loss(nll, log_prob, 10 * 7, 7 * 2**-i / (1 - 2**-7)) for i in range(1, 8))
    torch.testing.assert_close(total, 7 * elbo_loss(nll, log_prob, 10 * 7))
