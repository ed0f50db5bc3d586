"""The command line of the evidence: `python -m validation --help`."""

import importlib
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import torch
import typer

from bench import machine
from illia_ext import _C
from validation.evidence import Finding, Section
from validation.page import page
from validation.variants import BUILD, ROOT

# Modules of this package in the order of the page, each with collect(quick) -> Section, and the seconds that it takes:
# the longest begin first, so that all workers end together.
PARTS = {
    "noise": 175,
    "battery": 170,
    "stateless": 85,
    "estimator": 20,
    "accuracy": 50,
    "properties": 165,
    "faults": 65,
    "sanitizers": 490,
    "races": 100,
    "fuzz": 75,
    "mutation": 105,
    "builds": 500,
}
KEPT = BUILD / "sections"  # of full runs
LEFT_OUT_IF_QUICK = ("stateless", "properties", "faults")  # asks for another torch, of 4 GB; the suite has the others


def collect(part: str, quick: bool) -> Section:
    """A part that raises is a finding that does not hold."""
    began = time.monotonic()
    try:
        section = importlib.import_module(f"validation.{part}").collect(quick)
        if not section.findings:
            section.findings = [Finding("something was looked at", "no finding", "one or more", False)]
    except Exception as error:
        traceback.print_exc()
        section = Section(part, "", [Finding("the part runs to its end", repr(error), "no error", False)])
    section.seconds = time.monotonic() - began
    return section


def collect_apart(part: str, quick: bool, folder: Path) -> Section:
    """In a process of its own, on one core: a part may crash, hold locks and patch what it likes."""
    result = folder / f"{part}.json"
    command = [sys.executable, "-m", "validation", part, "--json", str(result), *["--quick"] * quick]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "MAX_JOBS": "1"}
    with open(folder / f"{part}.log", "w+") as log:
        ended = subprocess.run(command, cwd=ROOT, env=environ, stdout=log, stderr=subprocess.STDOUT)
        log.seek(0)
        output = log.read()
    section = Section.read(result) if result.exists() else Section(part, "")
    if ended.returncode or not section.findings:
        crash = f"exit code {ended.returncode}: {output[-300:].strip()}"
        section.findings.append(Finding("the part runs to its end", crash, "no crash", False))
    failed = [finding for finding in section.findings if not finding.holds]
    print(f"{part}: {len(section.findings) - len(failed)} of {len(section.findings)} hold, {section.seconds:.0f} s")
    if failed:
        print(output, *failed, sep="\n", flush=True)
    return section


def commit() -> str:
    told = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return told.stdout.strip() or "unknown"


def about() -> str:
    here = machine.describe(torch.device("cpu"), torch.get_num_threads())
    build = _C.build_info()
    return (
        f"{here['date']}, {here['cpu']} ({here['cores']} cores, {here['capability']}, {here['memory_gib']} GiB), "
        f"torch {torch.__version__}, Python {platform.python_version()}, {build['compiler']}, commit {commit()}"
    )


def main(
    parts: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(PARTS)}; by default all.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller numbers, some three minutes; what CI runs.")] = False,
    page_file: Annotated[Path | None, typer.Option("--page", help="Write the page here.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Run one part in this process; write it here.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Parts that run at once, each on one core.")] = 2,
) -> None:
    """Gathers the evidence; the exit code is 1 where a finding does not hold."""
    chosen = parts or [part for part in PARTS if not (quick and part in LEFT_OUT_IF_QUICK)]
    if unknown := set(chosen) - set(PARTS):
        raise typer.BadParameter(f"expected parts of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    if json_file is not None:
        if len(chosen) != 1:
            raise typer.BadParameter(f"--json takes one part, got {len(chosen)}")
        collect(chosen[0], quick).write(json_file)
        return
    began, where = time.monotonic(), about()  # the commit is that of the beginning: the checkout may move on meanwhile
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        longest_first = sorted(chosen, key=lambda part: -PARTS[part])
        begun = {part: pool.submit(collect_apart, part, quick, Path(folder)) for part in longest_first}
        ordered = [part for part in PARTS if part in chosen]
        sections = [begun[part].result() for part in ordered]
    whole = not quick and set(chosen) == set(PARTS)
    command = "make validation" if whole else " ".join(["python -m validation", *(parts or []), *["--quick"] * quick])
    for part, section in zip(ordered, sections):
        section.run = f"`{command}`, {where}"
        if not quick:
            KEPT.mkdir(parents=True, exist_ok=True)
            section.write(KEPT / f"{part}.json")
    if page_file is not None and not quick:  # a part that ran alone takes its place among the others
        ordered = [part for part in PARTS if (KEPT / f"{part}.json").exists()]
        sections = [Section.read(KEPT / f"{part}.json") for part in ordered]
    missing = [part for part in PARTS if part not in ordered]
    text = page(sections, command, time.monotonic() - began, missing)
    if page_file is None:
        print(text)
    else:
        page_file.parent.mkdir(parents=True, exist_ok=True)
        page_file.write_text(text)
    if not all(finding.holds for section in sections for finding in section.findings):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
