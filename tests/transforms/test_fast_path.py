"""Plain eager calls go past the dispatcher and give what it gives; whatever watches a call still sees it.

That torch.compile and torch.func see it is tested where they are."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from helpers import make_key, make_keys, make_parameters, same_bits
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from illia_ext import GaussianDistribution, functional
from illia_ext._ops import dispatch
from illia_ext._ops.fake import op

parametrize = pytest.mark.parametrize

Function = Callable[..., Any]  # of mu, rho, priors and a key
FUNCTIONS: dict[str, Function] = {
    "gaussian_sample": lambda mu, rho, m, s, key: functional.gaussian_sample(mu, rho, key),
    "gaussian_log_prob": lambda mu, rho, m, s, key: functional.gaussian_log_prob(mu.detach() + 1, mu, rho, m, s),
    "gaussian_sample_and_log_prob": lambda mu, rho, m, s, key: functional.gaussian_sample_and_log_prob(
        mu, rho, m, s, key
    ),
    "gaussian_kl_divergence": lambda mu, rho, m, s, key: functional.gaussian_kl_divergence(mu, rho, m, s),
    "foreach_gaussian_sample_and_log_prob": lambda mu, rho, m, s, key: functional.foreach_gaussian_sample_and_log_prob(
        [mu], [rho], m, s, key
    ),
    "foreach_gaussian_kl_divergence": lambda mu, rho, m, s, key: functional.foreach_gaussian_kl_divergence(
        [mu], [rho], m, s
    ),
}
THROUGH_THE_DISPATCHER: dict[str, Function] = {
    "gaussian_sample": lambda mu, rho, m, s, key: op("gaussian_sample")(mu, rho, key),
    "gaussian_log_prob": lambda mu, rho, m, s, key: op("gaussian_log_prob")(mu.detach() + 1, mu, rho, m, s),
    "gaussian_sample_and_log_prob": lambda mu, rho, m, s, key: op("gaussian_sample_and_log_prob")(mu, rho, m, s, key),
    "gaussian_kl_divergence": lambda mu, rho, m, s, key: op("gaussian_kl_divergence")(mu, rho, m, s),
    "foreach_gaussian_sample_and_log_prob": lambda mu, rho, m, s, key: op("foreach_gaussian_sample_and_log_prob")(
        [mu], [rho], [m], [s], key
    ),
    "foreach_gaussian_kl_divergence": lambda mu, rho, m, s, key: op("foreach_gaussian_kl_divergence")(
        [mu], [rho], [m], [s]
    ),
}
each_function = parametrize("name", FUNCTIONS)


def make_inputs(device: torch.device, *frozen: str) -> list[Tensor]:
    parameters = [
        parameter.requires_grad_(name not in frozen)
        for name, parameter in zip(("mu", "rho"), make_parameters((3, 2), device=device))
    ]
    return [*parameters, *torch.tensor([[0.25], [0.75]], device=device), make_key(5, device=device)]


def outputs_of(result: Any) -> list[Tensor]:
    return tree_leaves(result)


@each_function
@parametrize("frozen", [(), ("mu",), ("rho",), ("mu", "rho")])
def test_same_as_through_the_dispatcher(name: str, frozen: tuple[str, ...], device: torch.device) -> None:
    inputs = make_inputs(device, *frozen)
    leaves = [leaf for leaf in inputs if leaf.requires_grad]
    ours, expected = (outputs_of(functions[name](*inputs)) for functions in (FUNCTIONS, THROUGH_THE_DISPATCHER))
    for a, b in zip(ours, expected, strict=True):
        assert same_bits(a, b) and a.requires_grad is b.requires_grad is bool(leaves)
        assert type(a.grad_fn).__name__ == type(b.grad_fn).__name__
    if (leaves and name != "gaussian_sample") or "mu" not in frozen:
        gradients = [torch.autograd.grad(sum(o.sum() for o in outputs), leaves) for outputs in (ours, expected)]
        assert all(map(same_bits, *gradients))


@each_function
@parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nothing_recorded(name: str, mode: Callable[[], Any], device: torch.device) -> None:
    inputs = make_inputs(device)
    expected = outputs_of(THROUGH_THE_DISPATCHER[name](*inputs))
    with mode():
        outputs = outputs_of(FUNCTIONS[name](*inputs))
    for a, b in zip(outputs, expected, strict=True):
        assert same_bits(a, b) and not a.requires_grad and a.is_inference() is (mode is torch.inference_mode)


@each_function
@parametrize("context", [nullcontext, torch.no_grad])
def test_no_round_trip(name: str, context: Callable[[], Any], device: torch.device) -> None:
    """The dispatcher would call the function that stands on the op's Autograd key."""
    inputs, called = make_inputs(device), set()
    with context():
        sys.setprofile(lambda frame, event, arg: called.add(frame.f_code))
        try:
            FUNCTIONS[name](*inputs)
        finally:
            sys.setprofile(None)
    names = {code.co_name for code in called if code.co_filename == dispatch.__file__}
    assert "apply" in names and "kernel" not in names


