"""How the kernels run: reproducibly, on the current stream, in CUDA graphs, without a wait, in few launches."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from agreement import Arguments, every_output
from helpers import FLOAT_DTYPES, make_key, make_parameters, same_bits
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from illia_ext import functional, random

parametrize = pytest.mark.parametrize
NUMELS = (5, 4097, 2**20 + 3)
LONG = 10**9  # cycles of a kernel that only waits: half a second


@pytest.fixture(autouse=True)
def current_device(cuda: torch.device) -> Iterator[None]:
    """Streams, graphs and kernels that wait belong to the current device."""
    with torch.cuda.device(cuda):
        yield


def assert_same(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert same_bits(ours[name], value), name


@contextmanager
def on_stream(stream: torch.cuda.Stream) -> Iterator[None]:
    """After what the current stream holds, and before what it gets next."""
    before = torch.cuda.current_stream()
    stream.wait_stream(before)
    with torch.cuda.stream(stream):
        yield
    before.wait_stream(stream)


@contextmanager
def beside_other_work(cuda: torch.device) -> Iterator[None]:
    """Another stream takes multiprocessors away, so that blocks end in other orders. Waits for all in the end."""
    side, matrix = torch.cuda.Stream(cuda), torch.ones(2048, 2048, device=cuda)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(50):
            matrix = matrix @ matrix / 2048
    yield
    torch.cuda.synchronize()


@parametrize("each_prior", [False, True])
@parametrize("num_samples", [None, 3])
@parametrize("dtype", FLOAT_DTYPES)
@parametrize("numel", NUMELS)
def test_the_same_bits_again(
    numel: int, dtype: torch.dtype, num_samples: int | None, each_prior: bool, cuda: torch.device
) -> None:
    """Run after run, on another stream, and beside other work."""
    arguments = Arguments.make((numel,), dtype, num_samples=num_samples, each_prior=each_prior).to(cuda)
    expected = every_output(arguments)
    for _ in range(5):
        assert_same(every_output(arguments), expected)
    with on_stream(torch.cuda.Stream(cuda)):
        again = every_output(arguments)
    assert_same(again, expected)
    with beside_other_work(cuda):
        runs = [every_output(arguments) for _ in range(5)]
    for run in runs:
        assert_same(run, expected)


def test_ops_run_on_the_current_stream(cuda: torch.device) -> None:
    """Arguments are written late on a stream of their own: on another stream an op would read what was there before."""
    arguments = Arguments.make((4097,), num_samples=2).to(cuda)
    expected = every_output(arguments)
    late = Arguments(*(torch.zeros_like(tensor) for tensor in arguments))
    stream = torch.cuda.Stream(cuda)
    with on_stream(stream):
        torch.cuda._sleep(LONG // 10)
        for tensor, value in zip(late, arguments):
            tensor.copy_(value)
        outputs = every_output(late)
    assert_same(outputs, expected)


def test_two_streams_at_once(cuda: torch.device) -> None:
    """Sums of one do not pass through memory of the other."""
    streams = [torch.cuda.Stream(cuda) for _ in range(2)]
    everything = [Arguments.make((2**18 + i,), num_samples=2).to(cuda) for i in range(2)]
    expected = [every_output(arguments) for arguments in everything]
    torch.cuda.synchronize()
    results: list[list[dict[str, Tensor]]] = [[], []]
    for _ in range(20):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                results[i].append(every_output(everything[i]))
    torch.cuda.synchronize()
    for i in range(2):
        for outputs in results[i]:
            assert_same(outputs, expected[i])


def assert_replays_draw(
    step: Callable[[Tensor], list[Tensor]], change: Callable[[int], object], num_samples: int | None, cuda: torch.device
) -> None:
    """A replay is the eager step with the key that it drew; before it, `change` gives the step's tensors new values."""
    with on_stream(torch.cuda.Stream(cuda)):
        for _ in range(2):
            step(random.draw_key(num_samples, device=cuda))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        key = random.draw_key(num_samples, device=cuda)
        outputs = step(key)
    drawn = set()
    for replay in range(4):
        with torch.no_grad():
            change(replay)
        graph.replay()
        drawn.add(tuple(key.flatten().tolist()))
        assert all(map(same_bits, [output.clone() for output in outputs], step(key.clone())))
    assert len(drawn) == 4


