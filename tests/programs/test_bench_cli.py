"""The benchmark's command line: what it refuses, writes and shows, and the pages made from its results."""

import os
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import typer
from matplotlib.figure import Figure
from typer.testing import CliRunner, Result

import bench.__main__ as command
from bench import machine, pages, peers, report
from bench.plot import plot
from bench.results import FORMAT, Row, Run, write
from bench.setting import CPU_SCALE, CUDA_SCALE, Scale

BUILD = {"compiler": "gcc 12", "cuda": False, "libtorch_target": "2.10"}
MACHINE = {"cpu": "Test CPU", "capability": "avx2", "threads": 2, "torch": "2.13.0", "date": "2026-01-01"}
MACHINE |= {"cores": 4, "memory_gib": 8, "python": "3.11", "build": BUILD}
SETTINGS = {"device": "cpu", "dtype": "float32", "quick": False, "cases": ["eager"]}
END = {"seconds": 12.3, "busy": None}


def row(work: str, point: int, case: str, median: float | None, untimed: str | None = None, **more: int) -> Row:
    times = {"median": median, "iqr": median and 0.2 * median, "rounds": 7, "first_call": 0.5}
    return Row(work, point, case, **{"weights": 1024, "untimed": untimed, "minimum_bytes": 32 * 1024} | times | more)


TIMES = {"eager": 4e-6, "compile": 2e-6, "illia_ext": 1e-6, "copy": 1e-7}
ROWS = [
    *(row("forward + backward", 1024, case, seconds) for case, seconds in TIMES.items()),
    row("forward", 1024, "illia_ext", 5e-7),
    row("forward", 1024, "torch.randn", 2.5e-7),
    row("samples", 1, "illia_ext", 1e-6),
    row("samples", 8, "illia_ext", 8e-6, kept_bytes=4096),
    row("transforms", 1024, "a loss", 1e-4),
    row("transforms", 1024, "jvp", 5e-4),
    row("training step", 32, "illia_ext", 2e-3, kept_bytes=2048),
    row("training step", 32, "not Bayesian", 1e-3),
    row("training step", 32, "eager", None, untimed="wrong: cost is off by 1.0e+00"),
    row("training step", 32, "compile", 3e-3),
]


def save(path: Path, rows: list[Row] = ROWS, *end: dict, where: dict = MACHINE, settings: dict = SETTINGS) -> Path:
    about = {
        "format": FORMAT,
        "machine": where,
        "settings": settings,
        "skipped": {"blitz": "No module named 'blitz'"},
    }
    write(path, about, *map(asdict, rows), *(end or (END,)), mode="w")
    return path


def call(*arguments: str | Path) -> Result:
    app = typer.Typer()
    app.command()(command.main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "100"})


