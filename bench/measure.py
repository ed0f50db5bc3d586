"""Checks, then times a group of subjects in turn, so that drift of the machine hits all alike."""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Measurement, Timer

from bench.check import Wrong
from bench.results import Row

__all__ = ["Effort", "Subject", "interleave", "kept_for_backward", "measure", "memory_and_launches", "warm_up"]

WARM_UP = 2  # calls before a turn: after one, memory that the system had taken back was not always there again


@dataclass(frozen=True)
class Subject:
    """What is timed: one call of `run`, which is `case` doing `work` at `point`."""

    work: str
    point: int
    case: str
    weights: int  # that one call draws
    run: Callable[[], object]
    check: Callable[[], None] = lambda: None  # raises Wrong
    minimum_bytes: int | None = None  # memory traffic that no implementation of this work can avoid
    graph: Callable[[], object] | None = None  # outputs that keep what backward needs
    own: tuple[Tensor, ...] = ()  # tensors that live with or without that graph


@dataclass(frozen=True)
class Effort:
    """How long a group of subjects is timed: rounds until all spreads are small or `seconds` are over."""

    seconds: float
    min_rounds: int
    max_rounds: int
    turn: float = 0.02  # seconds; a longer call is a turn by itself


def interleave(tasks: list[Callable[[], object]], effort: Effort) -> list[Measurement | str]:
    """Each task once a round, by torch's timer, which waits for the GPU; a round counts as one time, its median.

    A task that raises has no further turn, and the reason is returned.
    """
    threads = torch.get_num_threads()
    timers = [Timer("task()", globals={"task": task}, num_threads=threads) for task in tasks]
    rounds: list[list[Measurement]] = [[] for _ in tasks]
    timings: list[Measurement | str] = []

    def turn(index: int) -> None:
        for _ in range(WARM_UP):
            tasks[index]()
        rounds[index].append(timers[index].blocked_autorange(min_run_time=effort.turn))

    reasons: list[str | None] = [None] * len(tasks)
    start = time.perf_counter()
    for done in range(1, effort.max_rounds + 1):
        reasons = [reason or attempt(partial(turn, index)) for index, reason in enumerate(reasons)]
        # Not Measurement.merge, which pools blocks: a round of short ones would outvote all others.
        timings = [
            reason or Measurement(1, [result.median for result in results], results[0].task_spec)
            for reason, results in zip(reasons, rounds)
        ]
        calm = all(timing.meets_confidence(0.1) for timing in timings if isinstance(timing, Measurement))
        if done >= effort.min_rounds and (calm or time.perf_counter() - start > effort.seconds):
            break
    return timings


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def memory_and_launches(task: Callable[[], object], device: torch.device) -> tuple[int, int | None]:
    """The most bytes that one call's allocations hold at once, and its kernels, copies and fills on a GPU."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        synchronize()
        with profile(activities=activities, profile_memory=True) as profiler:
            task()
            synchronize()
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    return peak_bytes(events, device_type=1 if on_gpu else 0), launches(events) if on_gpu else None


def peak_bytes(events: list[dict], device_type: int) -> int:
    """The most that allocations in a profiler's trace hold at once; device types as there: 0 the CPU, 1 CUDA.

    What was allocated before the trace began does not count, nor does its end.
    """
    memory = [event for event in events if event.get("name") == "[memory]"]
    sizes: dict[int, int] = {}
    peak = 0
    for event in sorted(memory, key=lambda event: event["ts"]):
        about = event["args"]
        if about["Device Type"] != device_type:
            continue
        if about["Bytes"] > 0:
            sizes[about["Addr"]] = about["Bytes"]
            peak = max(peak, sum(sizes.values()))
        else:
            sizes.pop(about["Addr"], None)
    return peak


def launches(events: list[dict]) -> int:
    return sum(event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset") for event in events)


def kept_for_backward(graph: Callable[[], object], own: tuple[Tensor, ...]) -> int:
    """Bytes that the graph keeps beside the tensors `own`."""
    known = {tensor.untyped_storage().data_ptr() for tensor in own}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()  # of a view all of it stays alive
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = graph()
    del outputs
    return sum(kept.values())


def warm_up(device: torch.device, with_compile: bool) -> None:
    """What torch does once in a process is nobody's first call."""
    layer = torch.nn.Linear(8, 8, device=device)
    torch.log1p(torch.exp(layer(torch.randn(8, 8, device=device)))).sum().backward()
    torch.optim.Adam(layer.parameters(), fused=True).step()
    if with_compile:
        attempt(lambda: torch.compile(torch.exp)(torch.zeros(2, device=device)))  # its cases will say what fails


def attempt(action: Callable[[], object]) -> str | None:
    """Why there will be no time. A rival that fails is a result too."""
    try:
        action()
        synchronize()
    except Wrong as error:
        return f"wrong: {error}"
    except Exception as error:
        return f"failed: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return None


def measure(subjects: list[Subject], effort: Effort, device: torch.device) -> list[Row]:
    """All there is to know of each subject, interleaved with the others; a wrong one gets no time."""
    rows = [Row(s.work, s.point, s.case, s.weights, minimum_bytes=s.minimum_bytes) for s in subjects]
    # 1. First calls before all else: a check would compile what they are to compile.
    for subject, row in zip(subjects, rows):
        start = time.perf_counter()
        row.untimed = attempt(subject.run)
        row.first_call = time.perf_counter() - start
    # 2. Correctness before time.
    for subject, row in zip(subjects, rows):
        row.untimed = row.untimed or attempt(subject.check)
    # 3. Time.
    right = [(subject, row) for subject, row in zip(subjects, rows) if row.untimed is None]
    for (_, row), timing in zip(right, interleave([subject.run for subject, _ in right], effort)):
        if isinstance(timing, str):
            row.untimed = timing
        else:
            row.median, row.iqr, row.rounds = timing.median, timing.iqr, len(timing.times)
    # 4. Memory and launches, which would disturb the clock.
    for subject, row in right:
        row.untimed = row.untimed or attempt(partial(measure_memory, subject, row, device))
        if row.untimed:
            row.median = row.iqr = row.rounds = None
    return rows


def measure_memory(subject: Subject, row: Row, device: torch.device) -> None:
    row.peak_bytes, row.launches = memory_and_launches(subject.run, device)
    if subject.graph is not None:
        row.kept_bytes = kept_for_backward(subject.graph, subject.own)
