"""BayesianModule itself: what it holds, its priors, freezing, copies, conversion to and from plain modules."""

import copy
import pickle
from typing import Any

import pytest
import torch
from foreach_cases import move_keys
from helpers import DEVICE, make_key, rng_state, same_bits
from module_cases import assert_same, make_network
from torch import Tensor, nn
from torch.nn.utils import parametrize as parametrizations
from torch.optim.swa_utils import AveragedModel

from illia_ext import BayesianModule, functional
from illia_ext.random import draw_key

parametrize = pytest.mark.parametrize
INPUTS = torch.linspace(-1, 1, 15, device=DEVICE).reshape(5, 3)


@pytest.fixture
def bayesian() -> BayesianModule:
    return BayesianModule(make_network(), rho_init=-1.0).eval()


def assert_same_state(ours: nn.Module, expected: nn.Module) -> None:
    assert ours.state_dict().keys() == expected.state_dict().keys()
    assert_same(ours.state_dict(), expected.state_dict())


def test_it_holds_one_mu_and_one_rho() -> None:
    """Under the module's own names; the module that was given stays as it was, and apart."""
    network = make_network()
    network[3].bias.requires_grad_(False)
    before = copy.deepcopy(network)
    names = [name for name, _ in network.named_parameters()]
    bayesian = BayesianModule(network, 0.0, select=names)
    assert [name for name, _ in bayesian.named_parameters()] == [
        f"{t}.{name}" for t in ("module", "rho") for name in names
    ]
    statistics = [f"module.{name}" for name, _ in network.named_buffers()]
    parameters = [name for name, _ in bayesian.named_parameters()]
    assert bayesian.state_dict().keys() == {"mu_prior", "std_prior", "_extra_state", *parameters, *statistics}
    for name, mu, rho in bayesian.named_gaussians():
        parameter = network.get_parameter(name)
        assert mu is bayesian.module.get_parameter(name) and rho is bayesian.rho.get_parameter(name)
        assert type(mu) is type(rho) is nn.Parameter
        assert same_bits(mu, parameter) and mu.data_ptr() != parameter.data_ptr()
        assert mu.requires_grad == rho.requires_grad == parameter.requires_grad
        assert rho.shape == mu.shape and (rho == -5).all()
    bayesian(INPUTS)[0].sum().backward()
    assert_same_state(network, before)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_conversion_and_back(bayesian: BayesianModule) -> None:
    """A plain network's weights become mu, and come back; both state_dicts load strictly."""
    other = make_network().eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    bayesian.module.load_state_dict(other.state_dict())
    assert same_bits(bayesian.mean_forward(INPUTS), other(INPUTS))
    plain = bayesian.mean_module()
    assert_same_state(plain, other)
    assert plain[0].weight.data_ptr() != bayesian.module[0].weight.data_ptr()
    again = BayesianModule(make_network()).eval()
    again.load_state_dict(bayesian.state_dict())
    assert_same(again(INPUTS, key=make_key(1)), bayesian(INPUTS, key=make_key(1)))


def test_draws_by_torch_generator(bayesian: BayesianModule) -> None:
    """One key for all weights, or S at once."""
    for num_samples in (None, 3):
        torch.manual_seed(3)
        key = draw_key(num_samples, device=DEVICE)
        torch.manual_seed(3)
        assert_same(bayesian(INPUTS, num_samples=num_samples), bayesian(INPUTS, key=key))


def relative_std(name: str, weight: Tensor) -> Any:
    return 0.5 if "bias" in name else weight.abs() + 0.1


PRIORS: list[tuple[Any, Any]] = [(0.25, 0.75), (lambda name, weight: weight, relative_std), (0.25, relative_std)]


@parametrize("priors", PRIORS)
def test_priors(priors: tuple[Any, Any]) -> None:
    """The sums over single calls; these round each tensor's part of at most the whole: 6 tensors, 2^-21."""
    network = make_network()
    bayesian = BayesianModule(network, *priors, rho_init=-1.0)
    keys = move_keys([mu for _, mu, _ in bayesian.named_gaussians()], make_key(1))
    kl_divergence = log_prob = torch.zeros((), device=DEVICE)
    for (name, mu, rho), key in zip(bayesian.named_gaussians(), keys):
        prior = [value(name, network.get_parameter(name).detach()) if callable(value) else value for value in priors]
        kl_divergence = kl_divergence + functional.gaussian_kl_divergence(mu, rho, *prior)
        log_prob = log_prob + functional.gaussian_sample_and_log_prob(mu, rho, *prior, key)[1]
    torch.testing.assert_close(bayesian.kl_divergence(), kl_divergence, rtol=2**-21, atol=0)
    torch.testing.assert_close(bayesian(INPUTS, key=make_key(1))[1], log_prob, rtol=2**-21, atol=0)
    assert len(list(bayesian.parameters())) == 2 * len(keys)


def test_learned_priors() -> None:
    """One for all weights, and one for some, shared: each is a parameter once, in the group of the rest."""
    mu_prior, std_prior = (nn.Parameter(torch.tensor([value], device=DEVICE)) for value in (0.25, 0.75))
    bayesian = BayesianModule(make_network(), mu_prior, lambda name, _: std_prior if "bias" in name else 0.5)
    bayesian(INPUTS)[1].backward()
    assert mu_prior.grad.any() and std_prior.grad.any()
    assert list(map(id, bayesian.param_groups()[-1]["params"])) == [id(mu_prior), id(std_prior)]


