"""Imports the package from each folder named, in forks of one process that has imported torch, which takes seconds.

Beside the folder it writes FOLDER.exit, the exit code, and FOLDER.said, the output. See test_faults_library.py.
"""

import os
import sys
import traceback
from pathlib import Path

import torch


def import_from(folder: Path) -> None:
    sys.path.insert(0, str(folder))
    if folder.name == "beside torch 2.9.1":
        torch.__version__ = type(torch.__version__)("2.9.1")
    from illia_ext import GaussianDistribution

    print(GaussianDistribution(3).sample().shape)


if __name__ == "__main__":
    # An editable install would lend its library to a package that has none.
    sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder)]
    for folder in map(Path, sys.argv[1:]):
        child = os.fork()
        if child == 0:
            output = os.open(f"{folder}.said", os.O_CREAT | os.O_WRONLY)
            os.dup2(output, 1)
            os.dup2(output, 2)
            try:
                import_from(folder)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            sys.stdout.flush()
            os._exit(0)
        Path(f"{folder}.exit").write_text(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
