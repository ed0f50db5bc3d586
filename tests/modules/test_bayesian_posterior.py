"""What follows training: the posterior as the next prior, and which weights matter; and a schedule of kl_weight."""

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
    for name, mu, _ in bnn.named_gaussians():  # a copy: training moves the posterior alone
        assert not torch.equal(priors[name], mu)


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
    assert isinstance(bnn.std_prior, nn.Module)
    train(bnn)
    expected = bnn.kl_divergence().double()
    torch.testing.assert_close(change(bnn).kl_divergence().double(), expected, rtol=1e-4, atol=0)  # of float32 sums


@parametrize("assign", [False, True])
@parametrize("default", [False, True], ids=["numbers", "norms with priors of their own"])
def test_states_of_both_kinds_are_loaded(default: bool, assign: bool) -> None:
    options = {} if default else {"mu_prior": 0.25, "std_prior": 0.5}
    early, late, other = make(**options), make(**options), make(**options)
    late.posterior_to_prior()
    assert isinstance(late.std_prior, nn.Module) and isinstance(early.std_prior, Tensor)
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
    before = copy.deepcopy(learned.state_dict())
    with pytest.raises(RuntimeError, match="std_prior"):
        learned.load_state_dict(state.state_dict())
    assert {name: tensor.shape for name, tensor in before.items()} == {
        name: tensor.shape for name, tensor in learned.state_dict().items()
    }


@parametrize("carried", [False, True])
def test_a_state_that_is_refused_leaves_the_prior(carried: bool) -> None:
    """Inside a block, and of another network, whose prior would broadcast here; with strict=False too."""
    bnn, other = BayesianModule(nn.Linear(4, 3)), BayesianModule(nn.Linear(4, 1))
    (bnn if carried else other).posterior_to_prior()
    state = other.state_dict()
    with torch.no_grad():
        bnn.module.weight.add_(1)
    expected = bnn.kl_divergence()
    for strict in (False, True):
        with pytest.raises(RuntimeError, match="size mismatch"):
            bnn.load_state_dict(state, strict=strict)
    same = make()
    same.posterior_to_prior()
    with bnn.sampled(), pytest.raises(RuntimeError, match="load_state_dict: refused"):
        bnn.load_state_dict(BayesianModule(nn.Linear(4, 3)).state_dict())
    assert torch.equal(bnn.kl_divergence(), expected) and isinstance(bnn.std_prior, nn.Module) is carried


@parametrize("default", [False, True], ids=["numbers", "norms with priors of their own"])
def test_a_part_of_a_state_brings_its_part_of_the_prior(default: bool) -> None:
    """All but the head, which keeps the prior that it has."""
    options = {} if default else {"mu_prior": 0.25, "std_prior": 0.5}
    late, other = make(**options), make(**options)
    train(late)
    late.posterior_to_prior()
    state = {name: tensor for name, tensor in late.state_dict().items() if "4." not in name}
    missing = other.load_state_dict(state, strict=False).missing_keys
    assert missing and all(".4." in name for name in missing)
    ours, theirs = (dict(bnn.std_prior.named_buffers()) for bnn in (other, late))
    for name, std in ours.items():
        if name.startswith("4."):
            assert std.unique().item() == (1.0 if default else 0.5)
        else:
            assert torch.equal(std, theirs[name])
    assert other.kl_divergence().isfinite()


@parametrize("dtype", FLOAT_DTYPES)
def test_a_loaded_prior_keeps_its_precision(dtype: torch.dtype) -> None:
    late, other = (make(dtype, std_prior=lambda name, weight: torch.full_like(weight, 0.5)) for _ in range(2))
    late.posterior_to_prior()
    other.load_state_dict(late.state_dict())
    assert torch.equal(other.kl_divergence(), late.kl_divergence())


def test_a_sigma_that_is_no_std_prior_is_refused() -> None:
    bnn = make(rho_init=lambda name, weight: -105.0 if name == "2.bias" else -2.0)
    with pytest.raises(RuntimeError, match=r"^rho.2.bias: expected a sigma from 1.2e-38 on, .* got 0.0e\+00 to"):
        bnn.posterior_to_prior()
    assert bnn.std_prior.numel() == 1
    assert bnn.signal_to_noise()["2.bias"].eq(torch.inf).all()


def test_after_evaluation_in_inference_mode() -> None:
    bnn = make()
    with torch.inference_mode():
        bnn.posterior_to_prior()
    train(bnn)
    places = [prior.data_ptr() for prior in bnn.std_prior.buffers()]
    bnn.posterior_to_prior()  # into the same tensors
    assert [prior.data_ptr() for prior in bnn.std_prior.buffers()] == places
    assert abs(bnn.kl_divergence()) < 1e-3


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
    before = step(key)
    for _ in range(2):
        torch.testing.assert_close(step(key), bnn(INPUTS, key=key)[1])
        bnn.posterior_to_prior()
        train(bnn)
    assert abs(step(key)) < before / 2


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
    """As the docstring does it: a large mu of a large sigma goes, a small one of a small sigma stays."""
    bnn = make()
    with torch.no_grad():
        bnn.module[0].weight[2] = 5.0  # the padding row
        bnn.module[2].weight[0], bnn.rho.get_submodule("2").weight[0] = 3.0, 6.0
        bnn.module[2].weight[1], bnn.rho.get_submodule("2").weight[1] = 0.01, -14.0
    ratios = bnn.signal_to_noise()
    weights = torch.cat([ratio[ratio.isfinite()] for ratio in ratios.values()])
    assert len(weights) == bnn.num_params()
    least = weights.kthvalue(int(0.75 * len(weights))).values
    for name, mu, _ in bnn.named_gaussians():
        mu.data[ratios[name] <= least] = 0.0
    assert (bnn.module[2].weight[0] == 0).all() and (bnn.module[2].weight[1] == 0.01).all()
    assert (bnn.module[0].weight[2] == 5).all()
    left = sum(int(mu.count_nonzero()) for _, mu, _ in bnn.named_gaussians()) - 8
    assert left == len(weights) - int(0.75 * len(weights))


def test_weights_of_an_epoch_are_its_bound() -> None:
    """Blundell's weights of kl_weight, as elbo_loss gives them, count the second term of an epoch once."""
    nll, log_prob = torch.tensor(2.0), torch.tensor(30.0)
    total: Tensor = sum(elbo_loss(nll, log_prob, 10 * 7, 7 * 2**-i / (1 - 2**-7)) for i in range(1, 8))
    torch.testing.assert_close(total, 7 * elbo_loss(nll, log_prob, 10 * 7))
