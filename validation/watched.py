"""Python with a library that a sanitizer watches: its environment, the suite in it, and what was reported."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tools.matrix import CHECKOUT, Row, read_report
from validation.evidence import Finding
from validation.variants import BUILD, ROOT, build_variant, environment

__all__ = ["REPORT", "Watched"]

# Remarks of the runtimes, such as a refused allocation, have none of these. A runtime that fails in the middle of its
# report writes no summary.
REPORT = re.compile(r"ERROR: |SUMMARY: |FATAL: |CHECK failed|data race|nested bug|DEADLYSIGNAL|runtime error: ")


class Watched(NamedTuple):
    """A library built with `flags`, in a folder of its own beside a copy of the tests."""

    name: str
    flags: Sequence[str]
    runtimes: Sequence[str]  # libraries of the compiler's, loaded before all others
    options: str  # of every runtime

    @property
    def folder(self) -> Path:
        return BUILD / f"{self.name}-run"

    def build(self) -> None:
        """And no report is left from before."""
        build_variant(self.name, self.flags)
        shutil.rmtree(self.folder, ignore_errors=True)
        ignored = shutil.ignore_patterns(*CHECKOUT, "__pycache__")
        shutil.copytree(ROOT / "tests", self.folder / "tests", ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", self.folder)

    def compile(self, source: Path) -> Path:
        """A shared library of one source, by the same compiler with the same flags."""
        target = self.folder / f"{source.stem}.so"
        command = [BUILD / self.name / "compiler", "-std=c++17", "-O3", "-fwrapv", "-fPIC", "-shared", source]
        subprocess.run([*command, "-o", target, "-pthread"], check=True)
        return target

    def environment(self, before: Sequence[Path] = (), log: str = "report", **more: str) -> dict[str, str]:
        """In which each process writes what it reports into the file <log>.<its number> of the folder.

        `before`: libraries that are loaded before torch and ours.
        """
        names = [*self.runtimes, "libstdc++.so"]  # Python loads the latter too late for them
        found = [subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip() for name in names]
        options = {f"{name}_OPTIONS": f"log_path={self.folder}/{log}:{self.options}" for name in ("ASAN", "TSAN")}
        # Beside ASan's runtime that of UBSan writes to stderr; ASan reports the abort that follows, into the file if
        # both runtimes name it.
        options["UBSAN_OPTIONS"] = f"log_path={self.folder}/{log}:print_stacktrace=1:abort_on_error=1"
        return (
            environment(BUILD / self.name / "lib")
            | options
            | {"LD_PRELOAD": ":".join([*found, *map(str, before)])}
            | more
        )

    def run(self, code: str, *arguments: object, **more: Any) -> str:
        """Output of a script. Raises RuntimeError with its error where it ends badly."""
        command = [sys.executable, "-c", code, *map(str, arguments)]
        environ, tests = self.environment(**more), self.folder / "tests"
        environ["PYTHONPATH"] = os.pathsep.join([environ["PYTHONPATH"], str(tests), str(tests / "ops")])
        ended = subprocess.run(command, cwd=tests, env=environ, capture_output=True, text=True)
        if ended.returncode:
            raise RuntimeError(f"exit code {ended.returncode}: {ended.stderr[-2000:]}")
        return ended.stdout

    def tests(self, but: Sequence[str]) -> list[str]:
        names = sorted(path.stem.removeprefix("test_") for path in (self.folder / "tests").glob("*/test_*.py"))
        return [name for name in names if name not in but]

    def test(self, names: Sequence[str], **more: Any) -> Row:
        """Runs tests/*/test_<name>.py, but for the slow ones."""
        report = self.folder / "report.xml"
        report.unlink(missing_ok=True)
        files = [next((self.folder / "tests").glob(f"*/test_{name}.py")) for name in names]
        # pytest's own handler of signals would stand before the sanitizer's, and it would keep a last word on stderr
        options = ["-q", "-s", "-p", "no:cacheprovider", "-p", "no:faulthandler", f"--junitxml={report}"]
        chosen = ["-m", "not slow", "-k", "not compil"]
        command = [sys.executable, "-m", "pytest", *options, *chosen, *files]
        ended = subprocess.run(command, cwd=self.folder, env=self.environment(**more))
        if not report.exists():
            return Row(torch.__version__, trouble=f"pytest ends with {ended.returncode} and no report")
        return read_report(torch.__version__, "", report)

    def finding(self, what: str, names: Sequence[str], **more: Any) -> Finding:
        row = self.test(names, **more)
        measured = row.trouble or f"{row.passed} passed, {row.failed} failed in {row.seconds:.0f} s"
        return Finding(what, measured, "all pass", not (row.failed or row.trouble))

    def reports(self, what: str) -> Finding:
        """Of all processes since the build."""
        said = [path.read_text() for path in self.folder.glob("report.[0-9]*")]
        found = [text for text in said if REPORT.search(text)]
        print(*found, sep="\n", file=sys.stderr)
        return Finding(what, str(len(found)), "0", not found)
