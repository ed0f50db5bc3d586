"""The multi-tensor ops on a GPU: few launches, no wait, graphs, tables that overflow, memory off the alignment."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from foreach_cases import assert_is_sum, make_lists, one_by_one
from helpers import FLOAT_DTYPES, make_keys, make_parameters, same_bits
from test_cuda_execution import assert_launches, assert_no_wait, assert_replays_draw, beside_other_work
from torch import Tensor

from bench.tensors import resnet50_numels
from illia_ext import functional

parametrize = pytest.mark.parametrize
Lists = tuple[list[Tensor], list[Tensor]]
# none, less than a vector, tiles and their ends, and more than the GPU holds at once
NUMELS = (0, 1, 3, 4096, 4097, 0, 2**20 + 3, 1027)
RESNET50 = tuple((numel,) for numel in resnet50_numels(161))
SMALL = tuple((k % 7,) for k in range(600))  # more than two tables hold


@pytest.fixture(autouse=True)
def current_device(cuda: torch.device) -> Iterator[None]:
    """Streams, graphs and kernels that wait belong to the current device."""
    with torch.cuda.device(cuda):
        yield


def keys(num_samples: int | None, device: torch.device) -> Tensor:
    words = make_keys(*[(42 + i, 2**64 - 1 - i) for i in range(num_samples or 1)], device=device)
    return words[0] if num_samples is None else words


def forward_and_backward(name: str, lists: Lists, key: Tensor) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Two calls that launch nothing but ops: the backward has its gradients at hand, and nothing to add them to."""
    priors = torch.tensor([0.25], device=key.device), 0.125

    def forward() -> list[Tensor]:
        if name == "kl_divergence":
            return [functional.foreach_gaussian_kl_divergence(*lists, *priors)]
        x, log_prob = functional.foreach_gaussian_sample_and_log_prob(*lists, *priors, key)
        return [*x, log_prob] if name == "sample_and_log_prob" else x

    outputs = forward()
    grads = [torch.ones_like(output) for output in outputs]
    leaves = [*lists[0], *lists[1]]
    return forward, lambda: torch.autograd.grad(outputs, leaves, grads, retain_graph=True)


NAMES = ("sample_and_log_prob", "sample", "kl_divergence")


@parametrize(("shapes", "tables"), [(RESNET50, 1), (SMALL, 3)], ids=["resnet50", "small"])
@parametrize("name", NAMES)
def test_hundreds_of_tensors_take_one_launch(
    name: str, shapes: tuple[tuple[int], ...], tables: int, cuda: torch.device
) -> None:
    """And one that adds the sums."""
    calls = forward_and_backward(name, make_lists(torch.float32, cuda, shapes), keys(None, cuda))
    for call, limit in zip(calls, (tables + 1, tables)):
        assert_launches(call, limit, cuda)


@parametrize("num_samples", [None, 2])
@parametrize("name", NAMES)
def test_no_op_waits_for_the_gpu(name: str, num_samples: int | None, cuda: torch.device) -> None:
    lists = make_lists(torch.float32, cuda, [(numel,) for numel in NUMELS])
    assert_no_wait(forward_and_backward(name, lists, keys(num_samples, cuda)))


def assert_same_as_single_calls(lists: Lists, key: Tensor, dtype: torch.dtype) -> None:
    priors = [0.1 * k for k in range(len(lists[0]))], 0.5
    x, log_prob = functional.foreach_gaussian_sample_and_log_prob(*lists, *priors, key, dtype)
    expected, parts = one_by_one(*lists, *priors, key, dtype)
    assert all(map(same_bits, x, expected))
    assert_is_sum(log_prob, parts)
    to_x = [make_parameters(output.shape, output.dtype, output.device, seed=9)[0] for output in x]
    to_log_prob = torch.ones_like(log_prob)
    leaves = [*lists[0], *lists[1]]
    ours = torch.autograd.grad([*x, log_prob], leaves, [*to_x, to_log_prob])
    theirs = torch.autograd.grad([*expected, *parts], leaves, [*to_x, *[to_log_prob] * len(parts)])
    assert all(map(same_bits, ours, theirs))


@parametrize("offset", [0, 1, 3])
@parametrize("num_samples", [None, 0, 3])
@parametrize(
    ("dtype", "sample_dtype"),
    [*((dtype, dtype) for dtype in FLOAT_DTYPES), (torch.float32, torch.float16), (torch.float32, torch.bfloat16)],
)
def test_sizes_and_alignment(
    dtype: torch.dtype, sample_dtype: torch.dtype, num_samples: int | None, offset: int, cuda: torch.device
) -> None:
    """Every second tensor lies `offset` elements behind a multiple of 16 bytes: each is read as it lies."""
    made = make_lists(dtype, cuda, [(numel,) for numel in NUMELS])
    mu, rho = ([place(t, offset * (k % 2)) for k, t in enumerate(tensors)] for tensors in made)
    assert_same_as_single_calls((mu, rho), keys(num_samples, cuda), sample_dtype)


def place(tensor: Tensor, offset: int) -> Tensor:
    larger = tensor.new_empty(offset + tensor.numel())
    return larger[offset:].copy_(tensor.detach()).requires_grad_()


def test_more_tensors_than_a_table_holds(cuda: torch.device) -> None:
    assert_same_as_single_calls(make_lists(torch.float32, cuda, SMALL), keys(3, cuda), torch.float32)


@parametrize("name", NAMES)
def test_the_same_bits_again(name: str, cuda: torch.device) -> None:
    calls = forward_and_backward(name, make_lists(torch.float32, cuda, RESNET50), keys(2, cuda))
    expected = [call() for call in calls]
    with beside_other_work(cuda):
        runs = [[call() for call in calls] for _ in range(5)]
    for run in runs:
        assert all(all(map(same_bits, *pair)) for pair in zip(run, expected))


@parametrize("num_samples", [None, 2])
def test_a_graph_draws_new_noise_at_each_replay(num_samples: int | None, cuda: torch.device) -> None:
    """The table that the graph keeps holds no key."""
    lists = make_lists(torch.float32, cuda, [(numel,) for numel in NUMELS])

    def step(key: Tensor) -> list[Tensor]:
        x, log_prob = functional.foreach_gaussian_sample_and_log_prob(*lists, 0.25, 0.125, key)
        outputs = [*x, log_prob, functional.foreach_gaussian_kl_divergence(*lists, 0.25, 0.125)]
        grads = torch.autograd.grad(outputs, [*lists[0], *lists[1]], [torch.ones_like(output) for output in outputs])
        return [*(output.detach() for output in outputs), *grads]

    def change(replay: int) -> None:
        for mu in lists[0]:
            mu.add_(0.5)

    assert_replays_draw(step, change, num_samples, cuda)
