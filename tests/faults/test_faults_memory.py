"""Memory runs out: an error that says so, in a process that goes on and still has the right numbers. And no leak."""

import ctypes
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fault_ops import ROUNDS
from helpers import run_python

pytestmark = pytest.mark.usefixtures("cpu")
# Ours, of a vector of the C++ library, and torch's own for the tensors that it makes: gradients of ones, zeros.
SENTENCE = re.compile(
    r"RuntimeError: out of memory: cannot (?:allocate|copy) a torch\.\w+ tensor of shape \[[\d, ]*\]$"
    r"|(?:Memory|Runtime)Error: std::bad_alloc$"  # torch 2.15 makes a RuntimeError of it
    r"|RuntimeError: \[enforce fail at alloc_cpu.cpp:\d+\] .*DefaultCPUAllocator: can't allocate memory: you tried to "
    r"allocate \d+ bytes"
)


def run_ops(call: str, **environ: str) -> Any:
    """The result of a function of fault_ops in a process of one thread."""
    result = run_python(f"import fault_ops, json; print(json.dumps(fault_ops.{call}))", OMP_NUM_THREADS="1", **environ)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


def check_sentences(said: dict[str, list[str]]) -> None:
    assert all(said.values()), "an op allocated nothing"
    for name, errors in said.items():
        for n, sentence in enumerate(errors):
            assert SENTENCE.match(sentence), f"{name}, failure {n}: {sentence}"
    assert any("out of memory" in sentence for errors in said.values() for sentence in errors)


@pytest.fixture(scope="module")
def failing_allocations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("preload") / "failing_allocations.so"
    source = Path(__file__).parents[1] / "cpp" / "failing_allocations.cpp"
    subprocess.run(["c++", "-std=c++17", "-O1", "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True)
    return library


def test_each_allocation_fails_once(failing_allocations: Path) -> None:
    """Of the library's own and of tensors, so that no place where memory may end is left out."""
    check_sentences(run_ops("fail_each_allocation()", LD_PRELOAD=str(failing_allocations)))


@pytest.mark.slow
def test_a_limit_of_memory() -> None:
    """Address space, as `ulimit -v` bounds it; on one thread, because OpenMP ends a process that may not start more."""
    # by this threshold nothing is at hand that was freed before the limit
    check_sentences(run_ops("limit_memory(1_000_000)", MALLOC_MMAP_THRESHOLD_="16384"))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library has no mallinfo2 of glibc 2.33")
@pytest.mark.parametrize("leak", [0, 1])
def test_no_round_leaves_memory_behind(leak: int) -> None:
    """An allocation that each round forgets takes 16 bytes at least; one byte forgotten on purpose is found."""
    # malloc counts what lies in a thread's cache as in use; without caches the count is exact
    grown = run_ops(f"bytes_left_behind({leak})", GLIBC_TUNABLES="glibc.malloc.tcache_count=0")
    assert grown >= 16 * ROUNDS if leak else grown < ROUNDS
