"""What goes wrong around the numbers must end in a sentence that names it, or in the right numbers: never in a crash, a
hang or silence. Each row is a fault that was made on purpose, by `tests/faults/test_faults*.py`, and what its user then
reads; the row holds where the test passed, which also compares every result after the fault with those before it, bit
for bit.

- **Memory.** A preloaded allocator lets the first allocation of each op fail, then the second, and so on to the last,
  forward and backward, of those that the library makes itself and those that torch makes for tensors. Apart from that,
  limits of address space rise in steps of a third of a tensor until the op runs.
- **The library's file.** One that is another machine's, another Python's or, in a checkout, older than its sources is
  refused. A cut or overwritten file is left to the package manager, whose record has a hash of it: the process that
  maps one may crash.
- **Compiling at import.** One process is killed and one is interrupted while they compile; then two come at once.
- **Threads.** Sixteen call every op at once, forward and backward, on tensors that they share and on their own.
- **Fork.** torch's own ops wait for ever in a child of a process that has used OpenMP's threads, unless it calls
  `torch.set_num_threads(1)`, as workers of a DataLoader do. Ours work on one thread there, but wait as well where torch
  copies for them (a strided tensor, or a prior of several elements that has not mu's shape or not the arithmetic type,
  as beside half types), and where illia_ext is imported only after the fork.
- **Signals.** An op does not look for them while it computes: KeyboardInterrupt comes when it has returned.

A limit of memory on several threads is left out: OpenMP ends a process in which it cannot start its threads, with a
sentence of its own. So is a torch that is really older than 2.10: its version is only pretended.
"""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from validation.evidence import Finding, Section
from validation.variants import ROOT

__all__ = ["collect"]

BOUND = "the error says so, or equal bits"


def findings(report: Path) -> list[Finding]:
    """One for each fault that tests recorded, with the first sentence, and one for each test that did not pass."""
    recorded: dict[str, list[str]] = {}
    failed = []
    for case in ElementTree.parse(report).iter("testcase"):
        problems = [child for child in case if child.tag in ("failure", "error", "skipped")]
        for problem in problems:
            failed.append(Finding(case.get("name", ""), problem.get("message", ""), BOUND, False))
        for sentence in () if problems else case.iter("property"):
            recorded.setdefault(sentence.get("name", ""), []).append(sentence.get("value", ""))
    passed = []
    for fault, sentences in recorded.items():
        cases = f" ({len(sentences)} cases)" if len(sentences) > 1 else ""
        passed.append(Finding(fault + cases, sentences[0], BOUND, True))
    return passed + failed


def collect(quick: bool) -> Section:
    tests = sorted((ROOT / "tests" / "faults").glob("test_faults*.py"))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *["-m", "not slow"] * quick, *tests]
        result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if result.returncode:
            print(result.stdout)
        verdict = Finding("pytest's own verdict", f"exit code {result.returncode}", "0", result.returncode == 0)
        return Section("Faults", __doc__, [*(findings(report) if report.exists() else []), verdict])