def test_one_prior_is_one_tensor() -> None:
    bayesian = BayesianModule(make_network(), 0.0)
    assert [name for name, _ in bayesian.named_buffers(recurse=False)] == ["frozen_key", "mu_prior", "std_prior"]
    assert bayesian.mu_prior.shape == bayesian.std_prior.shape == (1,)
    assert bayesian.double().std_prior.dtype == torch.float64
    assert bayesian(INPUTS.double())[1].dtype == torch.float64


def replace(bayesian: BayesianModule, weight: Tensor | None) -> None:
    bayesian.module[0].weight = None if weight is None else nn.Parameter(weight)


@parametrize(
    ("change", "message"),
    [
        (lambda b: replace(b, torch.ones(4, 9)), r"module.0.weight: expected the shape of rho.0.weight, .*4, 3.* got"),
        (lambda b: replace(b, torch.ones(4, 3).double()), "module.0.weight: expected the dtype of rho.0.weight"),
        (lambda b: replace(b, torch.ones(4, 3, device="meta")), "module.0.weight: expected the device of rho.0.weight"),
        (lambda b: replace(b, None), "module.0.weight: expected the parameter that became a Gaussian, found none"),
        (lambda b: setattr(b, "module", nn.Linear(3, 3)), "module.0.weight: expected the parameter that became a"),
        (
            lambda b: parametrizations.register_parametrization(b.module[0], "weight", nn.Tanh()),
            "module.0.weight: expected the parameter that became a Gaussian, found none",
        ),
    ],
)
def test_weights_changed_later(change: Any, message: str, cpu: torch.device) -> None:
    bayesian = BayesianModule(make_network())
    change(bayesian)
    for call in (lambda: bayesian(INPUTS), bayesian.kl_divergence, bayesian.sample_module):
        with pytest.raises(RuntimeError, match=message):
            call()


def test_a_weight_replaced_in_kind(bayesian: BayesianModule) -> None:
    replace(bayesian, torch.zeros(4, 3, device=DEVICE))
    assert next(mu for _, mu, _ in bayesian.named_gaussians()) is bayesian.module[0].weight
    bayesian(INPUTS)[0].sum().backward()
    assert bayesian.module[0].weight.grad is not None


def test_freezing(bayesian: BayesianModule) -> None:
    """One sample, without a draw from the generator; state_dicts carry it, strictly."""
    bayesian.freeze()
    assert_same(bayesian(INPUTS), bayesian(INPUTS))
    key = make_key(2**62, 7)
    bayesian.freeze(key)
    state = rng_state(DEVICE)
    output, log_prob = bayesian(INPUTS)
    assert torch.equal(rng_state(DEVICE), state)
    sampled = bayesian.sample_module()
    with bayesian.sampled() as log_prob_of_block:
        assert_same([bayesian.module(INPUTS), log_prob_of_block], [output, log_prob])
    other = copy.deepcopy(bayesian)
    bayesian.unfreeze()
    assert_same(bayesian(INPUTS, key=key), (output, log_prob))
    assert same_bits(sampled(INPUTS), output) and not same_bits(bayesian(INPUTS)[1], log_prob)

    other.unfreeze()
    bayesian.freeze(key)
    with pytest.warns(UserWarning, match="saved frozen, so that every call gives one sample"):
        other.load_state_dict(bayesian.state_dict())
    assert other.frozen and same_bits(other(INPUTS)[0], output)
    bayesian.unfreeze()
    other.load_state_dict(bayesian.state_dict())
    assert not other.frozen


def test_parameter_groups() -> None:
    bayesian = BayesianModule(make_network(), select=["0.weight", "3.weight"])
    groups = bayesian.param_groups(mu={"lr": 1e-3}, rho={"lr": 1e-2, "weight_decay": 0.5})
    found = [({id(parameter) for parameter in group.pop("params")}, group) for group in groups]
    rest = {id(p) for p in bayesian.module.parameters()} - {id(mu) for _, mu, _ in bayesian.named_gaussians()}
    assert found == [
        ({id(mu) for _, mu, _ in bayesian.named_gaussians()}, {"lr": 1e-3}),
        ({id(rho) for _, _, rho in bayesian.named_gaussians()}, {"lr": 1e-2, "weight_decay": 0.5}),
        (rest, {}),
    ]
    assert len(BayesianModule(make_network()).param_groups()) == 2  # no empty group


@parametrize("make_copy", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module)), AveragedModel])
def test_copies(make_copy: Any, bayesian: BayesianModule) -> None:
    bayesian.freeze(make_key(3))
    other = make_copy(bayesian)
    expected, _ = bayesian(INPUTS)
    assert same_bits(other(INPUTS)[0], expected)
    with torch.no_grad():
        bayesian.module[0].weight.zero_()
    assert same_bits(other(INPUTS)[0], expected) and not same_bits(bayesian(INPUTS)[0], expected)
    if isinstance(other, AveragedModel):
        bayesian.unfreeze()
        other.update_parameters(bayesian)  # copies buffers one by one
        assert other.module.frozen and same_bits(other(INPUTS)[0], bayesian(INPUTS, key=make_key(3))[0])
