"""One wheel under many torches: builds it, installs that very wheel beside each torch, runs the core tests there.

`python tools/matrix.py` makes an environment in build/matrix for each torch and keeps it for the next time;
`--env 2.11.0=FOLDER` takes one that exists, with torch and the packages of the extra `test`, and installs nothing into
it. The tests run from a copy beside no source folder, so they see the wheel. `-- -k pickle` hands options to pytest.
Prints one table; the exit code is 1 if a test failed anywhere, or a torch had none to run.
"""

import argparse
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
TORCHES = ["2.11.0", "2.13.0", "2.15.0"]
# of the checkout, which they read, and not of the wheel
READ_IT = ("bench", "cuda_", "elementary", "examples", "gpu_command", "matrix", "packaging")
CHECKOUT = [f"test_{name}*" for name in READ_IT]
ABOUT = """
import platform, sys, torch
from illia_ext import _C
import pytest
print(platform.python_version(), torch.__version__, _C.__file__)
"""


class Row(NamedTuple):
    torch: str
    python: str = ""
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0
    trouble: str = ""  # why there are no results


def pip(python: Path | str, *arguments: Path | str) -> None:
    """Raises RuntimeError with pip's last line."""
    command = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    constraints = str(ROOT / "constraints.txt")  # pip 23 reads the first for its build environments, pip 26 the second
    pins = {"PIP_CONSTRAINT": constraints, "PIP_BUILD_CONSTRAINT": constraints} if arguments[0] == "wheel" else {}
    result = subprocess.run(command, env={**os.environ, **pins}, stderr=subprocess.PIPE, text=True)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if "ERROR" in line] or result.stderr.splitlines()[-1:]
        raise RuntimeError(f"pip {arguments[0]}: {lines[-1] if lines else f'exit code {result.returncode}'}")


def build_wheel(folder: Path, isolated: bool) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    pip(sys.executable, "wheel", "--no-deps", *[] if isolated else ["--no-build-isolation"], "-w", folder, ROOT)
    return next(folder.glob("*.whl"))


def environment(torch: str, wheel: Path, folder: Path) -> Path:
    """Python of an environment with this torch and what the tests import; made where it is not complete."""
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, clear=True, with_pip=True)
        pip(python, "install", f"torch=={torch}", f"{wheel}[test]")
        (folder / "complete").touch()
    return python


def run_tests(torch: str, python: Path, wheel: Path, folder: Path, options: Sequence[str]) -> Row:
    """In `folder`, which then holds the installed wheel, the tests, and pytest's report."""
    shutil.rmtree(folder, ignore_errors=True)
    site, report = folder / "site", folder / "report.xml"
    pip(python, "install", "--no-deps", "--target", site, wheel)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns(*CHECKOUT, "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    environ = {**os.environ, "PYTHONPATH": str(site)}
    environ.pop("ILLIA_EXT_JIT", None)  # or the tests would not see the wheel

    about = subprocess.run([python, "-c", ABOUT], cwd=folder, env=environ, capture_output=True, text=True)
    if about.returncode:
        return Row(torch, trouble=(about.stderr.splitlines() or ["python ends without a word"])[-1])
    version, found, library = about.stdout.split()
    if found.split("+")[0] != torch or site not in Path(library).parents:
        return Row(torch, version, trouble=f"the environment has torch {found} and loads {library}")
    print(f"== torch {found}, {library}", flush=True)
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *options]
    ended = subprocess.run(pytest, cwd=folder, env=environ)
    if not report.exists():
        return Row(torch, version, trouble=f"pytest ends with {ended.returncode} and no report")
    return read_report(torch, version, report)


def read_report(torch: str, python: str, report: Path) -> Row:
    suite = ElementTree.parse(report).getroot().find("testsuite")
    tests, failures, errors, skipped = (int(suite.get(n)) for n in ("tests", "failures", "errors", "skipped"))
    trouble = "" if tests > skipped else "no test ran"
    failed = failures + errors
    return Row(torch, python, tests - failed - skipped, failed, skipped, float(suite.get("time")), trouble)


def table(rows: Sequence[Row]) -> str:
    lines = [["torch", "python", "passed", "failed", "skipped", "seconds", ""]]
    lines += [[*map(str, row[:5]), f"{row.seconds:.0f}", row.trouble] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def parse_environment(text: str) -> tuple[str, Path]:
    torch, _, folder = text.partition("=")
    python = Path(folder).absolute() / "bin" / "python"
    if not folder or not python.is_file():
        raise argparse.ArgumentTypeError(f"expected VERSION=FOLDER, a folder with bin/python, got {text!r}")
    return torch, python


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--torch", nargs="+", action="extend", metavar="VERSION", help=f"by default those of --env, or {TORCHES}"
    )
    parser.add_argument(
        "--env", nargs="+", action="extend", type=parse_environment, default=[], metavar="VERSION=FOLDER"
    )
    parser.add_argument("--no-isolation", action="store_true", help="build with this Python's own torch and setuptools")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "matrix", help="folder of all that is made")
    parser.add_argument("pytest", nargs="*", help="options of pytest, behind --")
    options = parser.parse_args(arguments)
    work, given = options.work.absolute(), dict(options.env)
    try:
        wheel = build_wheel(work / "wheel", not options.no_isolation)
    except RuntimeError as error:
        print(f"tools/matrix.py: {error}", file=sys.stderr)
        return 2
    rows = []
    for torch in options.torch or [*given] or TORCHES:
        try:
            python = given.get(torch) or environment(torch, wheel, work / f"env-{torch}")
            rows.append(run_tests(torch, python, wheel, work / f"run-{torch}", options.pytest))
        except RuntimeError as error:
            rows.append(Row(torch, trouble=str(error)))
    print(f"\n{wheel.name}\n{table(rows)}")
    return 1 if any(row.failed or row.trouble for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
