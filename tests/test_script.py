"""What is written to disk or copied: TorchScript, pickle, deepcopy and state_dict, illia's own included."""

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import DEVICE, make_key, make_keys, run_python, same_bits
from torch import Tensor, nn

from illia_ext import GaussianDistribution

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")
parametrize = pytest.mark.parametrize


class Linear(nn.Module):
    """A layer as illia writes it: the weights drawn in forward, their log_prob asked for later."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.weights_distribution = GaussianDistribution((num_out, num_in), rho_init=-2.0)
        self.weights = self.weights_distribution.sample()

    def forward(self, inputs: Tensor) -> Tensor:
        self.weights = self.weights_distribution.sample()
        return nn.functional.linear(inputs, self.weights)

    @torch.jit.export
    def kl_cost(self) -> tuple[Tensor, int]:
        return self.weights_distribution.log_prob(self.weights), self.weights_distribution.num_params()


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = Linear(4, 3)
        self.second = Linear(3, 2)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        outputs = self.second(self.first(inputs).relu())
        log_prob, num_params = self.first.kl_cost()
        x, log_probs = self.second.weights_distribution.sample_and_log_prob(2)
        kl_divergence = self.second.weights_distribution.kl_divergence()
        return outputs, log_prob + log_probs.sum() + kl_divergence, x, num_params


def inputs() -> Tensor:
    return torch.linspace(-1, 1, 20, device=DEVICE).reshape(5, 4)


def draw(network: Any) -> list[Any]:
    torch.manual_seed(5)
    return list(network(inputs()))


def assert_same(ours: list[Any], expected: list[Any]) -> None:
    for a, b in zip(ours, expected, strict=True):
        assert same_bits(a, b) if isinstance(a, Tensor) else a == b


KEY, KEYS = make_key(3), make_keys((1, 2), (3, 4), (5, 6))
METHODS: dict[str, Callable[[Any], Any]] = {
    "sample()": lambda d: d.sample(),
    "sample(2)": lambda d: d.sample(2),
    "sample(key)": lambda d: d.sample(None, KEY),
    "sample(keys)": lambda d: d.sample(key=KEYS),
    "log_prob()": lambda d: d.log_prob(),
    "log_prob(x)": lambda d: d.log_prob(torch.ones(3, 2, device=DEVICE)),
    "log_prob(samples)": lambda d: d.log_prob(torch.ones(4, 3, 2, device=DEVICE)),
    "sample_and_log_prob()": lambda d: d.sample_and_log_prob(),
    "sample_and_log_prob(2)": lambda d: d.sample_and_log_prob(num_samples=2),
    "sample_and_log_prob(keys)": lambda d: d.sample_and_log_prob(None, KEYS),
    "kl_divergence()": lambda d: d.kl_divergence(),
    "num_params()": lambda d: d.num_params(),
}


@parametrize("method", METHODS.values(), ids=METHODS)
def test_scripted_methods(method: Callable[[Any], Any], device: torch.device) -> None:
    distribution = GaussianDistribution((3, 2), device=device)
    results, gradients = [], []
    for module in (distribution, torch.jit.script(distribution)):
        torch.manual_seed(1)
        result = method(module)
        results.append(list(result) if isinstance(result, tuple) else [result])
        if isinstance(result, int):
            continue
        module.zero_grad()
        sum(output.sum() for output in results[-1]).backward()
        gradients.append([parameter.grad for parameter in module.parameters() if parameter.grad is not None])
    assert_same(results[1], results[0])
    for grads in zip(*gradients):
        assert same_bits(*grads) and grads[0].isfinite().all() and grads[0].any()


def test_scripted_module_refuses_what_the_module_refuses(device: torch.device) -> None:
    scripted = torch.jit.script(GaussianDistribution(3, device=device))
    with pytest.raises(torch.jit.Error, match="num_samples: expected a non-negative integer, got -1"):
        scripted.sample(-1)
    with pytest.raises(torch.jit.Error, match="num_samples: a key says how many samples to draw"):
        scripted.sample(2, KEY)
    assert scripted.sample(2).shape == (2, 3)


def test_scripted_network_is_the_network(device: torch.device) -> None:
    network = Network().to(device)
    expected = draw(network)
    scripted = torch.jit.script(network)
    assert_same(draw(scripted), expected)
    outputs, log_prob, *_ = draw(scripted)
    (outputs.sum() + log_prob).backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in scripted.parameters())


def test_saved_network_runs_in_a_fresh_process(tmp_path: Path, device: torch.device) -> None:
    network = Network().to(device)
    torch.jit.save(torch.jit.script(network), tmp_path / "network.pt")
    torch.save({"inputs": inputs()}, tmp_path / "inputs.pt")
    result = run_python(f"""if True:
        import torch, illia_ext
        network = torch.jit.load("{tmp_path}/network.pt")
        inputs = torch.load("{tmp_path}/inputs.pt")["inputs"]
        torch.manual_seed(5)
        outputs = network(inputs)
        (outputs[0].sum() + outputs[1]).backward()
        grads = [parameter.grad for parameter in network.parameters()]
        torch.save([list(outputs), grads], "{tmp_path}/outputs.pt")""")
    assert result.returncode == 0, result.stderr
    outputs, grads = torch.load(tmp_path / "outputs.pt")
    expected = draw(network)
    assert_same(outputs, expected)
    (expected[0].sum() + expected[1]).backward()
    assert_same(grads, [parameter.grad for parameter in network.parameters()])


def through_file(value: Any, weights_only: bool = True) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": lambda module: through_file(module, weights_only=False),
    "deepcopy of scripted": lambda module: copy.deepcopy(torch.jit.script(module)),
}


@parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_copies_draw_the_same_and_train_apart(duplicate: Callable[[Any], Any], device: torch.device) -> None:
    distribution = GaussianDistribution((3, 2), mu_prior=0.5, std_prior=0.25, device=device, dtype=torch.float64)
    other = duplicate(distribution)
    assert list(other.state_dict()) == list(distribution.state_dict())
    assert (other.mu_init, other.rho_init) == (distribution.mu_init, distribution.rho_init)
    assert_same(list(other.sample_and_log_prob(key=KEYS)), list(distribution.sample_and_log_prob(key=KEYS)))
    with torch.no_grad():
        other.mu.add_(1)
    assert not torch.equal(other.mu, distribution.mu)


def illia_state_dict() -> dict[str, Tensor]:
    """What illia 0.2.4 writes for a distribution of shape (3, 2)."""
    generator = torch.Generator().manual_seed(0)
    return {
        "mu": torch.randn(3, 2, generator=generator),
        "rho": torch.randn(3, 2, generator=generator) - 7,
        "mu_prior": torch.tensor([0.5]),
        "std_prior": torch.tensor([0.25]),
    }


def test_state_dict_of_illia_loads(device: torch.device) -> None:
    distribution = GaussianDistribution((3, 2), device=device)
    state = through_file(illia_state_dict())
    assert str(distribution.load_state_dict(state, strict=True)) == "<All keys matched successfully>"
    expected = GaussianDistribution((3, 2), mu_prior=0.5, std_prior=0.25, device=device)
    with torch.no_grad():
        expected.mu.copy_(state["mu"])
        expected.rho.copy_(state["rho"])
    assert_same([distribution.kl_divergence()], [expected.kl_divergence()])
    assert_same(list(distribution.sample_and_log_prob(key=KEY)), list(expected.sample_and_log_prob(key=KEY)))


def test_state_dict_is_one_of_illia() -> None:
    ours, illia = through_file(GaussianDistribution((3, 2)).state_dict()), illia_state_dict()
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in ours.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in illia.items()
    }
