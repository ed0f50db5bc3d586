"""The benchmark's command line: what it refuses, what it writes, and the pages made from it."""

import json
import re
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from bench import pages, peers
from bench.__main__ import main
from bench.options import parse_counts
from bench.report import markdown, number
from bench.results import Measurement, Run, Timing

BUILD = {"compiler": "gcc 12", "cuda": False, "libtorch_target": "2.10"}
MACHINE = {"cpu": "Test CPU", "capability": "avx2", "threads": 2, "torch": "2.13.0", "date": "2026-01-01"}
MACHINE |= {"cores": 4, "memory_gib": 8, "python": "3.11", "build": BUILD}
SETTINGS = {"device": "cpu", "dtype": "float32", "quick": False, "cases": ["eager"]}


def row(work: str, point: int, case: str, seconds: float | None, untimed: str | None = None) -> Measurement:
    timing = Timing([seconds * factor for factor in (0.8, 0.9, 0.9, 1, 1.1, 1.1, 1.2)]) if seconds else None
    return Measurement(work, point, case, weights=1024, untimed=untimed, seconds=timing, minimum_bytes=32 * 1024)


@pytest.fixture
def run() -> Run:
    times = {"eager": 4e-6, "compile": 2e-6, "illia_ext": 1e-6, "copy": 1e-7}
    rows = [row("forward + backward", 1024, case, seconds) for case, seconds in times.items()]
    rows += [row("forward", 1024, "illia_ext", 5e-7), row("forward", 1024, "torch.randn", 2.5e-7)]
    rows += [row("training step", 32, "illia_ext", 2e-3), row("training step", 32, "not Bayesian", 1e-3)]
    rows += [
        row("training step", 32, "eager", None, untimed="wrong: cost is off by 1.0e+00"),
        row("training step", 32, "compile", 3e-3),
    ]
    return Run(dict(MACHINE), SETTINGS, {"blitz": "ModuleNotFoundError: No module named 'blitz'"}, rows)


def call(*arguments: str | Path) -> Result:
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


@pytest.mark.parametrize(("text", "numbers"), [("2^10", [1024]), ("7, 2^3,1", [7, 8, 1]), ("5,5", [5])])
def test_counts(text: str, numbers: list[int]) -> None:
    assert parse_counts("--sizes", text) == numbers


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--sizes", "10;20"], "--sizes: expected numbers up to 2^40 such as 1000 or 2^20, with commas, got '10;20'"),
        (["--sizes", "0"], "--sizes: expected numbers up to 2^40"),
        (["--sizes", "2^"], "--sizes: expected numbers up to 2^40"),
        (["--sizes", "2^41"], "--sizes: expected numbers up to 2^40"),
        (["--sizes", "2^40"], "--sizes: 1,099,511,627,776 need some 180224 GiB"),
        (["--samples", "2^30"], "--samples: 1,073,741,824 need some"),
        (["--device", "cpu:3"], "--device: expected cpu or cuda, got 'cpu:3'"),
        (["--samples", "-1"], "--samples: expected numbers up to 2^40"),
        (["--cases", "eager,rival"], "--cases: expected some of eager, compile, compile-randn, illia_ext,"),
        (["--cases", ""], "--cases: expected some of"),
        (["--device", "toaster"], "--device: expected cpu or cuda, got 'toaster'"),
        (["--device", "meta"], "--device: expected cpu or cuda, got 'meta'"),
        (["--dtype", "int8"], "--dtype: expected float32, float64, float16, bfloat16, got 'int8'"),
        (["--threads", "0"], "'--threads'"),
        (["--json", "nowhere/out.json"], "--json: cannot write nowhere/out.json: No such file or directory"),
        (["--plot", "nowhere/out.png"], "--plot: cannot write nowhere/out.png"),
        (["--plot", "out.doc"], "--plot: expected a name that ends in .png, .svg, .pdf, got out.doc"),
        (["--compare", "nowhere.json"], "--compare: [Errno 2] No such file or directory: 'nowhere.json'"),
        (["--load", __file__], "no results of this benchmark"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(
    arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.__main__.measure_all", lambda *_: pytest.fail("measured"))
    result = call(*arguments)
    assert result.exit_code == 2
    assert sentence in " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.output).split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu() -> None:
    result = call("--device", "cuda")
    assert result.exit_code == 2 and "--device: there is no cuda here" in result.output


def test_a_missing_peer_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reason = "ModuleNotFoundError: no module"
    monkeypatch.setattr("bench.options.load_peers", lambda: ({}, dict.fromkeys(peers.PEERS, reason)))
    monkeypatch.setattr("bench.__main__.measure_all", lambda *_: None)
    result = call("--json", tmp_path / "run.json")
    assert result.exit_code == 0
    for name in peers.PEERS:
        assert f"{name} is skipped: {reason}" in result.output
    assert Run.read(tmp_path / "run.json").skipped == dict.fromkeys(peers.PEERS, reason)


def test_a_refused_run_leaves_no_file(tmp_path: Path) -> None:
    assert call("--json", tmp_path / "run.json", "--cases", "rival").exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_files_hold_what_was_measured(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path / "run.json")
    assert Run.read(tmp_path / "run.json") == run
    result = call("--load", tmp_path / "run.json", "--json", tmp_path / "again.json", "--plot", tmp_path / "run.png")
    assert result.exit_code == 0, result.output
    assert Run.read(tmp_path / "again.json") == run
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    for part in (
        "Test CPU, avx2, 2 threads, torch 2.13.0",
        "4.00x",
        "blitz is skipped",
        "eager, training step at 32: wrong: cost is",
    ):
        assert part in result.output


def test_the_build_is_shown(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path / "run.json")
    assert "illia_ext built by gcc 12, without CUDA" in call("--load", tmp_path / "run.json").output
    run.machine["build"] = BUILD | {"cuda": {"version": "13.0", "targets": ["sm_90"]}}
    run.write(tmp_path / "run.json")
    assert "illia_ext built by gcc 12, CUDA 13.0" in call("--load", tmp_path / "run.json").output


def test_another_format_is_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    run.write(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 1}))
    with pytest.raises(ValueError, match="no results of this benchmark"):
        Run.read(path)


