"""The programs that print tests/data/golden_bits.txt, which `python -m validation.golden` writes.

They need no torch, so that any compiler can build them for any machine.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from illia_ext._native import build
from validation.variants import BUILD, ROOT

__all__ = ["FILE", "PROGRAMS", "committed", "compile_program", "op_lines", "run"]

FILE = ROOT / "tests" / "data" / "golden_bits.txt"
PROGRAMS = {
    "golden_core_test": [],
    "golden_kernels_test": [f"csrc/cpu/gaussian_{capability}.cpp" for capability in ("base", "avx2", "avx512")],
}
# of the library's own flags those that a program without torch and Python has a use for
FLAGS = [flag for flag in build.CXX_FLAGS if not flag.startswith(("-D", "-fvisibility"))]
HEAD = """\
# The bits of the core, of the CPU kernels, of the ops and of the random keys, as digests of many numbers each: written
# by `python -m validation.golden`, compared by tests/cpp/golden_*_test.cpp, tests/ops/test_golden.py and `make
# validation`.
#
# To change a line is a breaking change: a key stored by an earlier version then draws other numbers. Say so in
# CHANGELOG.md, under the version that does it, before you write this file anew. A new line breaks nothing.
"""


def run(command: Sequence[str | Path], environ: dict[str, str] | None = None) -> str:
    """What it prints. Raises RuntimeError with its last words."""
    result = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    if result.returncode:
        words = (result.stderr or result.stdout).strip()[-2000:]
        raise RuntimeError(f"{shlex.join(map(str, command))} ended with {result.returncode}: {words}")
    return result.stdout


def compile_program(
    name: str, compiler: Sequence[str], flags: Sequence[str], folder: str, environ: dict[str, str] | None = None
) -> Path:
    """Builds tests/cpp/`name`.cpp. `flags` follow the library's own."""
    program = BUILD / "golden" / folder / name
    program.parent.mkdir(parents=True, exist_ok=True)
    sources = [f"tests/cpp/{name}.cpp", *PROGRAMS.get(name, [])]
    run([*compiler, *FLAGS, "-Werror", "-Icsrc", *flags, *sources, "-o", program], environ)
    return program


def committed(*prefixes: str) -> list[str]:
    """The file's lines that begin so."""
    return [line for line in FILE.read_text().splitlines() if line.startswith(prefixes)]


def op_lines(environ: dict[str, str]) -> list[str]:
    """By the package `illia_ext` that Python finds in this environment."""
    path = os.pathsep.join([environ["PYTHONPATH"], "tests"])
    return run([sys.executable, "tests/ops/golden_ops.py"], environ | {"PYTHONPATH": path}).splitlines()


def main() -> None:
    programs = [compile_program(name, ["g++"], [], "written") for name in PROGRAMS]
    printed = [line for program in programs for line in run([program]).splitlines()]
    here = {**os.environ, "PYTHONPATH": str(ROOT)}
    FILE.write_text(HEAD + "\n".join([*printed, *op_lines(here)]) + "\n")


if __name__ == "__main__":
    main()
