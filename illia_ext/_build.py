"""How the C++ library is built: the one description that setup.py, CMake and the JIT loader read.

Only the standard library is imported at the top: setup.py runs this file where torch lies on disk but cannot
be imported. The library uses the LibTorch stable ABI alone, so it runs on every torch >= 2.10, whichever of
them gave the headers.
"""

import fcntl
import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

__all__ = ["CSRC", "compile_flags", "link_flags", "load_jit", "sources", "torch_dir"]

TORCH_MINIMUM = (2, 10)  # also in pyproject.toml and, as hexadecimal, in TORCH_TARGET_VERSION below
CXX_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",  # fused only where written: every instruction set gives the same bits
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-DTORCH_TARGET_VERSION=0x020A000000000000ULL",
]

_PACKAGE = Path(__file__).resolve().parent
CSRC = _PACKAGE / "csrc" if (_PACKAGE / "csrc").is_dir() else _PACKAGE.parent / "csrc"  # else: a checkout


def sources() -> list[str]:
    """C++ sources relative to CSRC, as csrc/SOURCES.txt lists them."""
    return (CSRC / "SOURCES.txt").read_text().split()


def torch_dir() -> Path | None:
    """Folder of torch >= 2.10 in the environment to install into, else on sys.path; torch is not imported."""
    for folder in [sysconfig.get_path("platlib"), sysconfig.get_path("purelib"), *sys.path]:
        for torch in importlib.metadata.distributions(name="torch", path=[folder]):
            include = Path(str(torch.locate_file("torch/include")))
            if tuple(int(n) for n in torch.version.split(".")[:2]) >= TORCH_MINIMUM and include.is_dir():
                return include.parent
    return None


def _require_torch() -> Path:
    torch = torch_dir()
    if torch is None:
        raise ModuleNotFoundError(f"compiling illia_ext needs torch >= 2.10, and {sys.executable} has none")
    return torch


def compile_flags() -> list[str]:
    """Flags of a C++ source, include folders too. Raises ModuleNotFoundError without torch or pybind11."""
    torch = _require_torch()
    if importlib.util.find_spec("pybind11") is None:
        raise ModuleNotFoundError(
            f"compiling illia_ext needs pybind11, and {sys.executable} has none: pip install 'illia_ext[jit]'"
        )
    import pybind11

    # messages of torch's headers name their file: without the folders of this machine
    anonymous = [f"-ffile-prefix-map={folder}/=" for folder in (CSRC, torch / "include", pybind11.get_include())]
    # torch bundles an older pybind11: behind -idirafter it is found after the one just imported
    return [*CXX_FLAGS, *anonymous, f"-I{CSRC}", f"-I{pybind11.get_include()}", f"-idirafter{torch / 'include'}"]


def link_flags() -> list[str]:
    """Flags of the link step; no rpath, because torch is always imported before the library."""
    return [f"-L{_require_torch() / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu"]


def _require_ninja_and_compiler() -> str:
    """The PATH on which both are found; raises ImportError with the one sentence that helps."""
    # Python run as .venv/bin/python, without activation, has its own ninja beside it and not on PATH.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])
    if shutil.which("ninja", path=path) is None:
        raise ImportError("compiling illia_ext needs ninja, and PATH has none: pip install 'illia_ext[jit]'")
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(shlex.split(compiler)[0], path=path) is None:
        raise ImportError(
            f"compiling illia_ext needs a C++ compiler, and PATH has no {compiler!r}: install g++, "
            "or name another compiler in the environment variable CXX"
        )
    return path


def load_jit() -> ModuleType:
    """Compiles the library for the running torch, seconds when nothing changed, and loads it.

    Raises ImportError when a tool is missing or the operators are in this process already,
    and RuntimeError with the compiler's output when the compilation fails.
    """
    flags = [shlex.quote(flag) for flag in compile_flags()]
    os.environ["PATH"] = _require_ninja_and_compiler()

    import torch
    from torch.utils import cpp_extension

    if hasattr(torch.ops.illia_ext, "standard_normal"):
        raise ImportError("illia_ext's operators are in this process already; a second copy would crash it")
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root()
    folder = Path(root) / f"illia_ext-{sys.implementation.cache_tag}-torch-{torch.__version__}"
    folder.mkdir(parents=True, exist_ok=True)
    print(f"illia_ext: compiling the C++ library in {folder}", file=sys.stderr, flush=True)
    with open(folder / "illia_ext.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Before 2.15 torch waits for ever on the lock that a killed process left. We hold ours: nobody holds that.
        (folder / "lock").unlink(missing_ok=True)
        return cpp_extension.load(
            name="illia_ext_C",
            sources=[str(CSRC / name) for name in sources()],
            extra_cflags=flags,
            extra_ldflags=[shlex.quote(flag) for flag in link_flags()],
            build_directory=str(folder),
        )
