"""
The words behind the noise go through dieharder (Robert G. Brown; from Debian's packages), all tests that it calls
"Good" but Marsaglia and Tsang's GCD, which takes minutes. `trust/cpp/words.cpp` streams them, compiled from
`csrc/core/philox.h`, the very header of the kernels: the blocks of one key, and the first block of each of consecutive
seeds. Keys are fixed, each test runs once, with dieharder's own sizes.

A test gives one or more p-values, of the p-values of its 100 runs by Kolmogorov-Smirnov; they are suspicious at both
ends. The smallest of p and 1 - p, times twice their number (Bonferroni), must stay above 5.7e-7. dieharder prints eight
digits, so in practice it is a printed 0 or 1 that fails: 10^-8 a p-value.
"""

import os
import subprocess
from pathlib import Path

from illia_ext import _C
from trust.debian import program
from trust.evidence import P_BOUND, Finding, Section, Table
from trust.laws import two_sided, worst_of
from trust.variants import BUILD, ROOT

SEED = 2026
STREAMS = {"blocks": "blocks of one key", "seeds": "consecutive seeds"}
# Numbers of dieharder's tests, by the seconds that one takes.
SECOND = ["-d 0", "-d 4", "-d 8", "-d 11", "-d 15", "-d 100", "-d 101", "-d 204", "-d 206"]
SECONDS = [
    *("-d 1", "-d 3", "-d 9", "-d 10", "-d 12", "-d 13", "-d 16"),
    *("-d 200 -n 4", "-d 202 -n 4", "-d 205", "-d 207", "-d 208", "-d 209"),
]
LONG = ["-d 2", "-d 102", "-d 201 -n 3", "-d 203 -n 8"]


def build() -> Path:
    binary = BUILD / "words"
    BUILD.mkdir(parents=True, exist_ok=True)
    compiler = os.environ.get("CXX", "c++")
    source = ROOT / "trust" / "cpp" / "words.cpp"
    subprocess.run([compiler, "-O2", "-std=c++17", f"-I{ROOT / 'csrc'}", source, "-o", binary], check=True)
    return binary


def words(binary: Path, stream: str) -> subprocess.Popen:
    """Raw on its stdout, without end: until the reader closes it."""
    return subprocess.Popen([binary, stream, str(SEED)], stdout=subprocess.PIPE)


def first_words(binary: Path, stream: str, blocks: int) -> list[int]:
    with words(binary, stream) as source:
        raw = source.stdout.read(16 * blocks)
        source.stdout.close()
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
        source.stdout.close()
    rows = [line.split(",") for line in result.stdout.splitlines() if "," in line]
    if result.returncode or not rows:
        raise RuntimeError(f"dieharder {test} ends with {result.returncode}: {result.stdout}{result.stderr}")
    return rows[0][0].strip(), [float(p) for _, p in rows]


def collect(quick: bool) -> Section:
    tests = (
        {"blocks": SECOND, "seeds": SECOND[:5]}
        if quick
        else {"blocks": SECOND + SECONDS + LONG, "seeds": SECOND + SECONDS}
    )
    binary = build()
    findings, rows = [same_words_finding(binary)], {}
    for stream, what in STREAMS.items():
        found = dict(dieharder(binary, stream, test) for test in tests[stream])
        p = [two_sided(value) for values in found.values() for value in values]
        worst = worst_of(p)
        least = min(found, key=lambda name: min(map(two_sided, found[name])))
        findings.append(
            Finding(
                f"{len(found)} tests of dieharder, {what}",
                f"p = {worst:.3g} ({len(p)} p-values, the worst of {least}: {min(p):.3g})",
                f"p > {P_BOUND}",
                worst > P_BOUND,
            )
        )
        for name, values in found.items():
            rows.setdefault(name, {})[stream] = values
    cells = [
        [name, *(", ".join(f"{p:.4f}" for p in of.get(stream, [])[:4]) for stream in STREAMS)]
        for name, of in rows.items()
    ]
    return Section(
        "Words",
        __doc__,
        findings,
        [Table("The tests and their p-values (the first four).", ["test", *STREAMS.values()], cells)],
    )
