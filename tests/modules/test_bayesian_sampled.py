"""`with bnn.sampled()`: one sample of the weights stands in bnn.module, to be called, read and differentiated."""

import operator
from collections.abc import Callable

import pytest
import torch
from helpers import same_bits
from module_cases import KEY, KEYS, Network, assert_close, assert_mu_stands, convert, grads, inputs, loss_of
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils import clip_grad_norm_

from illia_ext import BayesianModule, elbo_loss

parametrize = pytest.mark.parametrize


@pytest.fixture
def bayesian() -> BayesianModule:
    torch.manual_seed(0)
    return convert(Network())


@pytest.fixture
def expected(bayesian: BayesianModule) -> list[Tensor]:
    """The gradients of a call."""
    loss_of(*bayesian(inputs(), key=KEY)).backward()
    return grads(bayesian)


def test_the_module_is_the_sample(bayesian: BayesianModule, expected: list[Tensor]) -> None:
    """Its forward, its parts and its methods, those of one key; without gradients too."""
    parameters, sample = list(bayesian.parameters()), bayesian.sample_module(KEY)
    with bayesian.sampled(KEY) as log_prob:
        assert same_bits(bayesian.module(inputs()), sample(inputs()))
        assert same_bits(bayesian.module.blocks[2][0].weight, sample.blocks[0][0].weight)
        (bayesian.module.loss(inputs()) + log_prob / 100).backward()
    assert_close(grads(bayesian), expected)
    assert same_bits(log_prob, bayesian(inputs(), key=KEY)[1])
    with torch.no_grad(), bayesian.sampled(KEY):
        assert same_bits(bayesian.module(inputs()), sample(inputs()))
    assert_mu_stands(bayesian, parameters)


def test_the_distribution_stays_the_distribution(bayesian: BayesianModule) -> None:
    """parameters() are mu and rho, which clipping and zero_grad reach."""
    names = [name for name, _ in bayesian.named_parameters()]
    parameters = list(bayesian.parameters())
    with bayesian.sampled() as log_prob:
        elbo_loss(bayesian.module.loss(inputs()), log_prob, 10).backward()
        assert [name for name, _ in bayesian.named_parameters()] == names
        assert all(map(operator.is_, bayesian.parameters(), parameters))
        assert clip_grad_norm_(bayesian.parameters(), 1e-3) > 1e-3
        norm = torch.cat([parameter.grad.flatten() for parameter in parameters]).norm()
        torch.testing.assert_close(norm.item(), 1e-3)
        bayesian.zero_grad()
        assert all(parameter.grad is None for parameter in parameters)
        assert not isinstance(next(bayesian.module.parameters()), nn.Parameter)


def test_gradients_after_the_block_and_of_micro_batches(bayesian: BayesianModule, expected: list[Tensor]) -> None:
    with bayesian.sampled(KEY) as log_prob:
        loss = bayesian.module.loss(inputs())
    (loss + log_prob / 100).backward()
    assert_close(grads(bayesian), expected)
    with bayesian.sampled(KEY) as log_prob:
        bayesian.module.loss(inputs()).backward()
        for _ in range(2):
            (log_prob / 200).backward()
    assert_close(grads(bayesian), expected)


def test_a_step_before_backward_is_refused(bayesian: BayesianModule) -> None:
    with bayesian.sampled() as log_prob:
        loss = bayesian.module.loss(inputs()) + log_prob
    with torch.no_grad():
        bayesian.rho.head.bias.add_(1)
    with pytest.raises(RuntimeError, match="has been changed in place, as by an optimizer's step, since the sample"):
        loss.backward()


@parametrize("learned", [False, True])
def test_second_derivatives(learned: bool, cpu: object) -> None:
    """Of a penalty on gradients, as by a call."""
    prior = nn.Parameter(torch.full((1,), 0.5, dtype=torch.float64)) if learned else 0.5
    bayesian = convert(nn.Sequential(nn.Linear(4, 3), nn.Tanh()), std_prior=prior)

    def penalised(output: Tensor, log_prob: Tensor) -> Tensor:
        loss = loss_of(output, log_prob)
        found = torch.autograd.grad(loss, list(bayesian.parameters()), create_graph=True)
        return loss + sum(grad.square().sum() for grad in found)

    penalised(*bayesian(inputs(), key=KEY)).backward()
    expected = grads(bayesian)
    with bayesian.sampled(KEY) as log_prob:
        penalised(bayesian.module(inputs()), log_prob).backward()
    assert_close(grads(bayesian), expected)


@pytest.mark.slow
def test_a_whole_compiled_step(cpu: object) -> None:
    """One graph for the draw, the network and the loss, with eager's values and gradients."""
    bayesian = convert(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)))

    def step(inputs: Tensor) -> Tensor:
        with bayesian.sampled() as log_prob:
            return elbo_loss(bayesian.module(inputs).square().mean(), log_prob, 10)

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    results = []
    for function in (step, torch.compile(step, backend=counter, fullgraph=True)):
        for seed in range(2):
            torch.manual_seed(seed)
            loss = function(inputs())
            loss.backward()
            results.append([loss, *grads(bayesian)])
    assert counter.frame_count == 1
    assert_close(results[2:], results[:2])
    assert all(type(parameter) is nn.Parameter for parameter in bayesian.module.parameters())


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_traces(bayesian: BayesianModule) -> None:
    """Of the sample, as a constant; and of the distribution, which draws at each call."""
    with torch.no_grad(), bayesian.sampled(KEY):
        traced = torch.jit.trace(bayesian.module, inputs().detach())
    assert same_bits(traced(inputs()), bayesian(inputs(), key=KEY)[0])
    linear = convert(nn.Linear(4, 2))
    drawing = torch.jit.trace(linear, inputs().detach(), check_trace=False)
    torch.manual_seed(3)
    first, _ = drawing(inputs())
    torch.manual_seed(3)
    assert same_bits(first, linear(inputs())[0]) and not same_bits(drawing(inputs())[0], first)


class Flow:
    """A lazy output: it computes with the module's weights when it is asked."""

    def __init__(self, mean: Callable[[Tensor], Tensor], context: Tensor) -> None:
        self.mean, self.context = mean, context

    def log_prob(self, x: Tensor) -> Tensor:
        return -(x - self.mean(self.context)).square().sum(-1)


class Conditional(nn.Linear):
    def forward(self, context: Tensor) -> Flow:  # type: ignore[override]
        return Flow(super().forward, context)


def test_lazy_outputs() -> None:
    """Refused of a call; inside a block, and by a transform, they compute with the sample, and reach rho."""
    bayesian = convert(Conditional(4, 2)).eval()
    y = torch.ones(6, 2, dtype=torch.float64, device=KEY.device)
    with pytest.raises(TypeError, match=r"with mu in place of the sample. Compute inside `with bnn.sampled\(\):`"):
        bayesian(inputs())
    expected = torch.stack([bayesian.sample_module(key)(inputs()).log_prob(y) for key in KEYS])
    with bayesian.sampled(KEYS[0]):
        log_prob = bayesian.module(inputs()).log_prob(y)
        log_prob.sum().backward()
    torch.testing.assert_close(log_prob, expected[0])
    assert all(parameter.grad.all() for parameter in bayesian.parameters())
    prediction = bayesian.predict(inputs(), key=KEYS, transform=lambda flow: flow.log_prob(y))
    torch.testing.assert_close(prediction.samples, expected)
    torch.testing.assert_close(prediction.mean, expected.mean(0))
