"""Breaks the core, one place at a time, and asks the tests: universalmutator says how, g++ and two programs judge.

The tests are compiled once, with functions of the core that are not inlined; then each mutant is one small object file,
linked in before them, so that its functions take the place of theirs.
"""

import contextlib
import hashlib
import io
import subprocess
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from universalmutator import mutator

from trust import golden
from trust.variants import BUILD, ROOT

__all__ = ["CORE", "RULES", "Jury", "Mutant", "Outcome", "all_mutants", "digest_of_sources"]

CORE = ROOT / "csrc" / "core"
RULES = ROOT / "trust" / "mutation.rules"
FOLDER = BUILD / "mutation"
SECONDS = 20  # a mutant that runs for longer never ends: the tests take 0.1


class Mutant(NamedTuple):
    file: str
    number: int  # of the line, from 1
    original: str
    broken: str

    def __str__(self) -> str:
        return f"{self.file}:{self.number}: {self.original.strip()} ==> {self.broken.strip()}"

    @property
    def name(self) -> str:
        """Stays when lines are added above."""
        return f"{self.file}: {self.original.strip()} ==> {self.broken.strip()}"


class Outcome(Enum):
    STILLBORN = "do not compile"
    MATHEMATICS = "killed by mathematics"
    GOLDEN = "killed by the golden bits alone"
    SAME_CODE = "equivalent: the same object code"
    SURVIVED = "survived"


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
    """Of what is broken and by which rules."""
    paths = [*sorted(CORE.glob("*.h")), RULES]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


class Jury:
    """The tests, compiled once. Raises RuntimeError where they do not build, or where the core as it is fails them."""

    def __init__(self) -> None:
        (FOLDER / "shadow" / "core").mkdir(parents=True, exist_ok=True)
        (FOLDER / "broken" / "core").mkdir(parents=True, exist_ok=True)
        not_inlined = (CORE / "function.h").read_text().replace("always_inline", "noipa")
        (FOLDER / "shadow" / "core" / "function.h").write_text(not_inlined)
        self._clear()
        for name in ("core_test", "golden_core_test"):
            self._compile(f"tests/cpp/{name}.cpp", FOLDER / f"{name}.o", ["-O1"])
        headers = FOLDER / "standard.h"
        headers.write_text("".join(f"#include <{name}>\n" for name in ("cmath", "cstdint", "cstring", "limits")))
        golden.run(["g++", *self._flags("-O0"), "-x", "c++-header", headers, "-o", f"{headers}.gch"])
        self._emit()
        self._whole = self._code()
        for name in ("core_test", "golden_core_test"):
            golden.run(self._linked(name))

    def judge(self, mutant: Mutant) -> Outcome:
        path = CORE / mutant.file
        lines = path.read_text().splitlines(keepends=True)
        lines[mutant.number - 1] = mutant.broken
        (FOLDER / "broken" / "core" / mutant.file).write_text("".join(lines))
        try:
            try:
                self._emit()
            except RuntimeError:
                return Outcome.STILLBORN
            for name, outcome in (("core_test", Outcome.MATHEMATICS), ("golden_core_test", Outcome.GOLDEN)):
                try:
                    if subprocess.run(self._linked(name), cwd=ROOT, capture_output=True, timeout=SECONDS).returncode:
                        return outcome
                except subprocess.TimeoutExpired:
                    return outcome
            return Outcome.SAME_CODE if self._code() == self._whole else Outcome.SURVIVED
        finally:
            self._clear()

    def _clear(self) -> None:
        for path in (FOLDER / "broken" / "core").glob("*.h"):
            path.unlink()

    def _flags(self, optimisation: str) -> list[str]:
        folders = [f"-I{FOLDER}/broken", f"-I{FOLDER}/shadow", "-Icsrc"]
        return [*golden.FLAGS, optimisation, "-w", *folders]

    def _compile(self, source: str, target: Path, flags: list[str]) -> None:
        golden.run(["g++", *self._flags(flags[0]), *flags[1:], "-c", source, "-o", target])

    def _emit(self) -> None:
        """The core's functions, as they stand with one line broken."""
        include = ["-O0", "-include", f"{FOLDER}/standard.h"]
        self._compile("tests/cpp/core_functions.cpp", FOLDER / "core_functions.o", include)

    def _linked(self, name: str) -> list[str | Path]:
        """The command that runs that test. The linker takes the first of several definitions."""
        program = FOLDER / name
        golden.run(["g++", FOLDER / "core_functions.o", FOLDER / f"{name}.o", "-o", program])
        data = "philox_known_answers.txt" if name == "core_test" else golden.FILE.name
        return [program, f"tests/data/{data}"]

    def _code(self) -> bytes:
        """Of the core's functions, optimised: equal code is a proof that a mutant changes nothing."""
        target = FOLDER / "core_functions.s"
        self._compile("tests/cpp/core_functions.cpp", target, ["-O2", "-S"])
        return target.read_bytes()
