"""Loads the compiled library `_C`, which registers torch.ops.illia_ext: the installed one, else one compiled now.

`ILLIA_EXT_JIT=1` compiles it through torch.utils.cpp_extension and never loads the installed one: two copies of
the same ops in one process would crash.
"""

import importlib
import importlib.util
import os
import platform
import sys
from pathlib import Path
from types import ModuleType

import torch  # before _C: brings the symbols that it links to

import illia_ext
from illia_ext._native import build

__all__ = ["load"]

NAME = "illia_ext._C"


def load() -> ModuleType:
    """`illia_ext._C`.

    Raises:
        ValueError: ILLIA_EXT_JIT is neither 0 nor 1.
        ImportError: torch is too old, the library is another machine's or, in a checkout, older than its sources, or
            none is installed and none can be compiled here; the message says what is missing.
    """
    jit = os.environ.get("ILLIA_EXT_JIT", "0")
    if jit not in ("0", "1"):
        raise ValueError(f"ILLIA_EXT_JIT: expected 0 or 1, got {jit!r}")
    minimum = ".".join(map(str, build.TORCH_MINIMUM))
    # by numbers, as torch_dir has it: the builds of NVIDIA's containers are called 2.10.0a0+..., which sorts below 2.10
    if tuple(map(int, torch.__version__.split(".")[:2])) < build.TORCH_MINIMUM:
        raise ImportError(f"illia_ext needs torch >= {minimum}, got {torch.__version__}: pip install -U torch")
    if jit == "0":
        found = importlib.util.find_spec(NAME)
        if found is not None and found.origin is not None:
            return _load_installed(Path(found.origin))
        _name_other_libraries()
    sys.modules[NAME] = build.load_jit()
    return sys.modules[NAME]


def _load_installed(library: Path) -> ModuleType:
    try:
        module = importlib.import_module(NAME)
    except ImportError as error:
        if error.path is None:  # the library's own words
            raise
        raise ImportError(
            f"{library} does not load on {platform.machine()} beside Python {platform.python_version()} and torch "
            f"{torch.__version__} ({error}); install illia_ext again on this machine, or ILLIA_EXT_JIT=1 compiles it",
            path=error.path,
        ) from error
    is_checkout = build.CSRC.is_dir() and build.CSRC.parent == Path(__file__).resolve().parents[2]
    if is_checkout and module.build_info()["sources"] not in (None, build.sources_digest()):
        raise ImportError(
            f"{library} was built from other sources than those in {build.CSRC}; pip install -e . builds it anew"
        )
    return module


def _name_other_libraries() -> None:
    """Says for which other Pythons there is a library, before one is compiled for this one."""
    others = sorted(path.name for path in Path(__file__).parents[1].glob("_C.*.so"))
    if others:
        print(
            f"illia_ext: no library for {sys.implementation.cache_tag}, only {', '.join(others)}",
            file=sys.stderr,
            flush=True,
        )


_C = load()
illia_ext._C = _C  # type: ignore[attr-defined]  # what an import of an installed library does by itself
