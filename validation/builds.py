"""A key names the same numbers whoever compiled the library. Each function of the core over some 20000 numbers with all
edges of its range, each CPU kernel for all types, tails and features, and each op through Python leave a 64-bit digest
of their bits; the digests are committed in `tests/data/golden_bits.txt`. All NaN count as one, because IEEE 754 leaves
their bits open. Another build is right when it has the same digests: one bit that differs anywhere changes one, and no
tolerance is involved. The builds differ in compiler, optimisation, instruction set and machine; on aarch64 the kernels
are NEON code, run by qemu's user mode. Each build also passes `core_test`, which knows the mathematics and not the
digests, but for clang on aarch64, whose C library computes no logarithm in long double to compare with. And the same
sources in two folders must give the same library, byte for byte. A quick run leaves out the libraries and all that
clang++ builds.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from illia_ext import _C
from validation import debian, golden
from validation.evidence import Finding, Section
from validation.variants import BUILD, ROOT, build_variant, environment

CLANG = (sys.executable, "-m", "ziglang", "c++")
EQUAL = "every digest is the committed one"


class Build(NamedTuple):
    """How the programs are compiled; for aarch64 statically, so that qemu needs no library of it."""

    name: str
    compiler: Sequence[str]
    flags: Sequence[str]
    aarch64: bool = False
    package: str | None = None  # Debian's, of the compiler
    has_long_double: bool = True  # in its C library, which core_test takes for exact


QUICK = [
    Build("g++ -O0, UBSan", ["g++"], ["-O0", "-fsanitize=undefined", "-fno-sanitize-recover"]),
    Build("g++ -O3", ["aarch64-linux-gnu-g++"], ["-O3", "-static"], True, "g++-aarch64-linux-gnu"),
]
FULL = [
    *QUICK,
    Build("clang++ -O3", CLANG, ["-O3"]),
    Build("g++ -O3 -march=native", ["g++"], ["-O3", "-march=native"]),
    Build("g++ -O2", ["g++"], ["-O2"]),
    Build("clang++ -O3", CLANG, ["-O3", "-static", "-target", "aarch64-linux-musl"], True, has_long_double=False),
]


def capabilities() -> list[str]:
    """Those whose kernels this CPU can run, by the word of the library in use."""
    every = ["base", "avx2", "avx512"]
    return every[: every.index(_C.cpu_capability()) + 1]


def compiler_of(build: Build) -> tuple[Sequence[str], dict[str, str]]:
    if build.package is None:
        return build.compiler, dict(os.environ)
    path, environ = debian.program(build.compiler[0], build.package)
    environ["PATH"] = os.pathsep.join([str(Path(path).parent), environ["PATH"]])  # its assembler lies beside it
    return [path], environ


def run_programs(build: Build, sets: Sequence[str]) -> None:
    """Raises RuntimeError where one does not build, does not run or says that something differs."""
    folder = "".join(letter for letter in build.name + "aarch64" * build.aarch64 if letter.isalnum())
    compiler, environ = compiler_of(build)
    qemu, runs_in = [], None
    if build.aarch64:
        program, runs_in = debian.program("qemu-aarch64-static", "qemu-user-static")
        qemu = [program]
    programs: dict[str, list[str | Path]] = {
        "golden_core_test": [golden.FILE],
        "golden_kernels_test": [golden.FILE, *sets],
    }
    if build.has_long_double:
        programs["core_test"] = ["tests/data/philox_known_answers.txt"]
    for name, arguments in programs.items():
        compiled = golden.compile_program(name, compiler, build.flags, folder, environ)
        golden.run([*qemu, compiled, *arguments], runs_in)


def judge_programs(build: Build) -> Finding:
    sets = ["base"] if build.aarch64 else capabilities()
    what = f"{'aarch64' if build.aarch64 else 'x86-64'}, {build.name}: core and kernels"
    try:
        run_programs(build, sets)
    except RuntimeError as error:
        return Finding(what, str(error), EQUAL, False)
    counts = [len(golden.committed(prefix)) for prefix in ("core.", "kernels.")]
    kernels = "NEON" if build.aarch64 else ", ".join(sets)
    return Finding(what, f"{counts[0]} and {counts[1]} digests equal; kernels: {kernels}", EQUAL, True)


def judge_ops(what: str, library: Path) -> Finding:
    """Through Python, by the library in this folder."""
    expected, printed = golden.committed("ops.", "random."), golden.op_lines(environment(library))
    differ = set(expected) ^ set(printed)
    return Finding(what, f"{len(expected)} digests, {len(differ)} lines differ", EQUAL, not differ)


def judge_bytes(first: Path, second: Path) -> Finding:
    one, other = (next(folder.glob("illia_ext/_C*.so")).read_bytes() for folder in (first, second))
    differ = sum(a != b for a, b in zip(one, other)) + abs(len(one) - len(other))
    measured = f"{differ} of {len(one)} bytes differ"
    return Finding("the library, built by g++ in two folders", measured, "none differs", differ == 0)


def copy_checkout() -> Path:
    """What setup.py reads, in another folder."""
    copy = BUILD / "copied checkout"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "_backend.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("csrc", "illia_ext"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return copy


def judge_libraries() -> list[Finding]:
    by_gcc = build_variant("gcc")
    by_clang = build_variant("clang", ["-O1"], compiler=" ".join(CLANG))
    return [
        judge_bytes(by_gcc, build_variant("gcc_copied", root=copy_checkout())),
        judge_ops("x86-64, g++ -O3: ops and keys through Python", by_gcc),
        judge_ops("x86-64, clang++ -O1: ops and keys through Python", by_clang),
    ]


def collect(quick: bool) -> Section:
    findings = [judge_programs(build) for build in (QUICK if quick else FULL)]
    findings += [judge_ops("this library: ops and keys through Python", ROOT)] if quick else judge_libraries()
    return Section("Reproducible bits", __doc__, findings)
