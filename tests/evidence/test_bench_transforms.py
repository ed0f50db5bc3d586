"""The benchmark's transforms: each way computes what it says, in the calls that it says, beside the row it should."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.check import Wrong
from bench.measure import Effort, measure
from bench.plan import plan
from bench.report import markdown
from bench.results import Measurement, Run, Timing
from bench.setting import BASES, BUDGETS, Scale, Setting
from bench.transforms import Ways, transforms
from illia_ext import functional

SETTING = Setting(["illia_ext"], {}, torch.device("cpu"), torch.float32, compile_once=True)
SCALE = Scale(sizes=[], samples=[], samples_numel=1, tensors=0, transforms=[100], batches=[])


@pytest.fixture(scope="module")
def ways() -> Ways:
    return Ways(100, SETTING)


def test_every_way_is_measured() -> None:
    """All but the compiled one, which a quick run leaves out; and none where illia_ext is not asked for."""
    groups = [group for group in plan(SCALE, SETTING) if "transforms" in group.title]
    rows = measure(groups[0].subjects(), Effort(seconds=0, min_rounds=3, max_rounds=3, turn=1e-4), torch.device("cpu"))
    assert [row.untimed for row in rows] == [None] * len(rows)
    assert all(row.seconds and (row.work, row.point) == ("transforms", 100) for row in rows)
    names = [row.case for row in rows] + ["torch.compile"]
    assert sorted(names) == sorted(subject.case for subject in transforms(100, replace(SETTING, compile_once=False)))
    assert {*BASES, *BASES.values(), *BUDGETS} <= set(names)
    assert not [group for group in plan(SCALE, replace(SETTING, cases=["eager"])) if "transforms" in group.title]


@pytest.mark.slow
def test_the_compiled_way_is_right() -> None:
    Ways(100, replace(SETTING, compile_once=False)).check("torch.compile")


def test_a_wrong_call_is_found_in_every_way(ways: Ways, monkeypatch: pytest.MonkeyPatch) -> None:
    fused = functional.gaussian_sample_and_log_prob

    def wrong(*args: Any) -> tuple[torch.Tensor, ...]:
        x, log_prob = fused(*args)
        return 1.1 * x, log_prob

    monkeypatch.setattr(functional, "gaussian_sample_and_log_prob", wrong)
    for name in ways.ways():
        if "module" not in name and name not in ("functional_call", "torch.compile"):  # these call the op
            with pytest.raises(Wrong, match=r"output \d is off by"):
                ways.check(name)


@pytest.mark.parametrize(
    ("name", "draws"),
    [
        ("no gradients", 1),
        ("a loss", 1),
        ("checkpoint", 2),
        ("8 calls", 8),
        ("8 samples", 1),
        ("vmap over 8 keys", 1),
        ("vmap over 8 parameters", 8),
    ],
)
def test_how_often_a_way_draws(ways: Ways, name: str, draws: int) -> None:
    calls: Counter[str] = Counter()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls[func.__name__] += 1
            return func(*args, **(kwargs or {}))

    way, _ = ways.ways()[name]
    with Count():
        way()
    assert calls["gaussian_sample_and_log_prob.default"] == draws


def test_ratios_and_budgets_are_shown() -> None:
    """Ratios to the named row, budgets of 2^10 weights: kept, missed, and what the module adds to the function."""
    build = {"compiler": "gcc", "cuda": False, "libtorch_target": "2.10"}
    machine = dict.fromkeys(("cpu", "capability", "torch", "date", "cores", "memory_gib", "python"), "x")
    run = Run({**machine, "threads": 1, "build": build}, {"device": "cpu", "dtype": "float32", "quick": False})
    times = {"no gradients": 8, "forward": 25, "module, forward": 30, "8 calls": 800, "vmap over 8 keys": 200}
    for point in (2**10, 2**16):
        for case, microseconds in times.items():
            timing = Timing([microseconds * 1e-6] * 3)
            run.measurements.append(Measurement("transforms", point, case, point, seconds=timing))
    text = markdown(run)
    for line in (
        "| 1,024 | no gradients | 8.00 ±0% | | | 10 |",
        "| | forward | 25.0 ±0% | | | 20, missed |",
        "| | module, forward | 30.0 ±0% | 1.20x | forward | +8 |",
        "| | vmap over 8 keys | 200 ±0% | 0.250x | 8 calls | |",
        "| 65,536 | no gradients | 8.00 ±0% | | | |",
    ):
        assert line in text, text
