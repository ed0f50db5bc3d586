"""Whatever watches a call of an op sees it, above autograd or below; torch.compile and torch.func: see their tests."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import make_key, make_parameters, same_bits
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves
from transform_cases import Count, assert_same_bits, with_gradients

from illia_ext import GaussianDistribution, functional
from illia_ext._ops.fake import NAMES, op

parametrize = pytest.mark.parametrize


def make_arguments(name: str, mu: Tensor, rho: Tensor, mu_prior: Tensor, std_prior: Tensor, key: Tensor) -> list[Any]:
    """What the op `name` takes, and so does its function."""
    arguments = [mu, rho] if name == "gaussian_sample" else [mu, rho, mu_prior, std_prior]
    if name.startswith("foreach"):
        arguments = [[mu, rho], [rho, mu], [mu_prior], [std_prior]]
    given_x = [mu.detach() + 1] if name == "gaussian_log_prob" else []
    return [*given_x, *arguments, *([key] if "sample" in name else [])]


def call(name: str, inputs: list[Tensor]) -> list[Tensor]:
    return tree_leaves(getattr(functional, name)(*make_arguments(name, *inputs)))


def call_op(name: str, inputs: list[Tensor]) -> list[Tensor]:
    """Through the dispatcher."""
    return tree_leaves(op(name)(*make_arguments(name, *inputs)))


each_function = parametrize("name", [name for name in NAMES if hasattr(functional, name)])


def make_inputs(device: torch.device, *frozen: str) -> list[Tensor]:
    parameters = [
        parameter.requires_grad_(name not in frozen)
        for name, parameter in zip(("mu", "rho"), make_parameters((3, 2), device=device))
    ]
    return [*parameters, *torch.tensor([[0.25], [0.75]], device=device), make_key(5, device=device)]


@each_function
@parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nothing_recorded(name: str, mode: Callable[[], Any], device: torch.device) -> None:
    inputs = make_inputs(device)
    with mode():
        outputs = call(name, inputs)
    assert_same_bits(outputs, call_op(name, inputs))
    for output in outputs:
        assert not output.requires_grad and output.is_inference() is (mode is torch.inference_mode)


def test_the_profiler_names_the_op_and_its_backward(device: torch.device) -> None:
    mu, *_ = inputs = make_inputs(device)
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        functional.gaussian_sample(*inputs[:2], inputs[4]).sum().backward()
    names = [event.name for event in recorded.events() if "aussian" in event.name]
    assert {"GaussianSample", "illia_ext::gaussian_sample", "illia_ext::gaussian_sample_backward"} <= set(names)


@each_function
def test_dispatch_modes_see_one_call_forward_and_one_backward(name: str, device: torch.device) -> None:
    inputs = make_inputs(device)
    with Count() as count:
        with torch.no_grad():
            assert not any(output.requires_grad for output in call(name, inputs))
        with_gradients(call(name, inputs), inputs[:2])
    assert count.calls == [f"{name}.default"] * 2 + [f"{name}_backward.default"]


class Doubles(TorchFunctionMode):
    """Doubles what our ops return."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return 2 * result if func is op("gaussian_kl_divergence") else result


def test_function_modes_see_the_op_above_autograd(device: torch.device) -> None:
    mu, rho, *priors, _ = make_inputs(device)
    with Doubles():
        doubled = functional.gaussian_kl_divergence(mu, rho, *priors)
    plain = functional.gaussian_kl_divergence(mu, rho, *priors)
    assert same_bits(doubled, 2 * plain)
    for ours, expected in zip(*(torch.autograd.grad(kl, [mu, rho]) for kl in (doubled, plain))):
        assert same_bits(ours, 2 * expected)


class Shifted(Tensor):
    """Stands for 1 + its `base`, as a parametrised or wrapping subclass stands for another tensor."""

    base: Tensor

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            unwrapped = [1 + a.base if isinstance(a, Shifted) and func is op("gaussian_sample") else a for a in args]
            return func(*unwrapped, **(kwargs or {}))


