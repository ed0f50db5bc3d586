"""
The stream of our noise is that of `torch.func._random`, which torch 2.15 has for the CPU. Here both draw from the same
random keys (seeds and offsets of any 64 bits and around 2^31, 2^32, 2^63 and 2^64, so that a wrap falls into a sample),
shapes, numbers of keys and dtypes, from a fixed seed. Words and derived keys must be equal.

Normals come of the same words by other elementary functions. Let u be half the machine epsilon of the arithmetic and R
the longest radius. torch's angle 2 pi u1 has two roundings, so its sine errs by 2 pi 2u; the sines and cosines of both
add 4u at most, logarithm, square root and product of both 7u of the normal: (4 pi + 11) u R in all. A wrong word would
differ by about 1. Half types are rounded float32, so they may lie one spacing apart besides.
"""

import os
import subprocess
import tempfile
import venv
from pathlib import Path

from validation.evidence import Section
from validation.variants import BUILD, ROOT

TORCH = "2.15.0"
GIVEN = "ILLIA_EXT_TORCH_2_15"  # a folder with bin/python, torch 2.15 in it


def python() -> Path:
    """Of the environment that is named, that `make test TORCH=2.15.0` left, or of one that is made here and kept."""
    folders = [os.environ.get(GIVEN), ROOT / f".venv-torch-{TORCH}"]
    for folder in filter(None, folders):
        if (Path(folder) / "bin" / "python").exists():
            return Path(folder) / "bin" / "python"
    folder = BUILD / f"torch-{TORCH}"
    interpreter = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, clear=True, with_pip=True)
        unpinned = {name: value for name, value in os.environ.items() if "CONSTRAINT" not in name}  # make's name torch
        command = [interpreter, "-m", "pip", "install", "--quiet", f"torch=={TORCH}"]
        result = subprocess.run(command, env=unpinned, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if result.returncode:
            raise RuntimeError(f"torch {TORCH} cannot be installed; {GIVEN} may name its folder: {result.stdout}")
        (folder / "complete").touch()
    return interpreter


def collect(quick: bool) -> Section:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "section.json"
        command = [python(), "-m", "validation.stateless_cases", file]
        result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if result.returncode:
            raise RuntimeError(f"validation.stateless_cases ends with {result.returncode}: {result.stdout}")
        section = Section.read(file)
    section.text = __doc__
    return section
