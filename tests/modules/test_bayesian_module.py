"""BayesianModule itself: what it holds, its priors, freezing, copies, conversion to and from plain modules."""

import copy
import inspect
import math
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

from illia_ext import BayesianModule, GaussianDistribution, Positive, elbo_loss, functional
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
    """One sample, without a draw from the generator."""
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
    bayesian.unfreeze()
    assert_same(bayesian(INPUTS, key=key), (output, log_prob))
    assert same_bits(sampled(INPUTS), output) and not same_bits(bayesian(INPUTS)[1], log_prob)


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


class Doubling(BayesianModule):
    """A forward of its own, which keeps its signature."""

    def forward(self, inputs: Tensor, **options: Any) -> tuple[Any, Tensor]:
        output, log_prob = super().forward(inputs, **options)
        return 2 * output, log_prob


class Shown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, key: int = 3, **options: Any) -> Tensor:
        return self.linear(input_ids)


class Builtin(nn.Linear):
    forward = torch.relu  # type: ignore[assignment]


def test_the_signature_is_the_wrapped_modules(cpu: object) -> None:
    """On the class too, where trainers look, and on copies; an argument named key is the module's."""
    bayesian = BayesianModule(Shown())
    for each in (bayesian, copy.deepcopy(bayesian), pickle.loads(pickle.dumps(bayesian))):
        names = list(inspect.signature(each.forward).parameters)
        assert names == ["input_ids", "labels", "key", "num_samples", "antithetic", "options"]
        assert list(inspect.signature(type(each).forward).parameters) == ["self", *names]
        assert type(each) is type(bayesian) and isinstance(each, BayesianModule)
    names = list(inspect.signature(BayesianModule(nn.Linear(4, 2)).forward).parameters)
    assert names == ["input", "num_samples", "key", "antithetic"]
    own = Doubling(nn.Linear(4, 2))
    assert list(inspect.signature(own.forward).parameters) == ["inputs", "options"]
    assert own(torch.ones(1, 4), num_samples=2)[0].shape == (2, 1, 2)
    assert type(BayesianModule(Builtin(4, 2))) is BayesianModule


def test_repr(cpu: object) -> None:
    text = repr(BayesianModule(nn.Sequential(nn.Embedding(5, 3, padding_idx=0), nn.Linear(3, 2))))
    assert "3 tensors of 20 weights are Gaussian, mu_prior=0, std_prior=1" in text
    learned = BayesianModule(nn.Linear(3, 2), lambda name, weight: weight, nn.Parameter(torch.ones(1)))
    assert "2 tensors of 8 weights are Gaussian, mu_prior: one for each weight, std_prior: learned" in repr(learned)


def test_a_prior_that_has_become_negative(cpu: object) -> None:
    bayesian = BayesianModule(nn.Linear(4, 3), std_prior=nn.Parameter(torch.tensor(0.5)))
    with torch.no_grad():
        bayesian.std_prior -= 1
    output, log_prob = bayesian(torch.ones(2, 4))
    for value in (log_prob, bayesian(torch.ones(2, 4), num_samples=2)[1], bayesian.kl_divergence()):
        with pytest.raises(ValueError, match=r"log_prob: expected numbers, got nan: .* illia_ext.Positive prevents"):
            elbo_loss(output.sum(), value, 10)


@parametrize("make", [lambda prior: GaussianDistribution((4, 3), std_prior=prior, rho_init=-1.0), None])
@parametrize("start", [1e-4, 0.1, 1.0, 50.0])
def test_a_learned_prior_that_stays_positive(make: Any, start: float, cpu: object) -> None:
    """It starts where it was, up to a rounding of its logarithm, and does not cross 0."""
    prior = nn.Parameter(torch.tensor(start))
    module = make(prior) if make else BayesianModule(nn.Linear(4, 3), std_prior=prior, rho_init=-1.0)
    parametrizations.register_parametrization(module, "std_prior", Positive())
    assert module.std_prior.item() == pytest.approx(start, rel=2**-23 * (2 + abs(math.log(start))))
    if not make:
        assert "std_prior: learned" in repr(module)
    optimizer = torch.optim.Adam(module.parameters(), lr=start / 2)
    for _ in range(4):  # of half of it each
        optimizer.zero_grad()
        (1e4 * module.std_prior.sum()).backward()
        optimizer.step()
        assert module.std_prior.item() > 0
    assert module.kl_divergence().isfinite()
