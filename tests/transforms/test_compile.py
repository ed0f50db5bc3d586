"""torch.compile: one graph, one compilation for all keys and seeds, the draws of eager, and no noise kept."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from helpers import DEVICE, make_key, make_keys, make_parameters, same_bits
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor import config as inductor_config
from transform_cases import PRIOR, Layer, assert_same_bits, lists, with_gradients

from illia_ext import GaussianDistribution, functional
from illia_ext._ops.fake import NAMES

pytestmark = pytest.mark.usefixtures("fresh_compiler")
parametrize = pytest.mark.parametrize


def compile_counted(
    function: Callable[..., Any], backend: str, **options: Any
) -> tuple[Any, CompileCounterWithBackend]:
    counter = CompileCounterWithBackend(backend)
    return torch.compile(function, backend=counter, fullgraph=True, **options), counter


def many_tensors(mu: Tensor, rho: Tensor, key: Tensor, prior: Any = PRIOR) -> list[Tensor]:
    x, log_prob = functional.foreach_gaussian_sample_and_log_prob(*lists(mu, rho), *prior, key)
    return [*x, log_prob, functional.foreach_gaussian_kl_divergence(*lists(mu, rho), *prior)]


def all_functions(mu: Tensor, rho: Tensor, key: Tensor, prior: Any = PRIOR) -> list[Tensor]:
    x, log_prob = functional.gaussian_sample_and_log_prob(mu, rho, *prior, key)
    return [
        functional.gaussian_sample(mu, rho, key),
        functional.gaussian_log_prob(x * 1.5, mu, rho, *prior),
        x,
        log_prob,
        functional.gaussian_kl_divergence(mu, rho, *prior),
        *many_tensors(mu, rho, key, prior),
    ]


def make_leaves(*shape: int, device: torch.device, seed: int = 0) -> list[Tensor]:
    return [parameter.requires_grad_() for parameter in make_parameters(shape, device=device, seed=seed)]


def assert_same(ours: list[Tensor], expected: list[Tensor], num_leaves: int, backend: str) -> None:
    """Where a GPU's generated code adds the gradients of several uses up, it fuses products into the additions."""
    fused = num_leaves if backend == "inductor" and ours[0].is_cuda else 0
    exact = len(expected) - fused
    assert_same_bits(ours[:exact], expected[:exact])
    torch.testing.assert_close(ours[exact:], expected[exact:])


@parametrize("backend", ["aot_eager", "inductor"])
def test_one_compilation_for_all_keys(backend: str, device: torch.device) -> None:
    compiled, counter = compile_counted(all_functions, backend)
    for seed in range(4):
        leaves = make_leaves(4, 3, device=device, seed=seed)
        key = make_key(2**63 + seed, seed, device=device)
        ours, expected = (with_gradients(function(*leaves, key), leaves) for function in (compiled, all_functions))
        assert_same(ours, expected, 2, backend)
    assert counter.frame_count == 1


@parametrize("output", range(11))
def test_an_output_alone(output: int, device: torch.device) -> None:
    """Its gradient comes without those of the others, as None in eager and as zeros here."""
    leaves = make_leaves(4, 3, device=device)
    function = lambda *args: all_functions(*args)[output]  # noqa: E731
    compiled, _ = compile_counted(function, "aot_eager")
    keys = make_keys((1, 2), (3, 4), (5, 6), device=device)
    assert_same_bits(*(with_gradients(call(*leaves, keys), leaves) for call in (compiled, function)))


@parametrize(
    ("function", "backend", "learned"), [(all_functions, "inductor", False), (many_tensors, "aot_eager", True)]
)
def test_dynamic_shapes(function: Callable[..., Any], backend: str, learned: bool, device: torch.device) -> None:
    """Gradients to the priors of many tensors are those of single ops."""
    prior = [torch.tensor([value], device=device, requires_grad=learned) for value in PRIOR]
    compiled, counter = compile_counted(function, backend, dynamic=True)
    for num_samples, size in ((5, (7, 11)), (6, (8, 13)), (9, (15, 12))):
        parameters = make_leaves(*size, device=device)
        leaves = [*parameters, *(prior if learned else [])]
        keys = make_keys(*[(i, 0) for i in range(num_samples)], device=device)
        ours, expected = (with_gradients(call(*parameters, keys, prior), leaves) for call in (compiled, function))
        assert_same(ours, expected, len(leaves), backend)
    assert counter.frame_count == 1


