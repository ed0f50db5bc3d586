"""What new users get wrong: each ends in a sentence, or works as meant."""

import copy
import math
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrize as torch_parametrize

from illia_ext import (
    BayesianModule,
    GaussianDistribution,
    Positive,
    elbo_loss,
    mutual_information,
    predictive_entropy,
    relative_rho,
)

parametrize = pytest.mark.parametrize


def make_network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


class Layer(nn.Module):
    """Draws its own weights, as layers of illia do."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = GaussianDistribution((3, 8))

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.linear(inputs, self.weights.sample())


@parametrize("inner", [Layer, lambda: BayesianModule(nn.Linear(8, 3))])
def test_a_bayesian_layer_inside(inner: Any, cpu: object) -> None:
    """Also where `select` leaves it out: its log_prob is no part of the sum."""
    network = nn.Sequential(nn.Linear(4, 8), inner())
    with pytest.raises(ValueError, match=r"module: expected plain layers, got \w+ '1.*', .* would be missing"):
        BayesianModule(network, select=["0.weight"])


def test_predict_in_training_mode(cpu: object) -> None:
    bayesian, inputs = BayesianModule(make_network()), torch.randn(5, 4)
    with pytest.warns(UserWarning, match=r"predict: the module is in training mode, .*; call eval\(\) first") as caught:
        bayesian.predict(inputs)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bayesian.eval().predict(inputs)
        torch.compile(bayesian.predict, backend="eager")(inputs)
    bayesian.module[1].train()
    with pytest.warns(UserWarning, match="predict: the module is in training mode"):
        bayesian.predict(inputs)


def test_a_frozen_checkpoint(cpu: object) -> None:
    bayesian = BayesianModule(make_network())
    bayesian.freeze()
    state = bayesian.state_dict()
    inputs = torch.randn(5, 4)
    with pytest.warns(UserWarning, match=r"the weights are frozen, .*; unfreeze\(\) them") as caught:
        bayesian(inputs)
    assert caught[0].filename == __file__
    other = BayesianModule(make_network())
    with pytest.warns(UserWarning, match=r"load_state_dict: .* saved frozen, .* unfreeze\(\) them") as caught:
        other.load_state_dict(state)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.load_state_dict(state)  # it is frozen already
    other.unfreeze()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other(inputs)
        other.load_state_dict(other.state_dict())
        bayesian.eval()(inputs)
        with torch.no_grad():
            bayesian.train()(inputs)


@parametrize("strict", [True, False])
def test_the_state_dict_of_a_plain_network(strict: bool, cpu: object) -> None:
    """Not strict it would load nothing."""
    network = make_network()
    bayesian = BayesianModule(make_network())
    before = copy.deepcopy(bayesian.state_dict())
    with pytest.raises(RuntimeError, match=r"0\.weight: a weight of the plain .* bnn\.module\.load_state_dict"):
        bayesian.load_state_dict(network.state_dict(), strict=strict)
    with pytest.raises(RuntimeError, match=r"0\.weight: a weight of the plain network"):  # as a part of another module
        nn.Sequential(bayesian).load_state_dict({f"0.{name}": x for name, x in network.state_dict().items()}, strict)
    assert all(torch.equal(x, before[name]) for name, x in bayesian.state_dict().items())
    bayesian.module.load_state_dict(network.state_dict())
    assert all(map(torch.equal, bayesian.module.parameters(), network.parameters()))


class Holder(nn.Module):
    """Names as a BayesianModule has them."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(2, 2)
        self.a = nn.Linear(2, 2)
        self.rho = nn.ModuleDict({"a": nn.Linear(2, 2)})
        self.std_prior, self.tied = nn.Parameter(torch.ones(1)), self.a


def test_names_that_look_like_a_plain_network(cpu: object) -> None:
    """A part that is named module is told apart, and a part of the own state is no plain network."""
    bayesian = BayesianModule(Holder())
    with pytest.raises(RuntimeError, match=r"module\.weight: a weight of the plain network"):
        bayesian.load_state_dict(Holder().state_dict(), strict=False)
    with pytest.raises(RuntimeError, match=r"a\.weight: a weight of the plain network"):  # a part of one
        bayesian.load_state_dict({"a.weight": torch.ones(2, 2)}, strict=False)
    with pytest.raises(RuntimeError, match=r"0\.tied\.weight: a weight of the plain network"):
        nn.Sequential(bayesian).load_state_dict({"0.tied.weight": torch.ones(2, 2)}, strict=False)
    bayesian.load_state_dict(bayesian.state_dict())
    for part in ("rho.", "module."):
        state = {name: torch.ones_like(x) for name, x in bayesian.state_dict().items() if name.startswith(part)}
        bayesian.load_state_dict(state, strict=False)
    assert all((parameter == 1).all() for parameter in bayesian.parameters())


def test_names_that_are_not_there(cpu: object) -> None:
    with pytest.raises(ValueError, match=r"got '0\.wieght'; of its 6 some are \['0\.weight'"):
        BayesianModule(make_network(), select=["0.wieght"])
    with pytest.raises(ValueError, match=r"got 'zzz'; of its 6 some are \['0\.bias', '0\.weight', '1\.bias'"):
        BayesianModule(make_network(), select=["zzz"])


def test_relative_rho_without_a_call(cpu: object) -> None:
    with pytest.raises(TypeError, match=r"rho_init: expected relative_rho\(delta\), .* got relative_rho itself"):
        BayesianModule(make_network(), rho_init=relative_rho)  # type: ignore[arg-type]


