"""Several samples of a BayesianModule: they equal single calls, one after the other or, where asked, under vmap."""

import copy
import functools
import gc
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import make_key, make_keys, same_bits
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_full_backward_hook

from illia_ext import BayesianModule

parametrize = pytest.mark.parametrize
KEYS = make_keys((1, 2), (3, 4), (5, 6), (7, 8), (9, 10))  # four are drawn by one op


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
    """Outputs, log_prob and gradients; in float64, where another order of sums leaves 1e-12."""
    results = []
    for call_together in (True, False):
        bayesian.zero_grad()
        if call_together:
            output, log_prob = bayesian(INPUTS, key=keys)
        else:
            output, log_prob = map(torch.stack, zip(*(bayesian(INPUTS, key=key) for key in keys)))
        (output.square().sum() + log_prob.sum() / 100).backward()
        results.append((output, log_prob, [parameter.grad for parameter in bayesian.parameters()]))
    (output, log_prob, grads), (expected, expected_log_prob, expected_grads) = results
    assert len(output) == len(log_prob) == len(keys)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    assert same_bits(log_prob, expected_log_prob)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-12, atol=1e-12)


@parametrize(("chunk_size", "calls"), [(1, 5), (2, 3), (5, 1), (7, 1)])
def test_chunks(chunk_size: int, calls: int) -> None:
    """One call of the module a sample, or one for each chunk of them."""
    bayesian = make(lambda module, hidden: hidden.tanh(), chunk_size=chunk_size)
    bayesian(INPUTS, key=KEYS)
    assert bayesian.module.calls == calls
    assert_single_samples(bayesian)
    assert_single_samples(bayesian, KEYS[:1])


def test_one_after_the_other_is_the_default() -> None:
    bayesian = make(lambda module, hidden: hidden)
    assert bayesian.chunk_size == 1
    bayesian(INPUTS, num_samples=3)
    assert bayesian.module.calls == 3


def scale_in_place(module: Custom, hidden: Tensor) -> Tensor:
    with torch.no_grad():
        module.linear.weight.mul_(2)  # of this sample, not of its neighbours or of mu
    return hidden + module.linear.weight.sum()


def clamp_in_place(module: Custom, hidden: Tensor) -> Tensor:
    module.linear.weight.clamp_(-0.5, 0.5)
    return INPUTS @ module.linear.weight.T


@parametrize(
    "function",
    [
        lambda module, hidden: hidden * float(hidden.detach().sum() > 0),  # a value that Python must know
        lambda module, hidden: hidden if hidden.sum() > 0 else -hidden,
        lambda module, hidden: 2 * hidden if hidden.requires_grad and not hidden.is_leaf else hidden,
        lambda module, hidden: 2 * hidden if hidden.grad_fn is not None else hidden,
        lambda module, hidden: torch.zeros_like(module.seen).copy_(hidden.sum()) + hidden,  # into a plain tensor
        scale_in_place,
        clamp_in_place,
    ],
)
def test_what_single_calls_can_do_several_samples_can(function: Callable[[Custom, Tensor], Tensor]) -> None:
    bayesian = make(function)
    mu = bayesian.module.linear.weight.clone()
    assert_single_samples(bayesian)
    assert same_bits(bayesian.module.linear.weight, mu)


def test_an_input_is_changed_once_a_sample() -> None:
    class Doubling(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs.mul_(2)) * float(inputs.sum() != 0)

    inputs = torch.ones(2, 3)
    BayesianModule(Doubling(3, 2))(inputs, num_samples=5)
    assert same_bits(inputs, torch.full((2, 3), 32.0))


def zero_gradient(module: nn.Module, grad_inputs: Any, grad_outputs: Any) -> Any:
    return (torch.zeros_like(grad_inputs[0]),)


@parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@parametrize("late", [False, True])
def test_backward_hooks(late: bool, compiled: bool, cpu: torch.device) -> None:
    """Set before the conversion or after it, on a module, before or after its backward, or on all modules."""
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    seen: list[int] = []
    bayesian = BayesianModule(network)
    module = bayesian.module if late else network
    module[1].register_full_backward_hook(zero_gradient)
    module[2].register_full_backward_pre_hook(lambda *_: seen.append(1))
    bayesian = bayesian if late else BayesianModule(network)
    call = torch.compile(bayesian, backend="aot_eager") if compiled else bayesian
    call(torch.ones(3, 4), num_samples=2)[0].sum().backward()
    assert not bayesian.module[0].weight.grad.any() and bayesian.module[2].weight.grad.all()
    assert len(seen) == 2


def test_hooks_of_all_modules(cpu: torch.device) -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    bayesian = BayesianModule(network)
    seen: list[str] = []
    handles = [
        register_module_forward_hook(lambda module, *_: seen.append(f"forward {type(module).__name__}")),
        register_module_full_backward_hook(lambda module, *_: seen.append(f"backward {type(module).__name__}")),
    ]
    try:
        bayesian(torch.ones(3, 4).requires_grad_(), num_samples=2)[0].sum().backward()
        assert [seen.count(f"{way} Tanh") for way in ("forward", "backward")] == [2, 2]
        bayesian.chunk_size = 2
        with pytest.raises(RuntimeError, match=r"module: hooks for all modules are set, .*; chunk_size=1 runs one"):
            bayesian(torch.ones(3, 4), num_samples=2)
    finally:
        for handle in handles:
            handle.remove()


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
    assert bayesian.module[1].num_batches_tracked == 5
    bayesian.eval().predict(INPUTS, key=KEYS)
    assert bayesian.module[1].num_batches_tracked == 5


def count_in_place(module: Custom, hidden: Tensor) -> Tensor:
    module.seen.add_(1)
    return hidden


def count_and_fail(module: Custom, hidden: Tensor) -> Tensor:
    module.seen.add_(1)
    return hidden * float(hidden.detach().sum())


def count_anew(module: Custom, hidden: Tensor) -> Tensor:
    module.seen = module.seen + 1
    return hidden


def keep_in_a_buffer(module: Custom, hidden: Tensor) -> Tensor:
    module.seen = hidden.detach().sum()
    return hidden


def keep(module: Custom, hidden: Tensor) -> Tensor:
    module.kept = hidden.detach()
    return hidden


def keep_in_a_list(module: Custom, hidden: Tensor) -> Tensor:
    module.state.history.append(hidden.detach())
    return hidden


def hook(module: Custom, hidden: Tensor) -> Tensor:
    hidden.register_hook(lambda grad: 2 * grad)
    return hidden


@parametrize(
    ("function", "message"),
    [
        (count_in_place, "module.seen: is changed in place, under vmap once in place of once a sample"),
        (count_and_fail, "module: fails under vmap: .*item"),
        (count_anew, "module.seen: is set, under vmap once in place of once a sample"),
        (keep_in_a_buffer, "module.seen: keeps a tensor of the call, which under vmap is none of a single sample"),
        (keep, "module.kept: keeps a tensor of the call"),
        (keep_in_a_list, "module.state: keeps a tensor of the call"),
        (hook, "module: fails under vmap: cannot register a hook"),
        (lambda module, hidden: hidden if hidden.sum() > 0 else -hidden, "module: fails under vmap: .*data-dependent"),
        (lambda module, hidden: hidden.grad_fn and hidden, "module: reads grad_fn of a tensor, which vmap hides"),
        (lambda module, hidden: hidden if hidden.is_leaf else -hidden, "module: reads is_leaf of a tensor"),
        (lambda module, hidden: hidden + INPUTS.data.mul_(1)[:, :2], None),
    ],
)
def test_what_vmap_cannot_do_is_refused(function: Callable[[Custom, Tensor], Tensor], message: str | None) -> None:
    """And leaves the module as it was: it can be copied, and called one sample after the other."""
    bayesian = make(function, chunk_size=3)
    bayesian.module.state = types.SimpleNamespace(history=[])
    before = {name: tensor.clone() for name, tensor in bayesian.state_dict().items()}
    if message is not None:
        with pytest.raises(RuntimeError, match=f"{message}.*; chunk_size=1 runs one sample after the other"):
            bayesian(INPUTS, key=KEYS)
        assert bayesian.module.calls == 0 and not hasattr(bayesian.module, "kept")
    assert bayesian.module.state.history == []
    assert all(same_bits(tensor, before[name]) for name, tensor in bayesian.state_dict().items())
    copy.deepcopy(bayesian)
    bayesian.chunk_size = 1
    bayesian(INPUTS, key=KEYS)
    assert bayesian.module.calls == 5
    assert bayesian.module.seen in (0, 5, bayesian.sample_module(KEYS[4]).linear(INPUTS).sum())


