"""Checkpointing: the noise of backward is the noise of forward; what would make it another is refused or known."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from helpers import DEVICE, same_bits
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._inductor import config as inductor_config
from torch.utils.checkpoint import checkpoint, checkpoint_sequential, create_selective_checkpoint_contexts
from transform_cases import Count, Layer, assert_same_bits, make_hidden

from illia_ext import GaussianDistribution
from illia_ext._ops.fake import op
from illia_ext.random import draw_key

parametrize = pytest.mark.parametrize
DRAWING = ["gaussian_sample", "gaussian_sample_and_log_prob", "foreach_gaussian_sample_and_log_prob"]


@pytest.fixture
def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Layer(), Layer()).to(DEVICE)


def gradients(layers: nn.Module, run: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """To the inputs and to all parameters, for one seed; by `backward`, which reentrant checkpoints ask for."""
    inputs = make_hidden(5, DEVICE).requires_grad_()
    layers.zero_grad()
    torch.manual_seed(7)
    run(inputs).square().sum().backward()
    return [leaf.grad.clone() for leaf in [inputs, *layers.parameters()]]


def assert_same(ours: list[Tensor], expected: list[Tensor]) -> None:
    assert_same_bits(ours, expected)
    assert all(gradient.any() for gradient in expected)


def one_by_one(layers: nn.Sequential, use_reentrant: bool) -> Callable[[Tensor], Tensor]:
    def run(hidden: Tensor) -> Tensor:
        for layer in layers:
            hidden = checkpoint(layer, hidden, use_reentrant=use_reentrant)
        return hidden

    return run


def nested(layers: nn.Sequential, use_reentrant: bool) -> Callable[[Tensor], Tensor]:
    return lambda inputs: checkpoint(one_by_one(layers, use_reentrant), inputs, use_reentrant=use_reentrant)


def in_sequence(layers: nn.Sequential, use_reentrant: bool) -> Callable[[Tensor], Tensor]:
    return lambda inputs: checkpoint_sequential(layers, 2, inputs, use_reentrant=use_reentrant)


@parametrize("use_reentrant", [False, True])
@parametrize("checkpointed", [one_by_one, nested, in_sequence])
def test_eager(
    checkpointed: Callable[..., Callable[[Tensor], Tensor]], use_reentrant: bool, layers: nn.Sequential
) -> None:
    runs: list[int] = []
    layers[0].register_forward_pre_hook(lambda *_: runs.append(1))
    expected = gradients(layers, layers)
    assert len(runs) == 1
    assert_same(gradients(layers, checkpointed(layers, use_reentrant)), expected)
    assert len(runs) > 2


@pytest.mark.usefixtures("fresh_compiler")
@parametrize("use_reentrant", [False, True])
def test_compiled(use_reentrant: bool, layers: nn.Sequential) -> None:
    """With inductor's partitioner, which decides what backward runs again: the samples, and never the draw of a key."""
    backward_calls: list[Any] = []

    def watch(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        backward_calls.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return make_boxed_func(graph.forward)

    backend = aot_autograd(
        fw_compiler=lambda graph, _: make_boxed_func(graph.forward),
        bw_compiler=watch,
        partition_fn=min_cut_rematerialization_partition,
    )
    compiled = partial(torch.compile, backend=backend, fullgraph=True)
    expected = gradients(layers, compiled(layers))
    drawing = set(map(op, DRAWING))
    assert drawing.isdisjoint(backward_calls)
    assert_same(gradients(layers, compiled(one_by_one(layers, use_reentrant))), expected)
    assert drawing <= set(backward_calls)
    assert not [target for target in backward_calls if "rand" in str(target)]
    torch.testing.assert_close(expected, gradients(layers, layers))  # the same noise, added up in another order


@pytest.mark.usefixtures("fresh_compiler")
@inductor_config.patch(reorder_for_peak_memory=False)  # else inductor may draw the keys in another order than eager
def test_inductor(layers: nn.Sequential) -> None:
    layer = layers[0]
    compiled = torch.compile(lambda inputs: checkpoint(layer, inputs, use_reentrant=False), fullgraph=True)
    torch.testing.assert_close(gradients(layer, compiled), gradients(layer, layer))


@parametrize(("kept", "runs"), [([op(name) for name in DRAWING], 1), ([torch.ops.aten.randint.generator], 2)])
def test_selective(kept: list[Any], runs: int, layers: nn.Sequential) -> None:
    """Whether a region keeps its samples and draws their keys again, or keeps the keys and draws the samples again."""
    contexts = partial(create_selective_checkpoint_contexts, kept)
    checkpointed = partial(checkpoint, layers, use_reentrant=False, context_fn=contexts)
    with Count() as plain:
        expected = gradients(layers, layers)
    with Count() as count:
        assert_same(gradients(layers, checkpointed), expected)
    for name in DRAWING:
        assert count.calls.count(f"{name}.default") == runs * plain.calls.count(f"{name}.default") > 0


def sample_from(distribution: GaussianDistribution, generator: torch.Generator, hidden: Tensor) -> Tensor:
    key = draw_key(device=hidden.device, generator=generator)
    return nn.functional.linear(hidden, distribution.sample(key=key)).tanh()


def sample_of_key(distribution: GaussianDistribution, hidden: Tensor, key: Tensor) -> Tensor:
    return nn.functional.linear(hidden, distribution.sample(key=key)).tanh()


@parametrize("use_reentrant", [False, True])
def test_a_generator_inside_is_refused(use_reentrant: bool, device: torch.device) -> None:
    """Backward cannot restore it; a key that was drawn before the region and handed in needs no restoring."""
    distribution = GaussianDistribution((4, 4), rho_init=-1.0, device=device)
    generator = torch.Generator(device)
    run = partial(checkpoint, sample_from, distribution, generator, use_reentrant=use_reentrant)
    with pytest.raises(RuntimeError, match=r"generator: expected None .* draw the key before the region"):
        gradients(distribution, run)

    def hand_in(inputs: Tensor) -> Tensor:
        key = draw_key(device=device, generator=generator.manual_seed(5))
        return checkpoint(sample_of_key, distribution, inputs, key, use_reentrant=use_reentrant)

    expected = gradients(distribution, lambda inputs: sample_from(distribution, generator.manual_seed(5), inputs))
    assert_same(gradients(distribution, hand_in), expected)


@pytest.mark.usefixtures("fresh_compiler")
def test_a_generator_in_a_compiled_program_is_refused(device: torch.device) -> None:
    generator = torch.Generator(device)
    draw = torch.compile(lambda: draw_key(device=device, generator=generator), fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"generator: expected None .* draw the key before"):
        draw()


@parametrize("use_reentrant", [False, True])
def test_a_region_that_restores_no_generator(use_reentrant: bool, device: torch.device) -> None:
    """The known trap: a key drawn there is another one in backward. One that is handed in is right."""
    distribution = GaussianDistribution((4, 4), rho_init=-1.0, device=device)
    unrestored = partial(checkpoint, use_reentrant=use_reentrant, preserve_rng_state=False)

    def draw_inside(inputs: Tensor) -> Tensor:
        return sample_of_key(distribution, inputs, draw_key(device=device))

    expected = gradients(distribution, draw_inside)
    assert not same_bits(gradients(distribution, partial(unrestored, draw_inside))[-1], expected[-1])
    ours = gradients(
        distribution, lambda inputs: unrestored(sample_of_key, distribution, inputs, draw_key(device=device))
    )
    assert_same(ours, expected)
