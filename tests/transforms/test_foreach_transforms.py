"""The multi-tensor functions under transforms, compilers, autocast and checkpointing: one op where that can be, and
else the single ops with moved keys."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from foreach_cases import make_lists, one_by_one
from functorch.compile import make_boxed_func
from helpers import make_key, make_keys, same_bits
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._functorch import config as functorch_config
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from illia_ext import functional, reference

parametrize = pytest.mark.parametrize
sample_and_log_prob = functional.foreach_gaussian_sample_and_log_prob
PRIOR = (0.25, 0.75)
FORWARD = "foreach_gaussian_sample_and_log_prob.default"
BACKWARD = "foreach_gaussian_sample_and_log_prob_backward.default"
KL, KL_BACKWARD = "foreach_gaussian_kl_divergence.default", "foreach_gaussian_kl_divergence_backward.default"
SHAPES = ((3, 2), (), (5,))


class Calls(TorchDispatchMode):
    """The names of our ops that are called below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "illia_ext":
            self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


def flat(mu: list[Tensor], rho: list[Tensor], key: Tensor, *options: Any, prior: Any = PRIOR) -> tuple[Tensor, ...]:
    x, log_prob = sample_and_log_prob(mu, rho, *prior, key, *options)
    return *x, log_prob, functional.foreach_gaussian_kl_divergence(mu, rho, *prior)


def with_gradients(function: Callable[..., Any], *lists_and_key: Any) -> list[Tensor]:
    outputs = function(*lists_and_key)
    leaves = [*lists_and_key[0], *lists_and_key[1]]
    weights = [torch.full_like(output, 1.0 + k) for k, output in enumerate(outputs)]
    return [*outputs, *torch.autograd.grad(outputs, leaves, weights)]


def test_one_call_forward_and_one_backward(device: torch.device) -> None:
    mu, rho = make_lists(torch.float32, device)
    with Calls() as calls:
        x, log_prob = sample_and_log_prob(mu, rho, *PRIOR, make_key(1))
        torch.autograd.grad(sum(sample.sum() for sample in x) + log_prob, [*mu, *rho])
    assert calls.seen == [FORWARD, BACKWARD]


@parametrize("in_dim", [0, 1])
def test_vmap_over_keys_is_one_call(in_dim: int, device: torch.device) -> None:
    mu, rho = make_lists(torch.float32, device)
    keys = make_keys((1, 2), (3, 4), (5, 6))
    draw = lambda key: sample_and_log_prob(mu, rho, *PRIOR, key)  # noqa: E731
    expected_x, expected = sample_and_log_prob(mu, rho, *PRIOR, keys)
    with Calls() as calls:
        x, log_prob = vmap(draw, in_dim)(keys.movedim(0, in_dim))
        nested = vmap(vmap(draw))(keys.expand(2, 3, 2))
    assert calls.seen == [FORWARD] * 2
    assert all(map(same_bits, (*x, log_prob), (*expected_x, expected)))
    assert all(same_bits(ours[1], theirs) for ours, theirs in zip((*nested[0], nested[1]), (*expected_x, expected)))
    gradients = [torch.autograd.grad(output.sum(), [*mu, *rho]) for output in (log_prob, expected)]
    assert all(map(same_bits, *gradients))


@parametrize("transform", [vmap, lambda function: vmap(grad(function))])
def test_transforms_of_inputs_alone_draw_once(transform: Callable[..., Any], device: torch.device) -> None:
    mu, rho = make_lists(torch.float32, device)
    _, log_prob = sample_and_log_prob(mu, rho, *PRIOR, make_key(1))
    with Calls() as calls:
        outputs = transform(lambda x: x * sample_and_log_prob(mu, rho, *PRIOR, make_key(1))[1])(
            torch.ones(3, device=device)
        )
    assert calls.seen == [FORWARD]
    assert all(same_bits(output, log_prob) for output in outputs)
    gradients = [torch.autograd.grad(value, [*mu, *rho]) for value in (outputs[0], log_prob)]
    assert all(map(same_bits, *gradients))


