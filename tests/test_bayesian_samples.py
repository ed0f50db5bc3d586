"""Several samples of a BayesianModule: at once where that is possible, in a loop elsewhere, refused where neither."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import make_key, make_keys, same_bits
from torch import Tensor, nn

from illia_ext import BayesianModule

parametrize = pytest.mark.parametrize
KEYS = make_keys((1, 2), (3, 4), (5, 6))


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
    return BayesianModule(Custom(function).to(KEYS.device).double(), rho_init=-1.0, **arguments)


INPUTS = torch.linspace(-1, 1, 12, dtype=torch.float64, device=KEYS.device).reshape(4, 3)


def assert_single_samples(bayesian: BayesianModule, keys: Tensor = KEYS) -> None:
    """In float64, where another order of sums leaves 1e-12."""
    output, log_prob = bayesian(INPUTS, key=keys)
    for i, key in enumerate(keys):
        expected, expected_log_prob = bayesian(INPUTS, key=key)
        torch.testing.assert_close(output[i], expected, rtol=1e-12, atol=1e-12)
        assert same_bits(log_prob[i], expected_log_prob)
    assert len(output) == len(log_prob) == len(keys)


@parametrize(("chunk_size", "calls"), [(None, 1), (3, 1), (5, 1), (2, 2), (1, 3)])
def test_chunks(chunk_size: int | None, calls: int) -> None:
    """A call of the module for each chunk says that its samples ran at once."""
    bayesian = make(lambda module, hidden: hidden.tanh(), chunk_size=chunk_size)
    bayesian(INPUTS, key=KEYS)
    assert bayesian.module.calls == calls
    assert_single_samples(bayesian)
    assert_single_samples(bayesian, KEYS[:1])


@parametrize(
    "function",
    [
        lambda module, hidden: hidden * float(hidden.detach().sum() > 0),  # a value that Python must know
        lambda module, hidden: hidden if hidden.sum() > 0 else -hidden,
        lambda module, hidden: torch.zeros_like(module.seen).copy_(hidden.sum()) + hidden,  # into a plain tensor
    ],
)
def test_what_cannot_run_at_once_runs_in_a_loop(function: Callable[[Custom, Tensor], Tensor]) -> None:
    bayesian = make(function)
    bayesian(INPUTS, key=KEYS)
    assert bayesian.module.calls == 4  # an attempt, and three samples
    assert_single_samples(bayesian)


@parametrize(
    ("make_module", "training", "calls"),
    [
        (lambda: nn.LSTM(3, 2), False, 3),
        (lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), True, 3),
        (lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), False, 1),
    ],
)
def test_known_loops_make_no_attempt(make_module: Callable[[], nn.Module], training: bool, calls: int) -> None:
    seen: list[int] = []
    bayesian = BayesianModule(make_module().to(KEYS.device).double()).train(training)
    bayesian.module.register_forward_pre_hook(lambda *_: seen.append(1))
    bayesian(INPUTS, key=KEYS)
    assert len(seen) == calls


def test_statistics_are_updated_once_a_sample() -> None:
    """In the order of the keys, which the momentum weighs; in eval, where samples run at once, not at all."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, momentum=0.5)).to(KEYS.device).double()
    bayesian = BayesianModule(network, rho_init=-1.0)
    bayesian(INPUTS, key=KEYS)
    mean = torch.zeros(2, dtype=torch.float64, device=KEYS.device)
    for key in KEYS:
        mean = 0.5 * mean + 0.5 * bayesian.sample_module(key)[0](INPUTS).mean(0)
    torch.testing.assert_close(bayesian.module[1].running_mean, mean, rtol=1e-12, atol=1e-12)
    assert bayesian.module[1].num_batches_tracked == 3
    bayesian.eval().predict(INPUTS, key=KEYS)
    assert bayesian.module[1].num_batches_tracked == 3


def count_in_place(module: Custom, hidden: Tensor) -> Tensor:
    module.seen.add_(1)
    return hidden


def count_and_fail(module: Custom, hidden: Tensor) -> Tensor:
    module.seen.add_(1)
    return hidden * float(hidden.detach().sum())


def keep(module: Custom, hidden: Tensor) -> Tensor:
    module.seen = hidden.detach().sum()
    return hidden


@parametrize("function", [count_in_place, count_and_fail, keep])
def test_buffers_of_its_own(function: Callable[[Custom, Tensor], Tensor]) -> None:
    """Once in place of three times, or the sum of samples that are gone: one after the other, or not at all."""
    bayesian = make(function)
    with pytest.raises(RuntimeError, match=r"seen: a forward pass of all samples at once .* set chunk_size=1, which"):
        bayesian(INPUTS, key=KEYS)
    assert bayesian.module.seen in (0, 1)  # no tensor of the transform's
    bayesian = make(function, chunk_size=1)
    bayesian(INPUTS, key=KEYS)
    assert bayesian.module.seen == (3 if function is not keep else bayesian.sample_module(KEYS[2]).linear(INPUTS).sum())


