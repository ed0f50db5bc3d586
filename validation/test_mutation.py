"""Would the tests notice if a line of the mathematics were wrong? universalmutator breaks each line of csrc/core in
every way that mutation/core.rules names, one break at a time, and two programs judge each of these mutants. `core_test`
knows the mathematics. `golden_core_test` knows the committed bits: what it alone notices has changed and need not be
wrong. A mutant with the object code of the original is equivalent, by proof. mutation/survivors.txt gives the reason
for each mutant that is left. Lines that only nvcc reads are not broken.

The two programs are shared libraries, compiled once a session, with functions of the core that are not inlined. Each
mutant is one small library more, loaded before them, so that its functions take the place of theirs.
"""

import collections
import contextlib
import io
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from universalmutator import mutator

from illia_ext._native import build

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "csrc" / "core"
HEADERS = sorted(path.name for path in CORE.glob("*.h") if path.name != "function.h")  # which has no arithmetic
FUNCTIONS = "tests/cpp/core_functions.cpp"
FLAGS = [flag for flag in build.CXX_FLAGS if not flag.startswith(("-D", "-fvisibility"))]
SECONDS = 20  # a mutant that runs for longer never ends: the tests take 0.1
# Judges in their order, with what each is given: the second is asked about what the first does not notice.
JUDGES = {"core_test": "philox_known_answers.txt", "golden_core_test": "golden_bits.txt"}
STILLBORN, SAME_CODE, SURVIVED = "does not compile", "same object code", "survived"


class Mutant(NamedTuple):
    header: str
    number: int  # of the line, from 1
    original: str
    broken: str

    def __str__(self) -> str:
        return f"{self.header}: {self.original.strip()} ==> {self.broken.strip()}"


def cuda_lines(lines: list[str]) -> set[int]:
    """Numbers of the lines that only nvcc reads: from `#if defined(__CUDA...` to its #else or #endif."""
    numbers, inside, depth = set(), None, 0
    for number, line in enumerate(lines, 1):
        word = line.strip()
        if word.startswith("#if"):
            depth += 1
            if inside is None and "defined(__CUDA" in word:
                inside = depth
        elif word.startswith(("#else", "#endif")):
            if inside == depth:
                inside = None
            depth -= word.startswith("#endif")
        if inside is not None:
            numbers.add(number)
    return numbers


def mutants(header: str) -> Iterator[Mutant]:
    lines = (CORE / header).read_text().splitlines(keepends=True)
    skipped = cuda_lines(lines)
    with contextlib.redirect_stdout(io.StringIO()):
        rules = str(Path(__file__).parent / "mutation" / "core.rules")
        found = mutator.mutants_regexp(lines, [rules], ignorePatterns=[])
    for number, broken, *_ in sorted(found, key=lambda mutant: mutant[:2]):
        if number not in skipped:
            yield Mutant(header, number, lines[number - 1], broken)


def explained(header: str) -> set[str]:
    lines = (Path(__file__).parent / "mutation" / "survivors.txt").read_text().splitlines()
    return {line for line in lines if line.startswith(f"{header}: ")}


class Jury:
    """The tests, compiled once in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for part in ("shadow", "broken"):
            (folder / part / "core").mkdir(parents=True)
        not_inlined = (CORE / "function.h").read_text().replace("always_inline", "noipa")
        (folder / "shadow" / "core" / "function.h").write_text(not_inlined)
        for judge in JUDGES:
            library = folder / f"{judge}.so"
            self.compile("-O1", "-shared", f"tests/cpp/{judge}.cpp", "-o", library)
            self.compile(library, "-o", folder / judge)  # whose main is the library's
        headers = folder / "standard.h"
        headers.write_text("".join(f"#include <{name}>\n" for name in ("cmath", "cstdint", "cstring", "limits")))
        self.compile("-O0", "-x", "c++-header", headers, "-o", f"{headers}.gch")
        self.whole = {source: self.code(source) for source in (FUNCTIONS, "csrc/cpu/gaussian_base.cpp")}
        self.emit()
        assert all(map(self.passes, JUDGES)), "the tests fail before anything is broken"

    def judge(self, mutant: Mutant) -> str:
        lines = (CORE / mutant.header).read_text().splitlines(keepends=True)
        lines[mutant.number - 1] = mutant.broken
        broken = self.folder / "broken" / "core" / mutant.header
        broken.write_text("".join(lines))
        try:
            self.emit()
            killer = next((judge for judge in JUDGES if not self.passes(judge)), None)
            if killer is None and all(self.code(source) == code for source, code in self.whole.items()):
                return SAME_CODE
            return killer or SURVIVED
        except subprocess.CalledProcessError:
            return STILLBORN
        finally:
            broken.unlink()

    def compile(self, *arguments: object) -> None:
        folders = [f"-I{self.folder}/broken", f"-I{self.folder}/shadow", "-Icsrc"]
        command = ["g++", *FLAGS, "-w", "-fPIC", *folders, *map(str, arguments)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)

    def emit(self) -> None:
        """Compiles the core's functions, as they stand with one line broken."""
        standard = self.folder / "standard.h"
        self.compile("-O0", "-include", standard, "-shared", "-nostdlib", FUNCTIONS, "-o", self.folder / "core.so")

    def passes(self, judge: str) -> bool:
        environ = {**os.environ, "LD_PRELOAD": str(self.folder / "core.so")}
        command = ["timeout", str(SECONDS), self.folder / judge, f"tests/data/{JUDGES[judge]}"]
        with subprocess.Popen(command, cwd=ROOT, env=environ, stderr=subprocess.PIPE) as process:
            complaint = process.stderr.readline()  # the first one is enough; "0 checks failed" is none
            if complaint and not complaint.startswith(b"0 "):
                process.terminate()
                return False
            return process.wait() == 0

    def code(self, source: str) -> bytes:
        """The optimised code of the functions, or of a kernel that uses them."""
        target = self.folder / "code.s"
        self.compile("-O2", "-S", source, "-o", target)
        return target.read_bytes()


@pytest.fixture(scope="session")
def jury(tmp_path_factory: pytest.TempPathFactory) -> Jury:
    return Jury(tmp_path_factory.mktemp("jury"))


@pytest.mark.parametrize("header", HEADERS)
def test_mutants_of_the_core_are_noticed(header: str, quick: bool, jury: Jury, figure: Callable[..., None]) -> None:
    known, every = explained(header), list(mutants(header))
    step = max(1, min(40, len(every) // 3)) if quick else 1
    chosen = [mutant for n, mutant in enumerate(every) if n % step == 0 or str(mutant) in known]
    judged = {mutant: jury.judge(mutant) for mutant in chosen}
    outcomes = collections.Counter(judged.values())
    survivors = {str(mutant) for mutant, outcome in judged.items() if outcome == SURVIVED}
    figure(
        f"mutants of {header}",
        f"{outcomes['core_test']} fail the mathematics, {outcomes['golden_core_test']} the golden bits alone, "
        f"{outcomes[SAME_CODE]} have the same code, {len(survivors)} survive; {outcomes[STILLBORN]} do not compile",
        "survivors are those of survivors.txt",
    )
    assert survivors - known == set(), "nothing notices these, and survivors.txt does not explain them"
    unnoticed = {str(mutant) for mutant, outcome in judged.items() if outcome in (SURVIVED, SAME_CODE)}
    assert known - unnoticed == set(), "survivors.txt explains these, which are noticed"
    assert outcomes[STILLBORN] < len(chosen)