def test_vmap_over_members(device: torch.device) -> None:
    """Of some tensors, with keys and priors: as a loop over the members gives it."""
    lists = [[tensor.detach() for tensor in tensors] for tensors in make_lists(torch.float32, device, SHAPES)]
    mu = [torch.stack([tensor, tensor.cos()]) for tensor in lists[0][:2]] + lists[0][2:]
    keys, std_prior = make_keys((1, 2), (3, 4)), torch.tensor([[0.5], [2.0]], device=device)
    draw = lambda a, b, c, std, key: sample_and_log_prob([a, b, c], lists[1], 0.25, std, key)  # noqa: E731
    x, log_prob = vmap(draw, (0, 0, None, 0, 0))(*mu, std_prior, keys)
    for member in range(2):
        expected_x, expected = draw(mu[0][member], mu[1][member], mu[2], std_prior[member], keys[member])
        assert all(map(same_bits, [*[sample[member] for sample in x], log_prob[member]], [*expected_x, expected]))


def loss(library: Any, key: Tensor) -> Callable[..., Tensor]:
    def function(*tensors: Tensor) -> Tensor:
        lists = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        x, log_prob = library.foreach_gaussian_sample_and_log_prob(*lists, *PRIOR, key)
        kl = library.foreach_gaussian_kl_divergence(*lists, *PRIOR)
        return (sum(sample.sin().sum() for sample in x) * log_prob).sum() + kl**2

    return function


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "grad": lambda f, tensors: grad(f, tuple(range(6)))(*tensors),
    "jvp": lambda f, tensors: jvp(f, tensors, tuple(tensor.cos() for tensor in tensors)),
    "hessian": lambda f, tensors: hessian(f, (0, 4))(*tensors),
    "jacrev of jacrev": lambda f, tensors: jacrev(jacrev(f, 3), 0)(*tensors),
    "vmap of grad": lambda f, tensors: vmap(grad(f, (0, 5)))(*(torch.stack([t, t.sin()]) for t in tensors)),
}


@parametrize("transform", TRANSFORMS)
def test_transforms_as_in_plain_pytorch(transform: str, device: torch.device) -> None:
    """float64, where sums of some ten terms differ by some 1e-15."""
    tensors = tuple(t.detach() for tensors in make_lists(torch.float64, device, SHAPES) for t in tensors)
    key = make_keys((1, 2), (3, 4))
    ours, expected = (TRANSFORMS[transform](loss(library, key), tensors) for library in (functional, reference))
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_learned_priors(dtype: torch.dtype, device: torch.device) -> None:
    """One for all tensors, and one for each of which only some are learned; log_prob is rounded once."""
    mu, rho = make_lists(dtype, device, SHAPES * 20)
    leaf = lambda value: torch.tensor([value], dtype=dtype, device=device, requires_grad=True)  # noqa: E731
    each = [leaf(0.5 + k / 10) if k % 2 else 1.0 for k in range(len(mu))]
    for mu_prior, std_prior in ((leaf(0.25), leaf(0.75)), (0.25, each)):
        leaves = [value for value in tree_leaves([mu, rho, mu_prior, std_prior]) if isinstance(value, Tensor)]
        x, log_prob = sample_and_log_prob(mu, rho, mu_prior, std_prior, make_key(3))
        expected_x, parts = one_by_one(mu, rho, mu_prior, std_prior, make_key(3))
        assert all(map(same_bits, x, expected_x))
        assert same_bits(log_prob, sum(part.double() for part in parts).to(log_prob.dtype))
        gradients = [
            torch.autograd.grad(o, leaves, [torch.ones_like(part) for part in o])
            for o in ([*x, log_prob], [*expected_x, *parts])
        ]
        assert all(map(same_bits, *gradients))


def test_a_gradient_that_can_be_differentiated_has_the_same_bits(device: torch.device) -> None:
    mu, rho = make_lists(torch.float32, device)
    plain, recorded = (
        torch.autograd.grad(flat(mu, rho, make_key(1))[0].square().sum(), [mu[0], rho[0]], create_graph=create_graph)
        for create_graph in (False, True)
    )
    assert all(map(same_bits, plain, recorded))
    assert all(gradient.requires_grad for gradient in recorded)


@parametrize("learned", [False, True])
def test_batches_of_gradients(learned: bool, device: torch.device) -> None:
    """is_grads_batched, by which jacobians are vectorized, gives the bits of a loop over the batch."""
    mu, rho = make_lists(torch.float32, device)
    prior = [torch.tensor([value], device=device, requires_grad=learned) for value in PRIOR]
    outputs = flat(mu, rho, make_key(1), prior=prior)
    leaves = [*mu, *rho, *(prior if learned else [])]
    weights = [torch.stack([torch.full_like(output, 1.0 + member) for member in range(3)]) for output in outputs]
    batched = torch.autograd.grad(outputs, leaves, weights, retain_graph=True, is_grads_batched=True)
    for member in range(3):
        one = torch.autograd.grad(outputs, leaves, [weight[member] for weight in weights], retain_graph=True)
        assert all(same_bits(gradient[member], expected) for gradient, expected in zip(batched, one))


