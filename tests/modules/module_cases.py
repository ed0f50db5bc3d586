"""What the tests of BayesianModule share: modules, keys, inputs, and the comparison with single calls."""

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
from helpers import DEVICE, make_key, make_keys, same_bits
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from illia_ext import BayesianModule

KEY, KEYS = make_key(3), make_keys((1, 2), (3, 4), (5, 6), (7, 8), (9, 10))  # four of several are drawn by one op
INPUTS = torch.linspace(-1, 1, 12, dtype=torch.float64, device=DEVICE).reshape(4, 3)


def inputs() -> Tensor:
    """[6, 4], a leaf that requires a gradient, as reentrant checkpoints need it."""
    return torch.linspace(-1, 1, 24, dtype=torch.float64, device=DEVICE).reshape(6, 4).requires_grad_()


def convert(module: nn.Module, **arguments: Any) -> BayesianModule:
    """In float64 on the device under test, with a sigma of 0.3."""
    return BayesianModule(module.to(DEVICE).double(), **{"rho_init": -1.0, **arguments})


def make_network() -> nn.Sequential:
    """From 3 features to 2, in float32."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).to(DEVICE)


class Holder(nn.Module):
    def __init__(self, *parameters: Tensor) -> None:
        super().__init__()
        self.held = nn.ParameterList([nn.Parameter(p, p.is_floating_point()) for p in parameters])


class Custom(nn.Module):
    """A linear layer whose output goes through a function of the module's own; it counts its calls."""

    def __init__(self, function: Callable[["Custom", Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.function = function
        self.calls = 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Any:
        self.calls += 1
        return self.function(self, self.linear(inputs))


def make(function: Callable[[Custom, Tensor], Any], **arguments: Any) -> BayesianModule:
    torch.manual_seed(0)
    return convert(Custom(function), **arguments)


def call_part(part: nn.Module, hidden: Tensor) -> Any:
    """What `checkpoint` takes the place of."""
    return part(hidden)


class Network(nn.Module):
    """Three blocks, which may be checkpointed, a tied weight, a recurrent layer, and a method beside forward."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3))
        self.blocks[2][0].weight = self.blocks[0][0].weight
        self.recurrent, self.head = nn.GRU(4, 4), nn.Linear(4, 2)
        self.run: Callable[..., Tensor] = call_part

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs
        for block in self.blocks:
            hidden = self.run(block, hidden)
        return self.head(self.recurrent(hidden)[0])

    def loss(self, inputs: Tensor) -> Tensor:
        return loss_of(self(inputs), inputs.new_zeros(()))


def outputs_of(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def loss_of(output: Any, log_prob: Tensor) -> Tensor:
    """A scalar to which each element contributes in its own way: behind a normalisation, plain sums are constant."""
    total = log_prob.sum() / 100
    for leaf in outputs_of(output):
        if leaf.is_floating_point():
            weights = torch.linspace(1, 2, leaf.numel(), dtype=leaf.dtype, device=leaf.device).view(leaf.shape)
            total = total + (weights * (leaf + leaf.square())).sum()
    return total


def grads(bayesian: nn.Module) -> list[Tensor]:
    """The gradients so far, which are then set to None."""
    found = [parameter.grad.clone() for parameter in bayesian.parameters() if parameter.grad is not None]
    bayesian.zero_grad()
    return found


def results_of(bayesian: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Tensor]:
    """The outputs of a call, log_prob, the gradients of a loss of both, and the buffers afterwards."""
    bayesian.zero_grad()
    output, log_prob = call(*args, **kwargs)
    loss_of(output, log_prob).backward()
    return [*outputs_of(output), log_prob, *grads(bayesian), *(buffer.clone() for buffer in bayesian.buffers())]


def assert_same(ours: Any, expected: Any) -> None:
    """All tensors of two structures, in bits."""
    for a, b in zip(outputs_of(ours), outputs_of(expected), strict=True):
        assert same_bits(a, b)


def assert_mu_stands(bayesian: BayesianModule, parameters: list[nn.Parameter]) -> None:
    """The module has these parameters of its own again, and calls go on."""
    assert all(map(operator.is_, bayesian.parameters(), parameters))
    assert all(type(parameter) is nn.Parameter for parameter in bayesian.module.parameters())
    bayesian(inputs())


def assert_close(ours: list[Tensor], expected: list[Tensor]) -> None:
    """In float64, where another order of sums leaves 1e-12."""
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def assert_single_samples(bayesian: BayesianModule, *args: Any, keys: Tensor = KEYS, **kwargs: Any) -> None:
    """Outputs, log_prob, gradients and buffers of several samples are those of a single call for each key.

    In float64 another order of sums leaves 1e-12, and 1e-11 of gradients, which take more of them.
    """
    single = copy.deepcopy(bayesian)
    outputs, log_probs = zip(*(single(*args, key=key, **kwargs) for key in keys))
    columns = [torch.stack(column) for column in zip(*map(outputs_of, outputs))]
    loss_of(columns, torch.stack(log_probs)).backward()
    bayesian.zero_grad()
    output, log_prob = bayesian(*args, key=keys, **kwargs)
    loss_of(output, log_prob).backward()
    torch.testing.assert_close(outputs_of(output), columns, rtol=1e-12, atol=1e-12)
    assert_same(log_prob, torch.stack(log_probs))
    torch.testing.assert_close(grads(bayesian), grads(single), rtol=1e-11, atol=1e-11)
    assert_same(list(bayesian.buffers()), list(single.buffers()))
