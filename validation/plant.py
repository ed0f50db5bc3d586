"""In the environment of a sanitizer: `plant.py FAULT LIBRARY REPORT` plants a fault in a process of its own, which has
to end badly and to report it. `plant.py count_loops` looks whether the kernels' loops run in threads.cpp.
"""

import ctypes
import subprocess
import sys
import threading

import torch


def plant(fault: str, library: str) -> None:
    """Calls the fault on a tensor of torch's."""
    function, tensor = getattr(ctypes.CDLL(library), fault), torch.ones(4)
    arguments = (ctypes.c_void_p(tensor.data_ptr()), ctypes.c_int64(tensor.numel()))
    callers = 2 if fault == "race_of_callers" else 1
    threads = [threading.Thread(target=function, args=arguments) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def check(fault: str, library: str, report: str) -> None:
    child = subprocess.run([sys.executable, __file__, fault, library], capture_output=True, text=True)
    assert child.returncode != 0 and report in child.stderr, f"exit code {child.returncode}: {child.stderr}"


def count_loops() -> None:
    from illia_ext import random

    count = ctypes.CDLL(None).count_loops
    before = count()
    torch.ops.illia_ext.standard_normal(random.key(0), [10**5], dtype=torch.float32)
    assert count() > before, "a kernel has called another loop than that of threads.cpp"


if __name__ == "__main__":
    fault, *others = sys.argv[1:]
    count_loops() if fault == "count_loops" else check(fault, *others) if len(others) == 2 else plant(fault, *others)
