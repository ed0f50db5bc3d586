"""
The words behind the noise go through dieharder (Robert G. Brown; from Debian's packages), all tests that it calls
"Good". `validation/cpp/words.cpp` streams them, compiled from `csrc/core/philox.h`, the very header of the kernels: the
blocks of one key, and the first block of each of consecutive seeds, which the longest tests leave out. Keys are fixed,
each test runs once, from the start of the stream, with dieharder's own sample sizes (of Marsaglia and Tsang's GCD a
tenth); where a test has patterns of several lengths, `-n` names the one.

A test gives one or more p-values, most of them of the p-values of 100 runs by Kolmogorov-Smirnov; they are suspicious
at both ends. Twice the smallest of all p and 1 - p, times their number (Bonferroni), must stay above 5.7e-7. dieharder
prints eight digits, so in practice a printed 0 or 1 fails: 10^-8 a p-value.
"""

import os
import subprocess
from pathlib import Path

from illia_ext import _C
from validation.debian import program
from validation.evidence import P_BOUND, Finding, Section, Table
from validation.laws import two_sided, worst_of
from validation.variants import BUILD, ROOT

SEED = 2026
STREAMS = {"blocks": "blocks of one key", "seeds": "consecutive seeds"}
# Numbers of dieharder's tests, by the seconds that one takes.
SECOND = ["-d 0", "-d 4", "-d 8", "-d 11", "-d 15", "-d 100", "-d 101", "-d 204", "-d 206"]
SECONDS = [
    *("-d 1", "-d 3", "-d 9", "-d 10", "-d 12", "-d 13", "-d 16"),
    *("-d 200 -n 4", "-d 202 -n 4", "-d 205", "-d 207", "-d 208", "-d 209"),
]
LONG = ["-d 2", "-d 17 -t 1000000", "-d 102", "-d 201 -n 3", "-d 203 -n 8"]


def build() -> Path:
    binary = BUILD / "words"
    BUILD.mkdir(parents=True, exist_ok=True)
    compiler = os.environ.get("CXX", "c++")
    source = ROOT / "validation" / "cpp" / "words.cpp"
    subprocess.run([compiler, "-O2", "-std=c++17", f"-I{ROOT / 'csrc'}", source, "-o", binary], check=True)
    return binary


def words(binary: Path, stream: str) -> subprocess.Popen:
    """Raw on its stdout, without end: until the reader closes it."""
    return subprocess.Popen([binary, stream, str(SEED)], stdout=subprocess.PIPE)


def first_words(binary: Path, stream: str, blocks: int) -> list[int]:
    with words(binary, stream) as source:  # closes its stdout, which ends it
        raw = source.stdout.read(16 * blocks)
    return [int.from_bytes(raw[i : i + 4], "little") for i in range(0, len(raw), 4)]


def library_words(stream: str, blocks: int) -> list[int]:
    place = {"blocks": lambda i: ([i, 0, 0, 0], [SEED, 0]), "seeds": lambda i: ([0] * 4, [SEED + i, 0])}[stream]
    return [word for i in range(blocks) for word in _C.core.philox4x32(*place(i))]


def same_words_finding(binary: Path) -> Finding:
    blocks = 10_000
    differ = sum(
        ours != theirs
        for stream in STREAMS
        for ours, theirs in zip(first_words(binary, stream, blocks), library_words(stream, blocks), strict=True)
    )
    what = f"words of the first {blocks} blocks of both streams, against the library's own"
    return Finding(what, f"{differ} differ", "0", differ == 0)


def dieharder(binary: Path, stream: str, test: str) -> tuple[str, list[float]]:
    """The test's name and its p-values. Raises RuntimeError with dieharder's words."""
    path, environ = program("dieharder", "dieharder")
    command = [path, "-g", "200", *test.split(), "-c", ",", "-D", "test_name", "-D", "pvalues"]
    with words(binary, stream) as source:
        result = subprocess.run(command, env=environ, stdin=source.stdout, capture_output=True, text=True)
    rows = [line.split(",") for line in result.stdout.splitlines() if "," in line]
    if result.returncode or not rows:
        raise RuntimeError(f"dieharder {test} ends with {result.returncode}: {result.stdout}{result.stderr}")
    return rows[0][0].strip(), [float(p) for _, p in rows]


def finding(tests: dict[str, list[float]], what: str) -> Finding:
    p = {name: [two_sided(value) for value in values] for name, values in tests.items()}
    least = min(p, key=lambda name: min(p[name]))
    all_p = [value for values in p.values() for value in values]
    worst = worst_of(all_p)
    measured = f"p = {worst:.3g} ({len(all_p)} p-values, the worst of {least}: {min(p[least]):.3g})"
    return Finding(f"{len(tests)} tests of dieharder, {what}", measured, f"p > {P_BOUND}", worst > P_BOUND)


def cell(p_values: list[float]) -> str:
    if len(p_values) > 2:
        return f"{len(p_values)}, of {min(p_values):.8f} to {max(p_values):.8f}"
    return ", ".join(f"{p:.8f}" for p in p_values) or "not run"


def collect(quick: bool) -> Section:
    usual = SECOND + SECONDS
    tests = {"blocks": SECOND, "seeds": SECOND[:5]} if quick else {"blocks": usual + LONG, "seeds": usual}
    binary = build()
    found = {stream: dict(dieharder(binary, stream, test) for test in tests[stream]) for stream in STREAMS}
    findings = [same_words_finding(binary), *(finding(found[stream], what) for stream, what in STREAMS.items())]
    rows = [[name, *(cell(found[stream].get(name, [])) for stream in STREAMS)] for name in found["blocks"]]
    table = Table("P-values as dieharder prints them.", ["test", *STREAMS.values()], rows)
    return Section("Words", __doc__, findings, [table])
