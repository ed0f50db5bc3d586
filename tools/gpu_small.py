"""Small programs for a GPU: `python tools/gpu_small.py [calls|smoke|times] [device]`.

`calls`: every op once in every dtype at a few sizes, which compute-sanitizer watches, for it slows all down much.
`smoke`: every op and dtype once, named before it runs, and then all their results against the CPU's.
`times`: what each kernel takes, and how many percent of a copy's bandwidth that is, of one tensor and of ResNet-50's.
The latter two print a line `RESULT {...}` as soon as a result is there.
"""

import itertools
import json
import sys
import timeit
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from agreement import Arguments, assert_agree, device_bounds, every_op, every_output  # noqa: E402  (in those folders)

from bench.tensors import resnet50_numels  # noqa: E402

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NUMELS = (0, 1, 5, 1027, 40_003)  # none, less than a vector, a tail, more than a chunk, more than a few blocks
SAMPLES = (None, 0, 2)
# More samples than blocks at work: a block then adds up several in turn, in the same shared memory.
MANY_SAMPLES = 3 * 4096 + 1
MANY_TENSORS = 300  # more than one launch takes
SIZES = (2**28, 2**24, 2**20, 2**12)  # of a timed tensor


def show(**result: Any) -> None:
    print("RESULT", json.dumps(result), flush=True)


def unaligned(tensor: Tensor) -> Tensor:
    """One element behind a multiple of 16 bytes."""
    return tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor)


def every_foreach_op(
    tensors: Sequence[Arguments], stick_the_landing: bool = False, with_gaps: bool = True
) -> list[Callable[[], Any]]:
    """Calls of the ops of many tensors; keys and gradients to sums are those of the last. With gaps every third sample
    has no gradient."""
    mu, rho, mu_prior, std_prior = (
        [getattr(a, name) for a in tensors] for name in ("mu", "rho", "mu_prior", "std_prior")
    )
    a, ops = tensors[-1], torch.ops.illia_ext
    parameters, grad_x = (
        (mu, rho, mu_prior, std_prior),
        [None if with_gaps and k % 3 == 0 else b.grad_x for k, b in enumerate(tensors)],
    )
    return [
        lambda: ops.foreach_gaussian_sample_and_log_prob(*parameters, a.key, dtype=a.x.dtype),
        lambda: ops.foreach_gaussian_sample_and_log_prob_backward(
            grad_x, a.grad_log_prob, *parameters, a.key, stick_the_landing=stick_the_landing
        ),
        lambda: ops.foreach_gaussian_sample_and_log_prob_backward(grad_x, None, *parameters, a.key),
        lambda: ops.foreach_gaussian_kl_divergence(*parameters),
        lambda: ops.foreach_gaussian_kl_divergence_backward(a.grad_kl_divergence, *parameters),
    ]


def every_call(device: torch.device) -> list[Callable[[], Any]]:
    calls: list[Callable[[], Any]] = []
    pairs = [*((dtype, dtype) for dtype in DTYPES), (torch.float32, torch.bfloat16)]
    for dtype, sample_dtype in pairs:
        cases = list(itertools.product(NUMELS, SAMPLES))
        if dtype == torch.float32:
            cases.append((5, MANY_SAMPLES))
        for numel, num_samples in cases:
            arguments = Arguments.make((numel,), dtype, sample_dtype, num_samples).to(device)
            views = [arguments, Arguments(*map(unaligned, arguments))] if numel == 1027 else [arguments]
            calls += (call for view in views for call in every_op(view).values())
        for num_samples in SAMPLES:
            tensors = [Arguments.make((numel,), dtype, sample_dtype, num_samples).to(device) for numel in NUMELS]
            odd = [Arguments(*map(unaligned, a)) if k % 2 else a for k, a in enumerate(tensors)]
            each = Arguments.make((1027,), dtype, sample_dtype, num_samples, each_prior=True).to(device)
            calls += every_foreach_op(tensors) + every_foreach_op([*odd, each], stick_the_landing=True)
    return calls + every_foreach_op([Arguments.make((k % 6,)).to(device) for k in range(MANY_TENSORS)])


