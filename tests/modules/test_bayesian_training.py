"""Training through BayesianModule: a posterior known in closed form, torch.compile, autocast, torch.func."""

import math
from collections.abc import Iterator

import pytest
import torch
from helpers import DEVICE, make_key, make_keys, same_bits
from module_cases import assert_same, loss_of, results_of
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._functorch import config as functorch_config

from illia_ext import BayesianModule, elbo_loss

parametrize = pytest.mark.parametrize


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    with functorch_config.patch(enable_autograd_cache=False):
        yield
    torch._dynamo.reset()


class Network(nn.Module):
    """A tied weight and statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.again.weight = self.first.weight
        self.norm = nn.BatchNorm1d(4)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.again(self.norm(self.first(inputs)).tanh()))


@pytest.fixture
def bayesian() -> BayesianModule:
    torch.manual_seed(0)
    return BayesianModule(Network().to(DEVICE), rho_init=-1.0)


INPUTS = torch.linspace(-1, 1, 24, device=DEVICE).reshape(6, 4)


def test_the_posterior_of_a_linear_regression() -> None:
    """With orthogonal features it is a product of Gaussians, which the loss finds if it weighs data and weights right:
    precision num_data + 1 / std_prior^2, mean X^T y over that. Twelve runs with other seeds ended within 4.2 % of a
    sigma, mu and sigma alike; data that weigh 1.5 times too much or too little move sigma by 10 % or more."""
    num_data, std_prior = 32, 0.2
    torch.manual_seed(0)
    features = torch.linalg.qr(torch.randn(num_data, 3, dtype=torch.float64))[0]
    features = (features * math.sqrt(num_data)).to(DEVICE)
    labels = features @ torch.tensor([[0.5], [-0.25], [0.0]], dtype=torch.float64, device=DEVICE)
    bayesian = BayesianModule(nn.Linear(3, 1, bias=False, device=DEVICE, dtype=torch.float64), 0.0, std_prior)
    optimizer = torch.optim.Adam(bayesian.param_groups(mu={"lr": 0.02}, rho={"lr": 0.05}))
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=300)
    torch.manual_seed(0)
    for _ in range(300):
        outputs, log_prob = bayesian(features, num_samples=64)
        nll = (outputs - labels).square().mean((1, 2)) / 2  # of noise with variance 1, up to a constant
        optimizer.zero_grad()
        elbo_loss(nll, log_prob, num_data).backward()
        optimizer.step()
        scheduler.step()
    ((_, mu, rho),) = bayesian.named_gaussians()
    precision = num_data + 1 / std_prior**2
    expected = (features.T @ labels / precision).T
    sigma = nn.functional.softplus(rho)
    assert (mu - expected).abs().max() * math.sqrt(precision) < 0.08
    assert (sigma * math.sqrt(precision)).log().abs().max() < 0.08


@pytest.mark.usefixtures("fresh_compiler")
@parametrize(("num_samples", "training"), [(None, True), (3, True), (3, False)])
def test_compiled(num_samples: int | None, training: bool, bayesian: BayesianModule) -> None:
    """One graph, the draws, values and statistics of eager; three samples run one after the other where they update
    statistics, at once elsewhere."""
    bayesian.train(training)
    compiled = torch.compile(bayesian, backend="aot_eager", fullgraph=True)
    state = {name: tensor.clone() for name, tensor in bayesian.state_dict().items()}
    results = []
    for call in (compiled, bayesian):
        bayesian.load_state_dict(state)
        torch.manual_seed(3)
        results.append(results_of(bayesian, call, INPUTS, num_samples=num_samples))
    torch.testing.assert_close(*results)  # gradients may be added up in another order
    assert same_bits(results[0][1], results[1][1])


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_stick_the_landing(bayesian: BayesianModule) -> None:
    compiled = torch.compile(bayesian.eval(), backend="aot_eager")
    for bayesian.stick_the_landing in (False, True):
        ours, expected = (
            torch.autograd.grad(call(INPUTS, key=make_key(1))[1], list(bayesian.parameters()))
            for call in (compiled, bayesian)
        )
        assert_same(ours, expected)


@pytest.mark.usefixtures("fresh_compiler")
def test_a_module_that_is_compiled_in_place(bayesian: BayesianModule) -> None:
    """One graph for any number of samples, with eager's values; its weights are seen as inputs that change."""
    bayesian.eval()
    keys = make_keys(*((i, 0) for i in range(6)))
    expected = results_of(bayesian, bayesian, INPUTS, key=keys)
    counter = CompileCounterWithBackend("aot_eager")
    bayesian.module.compile(backend=counter, fullgraph=True)
    torch.testing.assert_close(results_of(bayesian, bayesian, INPUTS, key=keys), expected)
    for key in (keys[:3], keys[0]):
        bayesian(INPUTS, key=key)
    assert counter.frame_count == 1


@pytest.mark.usefixtures("fresh_compiler")
def test_samples_at_once_are_not_compiled(bayesian: BayesianModule, cpu: torch.device) -> None:
    bayesian.eval().chunk_size = 3
    with pytest.raises(torch._dynamo.exc.Unsupported, match="at once cannot be compiled; chunk_size=1 runs one"):
        torch.compile(bayesian, backend="eager", fullgraph=True)(INPUTS, num_samples=3)
    bayesian.module.compile(backend="eager")
    with pytest.raises(RuntimeError, match="module: is compiled, and vmap cannot call it; chunk_size=1 runs one"):
        bayesian(INPUTS, num_samples=3)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_frozen(bayesian: BayesianModule) -> None:
    """Freezing reaches a program that was compiled before."""
    bayesian.eval()
    compiled = torch.compile(
        lambda inputs: (bayesian(inputs)[1], bayesian.kl_divergence()), backend="eager", fullgraph=True
    )
    first, _ = compiled(INPUTS)
    bayesian.freeze(make_key(5))
    ours, kl_divergence = compiled(INPUTS)
    assert same_bits(ours, bayesian(INPUTS)[1]) and not same_bits(ours, first)
    assert same_bits(kl_divergence, bayesian.kl_divergence())


@parametrize("num_samples", [None, 3])
def test_autocast(num_samples: int | None, bayesian: BayesianModule, cpu: torch.device) -> None:
    """Samples keep the parameters' dtype, so that norms are not narrowed and log_prob is that of no autocast."""
    seen = []
    bayesian.module.norm.register_forward_pre_hook(lambda norm, _: seen.append(norm.weight.dtype))
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, log_prob = bayesian(INPUTS, num_samples=num_samples)
    torch.manual_seed(1)
    expected, expected_log_prob = bayesian(INPUTS, num_samples=num_samples)
    assert output.dtype == torch.bfloat16 and set(seen) == {torch.float32}
    assert same_bits(log_prob, expected_log_prob)
    # three layers of bfloat16, each of whose roundings is 2^-8 of values up to 4
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.15)


def test_transforms_of_torch_func(bayesian: BayesianModule) -> None:
    """The gradients of autograd, with respect to the BayesianModule's own parameters, tied ones too; vmap over keys."""
    bayesian.eval()
    keys = make_keys((1, 2), (3, 4))
    parameters = dict(bayesian.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        output, log_prob = torch.func.functional_call(bayesian, parameters, (INPUTS,), {"key": keys[0]})
        return loss_of(output, log_prob)

    grads = torch.func.grad(loss)({name: parameter.detach() for name, parameter in parameters.items()})
    loss(parameters).backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(grads[name], parameter.grad)
    mapped = torch.vmap(lambda key: bayesian(INPUTS, key=key))(keys)
    torch.testing.assert_close(mapped, bayesian(INPUTS, key=keys))
