"""Imports illia_ext under one fault after another, in forks of one process that has imported torch: that takes seconds.

`imports` runs this file as a program, which reads the cases from its standard input.
"""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch.utils.cpp_extension  # noqa: F401  (for all cases, some of which change what it says)

__all__ = ["Ended", "imports"]

SECONDS = 120  # a program that takes longer hangs


class Ended(NamedTuple):
    code: int
    said: str  # standard output and errors

    @property
    def sentence(self) -> str:
        return self.said.strip().splitlines()[-1]


def imports(cases: Mapping[str, tuple[Path, str]], folder: Path) -> dict[str, Ended]:
    """How each case ended: import from a folder that holds the package, after a line of Python; run in `folder`."""
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "ILLIA_EXT_JIT")}
    text = json.dumps([[str(package), line] for package, line in cases.values()])
    program = subprocess.run(
        [sys.executable, __file__],
        cwd=folder,
        env=environ,
        input=text,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=SECONDS,
    )
    return {name: Ended(*ended) for name, ended in zip(cases, json.loads(program.stdout))}


def import_after(package: str, line: str) -> int:
    """The exit code, as an interpreter's."""
    sys.path.insert(0, package)
    try:
        exec(line)
        from illia_ext import GaussianDistribution

        print(GaussianDistribution(3).sample().shape, flush=True)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def fork(package: str, line: str) -> Ended:
    output, into = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(into, 1)
        os.dup2(into, 2)
        os._exit(import_after(package, line))
    os.close(into)
    with open(output) as file:
        said = file.read()
    return Ended(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said)


if __name__ == "__main__":
    # An editable install would lend its library to a package that has none.
    sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder)]
    print(json.dumps([fork(*case) for case in json.load(sys.stdin)]))