def run_calls(device: torch.device) -> int:
    calls = every_call(device)
    for call in calls:
        call()
    torch.randint(2, [1], device=device).item()  # waits for all
    print(f"{len(calls)} calls of ops on {device}")
    return 0


def run_smoke(device: torch.device) -> int:
    wrong = 0
    for dtype, num_samples in itertools.product(DTYPES, (None, 2)):
        arguments = Arguments.make((40_003,), dtype, num_samples=num_samples)
        on_device = arguments.to(device)
        for name, call in every_op(on_device).items():
            print(name, dtype, flush=True)
            call()
        try:
            assert_agree(every_output(on_device), every_output(arguments), device_bounds(arguments))
            show(smoke=str(dtype), samples=num_samples, ended="the CPU's bits")
        except (AssertionError, RuntimeError) as error:
            show(smoke=str(dtype), samples=num_samples, ended=str(error).splitlines()[0])
            wrong += 1
    return min(wrong, 1)


def seconds(call: Callable[[], Any], count: int, device: torch.device) -> float:
    """Of `count` calls, by the device's own clock where it has one."""
    if device.type == "cpu":
        return timeit.timeit(call, number=count)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return 1e-3 * begin.elapsed_time(end)


def microseconds(call: Callable[[], Any], device: torch.device) -> float:
    """The best of five times that it takes to fill ten milliseconds with calls."""
    first = seconds(call, 1, device), seconds(call, 1, device)  # the first one warms up
    count = max(1, min(1000, int(1e-2 / first[1])))
    return 1e6 * min(seconds(call, count, device) for _ in range(5)) / count


def timed_calls(numel: int, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """Name, arrays that must be read or written, and the call."""
    mu, x, grad = (torch.empty(numel, dtype=dtype, device=device).normal_() for _ in range(3))
    rho = torch.full_like(mu, -3.0)
    yield "copy", 2, lambda: x.copy_(grad)
    yield "randn", 1, lambda: torch.randn(numel, dtype=dtype, device=device)
    one = torch.ones((), dtype=torch.float64 if dtype == torch.float64 else torch.float32, device=device)
    key, prior = torch.tensor([42, 0], device=device), (one.to(dtype), one.to(dtype))
    arguments = Arguments(mu, rho, x, grad, one, one, key, *prior)
    arrays = {
        "gaussian_sample_and_log_prob": 3,
        "gaussian_sample_and_log_prob_backward": 5,
        "gaussian_sample": 3,
        "standard_normal": 1,
        "gaussian_log_prob": 3,
        "gaussian_log_prob_backward": 6,
        "gaussian_kl_divergence": 2,
        "gaussian_kl_divergence_backward": 4,
    }
    calls = every_op(arguments)
    for name, count in arrays.items():
        yield name, count, calls[name]


def run_times(device: torch.device) -> int:
    with torch.no_grad():
        for dtype, numel in itertools.product(DTYPES, SIZES if device.type == "cuda" else SIZES[2:]):
            copy = 0.0
            for name, arrays, call in timed_calls(numel, dtype, device):
                time = microseconds(call, device)
                copy = copy or time / 2
                part = {"microseconds": round(time, 2), "percent_of_copy": round(100 * arrays * copy / time, 1)}
                show(time=name, dtype=str(dtype), numel=numel, **part)
        tensors = [Arguments.make((numel,)).to(device) for numel in resnet50_numels(161)]
        names = ("forward", "backward", "backward of the samples alone", "kl_divergence", "kl_divergence backward")
        for name, call in zip(names, every_foreach_op(tensors, with_gaps=False)):
            time = microseconds(call, device)
            show(time=f"ResNet-50's 161 tensors, {name}", dtype="torch.float32", microseconds=round(time, 2))
    return 0


def main() -> int:
    mode, device = [*sys.argv[1:], *("calls", "cuda")[len(sys.argv) - 1 :]]
    return {"calls": run_calls, "smoke": run_smoke, "times": run_times}[mode](torch.device(device))


if __name__ == "__main__":
    sys.exit(main())