def test_an_input_changed_in_place_is_refused_under_vmap() -> None:
    bayesian = make(lambda module, hidden: hidden, chunk_size=3)
    bayesian.module.forward = lambda inputs: bayesian.module.linear(inputs.mul_(2))
    with pytest.raises(RuntimeError, match="input: is changed in place, under vmap once in place of once a sample"):
        bayesian(INPUTS.clone(), key=KEYS)


@parametrize(
    ("make_module", "message"),
    [
        (lambda: nn.LSTM(3, 2), "module: LSTM cannot run under vmap"),
        (lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), "module.1: BatchNorm1d in training updates"),
    ],
)
def test_layers_that_vmap_cannot_run(make_module: Callable[[], nn.Module], message: str) -> None:
    bayesian = BayesianModule(make_module().to(KEYS.device).double(), chunk_size=2)
    before = [buffer.clone() for buffer in bayesian.buffers()]
    with pytest.raises(RuntimeError, match=f"{message}.*; chunk_size=1 runs one sample after the other"):
        bayesian(INPUTS, key=KEYS)
    assert all(map(same_bits, bayesian.buffers(), before))


@parametrize("kind", ["full_backward_hook", "full_backward_pre_hook", "forward_hook", "forward_pre_hook"])
def test_hooks_are_refused_under_vmap(kind: str) -> None:
    bayesian = make(lambda module, hidden: hidden, chunk_size=2)
    getattr(bayesian.module.linear, f"register_{kind}")(lambda *_: None)
    with pytest.raises(RuntimeError, match=r"module.linear: has hooks, .*; chunk_size=1 runs one sample after the"):
        bayesian(INPUTS, key=KEYS)


@parametrize("with_gradients", [False, True])
def test_requires_grad_is_known_under_vmap(with_gradients: bool) -> None:
    function = lambda module, hidden: 2 * hidden if hidden.requires_grad else hidden  # noqa: E731
    results = []
    for chunk_size in (1, 5):
        with torch.set_grad_enabled(with_gradients):
            results.append(make(function, chunk_size=chunk_size)(INPUTS, key=KEYS)[0])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_memory_without_gradients_does_not_grow_with_the_samples(cpu: torch.device) -> None:
    """One sample is alive at a time, next to mu and rho."""
    sizes: list[int] = []

    def measure(module: Custom, hidden: Tensor) -> Tensor:
        gc.collect()
        tensors = [tensor for tensor in gc.get_objects() if type(tensor) is Tensor and tensor.shape[-2:] == (777, 3)]
        sizes.append(sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()))
        return hidden

    bayesian = BayesianModule(nn.Sequential(nn.Linear(3, 777, dtype=torch.float64), nn.Identity()))
    bayesian.module[1].forward = lambda hidden: measure(bayesian.module, hidden)
    bayesian.predict(INPUTS, num_samples=6)
    assert sizes == [777 * 3 * 8] * 6


