"""Training through BayesianModule: a known posterior, torch.compile, autocast, torch.func, stick_the_landing."""

import math

import pytest
import torch
from helpers import DEVICE, make_key, make_keys, same_bits
from module_cases import KEYS, assert_same, loss_of, results_of
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from illia_ext import BayesianModule, elbo_loss, functional

parametrize = pytest.mark.parametrize


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
def test_compiled_stick_the_landing() -> None:
    bayesian = BayesianModule(nn.Linear(4, 2).to(DEVICE), rho_init=-1.0)
    compiled = torch.compile(bayesian, backend="aot_eager")
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


@parametrize("way", ["call", "samples", "at once", "block", "reentrant parts"])
@parametrize("learned", [False, True])
def test_stick_the_landing_of_a_network(way: str, learned: bool) -> None:
    """The gradients are those of the functional, and the values those without it."""
    torch.manual_seed(0)
    prior = nn.Parameter(torch.full((1,), 0.5, device=DEVICE)) if learned else 0.5
    chunk_size = 2 if way == "at once" else 1
    bayesian = BayesianModule(nn.Linear(3, 2, device=DEVICE), std_prior=prior, rho_init=-1.0, chunk_size=chunk_size)
    key = KEYS[:2] if way in ("samples", "at once") else KEYS[0]
    _, mus, rhos = zip(*bayesian.named_gaussians())
    parameters, gradients, values = list(bayesian.parameters()), {}, []
    for bayesian.stick_the_landing in (False, True):
        if way in ("block", "reentrant parts"):
            with bayesian.sampled(key) as log_prob:
                if way == "reentrant parts":  # whose backward leaves the draw's graph to log_prob's
                    hidden = torch.ones(1, 3, device=DEVICE, requires_grad=True)
                    (0 * checkpoint(bayesian.module, hidden, use_reentrant=True).sum()).backward()
        else:
            _, log_prob = bayesian(torch.ones(1, 3, device=DEVICE), key=key)
        values.append(log_prob)
        gradients[bayesian.stick_the_landing] = torch.autograd.grad(log_prob.sum(), parameters)
    _, expected = functional.foreach_gaussian_sample_and_log_prob(
        mus, rhos, bayesian.mu_prior, bayesian.std_prior, key, stick_the_landing=True
    )
    assert same_bits(*values)
    # the sums over samples may be rounded in another order: 2^-24 of some ten terms of size 1
    torch.testing.assert_close(gradients[True], torch.autograd.grad(expected.sum(), parameters), rtol=1e-5, atol=1e-5)
    assert not any(torch.allclose(a, b) for a, b in list(zip(*gradients.values()))[-4:])


def test_stick_the_landing_of_a_network_has_no_second_derivatives() -> None:
    bayesian = BayesianModule(nn.Linear(3, 2, device=DEVICE), stick_the_landing=True)
    _, log_prob = bayesian(torch.ones(1, 3, device=DEVICE))
    parameters = list(bayesian.parameters())
    first = torch.autograd.grad(log_prob, parameters, create_graph=True)
    with pytest.raises(RuntimeError, match=r"^stick_the_landing: second derivatives are not offered"):
        torch.autograd.grad(sum(gradient.sum() for gradient in first), parameters)
