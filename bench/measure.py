"""Checks, then times a group of subjects in turn, so that drift of the machine hits all alike."""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from timeit import Timer

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import timer

from bench.check import Wrong
from bench.results import Measurement, Timing

__all__ = ["Effort", "Subject", "interleave", "kept_for_backward", "measure", "memory_and_launches", "warm_up"]

WARM_UP = 2  # calls: after one, memory that the system had taken back was not always there again


@dataclass(frozen=True)
class Subject:
    """What is timed: one call of `run`, which is `case` doing `work` at `point`."""

    work: str
    point: int
    case: str
    weights: int
    run: Callable[[], object]
    check: Callable[[], None] = lambda: None  # raises Wrong
    minimum_bytes: int | None = None  # memory traffic that no implementation of this work can avoid
    graph: Callable[[], object] | None = None  # outputs that keep what backward needs
    own: tuple[Tensor, ...] = ()  # tensors that live with or without that graph


@dataclass(frozen=True)
class Effort:
    """How long a group of subjects is timed: rounds until `seconds` are over, within bounds."""

    seconds: float
    min_rounds: int
    max_rounds: int
    turn: float = 0.02  # seconds; a longer call is a turn by itself
    warm_below: float = 0.3  # seconds; a longer call warms up by itself


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleave(tasks: list[Callable[[], object]], effort: Effort) -> list[Timing]:
    """Seconds a call, of each task once a round; torch's clock waits for the GPU."""
    start = time.perf_counter()
    clocks = [Timer(task, timer=timer) for task in tasks]
    once = [min(clock.repeat(2, 1)) for clock in clocks]  # the first call may wait for memory
    rounds: list[list[float]] = [[] for _ in tasks]
    for done in range(effort.max_rounds):
        if done >= effort.min_rounds and time.perf_counter() - start > effort.seconds:
            break
        for clock, seconds, results in zip(clocks, once, rounds):
            if seconds < effort.warm_below:
                clock.timeit(WARM_UP)  # caches and memory as this task leaves them, as in a training loop of its own
            calls = max(1, int(effort.turn / seconds))
            results.append(clock.timeit(calls) / calls)
    return [Timing(results) for results in rounds]


def memory_and_launches(task: Callable[[], object], device: torch.device) -> tuple[int, int | None]:
    """The most bytes that one call's allocations hold at once, and its kernels, copies and fills on a GPU."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    synchronize()
    with profile(activities=activities, profile_memory=True) as profiler:
        result = task()
        synchronize()
    del result
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    peak = peak_bytes(events, device_type=1 if on_gpu else 0)
    return peak, launches(events) if on_gpu else None


def peak_bytes(events: list[dict], device_type: int) -> int:
    """The most that allocations in a profiler's trace hold at once; device types as there: 0 the CPU, 1 CUDA.

    What was allocated before the trace began does not count, nor does its end.
    """
    memory = [e["args"] | {"ts": e["ts"]} for e in events if e.get("name") == "[memory]"]
    sizes: dict[int, int] = {}
    held = peak = 0
    for event in sorted(memory, key=lambda e: e["ts"]):
        if event["Device Type"] != device_type:
            continue
        if event["Bytes"] > 0:
            sizes[event["Addr"]] = event["Bytes"]
            held += event["Bytes"]
            peak = max(peak, held)
        else:
            held -= sizes.pop(event["Addr"], 0)
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


def measure(subjects: list[Subject], effort: Effort, device: torch.device) -> list[Measurement]:
    """All there is to know of each subject, interleaved with the others; a wrong one gets no time."""
    rows = [Measurement(s.work, s.point, s.case, s.weights, minimum_bytes=s.minimum_bytes) for s in subjects]
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
        row.seconds = timing
    # 4. Memory and launches, which would disturb the clock.
    for subject, row in right:
        row.peak_bytes, row.launches = memory_and_launches(subject.run, device)
        if subject.graph is not None:
            row.kept_bytes = kept_for_backward(subject.graph, subject.own)
    return rows