@parametrize("numel", [5, 2**18 + 3])
@parametrize("dtype", [torch.float32, torch.bfloat16])
@parametrize("num_samples", [None, 2])
def test_a_graph_draws_new_noise_at_each_replay(
    num_samples: int | None, dtype: torch.dtype, numel: int, cuda: torch.device
) -> None:
    """Forward and backward, by the prior that it finds."""
    a = Arguments.make((numel,), dtype, num_samples=num_samples).to(cuda)
    mu, rho = a.mu.clone().requires_grad_(), a.rho.clone().requires_grad_()

    def step(key: Tensor) -> list[Tensor]:
        outputs = functional.gaussian_sample_and_log_prob(mu, rho, a.mu_prior, a.std_prior, key)
        kl_divergence = functional.gaussian_kl_divergence(mu, rho, 0.25, 0.125)  # numbers stay what they were
        weights = (a.grad_x, a.grad_log_prob, a.grad_kl_divergence)
        grads = torch.autograd.grad([*outputs, kl_divergence], [mu, rho], weights)
        return [*(output.detach() for output in (*outputs, kl_divergence)), *grads]

    def change(replay: int) -> None:
        mu.add_(0.5)
        a.mu_prior.fill_(replay)

    assert_replays_draw(step, change, num_samples, cuda)


NUMBERS = (0.25, 0.125)
FUNCTIONS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "gaussian_sample": lambda a, x, mu, rho: (functional.gaussian_sample(mu, rho, a.key),),
    "gaussian_sample_and_log_prob": lambda a, x, mu, rho: functional.gaussian_sample_and_log_prob(
        mu, rho, a.mu_prior, a.std_prior, a.key
    ),
    "gaussian_sample_and_log_prob, prior in numbers": lambda a, x, mu, rho: functional.gaussian_sample_and_log_prob(
        mu, rho, *NUMBERS, a.key
    ),
    "gaussian_log_prob": lambda a, x, mu, rho: (functional.gaussian_log_prob(x, mu, rho, a.mu_prior, a.std_prior),),
    "gaussian_kl_divergence": lambda a, x, mu, rho: (
        functional.gaussian_kl_divergence(mu, rho, a.mu_prior, a.std_prior),
    ),
}


def forward_and_backward(name: str, a: Arguments) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Two calls that launch nothing but ops: the backward has its gradients at hand, and nothing to add them to."""
    leaves = [tensor.detach().requires_grad_() for tensor in (a.x, a.mu, a.rho)]
    outputs = FUNCTIONS[name](a, *leaves)
    grads = [torch.ones_like(output) for output in outputs]
    used = leaves if name == "gaussian_log_prob" else leaves[1:]
    return (
        lambda: FUNCTIONS[name](a, *leaves),
        lambda: torch.autograd.grad(outputs, used, grads, retain_graph=True),
    )


def assert_no_wait(calls: Sequence[Callable[[], Sequence[Tensor]]]) -> None:
    """torch refuses its own waits; while a long kernel runs before it, a call that returned has waited for nothing."""
    for _ in range(2):  # then kernels are loaded and memory is at hand, for both may wait
        results = [call() for call in calls]
        del results
    torch.cuda.synchronize()
    busy = torch.cuda.Event()
    torch.cuda._sleep(LONG)
    busy.record()
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = [call() for call in calls]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not busy.query(), "an op waited for the GPU, or half a second passed"
    torch.cuda.synchronize()
    assert all(output.isfinite().all() for outputs in results for output in outputs)


@parametrize("numel", [5, 2**20])
@parametrize("num_samples", [None, 2])
@parametrize("name", FUNCTIONS)
def test_no_op_waits_for_the_gpu(name: str, num_samples: int | None, numel: int, cuda: torch.device) -> None:
    arguments = Arguments.make((numel,), num_samples=num_samples).to(cuda)
    assert_no_wait(forward_and_backward(name, arguments))


def test_no_key_waits_for_the_gpu(cuda: torch.device) -> None:
    """So keys can be made while a graph is captured."""
    made = random.key(5, cuda)

    def derive() -> list[Tensor]:
        return [random.key(7, cuda), random.fold_in(made, 3), random.split(made), random.advance(made, 9)]

    assert_no_wait([derive])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = derive()
    graph.replay()
    assert all(map(same_bits, captured, derive()))


def launches(call: Callable[[], Any]) -> list[str]:
    """Names of what ran on the GPU: kernels, copies and memsets."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    return [event.name for event in profiler.events() if event.device_type == DeviceType.CUDA]


