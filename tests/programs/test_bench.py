"""The benchmark measures every case, and what it counts is known beforehand."""

import itertools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.benchmark import Measurement, TaskSpec

from bench.__main__ import plan
from bench.cases import eager, fused
from bench.check import Wrong
from bench.layers import CaseLinear, Network, WholeNetwork
from bench.measure import WARM_UP, Effort, Subject, interleave, kept_for_backward, launches, measure, peak_bytes
from bench.setting import Scale, Setting
from bench.steps import Contender, by_layer
from bench.tensors import Tensors, minimum_bytes, resnet50_numels

CPU = torch.device("cpu")
SETTING = Setting(["eager", "illia_ext"], {}, CPU, torch.float32, compile_once=True)
SCALE = Scale(sizes=[100], samples=[3], samples_numel=50, tensors=4, priors=100, transforms=[100], batches=[3])
PRIORS = [*(f"illia_ext, {prior}" for prior in ("Gaussian", "Laplace", "scale mixture", "Student-t"))]
PRIORS += ["eager, scale mixture"]
BRIEF = Effort(seconds=0, min_rounds=3, max_rounds=3, turn=1e-4)


@pytest.fixture(autouse=True)
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Network, "WIDTHS", (64, 64, 64, 10))


def test_minimum_bytes() -> None:
    """float32: forward reads 8 and writes 4 bytes a weight, backward reads 12 and writes 8."""
    assert minimum_bytes(1000, 1, 4, backward=False) == 12_000
    assert minimum_bytes(1000, 1, 4, backward=True) == 12_000 + 20_000
    assert minimum_bytes(1000, 8, 2, backward=True) == 2 * 1000 * ((2 + 8) + (2 + 8 + 2))


def test_resnet50() -> None:
    """161 tensors and 25,557,032 weights, as its authors' and torchvision's model has."""
    assert len(resnet50_numels(1000)) == 161
    assert sum(resnet50_numels(161)) == 25_557_032
    assert resnet50_numels(4) == [64 * 3 * 7 * 7, 64, 64, 64 * 64]


def test_peak_bytes_and_launches() -> None:
    def memory(ts: float, address: int, size: int, device_type: int = 0) -> dict:
        return {"name": "[memory]", "ts": ts, "args": {"Addr": address, "Bytes": size, "Device Type": device_type}}

    events = [
        memory(1, 7, 100),
        memory(4, 9, 300),
        memory(2, 8, 50),
        memory(3, 7, -100),
        memory(5, 7, 999, device_type=1),
    ]
    assert peak_bytes(events, device_type=0) == 350
    assert peak_bytes(events, device_type=1) == 999
    assert peak_bytes([memory(0, 1, -5000), *events], device_type=0) == 350  # a free of earlier memory
    kinds = ["kernel", "kernel", "gpu_memcpy", "gpu_memset", "cpu_op", "cuda_runtime"]
    assert launches([{"cat": kind} for kind in kinds] + [{"name": "no category"}]) == 4


def test_kept_for_backward() -> None:
    """Eager keeps eight floats a weight; we keep the key (16 bytes) and two priors (4 bytes each)."""
    of = Tensors([1000], SETTING)
    mu, rho = own = of.pairs[0]
    assert kept_for_backward(of.draw(fused), own) == 16 + 2 * 4
    assert kept_for_backward(of.draw(eager), own) == pytest.approx(8 * 4 * 1000, abs=16)
    assert kept_for_backward(lambda: mu * rho, ()) == 2 * 4 * 1000

    def product_of_views() -> torch.Tensor:
        doubled = mu * 2
        return doubled[:10] * doubled[10:20]

    assert kept_for_backward(product_of_views, own) == 4 * 1000  # a view keeps all of its memory


