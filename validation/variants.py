"""The CPU library built once more, with other flags or by another compiler, apart from the checkout's own."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["BUILD", "ROOT", "build_variant", "environment"]

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "validation"


def build_variant(name: str, flags: Sequence[str] = (), compiler: str | None = None, root: Path = ROOT) -> Path:
    """The folder that holds this package `illia_ext`. `flags` go to compiler and linker, after the usual ones; `root`
    is the checkout, or a copy of it.

    Raises RuntimeError with the compiler's words.
    """
    folder = BUILD / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    last = folder / "compiler"  # CXXFLAGS would come before our own -O3, which would win
    last.write_text(f'#!/bin/sh\nexec {compiler or os.environ.get("CXX", "g++")} "$@" {shlex.join(flags)}\n')
    last.chmod(0o755)
    environ = {**os.environ, "ILLIA_EXT_CUDA": "0", "CC": str(last), "CXX": str(last)}
    command = [sys.executable, "setup.py", "--quiet", "build", f"--build-base={folder}", f"--build-lib={folder}/lib"]
    result = subprocess.run(command, cwd=root, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        raise RuntimeError(f"{name} does not build:\n{result.stdout}")
    return folder / "lib"


def environment(variant: Path) -> dict[str, str]:
    """In which Python imports that package, seen from outside the checkout."""
    environ = {**os.environ, "PYTHONPATH": str(variant)}
    environ.pop("ILLIA_EXT_JIT", None)
    return environ