def test_the_profiler_names_the_op_and_its_backward(device: torch.device) -> None:
    mu, *_ = inputs = make_inputs(device)
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        functional.gaussian_sample(*inputs[:2], inputs[4]).sum().backward()
    names = [event.name for event in recorded.events() if "aussian" in event.name]
    assert {"GaussianSample", "illia_ext::gaussian_sample", "illia_ext::gaussian_sample_backward"} <= set(names)


class Names(TorchDispatchMode):
    """The names of our ops that are called below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "illia_ext":
            self.seen.append(func._opname)
        return func(*args, **(kwargs or {}))


@each_function
@parametrize("context", [nullcontext, torch.no_grad])
def test_dispatch_modes_see_the_op(name: str, context: Callable[[], Any], device: torch.device) -> None:
    with context(), Names() as names:
        outputs = outputs_of(FUNCTIONS[name](*make_inputs(device)))
    assert names.seen == [name]
    assert all(output.requires_grad is (context is nullcontext) for output in outputs)


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


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = GaussianDistribution((4, 3), rho_init=-1.0)

    def forward(self, inputs: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        m, s = self.weights.mu_prior, self.weights.std_prior
        weights, log_prob = functional.gaussian_sample_and_log_prob(self.weights.mu, self.weights.rho, m, s, key)
        return nn.functional.linear(inputs, weights).tanh(), log_prob


TRACERS: dict[str, Callable[[nn.Module, tuple[Tensor, ...]], Any]] = {
    "torch.jit.trace": lambda layer, args: torch.jit.trace(layer, args, check_trace=False),
    "torch.export": lambda layer, args: torch.export.export(layer, args, strict=False).module(),
    "make_fx": lambda layer, args: make_fx(lambda *a: layer(*a))(*args),
    "make_fx, before dispatch": lambda layer, args: make_fx(lambda *a: layer(*a), pre_dispatch=True)(*args),
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@parametrize("trace", TRACERS.values(), ids=TRACERS)
def test_tracers_write_the_op_down(trace: Callable[..., Any], device: torch.device) -> None:
    layer, inputs = Layer().to(device), torch.ones(2, 3, device=device)
    traced = trace(layer, (inputs, make_key(1, device=device)))
    names = [str(node.kind() if isinstance(traced, torch.jit.ScriptModule) else node.target) for node in nodes(traced)]
    assert [name for name in names if "illia_ext" in name and "backward" not in name] in (
        ["illia_ext::gaussian_sample_and_log_prob"],
        ["illia_ext.gaussian_sample_and_log_prob.default"],
    )
    key = make_key(2, device=device)
    outputs = [function(inputs, key) for function in (traced, layer)]
    assert all(map(same_bits, *outputs))
    ours, expected = (torch.autograd.grad([o.sum() for o in two], list(layer.parameters())) for two in outputs)
    assert all(map(same_bits, ours, expected))


def nodes(traced: Any) -> Any:
    return traced.inlined_graph.nodes() if isinstance(traced, torch.jit.ScriptModule) else traced.graph.nodes


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
    ours = torch.autograd.grad(log_prob, inputs[:2])
    expected = torch.autograd.grad(
        functional.gaussian_sample_and_log_prob(*inputs[:3], 2 * inputs[3], inputs[4])[1], inputs[:2]
    )
    assert all(map(same_bits, ours, expected))


@parametrize("policy", [CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_RECOMPUTE])
def test_selective_checkpointing_chooses_our_op(policy: CheckpointPolicy, device: torch.device) -> None:
    layer, inputs, keys = Layer().to(device), torch.ones(2, 3, device=device), make_keys((1, 2), device=device)

    def contexts() -> Any:
        return create_selective_checkpoint_contexts(lambda ctx, func, *args, **kwargs: policy)

    with Names() as names:
        outputs = checkpoint(layer, inputs, keys[0], use_reentrant=False, context_fn=contexts)
        gradients = torch.autograd.grad([o.sum() for o in outputs], list(layer.parameters()))
    forwards = names.seen.count("gaussian_sample_and_log_prob")
    assert forwards == (1 if policy == CheckpointPolicy.MUST_SAVE else 2)
    expected = torch.autograd.grad([o.sum() for o in layer(inputs, keys[0])], list(layer.parameters()))
    assert all(map(same_bits, gradients, expected))
