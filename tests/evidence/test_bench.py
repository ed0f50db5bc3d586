"""The benchmark's arithmetic, against numbers known beforehand, and what its works do."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch

from bench import counts
from bench.cases import CASES, COMPILE_OPTIONS, eager, formulas, fused
from bench.check import Wrong
from bench.layers import CaseLinear, WholeNetwork
from bench.measure import Effort, Subject, interleave, kept_for_backward, launches, measure, peak_bytes
from bench.plan import plan
from bench.results import Measurement, Run, Timing
from bench.setting import BY_LAYER, EIGHT_SAMPLES, FLAT, FORWARD, ONE_BY_ONE, PLAIN, WHOLE_MODEL, Scale, Setting
from bench.steps import Contender, by_layer
from bench.tensors import resnet50_numels
from bench.works import Inputs, minimum_bytes

CPU = torch.device("cpu")
SETTING = Setting(["eager", "illia_ext"], {}, CPU, torch.float32)
BRIEF = Effort(seconds=0, min_rounds=3, max_rounds=3, turn=1e-4)


def row(case: str, seconds: float | None, **more) -> Measurement:
    timing = Timing([seconds * factor for factor in (0.97, 0.98, 0.99, 1, 1.01, 1.02, 1.03)]) if seconds else None
    return Measurement(**{"work": "forward", "point": 1000, "weights": 1000, "case": case, "seconds": timing, **more})


def run_of(*rows: Measurement) -> Run:
    return Run({}, {}, measurements=list(rows))


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


def test_ratios_and_bandwidth() -> None:
    ours = row("illia_ext", 2e-6, minimum_bytes=12_000)
    copy = row("copy", 1e-6, minimum_bytes=8_000)
    other = row("eager", 5e-6)
    run = run_of(ours, copy, other)
    assert counts.nanoseconds(ours) == pytest.approx(2)
    assert counts.ratio(other, ours) == pytest.approx(2.5)
    assert counts.ratio(other, None) is None and counts.ratio(row("eager", None), ours) is None
    assert counts.bandwidth(ours) == pytest.approx(6)
    assert counts.copy_fraction(run, ours) == pytest.approx(6 / 8)
    # 12 bytes a weight at the copy's 8 GB/s
    assert counts.limit(run, "forward", 1000) == pytest.approx(12 / 8)
    assert counts.limit(run_of(ours), "forward", 1000) is None


def test_what_is_counted_per_weight_counts_samples() -> None:
    drawn = row("illia_ext", 8e-6, work="samples", point=4, kept_bytes=16_000, peak_bytes=32_000)
    assert counts.elements(drawn) == 4000
    assert counts.nanoseconds(drawn) == pytest.approx(2)
    assert counts.kept_per_weight(drawn) == pytest.approx(4)
    assert counts.peak_per_weight(drawn) == pytest.approx(8)
    assert counts.nanoseconds(row("not Bayesian", 1e-3, weights=0)) is None


def test_median_and_spread() -> None:
    """The inclusive quartiles of 1 to 5 are 2 and 4; the order of rounds does not matter."""
    timing = Timing([5.0, 1.0, 4.0, 2.0, 3.0])
    assert timing.median == 3
    assert timing.spread == pytest.approx((4 - 2) / 2 / 3)


def test_changes() -> None:
    """Seven rounds 1 % apart: 1.3x and 0.5x are seen, 1.04x is too little, 1.01x is noise."""
    old = run_of(*(row(case, 1e-3) for case in ("a", "b", "c", "d", "gone", "wrong")))
    times = {"a": 1.3e-3, "b": 1.04e-3, "c": 0.5e-3, "d": 1.01e-3, "new": 1e-3, "wrong": None}
    new = run_of(*(row(case, seconds) for case, seconds in times.items()))
    assert [(c.new.case, round(c.ratio, 6), c.verdict) for c in counts.changes(old, new)] == [
        ("a", 1.3, "slower"),
        ("b", 1.04, ""),
        ("c", 0.5, "faster"),
        ("d", 1.01, ""),
    ]
    assert [lost.case for lost in counts.lost(old, new)] == ["wrong"]


def test_few_or_mixed_rounds_give_no_verdict() -> None:
    few, slow = row("a", 1e-3), row("a", 2e-3)
    few.seconds, slow.seconds = Timing([1e-3] * 3), Timing([2e-3] * 3)
    assert counts.changes(run_of(few), run_of(slow))[0].verdict == ""
    few.seconds, slow.seconds = Timing([1e-3, 3e-3] * 4), Timing([2e-3, 1e-3, 4e-3, 1e-3] * 2)
    assert counts.changes(run_of(few), run_of(slow))[0].verdict == ""


def test_the_same_name_for_other_work_is_not_compared() -> None:
    assert counts.changes(run_of(row("a", 1e-3, weights=10)), run_of(row("a", 1e-3))) == []


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
    inputs = Inputs.make(1000, SETTING)
    own = (inputs.mu, inputs.rho)
    assert kept_for_backward(lambda: inputs.draw(fused), own) == 16 + 2 * 4
    assert kept_for_backward(lambda: inputs.draw(eager), own) == pytest.approx(8 * 4 * 1000, abs=16)
    assert kept_for_backward(lambda: inputs.mu * inputs.rho, ()) == 2 * 4 * 1000

    def product_of_views() -> torch.Tensor:
        doubled = inputs.mu * 2
        return doubled[:10] * doubled[10:20]

    assert kept_for_backward(product_of_views, own) == 4 * 1000  # a view keeps all of its memory


def test_every_task_gets_its_rounds() -> None:
    """A turn of 20 ms holds some calls of 2 ms; times are those of one call, which sleeps for at least 2 ms."""
    calls = {"a": 0, "b": 0}

    def count(name: str) -> None:
        calls[name] += 1
        time.sleep(2e-3)

    timings = interleave([lambda name=name: count(name) for name in calls], replace(BRIEF, turn=0.02))
    assert [len(timing.rounds) for timing in timings] == [3, 3]
    assert all(number > 1 + 3 * 2 for number in calls.values())
    assert all(2e-3 <= timing.median < 0.02 for timing in timings)


def test_a_wrong_or_failing_case_gets_no_time_and_stops_nobody() -> None:
    def wrong() -> None:
        raise Wrong("x is off by 1.0")

    def fail() -> None:
        raise RuntimeError("no compiler\nand more")

    subjects = [
        Subject("forward", 1, "wrong", 1, run=lambda: None, check=wrong),
        Subject("forward", 1, "failing", 1, run=fail),
        Subject("forward", 1, "right", 1, run=lambda: torch.zeros(1000)),
    ]
    rows = {row.case: row for row in measure(subjects, BRIEF, CPU)}
    assert rows["wrong"].untimed == "wrong: x is off by 1.0" and rows["wrong"].seconds is None
    assert rows["failing"].untimed == "failed: RuntimeError: no compiler" and rows["failing"].seconds is None
    assert rows["right"].untimed is None and rows["right"].seconds is not None
    assert rows["right"].peak_bytes == 4000


def test_every_work_measures_every_case() -> None:
    scale = Scale(sizes=[100], samples=[2], samples_numel=50, tensors=4, transforms=[], batches=[3])
    seen = {}
    for group in plan(scale, SETTING):
        for measured in measure(group.subjects(), BRIEF, CPU):
            assert measured.untimed is None and measured.seconds is not None, measured
            assert measured.peak_bytes is not None and measured.first_call is not None, measured
            has_graph = measured.work != "forward" and measured.case not in ("copy", FORWARD)
            assert (measured.kept_bytes is not None) == has_graph, measured
            seen.setdefault(measured.work, []).append(measured.case)
    both = ["eager", "illia_ext"]
    assert seen == {
        "forward": [*both, "copy", "torch.randn"],
        "forward + backward": [*both, "copy"],
        "samples": both,
        "tensors": [*both, FORWARD, WHOLE_MODEL, FLAT, ONE_BY_ONE],
        "training step": [PLAIN, *both, EIGHT_SAMPLES, BY_LAYER],
    }


def test_what_a_work_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward runs where it should, a loop runs over all samples, a step moves all parameters and a check none."""
    calls = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args: calls.append(len(args[0])) or grad(*args))
    scale = Scale(sizes=[10], samples=[3], samples_numel=10, tensors=4, transforms=[], batches=[])
    counted = {}
    for group in plan(scale, SETTING):
        for subject in group.subjects():
            calls.clear()
            subject.run()
            counted[subject.work, subject.case] = list(calls)
    assert counted["forward", "eager"] == counted["forward", "illia_ext"] == []
    assert counted["forward + backward", "eager"] == counted["forward + backward", "illia_ext"] == [2]
    assert counted["samples", "eager"] == [2, 2, 2] and counted["samples", "illia_ext"] == [2]
    at_once = {case: calls for (work, case), calls in counted.items() if work == "tensors"}
    outputs = {name: [4 + 1] for name in at_once}  # the draws and their log_prob
    assert at_once == outputs | {FORWARD: [], FLAT: [2]}


@pytest.mark.parametrize("network", [partial(by_layer, partial(CaseLinear, fused)), WholeNetwork])
def test_a_step(network: Callable[..., torch.nn.Module]) -> None:
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


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILE_OPTIONS)
def test_compiled_cases_are_right(name: str) -> None:
    setting = replace(SETTING, cases=[name])
    Inputs.make(1000, setting).check(CASES[name])
    Contender(name, partial(by_layer, partial(CaseLinear, formulas)), setting).check()