@parametrize("chunk_size", [1, 5])
def test_outputs_of_any_structure(chunk_size: int) -> None:
    """Tensors become [S, ...], in chunks too, whether they depend on the weights or not; what is none stays."""
    function = lambda module, hidden: {"a": (hidden, None), "b": [INPUTS, 3, "name"]}  # noqa: E731
    output, _ = make(function, chunk_size=chunk_size)(INPUTS, key=KEYS)
    assert output["a"][0].shape == (5, 4, 2) and output["a"][1] is None
    assert same_bits(output["b"][0], INPUTS.expand(5, 4, 3)) and output["b"][1:] == [3, "name"]
    prediction = make(lambda module, hidden: (hidden, None), chunk_size=chunk_size).predict(INPUTS, key=KEYS)
    assert prediction.mean[0].shape == (4, 2) and prediction.mean[1] is None


class Cache:
    """An object that holds tensors, as a language model's cache does."""

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys


def test_objects_become_one_a_sample() -> None:
    bayesian = make(lambda module, hidden: {"logits": hidden, "cache": Cache(hidden)})
    samples = bayesian(INPUTS, key=KEYS)[0]
    assert len(samples["cache"]) == 5
    assert all(map(same_bits, [cache.keys for cache in samples["cache"]], samples["logits"]))
    prediction = bayesian.predict(INPUTS, key=KEYS)
    assert prediction.mean["cache"] is None and prediction.mean["logits"].shape == (4, 2)
    assert len(prediction.samples["cache"]) == 5


class Lazy:
    def __init__(self, value: Any) -> None:
        self.value = value


class Slots:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


LAZY: dict[str, Callable[[Custom], Any]] = {
    "a module": lambda module: module,
    "an attribute": lambda module: Lazy([module.linear]),
    "slots": lambda module: (Slots(module),),
    "a closure": lambda module: Lazy(lambda inputs: module.linear(inputs)),
    "a partial": lambda module: Lazy(functools.partial(nn.Linear.forward, module.linear)),
    "a bound method": lambda module: {"call": module.linear.forward},
    "a generator": lambda module: (module.linear(row) for row in INPUTS),
    "a weak reference": lambda module: Lazy(weakref.ref(module)),
}


@parametrize("num_samples", [None, 2])
@parametrize("lazy", LAZY.values(), ids=LAZY)
def test_an_output_that_would_compute_later_is_refused(lazy: Callable[[Custom], Any], num_samples: int | None) -> None:
    bayesian = make(lambda module, hidden: lazy(module))
    message = r"output: expected tensors, got \w+, which holds \w+, .* with mu in place of the sample; sample_module"
    with pytest.raises(TypeError, match=message):
        bayesian(INPUTS, num_samples=num_samples)
    assert all(type(parameter) is nn.Parameter for parameter in bayesian.parameters())


def test_an_output_with_a_module_of_its_own_is_none_of_these() -> None:
    make(lambda module, hidden: Lazy(nn.Linear(2, 2)))(INPUTS, num_samples=2)


