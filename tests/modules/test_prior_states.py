"""How a module keeps a prior: copies, moves, states, the posterior in its place, and priors that learn."""

import copy
import math
import pickle

import pytest
import torch
from prior_cases import (
    INPUTS,
    KEY,
    OF_A_MODULE,
    Learned,
    Logistic,
    assert_near,
    expected_log_prob,
    f64,
    make_network,
    parameters_of,
)
from torch import Tensor
from torch.distributions import (
    Cauchy,
    Distribution,
    Laplace,
    StudentT,
)

from illia_ext import BayesianModule, ScaleMixture

parametrize = pytest.mark.parametrize


@parametrize("name", OF_A_MODULE)
def test_a_prior_is_kept_copied_and_moved(name: str) -> None:
    prior = OF_A_MODULE[name]()
    bnn = BayesianModule(make_network(), prior=prior, rho_init=-2.0)
    expected = bnn(INPUTS, key=KEY)[1]
    for parameter in parameters_of(prior):
        parameter.data.mul_(1.1)
    changed = bnn(INPUTS, key=KEY)[1]
    assert changed == expected or parameters_of(prior)
    loaded = BayesianModule(make_network(), prior=OF_A_MODULE[name](), rho_init=-2.0)
    loaded.load_state_dict(bnn.state_dict())
    for each in (loaded, copy.deepcopy(bnn), pickle.loads(pickle.dumps(bnn))):
        assert each(INPUTS, key=KEY)[1] == changed
    log_prob = bnn.float()(INPUTS, key=KEY)[1]
    assert log_prob.dtype == torch.float32
    # some 600 terms of at most 50, each of a few roundings of 2^-24, and sigma at x - mu 1e-4 off in float32
    torch.testing.assert_close(log_prob.double(), expected_log_prob(bnn, prior, KEY), rtol=1e-3, atol=0.1)
    assert bnn.bfloat16()(INPUTS, key=KEY)[1].dtype == torch.float32


def test_a_state_sets_the_numbers_of_a_scale_mixture() -> None:
    wide, narrow = (BayesianModule(make_network(), prior=ScaleMixture(0.5, std, 0.1)) for std in (2.0, 1.0))
    narrow.load_state_dict(wide.state_dict())
    assert narrow(INPUTS, key=KEY)[1] == wide(INPUTS, key=KEY)[1]


@parametrize("name", ["laplace", "scale mixture", "student", "around each weight", "of two families"])
def test_the_posterior_becomes_the_prior(name: str) -> None:
    bnn = BayesianModule(make_network(), prior=OF_A_MODULE[name](), rho_init=-2.0)
    bnn.posterior_to_prior()
    assert bnn.prior is None and bnn.kl_divergence().abs() < 1e-10
    other = BayesianModule(make_network(), prior=OF_A_MODULE[name](), rho_init=-1.0)
    other.load_state_dict(bnn.state_dict())
    assert other.prior is None and other.kl_divergence().abs() < 1e-10


def test_a_state_of_another_prior_is_refused() -> None:
    bnn = BayesianModule(make_network(), prior=StudentT(3.0, 0.0, 1.0))
    before = copy.deepcopy(bnn.state_dict())
    for other in (
        BayesianModule(make_network()),
        BayesianModule(make_network(), prior=Cauchy(0.0, 1.0)),
        BayesianModule(make_network(), prior=lambda name, weight: StudentT(3.0, 0.0, 1.0)),
    ):
        with pytest.raises(RuntimeError, match="prior"):
            bnn.load_state_dict(other.state_dict())
        assert all(torch.equal(value, before[name]) for name, value in bnn.state_dict().items() if "prior" in name)
        with pytest.raises(RuntimeError, match="prior"):
            other.load_state_dict(before)
    bnn.posterior_to_prior()
    with pytest.raises(RuntimeError, match=r"the state of a module with a prior=\.\.\.; make this one with the same"):
        bnn.load_state_dict(before)


def test_a_prior_that_is_replaced_is_noticed() -> None:
    bnn, other = BayesianModule(make_network()), BayesianModule(make_network(), prior=Laplace(0.0, 1.0))
    bnn.prior, other.prior = Learned(Laplace, 0.0, 1.0), None
    for each in (bnn, other):
        with pytest.raises(RuntimeError, match="prior: expected either prior, or mu_prior and std_prior"):
            each(INPUTS)