@parametrize("as_tensor", [False, True])
def test_priors_that_change(as_tensor: bool, device: torch.device) -> None:
    """Numbers compile anew, as numbers do; tensors do not."""
    mu, rho = make_parameters((4, 3), device=device)
    compiled, counter = compile_counted(functional.gaussian_kl_divergence, "aot_eager")
    for prior in ((0.5, 0.25), (-0.5, 0.75), (1.5, 2.0)):
        priors = [torch.tensor([value], device=device) for value in prior] if as_tensor else prior
        assert same_bits(compiled(mu, rho, *priors), functional.gaussian_kl_divergence(mu, rho, *priors))
    assert not as_tensor or counter.frame_count == 1


def test_graphs_hold_one_op_forward_and_one_backward(device: torch.device) -> None:
    """Of many tensors, too."""
    graphs = []

    def record(module: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append([str(node.target) for node in module.graph.nodes if "illia_ext" in str(node.target)])
        return make_boxed_func(module.forward)

    compiled = torch.compile(all_functions, backend=aot_autograd(fw_compiler=record), fullgraph=True)
    leaves = make_leaves(4, 3, device=device)
    ours, expected = (with_gradients(call(*leaves, make_key(1)), leaves) for call in (compiled, all_functions))
    assert_same_bits(ours, expected)
    names = [name for name in NAMES if hasattr(functional, name)]
    assert [sorted(graph) for graph in graphs] == [
        sorted(f"illia_ext.{name}{suffix}.default" for name in names) for suffix in ("", "_backward")
    ]


@parametrize("backend", ["aot_eager", "inductor"])
@inductor_config.patch(reorder_for_peak_memory=False)  # else inductor may draw the keys in another order
def test_compiled_draws_are_those_of_eager(backend: str, device: torch.device) -> None:
    layer = Layer().to(device)
    compiled, counter = compile_counted(layer.draw, backend)
    results = []
    for function in (compiled, layer.draw):
        torch.manual_seed(3)
        for _ in range(3):  # the generator moves on in the same way
            results.append(with_gradients(function(), list(layer.parameters())))
    for ours, expected in zip(results[:3], results[3:]):
        assert_same_bits(ours[:-4], expected[:-4])
        torch.testing.assert_close(ours[-4:], expected[-4:])  # gradients of several uses, added in another order
    assert not torch.equal(results[0][0], results[1][0])
    assert counter.frame_count == 1


class Network(nn.Module):
    """A Bayesian layer and its log_prob."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = GaussianDistribution((64, 32), rho_init=-3.0)
        self.head = nn.Linear(64, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        weights, log_prob = self.weights.sample_and_log_prob()
        outputs = self.head(nn.functional.linear(inputs, weights).tanh())
        return outputs.square().mean() + 1e-4 * log_prob


BATCHES = (5, 6, 9, 12)


def make_inputs(batch: int, device: torch.device) -> Tensor:
    return torch.linspace(-1, 1, batch * 32, device=device).reshape(batch, 32)


def train(compile_: Callable[..., Any], device: torch.device, after: Callable[[], Any]) -> list[Tensor]:
    """The losses of a step for each of BATCHES, and the parameters they end in; `after` is called after every step."""
    torch.manual_seed(0)
    network = Network().to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)

    def step(inputs: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = network(inputs)
        loss.backward()
        optimizer.step()
        return loss.detach()

    compiled = compile_(step)
    torch.manual_seed(11)
    losses = []
    for batch in BATCHES:
        losses.append(compiled(make_inputs(batch, device)))
        after()
    return [*losses, *(parameter.detach() for parameter in network.parameters())]


def test_a_whole_training_step(device: torch.device) -> None:
    """Forward, backward and the optimizer's update; after the second batch size nothing is compiled any more."""
    counter = CompileCounterWithBackend("inductor")
    compilations = []
    trained = train(
        lambda step: torch.compile(step, backend=counter, dynamic=True),
        device,
        lambda: compilations.append(counter.frame_count),
    )
    # inductor adds up in another order: some 100 roundings of float32 may differ, and other noise does far more
    torch.testing.assert_close(trained, train(lambda step: step, device, lambda: None), rtol=1e-5, atol=1e-5)
    assert compilations[1:] == [compilations[1]] * (len(BATCHES) - 1)


def test_a_functional_step_is_one_graph(device: torch.device) -> None:
    """torch.func.grad and the draw of the key inside; a seed is not compiled in."""
    network = Network().to(device)
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
    inputs = make_inputs(5, device)

    def step(parameters: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        loss_of = lambda parameters: torch.func.functional_call(network, parameters, (inputs,))  # noqa: E731
        grads, loss = torch.func.grad_and_value(loss_of)(parameters)
        return loss, {name: parameter - 0.1 * grads[name] for name, parameter in parameters.items()}

    compiled, counter = compile_counted(step, "inductor")
    losses = []
    for seed in range(3):
        results = []
        for function in (compiled, step):
            torch.manual_seed(seed)
            results.append(function(parameters))
        torch.testing.assert_close(*results)
        losses.append(results[0][0].item())
    assert counter.frame_count == 1
    assert len(set(losses)) == 3


def kept_between(function: Callable[[], Any], known: Sequence[Tensor]) -> list[Tensor]:
    """What autograd saves of a call of `function` beside the tensors `known`."""
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    addresses = {tensor.data_ptr() for tensor in known}
    return [tensor for tensor in saved if tensor.data_ptr() not in addresses]


@parametrize(
    ("draw", "kept"),
    [
        (lambda d: d.sample(), [[2]]),
        (lambda d: d.sample(3), [[3, 2]]),
        (lambda d: d.sample_and_log_prob(), [[2]]),
        (lambda d: d.sample_and_log_prob(3), [[3, 2]]),
        (lambda d: d.log_prob(), [[2]]),
        (lambda d: (d.sample(), d.sample_and_log_prob()), [[2], [2]]),
        (lambda d: d.kl_divergence(), []),
    ],
)
def test_the_partitioner_keeps_keys_alone(draw: Callable[[Any], Any], kept: list[list[int]]) -> None:
    """inductor's own, run without its code generator; eager keeps the same."""
    distribution = GaussianDistribution((16, 8), device=DEVICE)
    known = [*distribution.parameters(), *distribution.buffers()]
    compiled, _ = compile_counted(lambda: draw(distribution), "aot_eager_decomp_partition")
    compiled()
    for function in (compiled, lambda: draw(distribution)):
        others = kept_between(function, known)
        assert [list(key.shape) for key in others] == kept
        assert all(key.dtype == torch.int64 for key in others)


def test_inductor_saves_the_key_and_no_noise(device: torch.device) -> None:
    network = Network().to(device)
    compiled = torch.compile(network, fullgraph=True)
    inputs = torch.ones(5, 32, device=device)
    loss = compiled(inputs)
    others = kept_between(lambda: compiled(inputs), [*network.parameters(), *network.buffers(), inputs])
    assert [2] in [list(key.shape) for key in others if key.dtype == torch.int64]
    # the sampled weights are the linear layer's, which needs them for the gradient of its inputs: none here
    assert max(tensor.numel() for tensor in others) < network.weights.num_params()
    loss.backward()
    assert network.weights.rho.grad.isfinite().all()


@parametrize("outputs", [slice(0, 1), slice(2, 4), slice(4, 5), slice(5, None)])
def test_compiled_autograd_of_an_eager_call(outputs: slice, device: torch.device) -> None:
    """Dynamo traces the backward of our Functions, and takes plain functions alone."""

    def gradients(run: Callable[[Callable[[], None]], Callable[[], None]]) -> list[Tensor]:
        leaves = make_leaves(4, 3, device=device)
        loss = sum(output.sum() for output in all_functions(*leaves, make_key(1, device=device))[outputs])
        run(lambda: loss.backward())()
        return [leaf.grad for leaf in leaves]

    expected = gradients(lambda backward: backward)
    with torch._dynamo.config.patch(compiled_autograd=True):
        ours = gradients(lambda backward: torch.compile(backward, backend="aot_eager"))
    assert_same_bits(ours, expected)
