"""The benchmark's own arithmetic: a wrong case is found, sizes are read, what is kept for backward is counted."""

import pytest
import torch
import typer

from bench.__main__ import parse_sizes
from bench.cases import eager, fused
from bench.measure import Inputs, check, interleave, saved_for_backward


@pytest.mark.parametrize(("text", "sizes"), [("2^10", [1024]), ("7, 2^3,1", [7, 8, 1])])
def test_sizes(text: str, sizes: list[int]) -> None:
    assert parse_sizes(text) == sizes


@pytest.mark.parametrize("text", ["", "0", "-3", "2^x", "1e6", "10;20"])
def test_bad_sizes_are_shown(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="sizes: expected positive numbers"):
        parse_sizes(text)


@pytest.mark.parametrize("case", [eager, fused])
def test_right_cases_pass(case) -> None:
    assert check(case, Inputs.make(1000)) is None


def test_a_wrong_case_is_found() -> None:
    def halved(*arguments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, log_prob = fused(*arguments)
        return x, log_prob / 2

    def detached(mu: torch.Tensor, rho: torch.Tensor, *prior: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return fused(mu, rho * 0 + rho.detach(), *prior)

    assert "log_prob is off by" in str(check(halved, Inputs.make(1000)))
    assert "grad_rho is off by" in str(check(detached, Inputs.make(1000)))


def test_kept_for_backward() -> None:
    """Eager keeps eight floats an element and more; we keep the key (16 bytes) and two priors (4 bytes each)."""
    inputs = Inputs.make(1000)
    assert saved_for_backward(fused, inputs) == 16 + 2 * 4
    assert saved_for_backward(eager, inputs) >= 8 * 4 * 1000


def test_every_task_gets_its_turns() -> None:
    calls = {"a": 0, "b": 0}

    def count(name: str) -> None:
        calls[name] += 1
        torch.zeros(10**5)

    timings = interleave({name: lambda name=name: count(name) for name in calls}, rounds=3, threads=1)
    assert all(calls[name] >= 3 + 3 for name in calls)
    assert all(0 < timing.low <= timing.median <= timing.high for timing in timings.values())
