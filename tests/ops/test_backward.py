"""Backward computes what is asked for, keeps no more than inputs and the key, and runs as often as the graph is kept.

test_values.py compares the gradients themselves.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from agreement import Arguments
from foreach_cases import make_lists
from helpers import FLOAT_DTYPES, make_keys, make_parameters, same_bits
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from illia_ext import functional
from illia_ext._ops.fake import op

KEYS = make_keys((42, 2**64 - 1), (43, 0), (44, 2**32 - 1))
NAMES = ("x", "mu", "rho", "mu_prior", "std_prior")
# Each op with what it is differentiated to, of NAMES.
CALLS: dict[str, tuple[Callable[..., Any], Sequence[str]]] = {
    "gaussian_sample": (functional.gaussian_sample, NAMES[1:3]),
    "gaussian_sample_and_log_prob": (functional.gaussian_sample_and_log_prob, NAMES[1:]),
    "stick_the_landing": (
        lambda *inputs: functional.gaussian_sample_and_log_prob(*inputs, stick_the_landing=True),
        NAMES[1:],
    ),
    "gaussian_log_prob": (lambda *inputs: functional.gaussian_log_prob(*inputs[:-1]), NAMES),
    "gaussian_kl_divergence": (lambda *inputs: functional.gaussian_kl_divergence(*inputs[:-1]), NAMES[1:]),
}
parametrize = pytest.mark.parametrize


def run(name: str, inputs: dict[str, Tensor], key: Tensor) -> tuple[Tensor, ...]:
    function, names = CALLS[name]
    outputs = function(*(inputs[each] for each in names), key)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def make_inputs(device: torch.device, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    x, mu, rho = (make_parameters((5, 13), dtype, device, seed)[0] for seed in range(3))
    return {"x": x, "mu": mu, "rho": rho, "mu_prior": mu[:, :1].cos(), "std_prior": rho[0].exp()}


class Record(TorchDispatchMode):
    """What each backward op is asked for: its output_mask or prior_grads."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "illia_ext" and "_backward" in func.__name__:
            names = [argument.name for argument in func._schema.arguments]
            given = {**dict(zip(names, args)), **(kwargs or {})}
            self.asked.append(given.get("output_mask", given.get("prior_grads")))
        return func(*args, **(kwargs or {}))


@parametrize("name", CALLS)
def test_gradients_come_only_where_they_are_asked_for(name: str, device: torch.device) -> None:
    """For every subset of the inputs, with the bits that they have where all are asked for."""
    names, every = CALLS[name][1], {k: v.requires_grad_() for k, v in make_inputs(device).items()}
    expected = torch.autograd.grad(sum(o.sum() for o in run(name, every, KEYS)), [every[each] for each in names])
    for wanted in product((False, True), repeat=len(names)):
        if not any(wanted):
            continue
        inputs = {each: tensor.detach() for each, tensor in every.items()}
        leaves = [inputs[each].requires_grad_() for each, is_wanted in zip(names, wanted) if is_wanted]
        total = sum(output.sum() for output in run(name, inputs, KEYS))
        with Record() as record:
            grads = torch.autograd.grad(total, leaves)
        asked: list[Any] = [True if any(wanted[2:]) else None]  # gradients to priors: to both or to none
        if name == "gaussian_log_prob":
            asked = [list(wanted)]
        elif name == "gaussian_sample" and not wanted[1]:
            asked = []  # to mu it is that to x, summed
        assert record.asked == asked
        kept = [grad for grad, is_wanted in zip(expected, wanted) if is_wanted]
        assert all(map(same_bits, grads, kept)) and len(grads) == len(kept)


@parametrize("dtype", FLOAT_DTYPES)
def test_outputs_not_asked_for_are_empty(dtype: torch.dtype, device: torch.device) -> None:
    """And which are asked for changes no bit of the others."""
    a = Arguments.make((5, 13), dtype, num_samples=3, each_prior=True).to(device)
    priors = (a.mu_prior, a.std_prior[0].double())  # of another dtype than mu, which an empty output has

    def assert_empty(asked: Sequence[Tensor], every: Sequence[Tensor], mask: Sequence[bool]) -> None:
        for grad, full, wanted in zip(asked, every, mask, strict=True):
            assert same_bits(grad, full if wanted else a.mu.new_empty(0))

    backward, arguments = op("gaussian_log_prob_backward"), (a.grad_log_prob, a.x, a.mu, a.rho, *priors)
    every = backward(*arguments, [True] * 5)
    for mask in product((False, True), repeat=5):
        assert_empty(backward(*arguments, list(mask)), every, mask)
    calls = [
        lambda asked, held=held: op("gaussian_sample_and_log_prob_backward")(
            a.grad_x, *arguments[:1], a.mu, a.rho, *priors, a.key, stick_the_landing=held, prior_grads=asked
        )
        for held in (False, True)
    ]
    calls.append(lambda asked: op("gaussian_kl_divergence_backward")(a.grad_kl_divergence, a.mu, a.rho, *priors, asked))
    for call in calls:
        assert_empty(call(False), call(True), (True, True, False, False))