def assert_launches(call: Callable[[], Any], limit: int, cuda: torch.device) -> None:
    """At least one and at most `limit`, once kernels are loaded."""
    call()
    names = launches(call)
    if not names and not launches(lambda: torch.ones(5, device=cuda)):
        pytest.skip("the profiler sees no kernel here")
    assert 1 <= len(names) <= limit, names


@parametrize("numel", [5, 2**12, 2**20 + 1, 2**24])
@parametrize("name", FUNCTIONS)
def test_two_launches_forward_and_one_backward(name: str, numel: int, cuda: torch.device) -> None:
    arguments = Arguments.make((numel,)).to(cuda)
    forward = 1 if name == "gaussian_sample" else 2
    for call, limit in zip(forward_and_backward(name, arguments), (forward, 1)):
        assert_launches(call, limit, cuda)


@parametrize(("each_prior", "limit"), [(False, 2), (True, 1)])
@parametrize("numel", [5, 2**20 + 1])
def test_gradients_to_priors_come_with_the_backward(
    numel: int, each_prior: bool, limit: int, cuda: torch.device
) -> None:
    """Those to priors of one element take a second launch that adds the blocks' sums."""
    a = Arguments.make((numel,), each_prior=each_prior).to(cuda)
    prior, ops = (a.mu_prior, a.std_prior), torch.ops.illia_ext
    calls = (
        lambda: ops.gaussian_log_prob_backward(a.grad_log_prob, a.x, a.mu, a.rho, *prior, [True] * 5),
        lambda: ops.gaussian_sample_and_log_prob_backward(
            a.grad_x, a.grad_log_prob, a.mu, a.rho, *prior, a.key, stick_the_landing=True, prior_grads=True
        ),
        lambda: ops.gaussian_kl_divergence_backward(a.grad_kl_divergence, a.mu, a.rho, *prior, True),
    )
    for call in calls:
        assert_launches(call, limit, cuda)


def test_a_number_beside_a_prior_for_each_element_is_not_waited_for(cuda: torch.device) -> None:
    a = Arguments.make((4097,), each_prior=True).to(cuda)
    number = torch.tensor(0.5)
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.ops.illia_ext.gaussian_kl_divergence(a.mu, a.rho, number, a.std_prior)
        torch.ops.illia_ext.gaussian_kl_divergence(a.mu, a.rho, a.mu_prior, number)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@parametrize("name", FUNCTIONS)
def test_memory(name: str, cuda: torch.device) -> None:
    """Forward leaves its outputs and the key; neither pass takes more on the way than its outputs and 1/64 of mu."""
    numel = 2**22
    forward, backward = forward_and_backward(name, Arguments.make((numel,)).to(cuda))
    for call in (forward, backward):
        call()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # or a block that is larger than asked for may be counted
        before = torch.cuda.memory_allocated(cuda)
        torch.cuda.reset_peak_memory_stats(cuda)
        outputs = call()
        size = sum(4 * output.numel() for output in outputs)
        assert torch.cuda.max_memory_allocated(cuda) - before <= size + 4 * numel // 64
        assert torch.cuda.memory_allocated(cuda) - before <= size + 4 * 512  # in the allocator's granules
        del outputs


def test_another_device_than_the_current_one(cuda: torch.device) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("this machine has one GPU")
    other = torch.device("cuda", (cuda.index + 1) % torch.cuda.device_count())
    with torch.cuda.device(cuda):
        for dtype in FLOAT_DTYPES:
            arguments = Arguments.make((4097,), dtype, num_samples=2)
            here, there = every_output(arguments.to(cuda)), every_output(arguments.to(other))
            assert {output.device for output in there.values()} == {other}
            assert_same({name: output.to(cuda) for name, output in there.items()}, here)
        assert torch.cuda.current_device() == cuda.index
        message = f"key: expected to be on the device of mu, {cuda}, got {other}"
        with pytest.raises(RuntimeError, match=message):
            functional.gaussian_sample(*make_parameters((3,), device=cuda), make_key(1, device=other))