@parametrize(
    ("function", "error", "message"),
    [
        (
            lambda module, hidden: float(hidden.detach().sum()),
            ValueError,
            "output: expected tensors, or values that all",
        ),
        (lambda module, hidden: [hidden] * module.calls, ValueError, "output: expected one structure for all samples"),
        (
            lambda module, hidden: hidden[: module.calls],
            ValueError,
            r"output: expected tensors of one shape for all samples, got \[\(1, 2\), \(2, 2\)",
        ),
        (lambda module, hidden: hidden @ hidden, RuntimeError, "mat1 and mat2 shapes cannot be multiplied"),
    ],
)
def test_bad_outputs(function: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(function)(INPUTS, key=KEYS)


def test_bad_outputs_under_vmap() -> None:
    with pytest.raises(TypeError, match=r"output: under vmap expected tensors, .* got .*Cache.*; chunk_size=1 runs"):
        make(lambda module, hidden: Cache(hidden), chunk_size=5)(INPUTS, key=KEYS)
    with pytest.raises(RuntimeError, match=r"fails under vmap: .*shapes|fails under vmap: .*size"):
        make(lambda module, hidden: hidden @ hidden, chunk_size=5)(INPUTS, key=KEYS)


@parametrize("chunk_size", [1, 5])
def test_dropout_differs_between_samples(chunk_size: int) -> None:
    """Two of five samples' masks of 8 elements are equal with probability 10 / 256 at most; this seed has none."""
    bayesian = make(lambda module, hidden: nn.functional.dropout(hidden, 0.5, module.training), chunk_size=chunk_size)
    torch.manual_seed(1)
    dropped = bayesian(INPUTS, key=KEYS)[0] == 0
    assert len(dropped.flatten(1).unique(dim=0)) == 5


@parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples: must be at least 1, got 0"),
        ({"key": KEYS[:0]}, ValueError, "num_samples: must be at least 1, got 0"),
        ({"num_samples": -1}, ValueError, "num_samples: expected a non-negative integer, got -1"),
        ({"num_samples": 1.5}, TypeError, "num_samples: expected an integer, got 1.5"),
        ({"num_samples": 3, "key": KEYS}, ValueError, "num_samples: a key says how many .* got num_samples=3 too"),
        ({"key": 5}, TypeError, "key: expected a tensor, got 5"),
        ({"key": KEYS.double()}, TypeError, "key: expected int64 or uint64, got torch.float64"),
        ({"key": KEYS[None]}, ValueError, r"key: expected shape \[2\] or \[num_samples, 2\], got \[1, 5, 2\]"),
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


@parametrize("batch", [(2,), (9,), (2, 3), (5, 4), ()])  # smaller and larger than the outputs are many
@parametrize("bias", [True, False])
def test_linear_layers_have_the_gradients_of_single_calls(batch: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8, bias=bias), nn.Tanh(), nn.Linear(8, 8, bias=bias)).to(KEYS.device).double()
    inputs = torch.randn(*batch, 4, dtype=torch.float64, device=KEYS.device)
    results = []
    inputs = inputs.transpose(0, -2) if len(batch) == 2 else inputs
    for chunk_size in (5, 1):
        bayesian = BayesianModule(network, rho_init=-1.0, chunk_size=chunk_size)
        output, log_prob = bayesian(inputs, key=KEYS)
        (output.square().sum() + log_prob.sum()).backward()
        results.append([output, *(parameter.grad for parameter in bayesian.parameters())])
    for at_once, in_a_loop in zip(*results):  # 1e-12: another order of sums of float64
        torch.testing.assert_close(at_once, in_a_loop, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("error")
def test_attention_has_the_gradients_of_single_calls() -> None:
    """Its projections are one product a sample, and nothing falls back to a loop of torch's, which would warn."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True, device=KEYS.device, dtype=torch.float64)
    inputs = torch.randn(2, 3, 8, dtype=torch.float64, device=KEYS.device)
    mask = torch.ones(3, 3, dtype=torch.bool, device=KEYS.device).triu(1)
    results = []
    for chunk_size in (5, 1):
        bayesian = BayesianModule(attention, rho_init=-1.0, chunk_size=chunk_size)
        for need_weights in (True, False):
            (output, _), _ = bayesian(inputs, inputs, inputs, need_weights=need_weights, attn_mask=mask, key=KEYS)
            output.square().sum().backward()
        results.append([output, *(parameter.grad for parameter in bayesian.parameters())])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_predict_averages_integers_in_float32() -> None:
    prediction = make(lambda module, hidden: (hidden.argmax(-1), hidden > 0)).predict(INPUTS, key=KEYS)
    for mean, samples in zip(prediction.mean, prediction.samples):
        assert same_bits(mean, samples.float().mean(0))


def test_predict_of_frozen_weights_is_refused() -> None:
    bayesian = make(lambda module, hidden: hidden)
    bayesian.freeze(make_key(1))
    with pytest.raises(ValueError, match="predict: the weights are frozen"):
        bayesian.predict(INPUTS)