def test_checkpointing(device: torch.device) -> None:
    mu, rho = make_lists(torch.float32, device)
    run = lambda *args: checkpoint(flat, *args, use_reentrant=False)  # noqa: E731
    ours, expected = (with_gradients(function, mu, rho, make_key(1)) for function in (run, flat))
    assert all(map(same_bits, ours, expected))


@parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_autocast(dtype: torch.dtype, device: torch.device) -> None:
    """float32 parameters give narrowed samples, in the bits of an explicit dtype, and the same log_prob."""
    mu, rho = make_lists(dtype, device)
    narrow = torch.bfloat16 if dtype == torch.float32 else None
    with torch.autocast(device.type, torch.bfloat16):
        ours = with_gradients(flat, mu, rho, make_key(1))
        if narrow:
            explicit = sample_and_log_prob(mu, rho, *PRIOR, make_key(1), torch.float32)[0]
            assert all(sample.dtype == torch.float32 for sample in explicit)
    expected = with_gradients(lambda *args: flat(*args, narrow), mu, rho, make_key(1))
    assert ours[0].dtype == (narrow or dtype)
    assert all(map(same_bits, ours, expected))


def test_export(device: torch.device) -> None:
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mu, self.rho = map(torch.nn.ParameterList, make_lists(torch.float32, device, SHAPES))

        def forward(self, key: Tensor) -> tuple[Tensor, ...]:
            return flat(list(self.mu), list(self.rho), key)

    module = Module()
    exported = torch.export.export(module, (make_key(1),), strict=False)
    names = [str(node.target) for node in exported.graph.nodes if "illia_ext" in str(node.target)]
    assert names == [f"illia_ext.{FORWARD}", f"illia_ext.{KL}"]
    assert all(map(same_bits, exported.module()(make_key(2)), functional_call(module, {}, (make_key(2),))))


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """No results of earlier runs: the cache on disk knows the ops' names, not the Python code of their derivatives."""
    torch._dynamo.reset()
    with functorch_config.patch(enable_autograd_cache=False):
        yield
    torch._dynamo.reset()


def test_one_compilation_for_all_keys(fresh_compiler: None, device: torch.device) -> None:
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(flat, backend=counter, fullgraph=True)
    for seed in range(3):
        mu, rho = make_lists(torch.float32, device, SHAPES)
        key = make_key(2**63 + seed, seed)
        ours, expected = (with_gradients(function, mu, rho, key) for function in (compiled, flat))
        assert all(map(same_bits, ours, expected))
    assert counter.frame_count == 1


def test_compiled_graphs_hold_one_op_forward_and_one_backward(fresh_compiler: None, device: torch.device) -> None:
    graphs = []

    def record(module: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append([str(node.target) for node in module.graph.nodes if "illia_ext" in str(node.target)])
        return make_boxed_func(module.forward)

    compiled = torch.compile(flat, backend=aot_autograd(fw_compiler=record), fullgraph=True)
    lists = make_lists(torch.float32, device)
    ours, expected = (with_gradients(function, *lists, make_key(1)) for function in (compiled, flat))
    assert all(map(same_bits, ours, expected))
    assert [sorted(graph) for graph in graphs] == [
        [f"illia_ext.{KL}", f"illia_ext.{FORWARD}"],
        [f"illia_ext.{KL_BACKWARD}", f"illia_ext.{BACKWARD}"],
    ]


def test_compiles_for_shapes_that_change_and_learned_priors(fresh_compiler: None, device: torch.device) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    function = lambda *args: flat(*args[:3], prior=args[3])  # noqa: E731
    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
    for size in (5, 9, 14):
        mu, rho = make_lists(torch.float32, device, ((size, 3), (size + 1,)))
        priors = [torch.full((1,), value, device=device, requires_grad=True) for value in PRIOR]
        args = (mu, rho, make_keys(*[(1, k) for k in range(size)]))
        results = []
        for call in (compiled, function):
            outputs = call(*args, priors)
            weights = [torch.full_like(output, 1.5) for output in outputs]
            results.append([*outputs, *torch.autograd.grad(outputs, [*mu, *rho, *priors], weights)])
        assert all(map(same_bits, *results))
    assert counter.frame_count == 1
