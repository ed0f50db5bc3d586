"""Several samples of a BayesianModule equal single calls, one after the other or, with a chunk_size, under vmap."""

import functools
import gc
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers import DEVICE, make_key, same_bits
from module_cases import (
    INPUTS,
    KEYS,
    Custom,
    assert_close,
    assert_same,
    assert_single_samples,
    convert,
    make,
    make_network,
)
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_full_backward_hook

from illia_ext import BayesianModule

parametrize = pytest.mark.parametrize


@parametrize(("chunk_size", "calls"), [(None, 5), (1, 5), (2, 3), (5, 1), (7, 1)])
def test_chunks(chunk_size: int | None, calls: int) -> None:
    """One call of the module a sample, as by default, or one for each chunk of them."""
    arguments = {} if chunk_size is None else {"chunk_size": chunk_size}
    bayesian = make(lambda module, hidden: hidden.tanh(), **arguments)
    bayesian(INPUTS, key=KEYS)
    assert bayesian.module.calls == calls
    for keys in (KEYS, KEYS[:1]):
        assert_single_samples(bayesian, INPUTS, keys=keys)


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
    assert_single_samples(bayesian, INPUTS)
    assert same_bits(bayesian.module.linear.weight, mu)


def perceptron(bias: bool) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8, bias=bias), nn.Tanh(), nn.Linear(8, 8, bias=bias))


def convolution(pool: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), pool)


def odd_calls(module: Custom, hidden: Tensor) -> Tensor:
    rows = torch.embedding(module.linear.weight, torch.tensor([1, 0], device=DEVICE))
    nothing = nn.functional.linear(hidden[:, :0], module.linear.weight[:, :0])
    return hidden + rows.sum() + nothing + nn.functional.linear(hidden[0], module.linear.weight[:, :2])


def if_recorded(module: Custom, hidden: Tensor) -> Tensor:
    return 2 * hidden if hidden.requires_grad else hidden


POOLS = [nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(1), nn.AvgPool2d(2), nn.MaxPool2d(2, return_indices=True)]
# a module and the shape of its input; batches smaller and larger than the outputs are many
AT_ONCE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{
        f"linear layers, bias={bias}, {batch}": (partial(perceptron, bias), (*batch, 4))
        for bias in (True, False)
        for batch in ((2,), (9,), (2, 3), (5, 4), ())
    },
    **{f"convolution, {pool}": (partial(convolution, pool), (2, 1, 6, 6)) for pool in POOLS},
    "odd calls": (lambda: Custom(odd_calls), (4, 3)),
    "requires_grad": (lambda: Custom(if_recorded), (4, 3)),
}


@parametrize("name", AT_ONCE)
def test_samples_at_once_are_single_samples(name: str) -> None:
    torch.manual_seed(0)
    make_module, shape = AT_ONCE[name]
    inputs = torch.randn(shape, dtype=torch.float64, device=DEVICE)
    inputs = inputs.transpose(0, -2) if len(shape) == 3 else inputs
    assert_single_samples(convert(make_module(), chunk_size=5), inputs)


def test_requires_grad_is_known_at_once_without_gradients() -> None:
    with torch.no_grad():
        outputs = [make(if_recorded, chunk_size=chunk_size)(INPUTS, key=KEYS)[0] for chunk_size in (1, 5)]
    assert_close(*outputs)


@pytest.mark.filterwarnings("error")
@parametrize("need_weights", [True, False])
def test_attention_at_once(need_weights: bool) -> None:
    """Its projections are one product a sample, and nothing falls back to a loop of torch's, which would warn."""
    torch.manual_seed(0)
    bayesian = convert(nn.MultiheadAttention(8, 2, batch_first=True), chunk_size=5)
    inputs = torch.randn(2, 3, 8, dtype=torch.float64, device=DEVICE)
    mask = torch.ones(3, 3, dtype=torch.bool, device=DEVICE).triu(1)
    assert_single_samples(bayesian, inputs, inputs, inputs, need_weights=need_weights, attn_mask=mask)


def test_vmap_over_inputs_of_samples_at_once() -> None:
    """The tensors that the caller's own vmap has made are none of this call's."""
    bayesian = make(lambda module, hidden: hidden.tanh(), chunk_size=3)
    inputs = torch.stack([INPUTS, 2 * INPUTS])
    mapped = torch.vmap(lambda inputs: bayesian(inputs, key=KEYS)[0])(inputs)
    assert_close(mapped, torch.stack([bayesian(each, key=KEYS)[0] for each in inputs]))


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
    bayesian.predict(INPUTS, num_samples=3)
    assert sizes == [777 * 3 * 8] * 3


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


