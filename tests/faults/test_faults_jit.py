"""The library is compiled at import, and something is missing, fails, is killed, or happens twice at once.

Beside what test_packaging.py has: no pybind11, ninja, torch or compiler, and a lock that a killed process left.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fault_imports import SECONDS, imports

from illia_ext._native import build

pytestmark = pytest.mark.usefixtures("cpu")
FAILS = r"compiling illia_ext in CACHE\S* fails: "
FOLDER = ".*; the environment variable TORCH_EXTENSIONS_DIR names another folder$"
COMPILER = "the reason stands above; the environment variable CXX names another compiler$"
# Root may write anywhere: the case gives all its capabilities up. The header is version 3 of the kernel's, for itself.
WITHOUT_CAPABILITIES = (
    "import ctypes; assert not ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)())"
)
FAULTS = {
    "a file in place of the cache": ("CACHE.write_text('')", f"ImportError: {FAILS}.*Not a directory{FOLDER}"),
    "a read-only cache": (
        f"CACHE.mkdir(mode=0o500); {WITHOUT_CAPABILITIES}",
        f"ImportError: {FAILS}.*Permission denied{FOLDER}",
    ),
    "no room for a file of 1000 bytes": (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))",
        f"ImportError: {FAILS}.*File too large{FOLDER}",
    ),
    "a compiler that is none": ("os.environ['CXX'] = 'false'", FAILS + COMPILER),
    "a flag that the compiler refuses": ("os.environ['CXX'] = 'c++ -fno-such-flag'", FAILS + COMPILER),
}


def test_faults(tmp_path: Path) -> None:
    package = tmp_path / "package"
    shutil.copytree(build.CSRC, package / "csrc")
    shutil.copytree(
        Path(build.__file__).parents[1], package / "illia_ext", ignore=shutil.ignore_patterns("*.so", "csrc")
    )
    cases = {}
    for n, (what, (line, _)) in enumerate(FAULTS.items()):
        cache = tmp_path / f"cache {n}"
        environ = {"TORCH_EXTENSIONS_DIR": str(cache), "ILLIA_EXT_CUDA": "0"}
        cases[what] = (package, f"os.environ |= {environ}; CACHE = Path({str(cache)!r}); {line}")
    for n, (what, ended) in enumerate(imports(cases, tmp_path).items()):
        said = ended.said.replace(str(tmp_path / f"cache {n}"), "CACHE")
        assert ended.code == 1, said
        sentence = said.strip().splitlines()[-1]
        assert re.match(FAULTS[what][1], sentence), said


WRAPPER = """#!/bin/sh
# Writes down what it is asked to compile, waits while there is a file HOLD, and compiles fast.
case "$*" in *" -c "*)
  echo "$@" >> CALLS
  while [ -e HOLD ]; do sleep 0.1; done
esac
exec c++ "$@" -O0
"""
# What runs in the background of a shell ignores SIGINT, and so would all that it starts.
IMPORT = """import signal; signal.signal(signal.SIGINT, signal.default_int_handler)
from illia_ext import _C, GaussianDistribution as G; print(G(3).sample().shape, _C.__file__)"""


@pytest.mark.slow
def test_killed_interrupted_and_twice_at_once(tmp_path: Path) -> None:
    """One process is killed while it compiles, and one interrupted; then two come at once, and one of them compiles."""
    hold, calls, compiler = tmp_path / "hold", tmp_path / "calls", tmp_path / "compiler"
    compiler.write_text(WRAPPER.replace("HOLD", shlex.quote(str(hold))).replace("CALLS", shlex.quote(str(calls))))
    compiler.chmod(0o700)
    environ = {"ILLIA_EXT_JIT": "1", "ILLIA_EXT_CUDA": "0", "TORCH_EXTENSIONS_DIR": str(tmp_path), "CXX": str(compiler)}
    path = os.pathsep.join([str(Path(build.__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environ = {**os.environ, **environ, "PYTHONPATH": path}
    hold.touch()
    calls.touch()

    def start() -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [sys.executable, "-c", IMPORT], env=environ, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def compiled() -> list[str]:
        return re.findall(r" -c \S+/(\S+\.cpp) ", calls.read_text())

    def start_and_wait_for_compiler() -> subprocess.Popen[str]:
        before, process, deadline = len(compiled()), start(), time.monotonic() + SECONDS
        while len(compiled()) == before:
            assert time.monotonic() < deadline, "no compiler was called"
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        return process

    try:
        killed = start_and_wait_for_compiler()
        killed.kill()
        assert killed.wait(SECONDS) == -signal.SIGKILL

        interrupted = start_and_wait_for_compiler()
        os.killpg(interrupted.pid, signal.SIGINT)  # as a terminal does
        assert interrupted.communicate(timeout=SECONDS)[1].strip().splitlines()[-1] == "KeyboardInterrupt"
        calls.write_text("")
    finally:
        hold.unlink()  # ends what the killed process left behind, too
    pair = [start(), start()]
    outputs = [process.communicate(timeout=SECONDS) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert Path(outputs[0][0].split()[-1]).parent.stat().st_mode & 0o777 == 0o700  # what others write there would run
    assert all("compiling the C++ library in" in errors for _, errors in outputs)
    assert sorted(compiled()) == sorted(Path(name).name for name in build.sources(".cpp"))
