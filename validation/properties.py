"""Laws that every op keeps, tried by hypothesis on random arguments: shapes with no dimension, no element or nine
dimensions, views with any strides, all four dtypes, keys from all corners of 64 bits, none to three samples, priors of
one element or of any shape that broadcasts.

The laws stand in `tests/ops/test_laws*.py`, each with its tolerance and the sentence that derives it; most are exact,
bit for bit. Each fails on the first example that breaks it. The examples are drawn from a fixed seed, so a run repeats;
the suite tries fewer of the same kind.
"""

import re
import subprocess
import sys

from validation.evidence import Finding, Section
from validation.variants import ROOT

__all__ = ["collect"]

TITLE = "Property tests"


def examples_by_law(output: str) -> dict[str, tuple[int, int]]:
    """Of hypothesis' statistics: how many examples passed and how many failed, by test."""
    counts = {}
    for law, report in re.findall(
        r"^tests/ops/test_laws\w*\.py::test_(\w+):\n(.*?)(?=^tests/|^=+ |\Z)", output, re.M | re.S
    ):
        found = re.findall(r"(\d+) passing, (\d+) failing, and \d+ invalid", report)
        counts[law] = tuple(sum(int(phase[i]) for phase in found) for i in (0, 1))
    return counts


def collect(quick: bool) -> Section:
    paths = sorted(ROOT.glob("tests/ops/test_laws*.py"))
    laws = [law for path in paths for law in re.findall(r"^def test_(\w+)", path.read_text(), re.M)]
    profile = "suite" if quick else "validation"
    options = ["--quiet", f"--hypothesis-profile={profile}", "--hypothesis-show-statistics", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, *paths]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(result.stdout, result.stderr, sep="\n")
    counts, findings = examples_by_law(result.stdout), []
    for law in laws:
        passed, failed = counts.get(law, (0, 0))
        measured = f"{passed} examples, {failed} fail"
        findings.append(Finding(law.replace("_", " "), measured, "none fails", passed > 0 and not failed))
    findings.append(Finding("pytest's own verdict", f"exit code {result.returncode}", "0", result.returncode == 0))
    total = sum(passed for passed, _ in counts.values())
    return Section(TITLE, f"{__doc__}\n{total} examples in all.", findings)
