"""Breaks the core, one place at a time, and asks the tests: universalmutator says how, g++ and two programs judge.

The tests are shared libraries, compiled once, with functions of the core that are not inlined. Each mutant is one small
library more, loaded before them, so that its functions take the place of theirs.
"""

import contextlib
import hashlib
import io
import os
import subprocess
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from universalmutator import mutator

from validation import golden
from validation.variants import BUILD, ROOT

__all__ = ["CORE", "RULES", "Jury", "Mutant", "Outcome", "all_mutants", "digest_of_sources"]

CORE = ROOT / "csrc" / "core"
RULES = ROOT / "validation" / "mutation.rules"
FOLDER = BUILD / "mutation"
FUNCTIONS = "tests/cpp/core_functions.cpp"
SECONDS = 20  # a mutant that runs for longer never ends: the tests take 0.1


class Mutant(NamedTuple):
    file: str
    number: int  # of the line, from 1
    original: str
    broken: str

    def __str__(self) -> str:
        return f"{self.file}:{self.number}: {self.original.strip()} ==> {self.broken.strip()}"


class Outcome(Enum):
    STILLBORN = "do not compile"
    MATHEMATICS = "killed by mathematics"
    GOLDEN = "killed by the golden bits alone"
    SAME_CODE = "equivalent: the same object code"
    SURVIVED = "survived"


JUDGES = ("cpp/check.h", "cpp/points.h", "cpp/core_*.h", "cpp/core_*.cpp", "cpp/golden.h", "cpp/golden_core_test.cpp")
# in their order: what the first does not notice is asked of the second
TESTS = {"core_test": Outcome.MATHEMATICS, "golden_core_test": Outcome.GOLDEN}


def cuda_lines(lines: list[str]) -> set[int]:
    """Numbers of lines that only nvcc reads: of `#if defined(__CUDA...` to its #else or #endif."""
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


def mutants_of(path: Path) -> Iterator[Mutant]:
    lines = path.read_text().splitlines(keepends=True)
    skipped = cuda_lines(lines)
    with contextlib.redirect_stdout(io.StringIO()):
        found = mutator.mutants_regexp(lines, [str(RULES)], ignorePatterns=[])
    for number, broken, *_ in sorted(found, key=lambda mutant: mutant[:2]):
        if number not in skipped:
            yield Mutant(path.name, number, lines[number - 1], broken)


def all_mutants() -> list[Mutant]:
    return [mutant for path in sorted(CORE.glob("*.h")) if path.name != "function.h" for mutant in mutants_of(path)]


def digest_of_sources() -> str:
    """Of what is broken, by which rules, and of the tests that judge it."""
    tests = [path for name in JUDGES for path in sorted((ROOT / "tests").glob(name))]
    digest = hashlib.sha256("\n".join(golden.committed("core.")).encode())
    for path in (*sorted(CORE.glob("*.h")), RULES, *tests):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class Jury:
    """The tests, compiled once. Raises RuntimeError where they do not build, or where the core as it is fails them."""

    def __init__(self) -> None:
        for folder in ("shadow", "broken"):
            (FOLDER / folder / "core").mkdir(parents=True, exist_ok=True)
        not_inlined = (CORE / "function.h").read_text().replace("always_inline", "noipa")
        (FOLDER / "shadow" / "core" / "function.h").write_text(not_inlined)
        self._restore()
        for test in TESTS:
            library = FOLDER / f"{test}.so"
            golden.run(["g++", *self._flags("-O1"), "-shared", f"tests/cpp/{test}.cpp", "-o", library])
            golden.run(["g++", library, "-o", FOLDER / test])  # its main is the program's
        headers = FOLDER / "standard.h"
        headers.write_text("".join(f"#include <{name}>\n" for name in ("cmath", "cstdint", "cstring", "limits")))
        golden.run(["g++", *self._flags("-O0"), "-x", "c++-header", headers, "-o", f"{headers}.gch"])
        self._emit()
        self._whole = {source: self._code(source) for source in (FUNCTIONS, "csrc/cpu/gaussian_base.cpp")}
        for test in TESTS:
            if not self._passes(test):
                raise RuntimeError(f"{test} fails before anything is broken")

    def judge(self, mutant: Mutant) -> Outcome:
        lines = (CORE / mutant.file).read_text().splitlines(keepends=True)
        lines[mutant.number - 1] = mutant.broken
        (FOLDER / "broken" / "core" / mutant.file).write_text("".join(lines))
        try:
            self._emit()
            for test, outcome in TESTS.items():
                if not self._passes(test):
                    return outcome
            return Outcome.SAME_CODE if self._same_code() else Outcome.SURVIVED
        except RuntimeError:
            return Outcome.STILLBORN
        finally:
            self._restore()

    def _restore(self) -> None:
        for path in (FOLDER / "broken" / "core").glob("*.h"):
            path.unlink()

    def _flags(self, optimisation: str) -> list[str]:
        folders = [f"-I{FOLDER}/broken", f"-I{FOLDER}/shadow", "-Icsrc"]
        return [*golden.FLAGS, optimisation, "-w", "-fPIC", *folders]

    def _emit(self) -> None:
        """The core's functions, as they stand with one line broken."""
        flags = [*self._flags("-O0"), "-include", f"{FOLDER}/standard.h"]
        golden.run(["g++", *flags, "-shared", "-nostdlib", FUNCTIONS, "-o", FOLDER / "core.so"])

    def _passes(self, test: str) -> bool:
        """Ends at the first complaint."""
        environ = {**os.environ, "LD_PRELOAD": str(FOLDER / "core.so")}
        data = golden.FILE.name if "golden" in test else "philox_known_answers.txt"
        command = ["timeout", str(SECONDS), FOLDER / test, f"tests/data/{data}"]
        with subprocess.Popen(command, cwd=ROOT, env=environ, stderr=subprocess.PIPE) as process:
            complaint = process.stderr.readline()  # "0 checks failed" is none
            if complaint and not complaint.startswith(b"0 "):
                process.terminate()
                return False
            return process.wait() == 0

    def _same_code(self) -> bool:
        """Of the functions and of a kernel's use of them, optimised: a proof that a mutant changes nothing."""
        return all(self._code(source) == code for source, code in self._whole.items())

    def _code(self, source: str) -> bytes:
        target = FOLDER / "code.s"
        golden.run(["g++", *self._flags("-O2"), "-S", source, "-o", target])
        return target.read_bytes()
