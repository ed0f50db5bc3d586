"""The benchmark's whole models: a wrong draw is found in each way to make it, and the targets stand in the tables."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.check import Wrong
from bench.counts import OURS
from bench.layers import WholeNetwork
from bench.report import markdown
from bench.results import Measurement, Run, Timing
from bench.setting import EIGHT_SAMPLES, FLAT, PLAIN, TARGETS, WHOLE_MODEL, Setting
from bench.steps import Contender
from bench.tensors import tensors
from illia_ext import functional

SETTING = Setting([OURS], {}, torch.device("cpu"), torch.float32)
Drawn = tuple[list[Tensor], Tensor]


@pytest.fixture(params=["a draw", "log_prob", "noise"])
def wrong_op(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    right = functional.foreach_gaussian_sample_and_log_prob

    def wrong(mu: list[Tensor], rho: list[Tensor], mu_prior: Any, std_prior: Any, key: Tensor, *more: Any) -> Drawn:
        if request.param == "noise":  # one for all tensors
            draws = [functional.gaussian_sample_and_log_prob(m, r, mu_prior, std_prior, key) for m, r in zip(mu, rho)]
            return [x for x, _ in draws], sum(log_prob for _, log_prob in draws)
        xs, log_prob = right(mu, rho, mu_prior, std_prior, key, *more)
        if request.param == "log_prob":
            return xs, 1.01 * log_prob
        return [*xs[:-1], 1.1 * xs[-1]], log_prob

    monkeypatch.setattr(functional, "foreach_gaussian_sample_and_log_prob", wrong)


def test_a_wrong_draw_is_found_in_many_tensors(wrong_op: None) -> None:
    for subject in tensors(4, SETTING):
        if subject.case in (OURS, WHOLE_MODEL):
            with pytest.raises(Wrong, match=r"is off by|have a correlation of"):
                subject.check()


def test_a_wrong_draw_is_found_in_a_whole_network(wrong_op: None) -> None:
    with pytest.raises(Wrong, match=r"is off by|have a correlation of"):
        Contender(OURS, WholeNetwork, SETTING).check()


def test_a_sample_that_is_left_out_is_found() -> None:
    contender = Contender(EIGHT_SAMPLES, lambda **to: WholeNetwork(2, **to), SETTING)
    contender.check()
    both: Callable[..., tuple[Tensor, Tensor]] = contender.network.bnn.forward
    contender.network.bnn.forward = lambda *args, **more: tuple(of[:1] for of in both(*args, **more))
    with pytest.raises(Wrong, match=r"gradient of layer 0's weight[.]mu is off by"):
        contender.check()


def test_targets_are_shown() -> None:
    """As times of the row named, where that has a time: reached, missed, and not beside another batch or a GPU."""
    build = {"compiler": "gcc", "cuda": False, "libtorch_target": "2.10"}
    machine = dict.fromkeys(("cpu", "capability", "torch", "date", "cores", "memory_gib", "python"), "x")
    run = Run({**machine, "threads": 1, "build": build}, {"device": "cpu", "dtype": "float32", "quick": False})
    times = {PLAIN: 10, OURS: 29, EIGHT_SAMPLES: 150}
    for point in (32, 33):
        for case, milliseconds in times.items():
            run.measurements.append(
                Measurement("training step", point, case, 1000, seconds=Timing([milliseconds * 1e-3] * 3))
            )
    kept = Measurement("tensors", 161, OURS, 1000, seconds=Timing([2e-3] * 3), kept_bytes=16)
    run.measurements += [kept, Measurement("tensors", 161, FLAT, 1000, seconds=Timing([1e-3] * 3), kept_bytes=1600)]
    assert {(m.work, m.point, m.case) for m in run.measurements} >= {key for key in TARGETS if key[1] == 32}
    for line in (
        f"| 161 | {OURS} | 2.00 ±0% | 2000 | 1.00x | 1.1x {FLAT}, missed | 16 |",
        f"| | {FLAT} | 1.00 ±0% | 1000 | 0.500x | | 1,600 |",
        f"| | {OURS} | 29.0 ±0% | 1.00x | 2.90x | 3x {PLAIN} |",
        f"| | {EIGHT_SAMPLES} | 150 ±0% | 5.17x | 15.0x | 5x {OURS}, missed |",
        f"| | {OURS} | 29.0 ±0% | 1.00x | 2.90x | |",
    ):
        assert line in markdown(run), markdown(run)
    run.settings["device"] = "cuda"
    assert "missed" not in markdown(run)