def test_subclasses_see_the_op_above_autograd(device: torch.device) -> None:
    mu, rho, *_, key = make_inputs(device)
    shifted = (mu.detach() + 1).as_subclass(Shifted)
    shifted.base = mu
    x = functional.gaussian_sample(shifted, rho, key)
    assert same_bits(x, functional.gaussian_sample(mu + 1, rho, key))
    assert same_bits(torch.autograd.grad(x.sum(), mu)[0], torch.ones_like(mu))


@parametrize("recorded", [False, True])
def test_forward_mode(recorded: bool, device: torch.device) -> None:
    mu, rho, *_, key = make_inputs(device)
    with torch.set_grad_enabled(recorded), forward_ad.dual_level():
        x = functional.gaussian_sample(forward_ad.make_dual(mu, torch.full_like(mu, 3)), rho, key)
        assert torch.equal(forward_ad.unpack_dual(x).tangent, torch.full_like(mu, 3))


@torch.library.custom_op("illia_ext_tests::frozen_kl", mutates_args=())
def frozen_kl(mu: Tensor, rho: Tensor) -> Tensor:
    """An op of somebody else: its kernel runs below autograd."""
    with torch.enable_grad():
        return functional.gaussian_kl_divergence(mu.detach().requires_grad_(), rho, 0.0, 1.0)


def test_inside_another_ops_kernel_nothing_is_recorded(device: torch.device) -> None:
    mu, rho = make_parameters((3,), device=device)
    assert not frozen_kl(mu, rho).requires_grad


class Network(nn.Module):
    """By the functions of one tensor, or by those of many."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.names = [f"{prefix}gaussian_sample_and_log_prob", f"{prefix}gaussian_kl_divergence"]
        self.weights = GaussianDistribution((4, 3), rho_init=-1.0)

    def forward(self, inputs: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        d = self.weights
        arguments = [d.mu, d.rho, d.mu_prior, d.std_prior, key]
        (weights, *_, log_prob), (kl_divergence,) = (call(name, arguments) for name in self.names)
        return nn.functional.linear(inputs, weights).tanh(), log_prob, kl_divergence


TRACERS: dict[str, Callable[[nn.Module, tuple[Tensor, ...]], Any]] = {
    "torch.jit.trace": lambda layer, args: torch.jit.trace(layer, args, check_trace=False),
    "torch.export": lambda layer, args: torch.export.export(layer, args, strict=False).module(),
    "make_fx": lambda layer, args: make_fx(lambda *a: layer(*a))(*args),
    "make_fx, before dispatch": lambda layer, args: make_fx(lambda *a: layer(*a), pre_dispatch=True)(*args),
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@parametrize("trace", TRACERS.values(), ids=TRACERS)
@parametrize("prefix", ["", "foreach_"])
def test_tracers_write_the_op_down(prefix: str, trace: Callable[..., Any], device: torch.device) -> None:
    network, inputs = Network(prefix).to(device), torch.ones(2, 3, device=device)
    traced = trace(network, (inputs, make_key(1, device=device)))
    if isinstance(traced, torch.jit.ScriptModule):
        found, expected = [node.kind() for node in traced.inlined_graph.nodes()], "illia_ext::{}"
    else:
        found, expected = [str(node.target) for node in traced.graph.nodes], "illia_ext.{}.default"
    ours = [name for name in found if "illia_ext" in name and "backward" not in name]
    assert ours == [expected.format(name) for name in network.names]
    key = make_key(2, device=device)
    assert_same_bits(
        *(with_gradients(function(inputs, key), list(network.parameters())) for function in (traced, network))
    )


def test_saved_tensors_go_through_hooks(device: torch.device) -> None:
    """Kept are the parameters, the priors and the key; a backward works with what the hooks give back."""
    inputs = make_inputs(device)
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> int:
        packed.append(tensor)
        return len(packed) - 1

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda i: (1 + (i == 3)) * packed[i]):  # std_prior doubled
        x, log_prob = functional.gaussian_sample_and_log_prob(*inputs)
    assert {tensor.data_ptr() for tensor in packed} == {tensor.data_ptr() for tensor in inputs}
    _, expected = functional.gaussian_sample_and_log_prob(*inputs[:3], 2 * inputs[3], inputs[4])
    assert_same_bits(*(torch.autograd.grad(output, inputs[:2]) for output in (log_prob, expected)))