@parametrize("name", CALLS)
def test_a_graph_gives_its_gradients_again_while_it_is_kept(name: str, device: torch.device) -> None:
    inputs = make_inputs(device)
    leaves = [inputs[each].requires_grad_() for each in CALLS[name][1]]
    total = sum(output.sum() for output in run(name, inputs, KEYS))
    once, again = (torch.autograd.grad(total, leaves, retain_graph=keep) for keep in (True, False))
    assert all(map(same_bits, once, again))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(total, leaves)


def test_samples_before_one_backward(device: torch.device) -> None:
    """The gradient of a sum is the sum of S gradients, not a mean, where a shared buffer of noise would give others."""
    inputs, keys = make_inputs(device, torch.float64), make_keys(*[(42, i) for i in range(4)], device=device)
    leaves = [inputs[name].requires_grad_() for name in NAMES[1:]]

    def draw(key: Tensor) -> Tensor:
        x, log_prob = functional.gaussian_sample_and_log_prob(*leaves, key)
        at_x = functional.gaussian_log_prob(x, *leaves)
        return (functional.gaussian_sample(*leaves[:2], key) * x.sin()).sum() + (log_prob * at_x).sum()

    singles = [torch.autograd.grad(draw(key), leaves) for key in keys]
    expected = [sum(grads) for grads in zip(*singles)]
    for total in (sum(draw(key) for key in keys), draw(keys)):
        torch.testing.assert_close(list(torch.autograd.grad(total, leaves)), expected, rtol=1e-10, atol=1e-10)


class NoGradients(torch.autograd.Function):
    """Hands nothing on."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.clone() for tensor in inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        return (None,) * len(grads)


def test_no_gradient_is_none(device: torch.device) -> None:
    """An optimizer passes by parameters without a gradient, and decays those with zeros."""
    inputs, (mu, rho) = make_inputs(device), make_lists(torch.float32, device)
    leaves = [tensor.requires_grad_() for tensor in inputs.values()] + mu + rho
    x, log_prob = functional.foreach_gaussian_sample_and_log_prob(mu, rho, 0.25, 0.75, KEYS)
    outputs = NoGradients.apply(*x, log_prob)
    for single in (run(name, inputs, KEYS) for name in CALLS):
        outputs += NoGradients.apply(*single)
    outputs += NoGradients.apply(functional.foreach_gaussian_kl_divergence(mu, rho, 0.25, 0.75))
    gradients = torch.autograd.grad(sum(output.sum() for output in outputs), leaves, allow_unused=True)
    assert all(gradient is None for gradient in gradients)


KEPT = {  # beside priors
    "gaussian_sample": ("rho", "key"),
    "gaussian_sample_and_log_prob": ("mu", "rho", "key"),
    "stick_the_landing": ("mu", "rho", "key"),
    "gaussian_log_prob": ("x", "mu", "rho"),
    "gaussian_kl_divergence": ("mu", "rho"),
}


def saved_by(function: Callable[[], Any]) -> tuple[Any, list[int]]:
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.data_ptr()) or tensor, lambda tensor: tensor
    ):
        return function(), sorted(kept)


@parametrize("name", CALLS)
@parametrize("num_samples", [None, 3])
def test_kept_for_backward_are_inputs_and_the_key(name: str, num_samples: int | None, device: torch.device) -> None:
    """No noise and no sample: the key is 16 bytes."""
    inputs, key = make_inputs(device), KEYS.clone() if num_samples else KEYS[0].clone()
    inputs["mu"].requires_grad_(), inputs["rho"].requires_grad_()
    outputs, kept = saved_by(lambda: run(name, inputs, key))
    names = (*KEPT[name], *(() if name == "gaussian_sample" else NAMES[3:]))
    assert kept == sorted((inputs | {"key": key})[each].data_ptr() for each in names)
    assert not [value for value in vars(outputs[0].grad_fn).values() if isinstance(value, Tensor)]


@parametrize("draws", [False, True])
def test_kept_for_backward_of_lists(draws: bool, device: torch.device) -> None:
    mu, rho = make_lists(torch.float32, device)
    priors, key = (torch.tensor(0.25), torch.tensor(0.75)), KEYS[0].clone()
    if draws:
        _, kept = saved_by(lambda: functional.foreach_gaussian_sample_and_log_prob(mu, rho, *priors, key))
    else:
        _, kept = saved_by(lambda: functional.foreach_gaussian_kl_divergence(mu, rho, *priors))
    assert kept == sorted(tensor.data_ptr() for tensor in (*mu, *rho, *priors, *([key] if draws else [])))