def test_compare_names_what_got_slower(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path / "old.json")
    for measured in run.measurements:
        if measured.case == "illia_ext" and measured.work == "training step":
            measured.seconds = Timing([6e-3, 5.9e-3, 6.1e-3] * 3)
    run.machine["threads"] = 1
    run.write(tmp_path / "new.json")
    output = call("--load", tmp_path / "new.json", "--compare", tmp_path / "old.json").output
    assert "slower than before: illia_ext, training step at 32: 3.00x" in output
    assert "warning: the two runs differ in threads" in output
    output = call("--load", tmp_path / "old.json", "--compare", tmp_path / "old.json").output
    assert "nothing got slower beyond its spread" in output and "warning" not in output


def test_compare_does_not_hide_what_it_cannot_compare(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path / "old.json")
    for measured in run.measurements:
        measured.seconds, measured.untimed = None, "failed: out of memory"
    run.settings = SETTINGS | {"dtype": "bfloat16"}
    run.write(tmp_path / "new.json")
    result = call("--load", tmp_path / "new.json", "--compare", tmp_path / "old.json")
    assert "the two runs have no point in common" in result.output
    assert "no time any more: illia_ext, training step at 32: failed: out of memory" in result.output
    assert "warning: the two runs differ in dtype" in result.output
    assert result.exit_code == 1  # illia_ext itself has no time


def test_what_measures_does_not_go_with_load(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path / "run.json")
    result = call("--load", tmp_path / "run.json", "--cases", "eager")
    assert result.exit_code == 2 and "--load: measures nothing" in result.output


def test_threads_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("bench.__main__.measure_all", lambda *_: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    try:
        assert [call("--threads", threads).exit_code for threads in ("1", "3")] == [0, 0]
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 3]


def test_a_full_disk_is_one_line(run: Run, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    run.write(tmp_path / "run.json")
    result = call("--load", tmp_path / "run.json", "--json", "/dev/full")
    assert result.exit_code == 2 and "cannot write /dev/full: No space left on device" in result.output


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (0, "0x"),
        (0.00123, "0.0012x"),
        (0.5, "0.500x"),
        (12.345, "12.3x"),
        (1234.5, "1234x"),
        (99.96, "100x"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value, "x") == text


def test_markdown(run: Run) -> None:
    lines = markdown(run).splitlines()
    assert lines[0] == "### One tensor: sample and log q - log p; per weight"
    assert "| 1,024 | eager | | 3.91 ±10% | 4.00x | 8.19 | 2.50% |" in lines
    assert "- eager, training step at 32: wrong: cost is off by 1.0e+00" in lines


def test_front_page(run: Run) -> None:
    """Ratios are to plain PyTorch and to torch.compile; what is slower than which is said."""
    page = pages.front_page(run)
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {7}  # as many cells in the heading as in every row
    assert "| 2^10 weights, ns each | 3.91 | 1.95 |  | 0.977 | 4.00x, 2.00x |" in page
    assert "| training step at batch 32, ms | wrong | 3.00 |  | 2.00 | 1.50x |" in page
    assert "torch.randn (forward, weights 2^10: 0.50 of its time)" in page
    assert "not Bayesian (training step, batch 32: 0.50 of its time)" in page


def test_regions() -> None:
    page = f"before\n{pages.BEGIN}\nold\n{pages.END}\nafter\n"
    assert pages.replace_region(page, "new\n") == f"before\n{pages.BEGIN}\nnew\n{pages.END}\nafter\n"
    for broken in ("", pages.END + pages.BEGIN, page + page):
        with pytest.raises(ValueError, match="expected one"):
            pages.replace_region(broken, "new")


def test_the_committed_pages_are_what_the_results_say() -> None:
    for path, text in pages.pages().items():
        assert path.read_text() == text, f"{path.name}: run python -m bench.pages"
