"""Checks a case against float64, then times all cases in turn, so that drift of the machine hits all alike."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles

import torch
from torch import Tensor
from torch.nn.functional import softplus
from torch.utils.benchmark import Timer

from bench.cases import Case

__all__ = ["Inputs", "Timing", "backward", "check", "forward", "interleave", "saved_for_backward"]


@dataclass
class Inputs:
    """mu, rho [numel] with gradients to come from grad_x [numel] and grad_log_prob []."""

    mu: Tensor
    rho: Tensor
    mu_prior: Tensor
    std_prior: Tensor
    grad_x: Tensor
    grad_log_prob: Tensor

    @classmethod
    def make(cls, numel: int) -> "Inputs":
        torch.manual_seed(0)
        return cls(
            mu=(torch.randn(numel) * 0.1).requires_grad_(),
            rho=(torch.randn(numel) * 0.1 - 3).requires_grad_(),
            mu_prior=torch.zeros(1),
            std_prior=torch.full((1,), 0.1),
            grad_x=torch.randn(numel),
            grad_log_prob=torch.tensor(1e-3),
        )

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.mu, self.rho, self.mu_prior, self.std_prior


def forward(case: Case, inputs: Inputs) -> None:
    with torch.no_grad():
        case(*inputs.arguments)


def backward(case: Case, inputs: Inputs) -> tuple[Tensor, ...]:
    """Forward and backward: gradients to mu and rho."""
    outputs = case(*inputs.arguments)
    return torch.autograd.grad(outputs, (inputs.mu, inputs.rho), (inputs.grad_x, inputs.grad_log_prob))


def check(case: Case, inputs: Inputs) -> str | None:
    """None, or what is wrong: log_prob and gradients against float64 formulas at the case's own sample.

    The noise is recovered from x as (x - mu) / sigma, which costs some digits: 1e-3 is far above that loss and
    far below what a wrong formula would show.
    """
    outputs = case(*inputs.arguments)
    x, log_prob = (out.detach().double() for out in outputs)
    grads = torch.autograd.grad(outputs, (inputs.mu, inputs.rho), (inputs.grad_x, inputs.grad_log_prob))
    mu, rho = inputs.mu.detach().double().requires_grad_(), inputs.rho.detach().double().requires_grad_()
    eps = ((x - mu) / softplus(rho)).detach()
    sample = mu + softplus(rho) * eps
    z_prior = (sample - inputs.mu_prior) / inputs.std_prior
    expected = (-torch.log(softplus(rho)) - eps**2 / 2 + torch.log(inputs.std_prior) + z_prior**2 / 2).sum()
    wanted = torch.autograd.grad((sample, expected), (mu, rho), (inputs.grad_x.double(), inputs.grad_log_prob.double()))
    pairs = {"log_prob": (log_prob, expected.detach()), **dict(zip(("grad_mu", "grad_rho"), zip(grads, wanted)))}
    for name, (got, want) in pairs.items():
        error = float((got.double() - want).norm() / want.norm())
        if not error < 1e-3:
            return f"{name} is off by {error:.1e}"
    return None


@dataclass
class Timing:
    """Seconds a call: median and quartiles over rounds."""

    median: float
    low: float
    high: float


def interleave(tasks: dict[str, Callable[[], object]], rounds: int, threads: int) -> dict[str, Timing]:
    """Times each task once a round, `rounds` times, after a warm-up; a turn takes about 20 ms or one call."""
    timers = {name: Timer("task()", globals={"task": task}, num_threads=threads) for name, task in tasks.items()}
    calls = {name: max(1, int(0.02 / timer.timeit(3).mean)) for name, timer in timers.items()}
    samples: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, timer in timers.items():
            samples[name].append(timer.timeit(calls[name]).mean)
    result = {}
    for name, values in samples.items():
        low, _, high = quantiles(values, n=4)
        result[name] = Timing(median(values), low, high)
    return result


def saved_for_backward(case: Case, inputs: Inputs) -> int:
    """Bytes kept for backward beside mu and rho themselves."""
    own = {inputs.mu.data_ptr(), inputs.rho.data_ptr()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = case(*inputs.arguments)
    del outputs
    return sum(kept.values())