def test_what_is_no_tensor_and_differs_becomes_one_per_sample() -> None:
    bayesian = make(lambda module, hidden: (hidden, hidden.sum().item(), 3, float("nan"), {"cache": Cache(hidden)}))
    prediction = bayesian.predict(INPUTS, key=KEYS)
    for hidden, sums, three, nans, caches in (bayesian(INPUTS, key=KEYS)[0], prediction.samples):
        assert sums == tuple(each.sum().item() for each in hidden) and three == 3 and len(nans) == 5
        assert_same([cache.keys for cache in caches["cache"]], list(hidden))
    assert prediction.mean[0].shape == (4, 2) and prediction.mean[1:] == (None, 3, None, {"cache": None})


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
    message = r"output: expected tensors, got \w+, which holds \w+, .* with mu in place of the sample. Compute inside"
    with pytest.raises(TypeError, match=message):
        bayesian(INPUTS, num_samples=num_samples)
    assert all(type(parameter) is nn.Parameter for parameter in bayesian.parameters())


def test_an_output_with_a_module_of_its_own_is_none_of_these() -> None:
    make(lambda module, hidden: Lazy(nn.Linear(2, 2)))(INPUTS, num_samples=2)


@parametrize(
    ("chunk_size", "function", "error", "message"),
    [
        (1, lambda module, hidden: [hidden] * module.calls, ValueError, "output: expected one structure for all"),
        (1, lambda module, hidden: hidden[: module.calls], ValueError, r"output: .* one shape .* \[\(1, 2\), \(2, 2\)"),
        (1, lambda module, hidden: hidden @ hidden, RuntimeError, "mat1 and mat2 shapes cannot be multiplied"),
        (5, lambda module, hidden: hidden @ hidden, RuntimeError, "fails under vmap: .*(shapes|size)"),
        (5, lambda module, hidden: {hidden.shape}, TypeError, "output: under vmap .* got .*set.*; chunk_size=1 runs"),
    ],
)
def test_bad_outputs(chunk_size: int, function: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(function, chunk_size=chunk_size)(INPUTS, key=KEYS)


@parametrize("chunk_size", [1, 5])
def test_dropout_differs_between_samples(chunk_size: int) -> None:
    """Two of five samples' masks of 8 elements are equal with probability 10 / 256 at most; this seed has none."""
    bayesian = make(lambda module, hidden: nn.functional.dropout(hidden, 0.5, module.training), chunk_size=chunk_size)
    torch.manual_seed(1)
    dropped = bayesian(INPUTS, key=KEYS)[0] == 0
    assert len(dropped.flatten(1).unique(dim=0)) == 5


def test_predict() -> None:
    """No gradient, the mean of all samples, 20 by default; the mode is the caller's."""
    bayesian = make(lambda module, hidden: hidden)
    prediction = bayesian.predict(INPUTS, key=KEYS)
    assert same_bits(prediction.samples, bayesian(INPUTS, key=KEYS)[0].detach())
    assert same_bits(prediction.mean, prediction.samples.mean(0))
    assert not prediction.mean.requires_grad and bayesian.training
    assert len(bayesian.predict(INPUTS).samples) == 20 and len(bayesian.predict(INPUTS, num_samples=7).samples) == 7
    with pytest.raises(ValueError, match=r"key: expected shape \[num_samples, 2\], got \[2\]"):
        bayesian.predict(INPUTS, key=make_key(1))


def test_predict_averages_integers_in_float32() -> None:
    prediction = make(lambda module, hidden: (hidden.argmax(-1), hidden > 0)).predict(INPUTS, key=KEYS)
    for mean, samples in zip(prediction.mean, prediction.samples):
        assert same_bits(mean, samples.float().mean(0))


def test_predict_averages_probabilities() -> None:
    """The softmax of the mean of logits is another number."""
    bayesian = make(lambda module, hidden: hidden, rho_init=1.0).eval()
    ours = bayesian.predict(INPUTS, key=KEYS, transform=lambda logits: logits.softmax(-1)).mean
    logits = bayesian.predict(INPUTS, key=KEYS)
    assert_close(ours, logits.samples.softmax(-1).mean(0))
    assert (ours - logits.mean.softmax(-1)).abs().max() > 0.05


def test_predict_in_training_mode(cpu: object) -> None:
    bayesian, inputs = BayesianModule(make_network()), INPUTS.float()
    with pytest.warns(UserWarning, match=r"predict: the module is in training mode, .*; call eval\(\) first") as caught:
        bayesian.predict(inputs)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bayesian.eval().predict(inputs)
        torch.compile(bayesian.predict, backend="eager")(inputs, num_samples=2)
    bayesian.module[1].train()
    with pytest.warns(UserWarning, match="predict: the module is in training mode"):
        bayesian.predict(inputs)
