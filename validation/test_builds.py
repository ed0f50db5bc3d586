"""The builds of CMakePresets.json, each with its tests: sanitizers, and other compilers, flags and machines.

**Bits.** A key names the same numbers whoever compiled the library. Each function of the core over some 20000 numbers
with all edges of its range, each CPU kernel for all types, tails and features, and each op through Python leave a
64-bit digest of their bits in tests/data/golden_bits.txt: one bit that differs anywhere changes a digest. All NaN count
as one, because IEEE 754 leaves their bits open. aarch64 runs NEON code by qemu. Each build also passes `core_test`,
which knows the mathematics and not the digests, where the C library has functions of long double to compare with.

**Sanitizers.** Under `asan` every allocation of torch lies between forbidden bytes, so that an access one element
beyond a tensor ends the process; Python's `-fwrapv` is taken back, and casts of floats beyond the integers count. Under
`tsan`, which quick runs leave out, each parallel loop of a kernel runs in three threads that ThreadSanitizer sees,
because it does not know OpenMP's barriers; sixteen Python threads call every op at once. torch and Python are not
instrumented. The CUDA kernels run as C++ on emulated blocks where CUDA's headers are, in `gcc-O0` with sanitizers, in
quick runs without them, in `gcc-O2`. valgrind, in `gcc-O2`, looks for memory that is read and was never written. Each
has to report the faults that planted_faults.cpp and tests/cpp/read_unwritten.cpp plant.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PRESETS = json.loads((ROOT / "CMakePresets.json").read_text())["configurePresets"]
IN_QUICK_RUNS = ("gcc-O2", "aarch64-gcc", "asan")
# Tests that are there where this machine has what they need: CUDA's headers, valgrind.
EMULATION = ("cuda_on_host_test", "foreach_on_host_test")
EXPECTED = {"gcc-O0": EMULATION, "gcc-O2": (*EMULATION, "memcheck", "planted_read_unwritten")}
PROGRAMS = {"aarch64-gcc": ("aarch64-linux-gnu-g++", "qemu-aarch64-static"), "aarch64-clang": ("qemu-aarch64-static",)}


def run(*command: object) -> None:
    # `python` has to be this one, for CMake and for ziglang
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    words = list(map(str, command))
    result = subprocess.run(words, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, f"{' '.join(words)}\n{result.stdout[-6000:]}"


@pytest.mark.parametrize("preset", [preset["name"] for preset in PRESETS if not preset.get("hidden")])
def test_preset(preset: str, quick: bool, tmp_path: Path, figure) -> None:
    if quick and preset not in IN_QUICK_RUNS:
        pytest.skip("left out of a quick run")
    missing = [program for program in PROGRAMS.get(preset, ()) if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not on PATH")
    report = tmp_path / "report.xml"
    tests = ["--label-exclude", "long"] if quick else ["--exclude-regex", "^pytest_quick$"]  # a part of pytest
    run("cmake", "--preset", preset, f"-DPython_EXECUTABLE={sys.executable}")
    run("cmake", "--build", ROOT / "build" / preset, "--parallel", os.cpu_count())
    ctest = ["ctest", "--test-dir", ROOT / "build" / preset, "--output-on-failure", "--output-junit", report]
    run(*ctest, "--test-output-size-passed", 10**6, *tests, "--no-tests=error")
    cases = list(ElementTree.parse(report).iter("testcase"))
    passed = [case.get("name", "") for case in cases if case.get("status") == "run"]
    planted = [name for name in passed if name.startswith("planted")]
    in_python = {
        name: int(re.findall(r"(\d+) passed", case.findtext("system-out", ""))[-1])
        for case in cases
        if (name := case.get("name", "")).startswith("pytest")
    }
    counts = [f"{len(passed) - len(planted) - len(in_python)} programs pass"]
    counts += [f"{count} tests in Python ({name})" for name, count in in_python.items()]
    counts += [f"{len(planted)} planted faults are reported"] if planted else []
    counts += [f"not run: {name}" for name in EXPECTED.get(preset, ()) if name not in passed]
    figure(f"build {preset}", "; ".join(counts), "all pass, all are reported")
    assert all(in_python.values())
    assert len(planted) >= {"asan": 1 if quick else 9, "tsan": 2}.get(preset, 0)
