"""The frame of the evidence: what a part finds reaches the page, and no part can fail in silence."""

import sys
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace

import pytest
import torch
import typer

from validation import __main__ as command
from validation import faults, properties
from validation.evidence import Finding, Section, Table
from validation.page import page
from validation.watched import Watched

HOLDS = Finding("moments of 10^9 normals", "z = 1.2", "|z| < 5", True)
FAILS = Finding("p-values beyond 1e-7", "3", "0", False)
TABLE, RUN = Table("Worst", ["lag", "r"], [["1", "2e-5"]]), "`make validation`, 2026-11-23, a machine"
SECTION = Section("Noise", "How.", [HOLDS, FAILS], [TABLE], seconds=12.4, run=RUN)

pytestmark = pytest.mark.usefixtures("cpu")


def add_part(monkeypatch: pytest.MonkeyPatch, collect: object) -> None:
    monkeypatch.setitem(sys.modules, "validation.part", SimpleNamespace(collect=collect))


def test_a_section_comes_back_from_its_file(tmp_path: Path) -> None:
    SECTION.write(tmp_path / "noise.json")
    assert Section.read(tmp_path / "noise.json") == SECTION


def test_the_page_shows_figures_and_names_what_failed() -> None:
    text = page([SECTION], "python -m validation noise", 61, ["battery", "fuzz"])
    assert (
        "by `python -m validation noise`, in 1 min" in text
        and "Took 12 s; `make validation`, 2026-11-23, a machine." in text
    )
    assert "**Not measured: battery, fuzz.**" in text
    assert "**1 of 2 findings hold.** These do not: p-values beyond 1e-7." in text
    assert "| moments of 10^9 normals | z = 1.2 | \\|z\\| < 5 | yes |" in text
    assert "| p-values beyond 1e-7 | 3 | 0 | **NO** |" in text
    assert "Worst\n\n| lag | r |\n|---|---|\n| 1 | 2e-5 |" in text


def test_a_part_that_raises_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def collect(quick: bool) -> Section:
        raise RuntimeError("dieharder is not on PATH")

    add_part(monkeypatch, collect)
    (finding,) = command.collect("part", quick=True).findings
    assert "dieharder is not on PATH" in finding.measured and not finding.holds


def test_a_part_without_findings_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    add_part(monkeypatch, lambda quick: Section("Nothing", "looked at"))
    (finding,) = command.collect("part", quick=True).findings
    assert finding.what == "something was looked at" and not finding.holds


def test_a_part_that_crashes_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\nos.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (finding,) = command.collect_apart("noise", True, tmp_path).findings
    assert finding.measured.startswith("exit code -6") and not finding.holds


def test_a_part_that_crashes_at_its_end_keeps_what_it_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = """\
import atexit, os, sys, types
from validation.evidence import Finding, Section
part = Section("Noise", "", [Finding("moments", "0", "0", True)])
sys.modules["validation.noise"] = types.SimpleNamespace(collect=lambda quick: part)
atexit.register(os.abort)
"""
    (tmp_path / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{command.ROOT}")
    found, crash = command.collect_apart("noise", True, tmp_path).findings
    assert found.holds and crash.measured.startswith("exit code -6") and not crash.holds


@pytest.mark.parametrize(
    ("arguments", "by"),
    [
        ({}, "make validation"),
        ({"quick": True}, "python -m validation --quick"),
        ({"parts": ["noise"]}, "python -m validation noise"),
    ],
)
def test_only_the_whole_evidence_is_make_validation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: dict, by: str
) -> None:
    monkeypatch.setattr(command, "collect_apart", lambda *_: Section("Noise", "", [HOLDS]))
    monkeypatch.setattr(command, "KEPT", tmp_path)
    command.main(
        **{"parts": None, "quick": False, "json_file": None, "workers": 1, **arguments}, page_file=tmp_path / "p"
    )
    assert f"Written by `{by}`, in 0 min" in (tmp_path / "p").read_text()


def test_a_part_that_ran_alone_takes_its_place_among_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "collect_apart", lambda part, *_: Section(part, "", [HOLDS]))
    monkeypatch.setattr(command, "KEPT", tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    Section("Battery", "", [HOLDS], run="an earlier run").write(tmp_path / "kept" / "battery.json")
    command.main(["noise"], page_file=tmp_path / "page", quick=False, json_file=None, workers=1)
    text = (tmp_path / "page").read_text()
    assert "## noise" in text and "; `python -m validation noise`, " in text
    assert "## Battery" in text and "; an earlier run." in text
    assert "**2 of 2 findings hold.** **Not measured: stateless, estimator, " in text


def test_a_section_names_the_commit_and_torch_that_it_began_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commits = ["before"]

    def collect_apart(part: str, *_: object) -> Section:
        commits.append("meanwhile")
        return Section(part, "", [HOLDS])

    monkeypatch.setattr(command, "commit", lambda: commits[-1])
    monkeypatch.setattr(command, "collect_apart", collect_apart)
    monkeypatch.setattr(command, "KEPT", tmp_path / "kept")
    command.main(["noise"], page_file=tmp_path / "page", quick=False, json_file=None, workers=1)
    text = (tmp_path / "page").read_text()
    assert "commit before." in text and "meanwhile" not in text and f"torch {torch.__version__}, " in text


def test_the_command_refuses() -> None:
    with pytest.raises(typer.BadParameter, match=r"expected parts of .*, got nois"):
        command.main(["nois"])
    with pytest.raises(typer.BadParameter, match="--json takes one part, got 2"):
        command.main(["noise", "fuzz"], json_file=Path("x.json"))


def test_a_fault_holds_only_where_its_test_passed(tmp_path: Path) -> None:
    properties = "<properties><property name='a fork' value='equal bits'/></properties>"
    report = tmp_path / "report.xml"
    report.write_text(f"<a><testcase name='test_a'>{properties}<failure message='other bits'/></testcase></a>")
    assert faults.findings(report) == [Finding("test_a", "other bits", faults.BOUND, False)]
    report.write_text(f"<a><testcase name='test_a'>{properties}</testcase></a>")
    assert faults.findings(report) == [Finding("a fork", "equal bits", faults.BOUND, True)]


def test_a_law_without_examples_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when hypothesis words its statistics otherwise."""
    monkeypatch.setattr(properties.subprocess, "run", lambda *_, **__: CompletedProcess([], 0, "21 passed", ""))
    *laws, verdict = properties.collect(quick=True).findings
    assert len(laws) > 20 and not any(law.holds for law in laws) and verdict.holds


@pytest.mark.parametrize(
    ("said", "reports"),
    [
        ("==7==WARNING: AddressSanitizer failed to allocate 0x7fffffffffffffff bytes", 0),
        ("==7==ERROR: AddressSanitizer: heap-buffer-overflow\nSUMMARY: AddressSanitizer: heap-buffer-overflow", 1),
        ("==7==ERROR: AddressSanitizer: SEGV on unknown address\nAddressSanitizer: nested bug in the same thread", 1),
        ("==7==AddressSanitizer: CHECK failed: asan_thread.cpp:1", 1),
        ("WARNING: ThreadSanitizer: data race (pid=7)", 1),
    ],
)
def test_a_report_counts_that_was_cut_off(tmp_path: Path, said: str, reports: int) -> None:
    class Here(Watched):
        folder = tmp_path

    (tmp_path / "report.7").write_text(said)
    finding = Here("here", [], [], "").reports("reports")
    assert (finding.measured, finding.holds) == (str(reports), not reports)