def test_tasks_take_turns() -> None:
    """Rounds follow one another; times are those of one call, which sleeps for at least 2 ms; threads stay."""
    calls: list[str] = []
    threads = set()

    def task(name: str) -> None:
        calls.append(name)
        threads.add(torch.get_num_threads())
        time.sleep(2e-3)

    timings = interleave([partial(task, name) for name in "ab"], BRIEF)
    turns = "".join(name for name, before in zip(calls, [None, *calls]) if name != before)
    assert turns == "ab" * BRIEF.min_rounds
    assert all(len(timing.times) == BRIEF.min_rounds and 2e-3 <= timing.median < 0.2 for timing in timings)
    assert threads == {torch.get_num_threads()}


Turn = Callable[[], list[float]]  # seconds of the blocks of one turn, a call each


class TellingTimer:
    """Tasks tell what their turn took."""

    def __init__(self, stmt: str, globals: dict[str, Turn], num_threads: int) -> None:
        self.task = globals["task"]

    def blocked_autorange(self, min_run_time: float) -> Measurement:
        return Measurement(1, self.task(), TaskSpec("task()", ""))


def turns(monkeypatch: pytest.MonkeyPatch, *blocks: list[float]) -> Turn:
    """A task with these turns, again and again; its warm-up calls are not turns."""
    monkeypatch.setattr("bench.measure.Timer", TellingTimer)
    calls = itertools.cycle([*([[]] * WARM_UP), turn] for turn in blocks)
    return partial(next, itertools.chain.from_iterable(calls))


def test_rounds_go_on_while_times_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some times are steady, some have an interquartile range as large as the median."""
    effort = Effort(seconds=60, min_rounds=3, max_rounds=6)
    steady, restless = turns(monkeypatch, [1.0]), turns(monkeypatch, [1.0], [2.0])
    assert [len(timing.times) for timing in interleave([steady, steady], effort)] == [3, 3]
    assert [len(timing.times) for timing in interleave([steady, restless], effort)] == [6, 6]
    brief = replace(effort, seconds=0)
    assert [len(timing.times) for timing in interleave([steady, turns(monkeypatch, [1.0], [2.0])], brief)] == [3, 3]


def test_every_round_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many blocks torch's timer splits it into."""
    (timing,) = interleave([turns(monkeypatch, [9.0] * 87, [1.0], [2.0], [3.0, 3.0], [4.0])], Effort(0, 5, 5))
    assert timing.times == [9.0, 1.0, 2.0, 3.0, 4.0]
    assert (timing.median, timing.iqr) == (3.0, 2.0)


def test_a_wrong_or_failing_case_gets_no_time_and_stops_nobody() -> None:
    def wrong() -> None:
        raise Wrong("x is off by 1.0")

    def fail() -> None:
        raise RuntimeError("no compiler\nand more")

    subjects = [
        Subject("forward", 1, "wrong", 1, run=lambda: None, check=wrong),
        Subject("forward", 1, "failing", 1, run=fail),
        Subject("forward", 1, "failing when timed", 1, run=partial(next, iter([1]))),
        Subject("forward", 1, "failing in a trace", 1, run=lambda: torch.zeros(1000), graph=fail),
        Subject("forward", 1, "right", 1, run=lambda: torch.zeros(1000)),
    ]
    rows = {row.case: row for row in measure(subjects, BRIEF, CPU)}
    assert rows["wrong"].untimed == "wrong: x is off by 1.0" and rows["wrong"].median is None
    assert rows["failing"].untimed == "failed: RuntimeError: no compiler" and rows["failing"].median is None
    assert rows["failing when timed"].untimed == "failed: StopIteration: "
    assert rows["failing in a trace"].untimed == "failed: RuntimeError: no compiler"
    assert rows["failing when timed"].median is rows["failing in a trace"].median is None
    assert rows["right"].untimed is None and rows["right"].median > 0 and rows["right"].rounds >= 3
    assert rows["right"].peak_bytes == 4000


