"""The benchmark's arithmetic: counts, statistics and checks, each against numbers known beforehand."""

import time

import pytest
import torch

from bench import counts
from bench.cases import CASES, eager, fused
from bench.check import Wrong, check_layer, check_network, closed_form, sampled
from bench.layers import CaseLinear, Network
from bench.measure import Effort, Subject, interleave, kept_for_backward, launches, measure, peak_bytes, summarise
from bench.results import Measurement, Run, Timing
from bench.works import Inputs, Scale, Setting, minimum_bytes, plan, resnet50_numels

CPU = torch.device("cpu")
SETTING = Setting(["eager", "illia_ext"], {}, CPU, torch.float32)
BRIEF = Effort(seconds=0, min_rounds=3, max_rounds=3, turn=1e-4)


def row(case: str, seconds: float | None, **more) -> Measurement:
    timing = Timing(seconds, seconds * 0.9, seconds * 1.1, 5) if seconds else None
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


def test_median_and_quartiles() -> None:
    """The inclusive quartiles of 1 to 5 are 2 and 4; the order of rounds does not matter."""
    assert summarise([5.0, 1.0, 4.0, 2.0, 3.0]) == Timing(3.0, 2.0, 4.0, 5)


def test_changes() -> None:
    """Slower or faster only where the middle halves, here 10 % to either side, do not meet."""
    old = run_of(row("a", 1e-3), row("b", 1e-3), row("c", 1e-3), row("gone", 1e-3), row("wrong", 1e-3))
    new = run_of(row("a", 1.3e-3), row("b", 1.1e-3), row("c", 0.5e-3), row("new", 1e-3), row("wrong", None))
    changes = counts.changes(old, new)
    assert [(c.new.case, round(c.ratio, 6), c.verdict) for c in changes] == [
        ("a", 1.3, "slower"),
        ("b", 1.1, ""),
        ("c", 0.5, "faster"),
    ]


def test_the_same_name_for_other_work_is_not_compared() -> None:
    assert counts.changes(run_of(row("a", 1e-3, weights=10)), run_of(row("a", 1e-3))) == []


def test_peak_bytes_and_launches() -> None:
    def memory(ts: float, size: int, device_type: int = 0) -> dict:
        return {"name": "[memory]", "ts": ts, "args": {"Bytes": size, "Device Type": device_type}}

    events = [memory(1, 100), memory(4, 300), memory(2, 50), memory(3, -100), memory(5, 999, device_type=1)]
    assert peak_bytes(events, device_type=0) == 350
    assert peak_bytes(events, device_type=1) == 999
    kinds = ["kernel", "kernel", "gpu_memcpy", "gpu_memset", "cpu_op", "cuda_runtime"]
    assert launches([{"cat": kind} for kind in kinds] + [{"name": "no category"}]) == 4


def test_kept_for_backward() -> None:
    """Eager keeps eight floats a weight; we keep the key (16 bytes) and two priors (4 bytes each)."""
    inputs = Inputs.make(1000, SETTING)
    own = (inputs.mu, inputs.rho)
    assert kept_for_backward(lambda: inputs.draw(fused), own) == 16 + 2 * 4
    assert kept_for_backward(lambda: inputs.draw(eager), own) == pytest.approx(8 * 4 * 1000, abs=16)
    assert kept_for_backward(lambda: inputs.mu * inputs.rho, ()) == 2 * 4 * 1000


@pytest.mark.parametrize("num_samples", [None, 3])
@pytest.mark.parametrize("case", [eager, fused])
def test_right_cases_pass(case, num_samples: int | None) -> None:
    Inputs.make(1000, SETTING, num_samples).check(case)


def test_wrong_cases_are_found() -> None:
    def halved(*arguments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, log_prob = fused(*arguments)
        return x, log_prob / 2

    def detached(mu: torch.Tensor, rho: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return fused(mu, rho * 0 + rho.detach(), *others)

    with pytest.raises(Wrong, match="log_prob is off by"):
        Inputs.make(1000, SETTING).check(halved)
    with pytest.raises(Wrong, match="grad_rho is off by"):
        Inputs.make(1000, SETTING).check(detached)


def test_densities() -> None:
    """One weight, by hand: q = N(1, 2^2), p = N(0, 1), x = 3, that is z = 1 and z_prior = 3."""
    mu, sigma, x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    log2 = 0.6931471805599453
    assert float(sampled(x, mu, sigma, 0.0, 1.0)) == pytest.approx(-log2 - 0.5 + 4.5)
    assert float(closed_form(mu, sigma, 0.0, 1.0)) == pytest.approx(-log2 + (4 + 1) / 2 - 0.5)


def test_layers_are_checked() -> None:
    torch.manual_seed(0)
    check_layer(CaseLinear(fused, 20, 10))

    class Doubled(CaseLinear):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y, cost = super().forward(x)
            return y, 2 * cost

    class Claimed(CaseLinear):
        density = "closed form"

    with pytest.raises(Wrong, match="cost is off by"):
        check_layer(Doubled(fused, 20, 10))
    with pytest.raises(Wrong, match="cost is off by"):
        check_layer(Claimed(fused, 20, 10))


def test_networks_are_checked() -> None:
    torch.manual_seed(0)
    network = Network([CaseLinear(fused, 20, 30), CaseLinear(fused, 30, 10)])
    for layer in network.layers:
        for gaussian in layer.gaussians():
            torch.nn.init.constant_(gaussian.raw, -16)
    x, target = torch.randn(5, 20), torch.arange(5)
    check_network(network(x, target), network, x, target)
    with pytest.raises(Wrong, match="loss is off by"):
        check_network(network(x, target) + 0.1, network, x, target)
    extra = network(-x, target)
    with pytest.raises(Wrong, match=r"gradient of layer 0's weight[.]mu is off by"):
        check_network(network(x, target) + extra - extra.detach(), network, x, target)


def test_every_task_gets_its_rounds() -> None:
    calls = {"a": 0, "b": 0}

    def count(name: str) -> None:
        calls[name] += 1
        time.sleep(1e-3)

    timings = interleave([lambda name=name: count(name) for name in calls], BRIEF)
    assert [timing.rounds for timing in timings] == [3, 3]
    assert all(number == 1 + 3 for number in calls.values())  # one to find how many calls fill a turn
    assert all(1e-3 <= timing.low <= timing.median <= timing.high for timing in timings)


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
    assert rows["wrong"].wrong == "x is off by 1.0" and rows["wrong"].seconds is None
    assert rows["failing"].wrong == "RuntimeError: no compiler" and rows["failing"].seconds is None
    assert rows["right"].wrong is None and rows["right"].seconds is not None
    assert rows["right"].peak_bytes == 4000


def test_every_work_measures_every_case() -> None:
    scale = Scale(sizes=[100], samples=[2], samples_numel=50, tensors=4, batches=[3])
    for group in plan(scale, SETTING):
        for measured in measure(group.subjects(), BRIEF, CPU):
            assert measured.wrong is None and measured.seconds is not None, measured
            assert measured.peak_bytes is not None and measured.first_call is not None, measured
    assert set(SETTING.cases) <= set(CASES)