@parametrize("chunk_size", [None, 1])
def test_outputs_of_any_structure(chunk_size: int | None) -> None:
    """Tensors become [S, ...], in chunks too, whether they depend on the weights or not; what is none stays."""
    function = lambda module, hidden: {"a": (hidden, None), "b": [INPUTS, 3, "name"]}  # noqa: E731
    output, _ = make(function, chunk_size=chunk_size)(INPUTS, key=KEYS)
    assert output["a"][0].shape == (3, 4, 2) and output["a"][1] is None
    assert same_bits(output["b"][0], INPUTS.expand(3, 4, 3)) and output["b"][1:] == [3, "name"]
    prediction = make(lambda module, hidden: (hidden, None), chunk_size=chunk_size).predict(INPUTS, key=KEYS)
    assert prediction.mean[0].shape == (4, 2) and prediction.mean[1] is None


@parametrize(
    ("function", "error", "message"),
    [
        (lambda module, hidden: {hidden.shape}, TypeError, "output: for several samples expected tensors, .* got set"),
        (
            lambda module, hidden: float(hidden.detach().sum()),
            ValueError,
            "output: expected tensors, or values that all",
        ),
        (lambda module, hidden: [hidden] * module.calls, ValueError, "output: expected one structure for all samples"),
        (lambda module, hidden: hidden @ hidden, RuntimeError, "mat1 and mat2 shapes cannot be multiplied"),
    ],
)
def test_bad_outputs(function: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(function, chunk_size=1)(INPUTS, key=KEYS)
    if "structure" not in message:
        with pytest.raises(error, match=message):
            make(function)(INPUTS, key=KEYS)


@parametrize("chunk_size", [None, 1])
def test_dropout_differs_between_samples(chunk_size: int | None) -> None:
    """Two of three samples' masks of 8 elements are equal with probability 3 / 256 at most; this seed has none."""
    bayesian = make(lambda module, hidden: nn.functional.dropout(hidden, 0.5, module.training), chunk_size=chunk_size)
    torch.manual_seed(1)
    dropped = bayesian(INPUTS, key=KEYS)[0] == 0
    assert len(dropped.flatten(1).unique(dim=0)) == 3


@parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples: expected at least one, got 0"),
        ({"key": KEYS[:0]}, ValueError, "num_samples: expected at least one, got 0"),
        ({"num_samples": -1}, ValueError, "num_samples: expected a non-negative integer, got -1"),
        ({"num_samples": 1.5}, TypeError, "num_samples: expected an integer, got 1.5"),
        ({"num_samples": 3, "key": KEYS}, ValueError, "num_samples: a key says how many .* got num_samples=3 too"),
        ({"key": 5}, TypeError, "key: expected a tensor, got 5"),
        ({"key": KEYS.double()}, TypeError, "key: expected int64 or uint64, got torch.float64"),
        ({"key": KEYS[None]}, ValueError, r"key: expected shape \[2\] or \[num_samples, 2\], got \[1, 3, 2\]"),
    ],
)
def test_bad_keys(arguments: Any, error: type[Exception], message: str) -> None:
    bayesian = make(lambda module, hidden: hidden)
    for call in (bayesian, bayesian.predict):
        with pytest.raises(error, match=message):
            call(INPUTS, **arguments)


def test_predict() -> None:
    """No gradient, the mean of all samples, 20 by default; the mode is the caller's."""
    bayesian = make(lambda module, hidden: hidden)
    prediction = bayesian.predict(INPUTS, key=KEYS)
    assert same_bits(prediction.samples, bayesian(INPUTS, key=KEYS)[0].detach())
    assert same_bits(prediction.mean, prediction.samples.mean(0))
    assert not prediction.mean.requires_grad and bayesian.training
    assert len(bayesian.predict(INPUTS).samples) == 20 and len(bayesian.predict(INPUTS, num_samples=7).samples) == 7
    with pytest.raises(ValueError, match=r"key: expected shape \[num_samples, 2\], got tensor\(\[1, 0\]"):
        bayesian.predict(INPUTS, key=make_key(1))


@parametrize("batch", [(2,), (9,), (2, 3), ()])  # smaller and larger than the outputs are many
@parametrize("bias", [True, False])
def test_linear_layers_have_the_gradients_of_a_loop(batch: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8, bias=bias), nn.Tanh(), nn.Linear(8, 8, bias=bias)).to(KEYS.device).double()
    inputs = torch.randn(*batch, 4, dtype=torch.float64, device=KEYS.device)
    results = []
    for chunk_size in (None, 1):
        bayesian = BayesianModule(network, rho_init=-1.0, chunk_size=chunk_size)
        output, log_prob = bayesian(inputs, key=KEYS)
        (output.square().sum() + log_prob.sum()).backward()
        results.append([output, *(parameter.grad for parameter in bayesian.parameters())])
    for at_once, in_a_loop in zip(*results):  # 1e-12: another order of sums of float64
        torch.testing.assert_close(at_once, in_a_loop, rtol=1e-12, atol=1e-12)


def test_predict_averages_integers_in_float32() -> None:
    prediction = make(lambda module, hidden: (hidden.argmax(-1), hidden > 0)).predict(INPUTS, key=KEYS)
    for mean, samples in zip(prediction.mean, prediction.samples):
        assert same_bits(mean, samples.float().mean(0))


def test_predict_of_frozen_weights_is_refused() -> None:
    bayesian = make(lambda module, hidden: hidden)
    bayesian.freeze(make_key(1))
    with pytest.raises(ValueError, match="predict: the weights are frozen"):
        bayesian.predict(INPUTS)