@pytest.mark.parametrize(("text", "numbers"), [("2^10", [1024]), ("7, 2^3,1", [1, 7, 8]), ("5,5", [5])])
def test_counts(text: str, numbers: list[int]) -> None:
    assert command.parse_counts("--sizes", text) == numbers


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--sizes", "10;20"], "--sizes: expected numbers up to 2^40 such as 1000 or 2^20, with commas, got '10;20'"),
        (["--sizes", "0"], "--sizes: expected numbers up to 2^40"),
        (["--sizes", "2^"], "--sizes: expected numbers up to 2^40"),
        (["--sizes", "2^41"], "--sizes: expected numbers up to 2^40"),
        (["--sizes", "2^40"], "--sizes: 1,099,511,627,776 need some 180224 GiB"),
        (["--samples", "2^30"], "--samples: 1,073,741,824 need some"),
        (["--samples", "-1"], "--samples: expected numbers up to 2^40"),
        (["--cases", "eager,rival"], "--cases: expected some of eager, compile, compile-randn, illia_ext,"),
        (["--cases", ""], "--cases: expected some of"),
        (["--device", "cpu:3"], "--device: expected cpu or cuda, got 'cpu:3'"),
        (["--device", "meta"], "--device: expected cpu or cuda, got 'meta'"),
        (["--device", "cuda:99"], "--device: there is no cuda:99 here"),
        (["--dtype", "int8"], "'--dtype'"),
        (["--threads", "0"], "'--threads'"),
        (["--json", "nowhere/out.json"], "--json: cannot write nowhere/out.json: No such file or directory"),
        (["--json", "/dev/full"], "--json: cannot write /dev/full: No space left on device"),
        (["--plot", "nowhere/out.png"], "--plot: cannot write nowhere/out.png"),
        (["--plot", "out.doc"], "--plot: expected a name that ends in .png, .svg, .pdf, got out.doc"),
        (["--compare", "nowhere.json"], "--compare: [Errno 2] No such file or directory: 'nowhere.json'"),
        (["--load", __file__], "no results of this benchmark"),
        (["--load", pages.RESULTS / f"{pages.FRONT}.jsonl", "--cases", "eager"], "--load: measures nothing, so"),
        (["--load", pages.RESULTS / f"{pages.FRONT}.jsonl", "--device", "cpu"], "--load: measures nothing, so"),
        (["--load", pages.RESULTS / f"{pages.FRONT}.jsonl", "--dtype", "float32"], "--load: measures nothing, so"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(
    arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "/dev/full" in arguments and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    monkeypatch.setattr(command, "measure_all", lambda *_: pytest.fail("measured"))
    result = call(*arguments)
    assert result.exit_code == 2
    assert sentence in " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.output).split())


def test_points_without_memory_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One float32 weight needs 4 * 4 + 160 bytes, and one sample of 2^18 weights 2^18 times 2 * 4 + 160."""
    monkeypatch.setattr(machine, "free_bytes", lambda device: 8 * 2**18 * 168)
    asked = {"sizes": None, "samples": None}
    scale = command.fit_memory(CUDA_SCALE, torch.device("cpu"), 4, asked)
    assert (scale.sizes, scale.samples) == ([2**12, 2**16, 2**20], [1, 2, 8])
    monkeypatch.setattr(machine, "free_bytes", lambda device: 0)
    monkeypatch.setattr(command, "measure_all", lambda scale, *_: pytest.fail("measured") if scale.sizes else [])
    assert call().exit_code == 0


def test_a_refused_run_leaves_no_file(tmp_path: Path) -> None:
    assert call("--json", tmp_path / "run.json", "--cases", "rival").exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_missing_peer_is_named_and_threads_are_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = dict.fromkeys(peers.PEERS, "ModuleNotFoundError: no module")
    seen = []
    monkeypatch.setattr(command, "load_peers", lambda: ({}, missing))
    monkeypatch.setattr(command, "measure_all", lambda *_: seen.append(torch.get_num_threads()) or [])
    before = torch.get_num_threads()
    try:
        results = [call("--json", tmp_path / "run.json", "--threads", threads) for threads in ("1", "3")]
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 3] and [result.exit_code for result in results] == [0, 0]
    for name, reason in missing.items():
        assert f"{name} is skipped: {reason}" in results[0].output
    assert Run.read(tmp_path / "run.json").about["skipped"] == missing


def test_an_interrupted_run_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    kept = []

    def measure(subjects: list, *_: object) -> list[Row]:
        if subjects[0].point == 20:
            kept.extend(Run.read(path).rows["point"])  # while the run goes on
            raise KeyboardInterrupt
        return [row(subject.work, subject.point, subject.case, 1e-3) for subject in subjects]

    monkeypatch.setattr(command, "measure", measure)
    result = call("--json", path, "--sizes", "20,10", "--cases", "illia_ext", "--quick")
    assert result.exit_code == 130
    assert f"interrupted; {path} keeps: 10 weights\n" in result.output
    assert set(kept) == set(Run.read(path).rows["point"]) == {10}
    result = call("--load", path)
    assert result.exit_code == 0
    assert "the run was interrupted" in result.output
    assert "measured in" not in result.output
    assert "warning: the old run was interrupted" in call("--load", path, "--compare", path).output


def test_a_line_that_was_cut_off_does_not_count(tmp_path: Path) -> None:
    path = save(tmp_path / "run.json")
    whole = path.read_text()
    last = len(whole.splitlines()[-1]) + 1
    cuts = {1: (len(ROWS), True), 2: (len(ROWS), False), last: (len(ROWS), False), last + 9: (len(ROWS) - 1, False)}
    for cut, kept in cuts.items():
        path.write_text(whole[:-cut])
        run = Run.read(path)
        assert (len(run.rows), "seconds" in run.about) == kept


def test_a_busy_machine_is_known_from_the_first_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    monkeypatch.setattr(machine, "busy", lambda device: "other programs keep 1.5 cores busy")
    monkeypatch.setattr(command, "measure_all", lambda *_: [])
    call("--json", path)
    path.write_text(path.read_text().splitlines()[0] + "\n")
    output = call("--load", path, "--compare", path).output
    assert "warning: the new run: other programs keep 1.5 cores busy" in output
    assert "warning: other programs keep 1.5 cores busy; do not trust the times" in output


def test_only_its_own_file_is_blamed_on_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "measure_all", lambda *_: os.stat(tmp_path / "compiler"))
    result = call("--json", tmp_path / "run.json")
    assert isinstance(result.exception, FileNotFoundError) and "--json" not in result.output


def test_help_names_the_cases() -> None:
    output = call("--help").output
    assert all(name in output for name in ("compile-randn", "illia_ext", *peers.PEERS))


def test_costs(tmp_path: Path) -> None:
    """Of the largest point, whatever the order; the longer of both first calls at the smallest; none without a time."""
    rows = [
        row("forward + backward", 4096, "compile", 1e-3, first_call=9.0),
        row("forward", 1024, "compile", 1e-3, first_call=3.0),
        row("forward + backward", 1024, "compile", 1e-3, first_call=2.0),
        row("forward + backward", 1024, "eager", None, untimed="wrong: x is off by 1.0"),
    ]
    costs = report.costs(Run.read(save(tmp_path / "run.json", rows)))
    assert costs[["point", "first ms"]].to_dict("list") == {"point": ["4,096"], "first ms": ["3000"]}


def test_an_axis_without_rows_is_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    plot(Run.read(save(tmp_path / "run.json", [row("training step", 32, "illia_ext", 2e-3)])), tmp_path / "run.png")
    assert [axes.axison for axes in figures[0].axes] == [False, True]


def test_a_run_is_shown(tmp_path: Path) -> None:
    result = call("--load", save(tmp_path / "run.json"), "--plot", tmp_path / "run.png")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    lines = result.output.splitlines()
    for line in (
        "Test CPU, avx2, 2 threads, torch 2.13.0, 2026-01-01, float32",
        "4 cores, 8 GiB, Python 3.11; illia_ext built by gcc 12, without CUDA, libtorch 2.10",
        "eager       3.91±10% 4.00x",  # 4 us of 1024 weights, and of illia_ext's 1 us
        "jvp      500±10% 5.00x",  # times a loss
        "eager                  wrong",
        "samples            illia_ext         8   4.10   4.00      500",  # at the largest point
        "training step      illia_ext        32  0.016   2.00      500",  # bytes kept a weight, ms of the first call
        "eager, training step at 32: wrong: cost is off by 1.0e+00",
        "blitz is skipped: No module named 'blitz'",
        "measured in 12 s",
    ):
        assert line in lines, result.output


def test_what_the_machine_was_like_is_shown(tmp_path: Path) -> None:
    build = BUILD | {"cuda": {"version": "13.0", "targets": ["sm_90"]}}
    where = MACHINE | {"gpu": "Test GPU", "cuda": "13.1", "build": build}
    end = {"seconds": None, "busy": "other programs keep 1.5 cores busy"}
    output = call("--load", save(tmp_path / "run.json", ROWS, end, where=where)).output
    for part in (
        "Test GPU (CUDA 13.1; Test CPU, avx2, 2 threads), torch",
        "gcc 12, CUDA 13.0,",
        f"warning: {end['busy']}",
    ):
        assert part in output


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "run.json")
    path.write_text(path.read_text().replace(f'"format": {FORMAT}', '"format": 2'))
    with pytest.raises(ValueError, match="no results of this benchmark"):
        Run.read(path)


def test_compare(tmp_path: Path) -> None:
    """Ratios new / old and their geometric means; what lost its time, and what the runs differ in, is named."""
    old = save(tmp_path / "old.json", [*ROWS, row("training step", 256, "illia_ext", 1e-3)])
    changed = [
        row("training step", 32, "illia_ext", 6e-3),
        row("training step", 256, "illia_ext", 12e-3),
        row("training step", 32, "not Bayesian", 1e-3, weights=10),  # another work by the same name
        row("training step", 32, "compile", None, untimed="failed: out of memory"),
    ]
    new = save(tmp_path / "new.json", changed, where=MACHINE | {"threads": 1}, settings=SETTINGS | {"dtype": "float64"})
    output = call("--load", new, "--compare", old).output
    lines = output.splitlines()
    for line in (
        "batch        32    256",
        "illia_ext  3.00  12.00",
        "illia_ext  6.00     2",  # sqrt(3 * 12), of two rows
        "no time any more: compile, training step at 32: failed: out of memory",
        "warning: the two runs differ in threads, dtype",
    ):
        assert line in lines, output
    same = call("--load", old, "--compare", old).output
    assert "warning" not in same and "no time any more" not in same
    untimed = save(tmp_path / "new.json", [row("forward", 1024, "illia_ext", None, untimed="failed: out of memory")])
    result = call("--load", untimed, "--compare", old)
    assert "The two runs have no time in common." in result.output
    assert result.exit_code == 1  # illia_ext itself has no time


def full_run(scale: Scale, machine: dict) -> Run:
    """Every row of a full run, with times, spreads and ratios of the usual number of digits."""
    shown = Run.read(pages.RESULTS / f"{pages.FRONT}.jsonl").rows
    points = {"samples": scale.samples, "tensors": [scale.tensors], "training step": scale.batches}
    points |= {"transforms": scale.transforms, "forward": scale.sizes, "forward + backward": scale.sizes}
    points |= {"priors": [scale.priors, 25_557_032]}
    cases = {work: shown[shown["work"] == work]["case"].unique() for work in points}
    cases |= {"priors": ["illia_ext, Gaussian", "illia_ext, scale mixture", "eager, scale mixture"]}
    rows = [
        row(work, point, case, (1234e-6 if case == "eager" else 98.7e-6) * (1 + point / 2**10), weights=point)
        for work, axis in points.items()
        for point in axis
        for case in cases[work]
    ]
    for measured in rows:
        measured.iqr, measured.launches = 0.69 * measured.median, 161
    about = {
        "machine": machine,
        "settings": SETTINGS,
        "skipped": {"blitz": "ModuleNotFoundError: " + "long words " * 20},
    }
    return Run.of(about | END, rows)


GPU = MACHINE | {"gpu": "NVIDIA H200 NVL with a long name", "cuda": "13.0", "cpu": "Intel(R) Xeon(R) Platinum 8480+"}


@pytest.mark.parametrize(
    "run",
    [
        *(Run.read(path) for path in sorted(pages.RESULTS.glob("*.jsonl"))),
        full_run(CPU_SCALE, MACHINE),
        full_run(CUDA_SCALE, GPU),
    ],
)
def test_tables_fit_a_terminal(run: Run) -> None:
    """No line is longer than 100 characters, none is cut, and no table is wrapped."""
    for text in (report.text(run), report.compared(run, run)):
        assert max(map(len, text.splitlines())) <= 100
        assert "…" not in text and "..." not in text and "\\" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0, "0"), (0.00123, "0.0012"), (0.5, "0.500"), (12.345, "12.3"), (1234.5, "1234"), (99.96, "100")],
)
def test_numbers(value: float | None, text: str) -> None:
    assert report.number(value) == text


def test_markdown(tmp_path: Path) -> None:
    lines = [" ".join(line.split()) for line in report.markdown(Run.read(save(tmp_path / "run.json"))).splitlines()]
    assert "### One tensor, forward + backward; ns per weight" in lines
    assert "| eager | 3.91±10% 4.00x |" in lines
    assert "- eager, training step at 32: wrong: cost is off by 1.0e+00" in lines


def test_front_page(tmp_path: Path) -> None:
    """Ratios are to illia_ext; whatever is faster is said."""
    page = " ".join(pages.front_page(Run.read(save(tmp_path / "run.json"))).split())
    assert "| 2^10 weights, ns each | 3.91 (4.00x) | 1.95 (2.00x) | 0.977 (1.00x) |" in page
    assert "| training step at batch 32, ms | no time | 3.00 (1.50x) | 2.00 (1.00x) |" in page
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