def test_every_work_measures_every_case() -> None:
    seen: dict[str, list[str]] = {}
    for subjects in plan(replace(SCALE, samples=[2, 3]), SETTING).values():
        for row in measure(subjects(), BRIEF, CPU):
            assert row.untimed is None and row.median is not None, row
            assert row.peak_bytes is not None and row.first_call is not None, row
            has_graph = row.work not in ("forward", "transforms") and row.case not in ("copy", "illia_ext, forward")
            assert (row.kept_bytes is not None) == has_graph, row
            seen.setdefault(row.work, []).append(row.case)
    both = ["eager", "illia_ext"]
    ways = ["BayesianModule", "one flat tensor", "one by one"]
    assert len(seen.pop("transforms")) == 16  # all but the compiled one, which a quick run leaves out
    assert seen == {
        "forward": [*both, "copy", "torch.randn"],
        "forward + backward": [*both, "copy"],
        "samples": [*both, "illia_ext, antithetic", *both],
        "tensors": [*both, "illia_ext, forward", *(f"illia_ext, {way}" for way in ways)],
        "priors": PRIORS * 2,  # one tensor, and four
        "training step": ["not Bayesian", *both, "illia_ext, 8 samples", "illia_ext, by layer"],
    }
    assert [title for title in plan(SCALE, replace(SETTING, cases=["eager"])) if "transforms" in title] == []
    assert list(plan(SCALE, replace(SETTING, cases=[]))) == ["training steps"]  # peers alone


def test_what_a_work_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward runs where it should, and a loop runs over all samples."""
    calls = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args: calls.append(len(args[0])) or grad(*args))
    counted = {}
    for subjects in plan(replace(SCALE, batches=[], transforms=[]), SETTING).values():
        for subject in subjects():
            calls.clear()
            subject.run()
            counted[subject.work, subject.case] = list(calls)
            if subject.case in SETTING.cases:  # none is credited for what it moves beyond the work's traffic
                samples = 3 if subject.work == "samples" else 1
                fewest = minimum_bytes(subject.weights // samples, samples, 4, backward=subject.work != "forward")
                assert subject.minimum_bytes == fewest, subject
            weights = {"samples": 3 * 50, "tensors": sum(resnet50_numels(4)), "priors": subject.point}
            assert subject.weights == weights.get(subject.work, 100)
    assert counted["forward", "eager"] == counted["forward", "illia_ext"] == []
    assert counted["forward + backward", "eager"] == counted["forward + backward", "illia_ext"] == [2]
    assert counted["samples", "eager"] == [2, 2, 2] and counted["samples", "illia_ext"] == [2]
    assert [counted["priors", case] for case in PRIORS] == [[4 + 1]] * len(PRIORS)  # of the last point, four tensors
    at_once = {case: calls for (work, case), calls in counted.items() if work == "tensors"}
    outputs = {name: [4 + 1] for name in at_once}  # the draws and their log_prob
    assert at_once == outputs | {"illia_ext, forward": [], "illia_ext, one flat tensor": [2]}


def test_how_often_a_transform_draws() -> None:
    calls: Counter[str] = Counter()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls[func.__name__] += 1
            return func(*args, **(kwargs or {}))

    draws = {"checkpoint": 2, "8 calls": 8, "vmap over 8 parameters": 8}
    names = {"no gradients", "forward", "a loss", "8 samples", "vmap over 8 keys", *draws}
    for subject in plan(SCALE, SETTING)["transforms, 100 weights"]():
        if subject.case in names:
            calls.clear()
            with Count():
                subject.run()
            assert calls["gaussian_sample_and_log_prob.default"] == draws.get(subject.case, 1), subject.case


@pytest.mark.parametrize("network", [partial(by_layer, partial(CaseLinear, fused)), WholeNetwork])
def test_a_step(network: Callable[..., torch.nn.Module]) -> None:
    """A check moves no parameter, and a step all."""
    contender = Contender("illia_ext", network, SETTING)

    def values() -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in contender.network.parameters()]

    before = values()
    contender.check()
    assert all(map(torch.equal, before, values()))
    contender.step(*contender.data(3, torch.float32))
    assert not any(map(torch.equal, before, values()))
    contender.loss = lambda x, labels: 2 * contender.network(x, labels)
    with pytest.raises(Wrong, match="loss is off by"):
        contender.check()
