"""Loads the compiled library `_C`, which registers torch.ops.illia_ext: the installed one, else one compiled now.

`ILLIA_EXT_JIT=1` compiles it through torch.utils.cpp_extension and never loads the installed one: two copies of
the same ops in one process would crash.
"""

import importlib
import importlib.util
import os
import sys
from types import ModuleType

import torch  # noqa: F401  (before _C: brings the symbols that it links to)

import illia_ext
from illia_ext import _build

__all__ = ["load"]


def load() -> ModuleType:
    """`illia_ext._C`.

    Raises:
        ValueError: ILLIA_EXT_JIT is neither 0 nor 1.
        ImportError: no library is installed and none can be compiled here; the message says what is missing.
    """
    name = "illia_ext._C"
    jit = os.environ.get("ILLIA_EXT_JIT", "0")
    if jit not in ("0", "1"):
        raise ValueError(f"ILLIA_EXT_JIT: expected 0 or 1, got {jit!r}")
    if jit == "0" and importlib.util.find_spec(name) is not None:
        return importlib.import_module(name)
    sys.modules[name] = _build.load_jit()
    return sys.modules[name]


_C = load()
illia_ext._C = _C  # type: ignore[attr-defined]  # what an import of an installed library does by itself