def test_numbers_of_a_scale_mixture_that_change() -> None:
    bnn, other = (BayesianModule(make_network(), prior=ScaleMixture(*f64(0.5, 1.0, std))) for std in (0.01, 0.1))
    expected = other(INPUTS, key=KEY)[1]
    (std2,) = (name for name, _ in bnn.named_buffers() if name.endswith("std2"))
    values = {**dict(bnn.named_parameters()), std2: f64(0.1)[0]}
    assert_near(torch.func.functional_call(bnn, values, (INPUTS,), {"key": KEY})[1], expected, 1e3)
    for _ in range(20):  # tensors that come and go, perhaps at one address
        for std in (0.01, 0.03, 0.1):
            values[std2] = f64(std)[0]
            torch.func.functional_call(bnn, values, (INPUTS,), {"key": KEY})
    assert_near(
        torch.func.functional_call(bnn, {**values, std2: f64(0.1)[0]}, (INPUTS,), {"key": KEY})[1], expected, 1e3
    )
    compiled = torch.compile(lambda inputs, key: bnn(inputs, key=key)[1], fullgraph=True, backend="aot_eager")
    assert not torch.isclose(compiled(INPUTS, KEY), expected)
    bnn.load_state_dict({**bnn.state_dict(), std2: f64(0.1)[0]})
    assert_near(compiled(INPUTS, KEY), expected, 1e3)
    assert bnn(INPUTS, key=KEY)[1] == expected
    bnn.get_buffer(std2).data.fill_(0.01)
    assert bnn(INPUTS, key=KEY)[1] != expected
    expected = other(INPUTS, key=KEY)[1]
    bnn.get_buffer(std2).fill_(0.1)
    assert bnn(INPUTS, key=KEY)[1] == expected
    halves = ScaleMixture(*(value.half() for value in f64(0.5, 1.0, 0.0025)))
    points = torch.tensor([0.0, 0.001, 1.0])
    expected = ScaleMixture(*(value.half().float() for value in f64(0.5, 1.0, 0.0025))).log_prob(points)
    torch.testing.assert_close(halves.log_prob(points), expected)


def test_a_scale_mixture_beside_a_prior_that_learns() -> None:
    def make(std: float) -> BayesianModule:
        mixture = ScaleMixture(0.5, std, 0.1)
        return BayesianModule(
            make_network(), prior=lambda name, weight: Learned(Laplace, 0.0, 1.0) if "bias" in name else mixture
        )

    one, three = make(1.0), make(3.0)
    one.load_state_dict(three.state_dict())
    assert one(INPUTS, key=KEY)[1] == three(INPUTS, key=KEY)[1]


class TwoScales(Logistic):
    """Whose names differ by an underscore alone."""

    def __init__(self) -> None:
        super().__init__(torch.tensor(2.0))
        self._scale = torch.tensor(3.0)

    def log_prob(self, value: Tensor) -> Tensor:
        return -value.abs() / self.scale - self._scale


def test_names_of_buffers() -> None:
    bnn = BayesianModule(make_network(), prior=TwoScales())
    assert bnn.prior().log_prob(torch.ones(())) == TwoScales().log_prob(torch.ones(()))
    tagged = Laplace(0.0, 1.0)
    tagged.tag = torch.ones(1)
    one, other = (BayesianModule(make_network(), prior=prior) for prior in (tagged, Laplace(0.0, 1.0)))
    assert one(INPUTS, key=KEY)[1] == other(INPUTS, key=KEY)[1]


def test_priors_of_weights_that_are_unset_and_in_inference_mode() -> None:
    network = make_network()
    network[2].weight.data.fill_(math.nan)
    BayesianModule(network, prior=StudentT(3.0))
    with torch.inference_mode():
        bnn = BayesianModule(make_network(), prior=StudentT(3.0))
        assert bnn(INPUTS, key=KEY)[1].isfinite()


def test_refused_states_leave_the_prior() -> None:
    gaussian = BayesianModule(make_network(), prior=Laplace(0.0, 1.0))
    gaussian.posterior_to_prior()
    state = gaussian.state_dict()
    partial = {name: value for name, value in state.items() if "prior" in name}
    without_rho = {name: value for name, value in state.items() if not name.startswith("rho")}
    for given in (partial, without_rho, {**state, "rho.0.weight": torch.zeros(3)}):
        bnn = BayesianModule(make_network(), prior=StudentT(3.0))
        with pytest.raises(RuntimeError):
            bnn.load_state_dict(given)
        assert isinstance(bnn.prior(), StudentT) and bnn.mu_prior is None


def test_a_learned_prior_is_made_once_a_call() -> None:
    calls = []

    class Counted(Learned):
        def forward(self) -> Distribution:
            calls.append(1)
            return super().forward()

    bnn = BayesianModule(make_network(), prior=Counted(StudentT, 3.0, 0.0, 1.0))
    calls.clear()
    bnn(INPUTS)
    assert len(calls) == 1


def test_a_prior_that_learns_does_not_become_the_posterior() -> None:
    bnn = BayesianModule(make_network(), prior=Learned(StudentT, 3.0, 0.0, 1.0))
    with pytest.raises(RuntimeError, match="prior: expected a fixed one"):
        bnn.posterior_to_prior()


def test_a_learned_prior_is_the_optimizers_too() -> None:
    bnn = BayesianModule(make_network(), prior=Learned(StudentT, 3.0, 0.0, 1.0))
    assert len(bnn.param_groups()[2]["params"]) == 3
    bnn(INPUTS)[1].backward()
    assert all(parameter.grad.abs() > 0 for parameter in bnn.prior.parameters())
