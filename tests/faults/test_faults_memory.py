"""Memory runs out: an error that says so, in a process that goes on and still has the right numbers."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import run_python

pytestmark = pytest.mark.usefixtures("cpu")
# Ours, of a vector of the C++ library, and torch's own for the tensors that it makes: gradients of ones, zeros.
SENTENCE = re.compile(
    r"RuntimeError: out of memory: cannot (?:allocate|copy) a torch\.\w+ tensor of shape \[[\d, ]*\]$"
    r"|(?:Memory|Runtime)Error: std::bad_alloc$"  # torch 2.15 makes a RuntimeError of it
    r"|RuntimeError: \[enforce fail at alloc_cpu.cpp:\d+\] .*DefaultCPUAllocator: can't allocate memory: you tried to "
    r"allocate \d+ bytes"
)


def check_sentences(fault: str, code: str, shows: Callable[[str, object], None], **environ: str) -> None:
    result = run_python(f"import fault_ops, json; print(json.dumps({code}))", **environ)
    assert result.returncode == 0, result.stderr[-2000:]
    said = json.loads(result.stdout.splitlines()[-1])
    assert all(said.values()), "an op allocated nothing"
    for name, errors in said.items():
        for sentence, count in errors.items():
            assert SENTENCE.match(sentence), f"{name}, {count} times: {sentence}"
    failed = sum(sum(errors.values()) for errors in said.values())
    ours = next(sentence for errors in said.values() for sentence in errors if "out of memory" in sentence)
    shows(fault, f"{ours}; so, or by std::bad_alloc, end all {failed} failures, in {len(said)} ops")


@pytest.fixture(scope="module")
def failing_allocations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("preload") / "failing_allocations.so"
    source = Path(__file__).parents[1] / "cpp" / "failing_allocations.cpp"
    subprocess.run(["c++", "-std=c++17", "-O1", "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True)
    return library


def test_each_allocation_fails_once(failing_allocations: Path, record_property: Callable[[str, object], None]) -> None:
    """Of the library's own and of tensors, so that no place where memory may end is left out."""
    check_sentences(
        "each allocation fails in turn",
        "fault_ops.fail_each_allocation()",
        record_property,
        LD_PRELOAD=str(failing_allocations),
        OMP_NUM_THREADS="1",
    )


@pytest.mark.slow
def test_a_limit_of_memory(record_property: Callable[[str, object], None]) -> None:
    """Address space, as `ulimit -v` bounds it."""
    environ = {
        "OMP_NUM_THREADS": "1",  # OpenMP itself ends a process that may not start its threads
        "MALLOC_MMAP_THRESHOLD_": "16384",  # nothing is at hand that was freed before the limit
    }
    check_sentences("a limit of memory", "fault_ops.limit_memory(1_000_000)", record_property, **environ)