@parametrize("measure", [predictive_entropy, mutual_information])
@parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_probabilities_in_place_of_logits(measure: Any, dtype: torch.dtype, cpu: object) -> None:
    logits = torch.randn(7, 5, 3)
    with pytest.raises(ValueError, match=r"logits: expected logits, got probabilities .*; pass their logarithms"):
        measure(logits.softmax(-1).to(dtype))
    torch.testing.assert_close(measure(logits.log_softmax(-1)), measure(logits))
    assert measure(torch.zeros(7, 0, 3)).shape == (0,)
    for other in (logits.abs(), torch.zeros(2, 1, 3), torch.ones(2, 5, 1), logits - logits.mean(-1, True) + 1 / 3):
        assert measure(other).isfinite().all()


@parametrize("measure", [predictive_entropy, mutual_information])
def test_values_that_no_check_can_look_at(measure: Any, cpu: object) -> None:
    """Under transforms, traces and compilers the checks of values step aside; in a device context they do not."""
    logits = torch.randn(7, 5, 3)
    expected = measure(logits)
    torch.testing.assert_close(torch.func.vmap(measure, 1)(logits[:, :, None])[:, 0], expected)
    torch.testing.assert_close(make_fx(measure)(logits)(logits), expected)
    torch.testing.assert_close(torch.compile(measure, fullgraph=True, backend="eager")(logits), expected)
    torch.func.grad(lambda x: elbo_loss(x.sum(), x.sum(), 10))(torch.ones(3))
    torch.func.vmap(lambda x: elbo_loss(x, x, 10))(torch.tensor([1.0, torch.nan]))
    torch.compile(elbo_loss, fullgraph=True, backend="eager")(torch.ones(()), torch.tensor(torch.nan), 10)
    with torch.device("cpu"), pytest.raises(ValueError, match="log_prob: expected numbers, got nan"):
        elbo_loss(torch.ones(()), torch.tensor(torch.nan), 10)


def test_a_prior_that_has_become_negative(cpu: object) -> None:
    bayesian = BayesianModule(nn.Linear(4, 3), std_prior=nn.Parameter(torch.tensor(0.5)))
    with torch.no_grad():
        bayesian.std_prior -= 1
    output, log_prob = bayesian(torch.ones(2, 4))
    for value in (log_prob, bayesian(torch.ones(2, 4), num_samples=2)[1], bayesian.kl_divergence()):
        with pytest.raises(
            ValueError,
            match=r"log_prob: expected numbers, got nan: .* which illia_ext.Positive prevents",
        ):
            elbo_loss(output.sum(), value, 10)


@parametrize("make", [lambda prior: GaussianDistribution((4, 3), std_prior=prior, rho_init=-1.0), None])
@parametrize("start", [1e-4, 0.1, 1.0, 50.0])
def test_a_learned_prior_that_stays_positive(make: Any, start: float, cpu: object) -> None:
    """It starts where it was, up to a rounding of its logarithm, and does not cross 0."""
    prior = nn.Parameter(torch.tensor(start))
    module = make(prior) if make else BayesianModule(nn.Linear(4, 3), std_prior=prior, rho_init=-1.0)
    torch_parametrize.register_parametrization(module, "std_prior", Positive())
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


@parametrize("argument", ["select", "mu_prior", "std_prior", "rho_init"])
def test_functions_of_a_wrong_form(argument: str, cpu: object) -> None:
    for function in (lambda name: 1.0, lambda: 1.0, lambda name, weight, more: 1.0):
        with pytest.raises(TypeError, match=rf"{argument}: expected a function \(name, parameter\), got <function"):
            BayesianModule(make_network(), **{argument: function})
    given = partial(lambda value, name, weight: value, 1.0)
    for allowed in (lambda name, weight, more=2: 1.0, lambda *arguments: 1.0, given):
        BayesianModule(make_network(), **{argument: allowed})


def test_priors_of_a_wrong_kind(cpu: object) -> None:
    network = make_network()
    for prior, sentence in (
        (nn.Linear(2, 2), "mu_prior: expected a number, a tensor or a function .* got a module"),
        (dict(network.named_parameters()), r"mu_prior: expected a number, got \{'0.weight': .{,70}, for all"),
    ):
        with pytest.raises(TypeError, match=sentence):
            BayesianModule(network, prior)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"logits: .* take the samples: bnn\.predict\(inputs\)\.samples"):
        mutual_information(BayesianModule(network).eval().predict(torch.randn(5, 4)))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"num_data: expected a number, got a tensor of shape \[5, 4\]"):
        elbo_loss(torch.ones(()), torch.ones(()), torch.randn(5, 4))  # type: ignore[arg-type]


def test_no_samples(cpu: object) -> None:
    _, log_prob = GaussianDistribution(3).sample_and_log_prob(num_samples=0)
    for name, arguments in (("log_prob", (torch.ones(()), log_prob)), ("nll", (torch.ones(0), log_prob.sum()))):
        with pytest.raises(ValueError, match=f"{name}: expected at least one sample, got none"):
            elbo_loss(*arguments, 10)
    with pytest.raises(ValueError, match="num_samples: must be at least 1, got 0"):
        BayesianModule(nn.Linear(2, 2))(torch.ones(1, 2), num_samples=0)


def test_samples_and_a_loss(cpu: object) -> None:
    """The line that README shows."""
    bayesian, x, y = BayesianModule(nn.Linear(4, 3)), torch.randn(5, 4), torch.randint(3, (5,))
    logits, log_prob = bayesian(x, num_samples=6)
    nll = nn.functional.cross_entropy(logits.flatten(0, 1), y.repeat(6))
    each = torch.stack([nn.functional.cross_entropy(one, y) for one in logits])
    # one mean of 30 and means of 5: a few roundings apart
    torch.testing.assert_close(elbo_loss(nll, log_prob, 5), elbo_loss(each, log_prob, 5))
