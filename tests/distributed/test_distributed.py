"""DTensor parameters, DDP and FSDP2 on 2 and 4 processes of this machine; the checks stand in `distributed_*.py`."""

from pathlib import Path

import pytest
from distributed_world import CHECKS, load_checks, outcomes
from helpers import run_python

load_checks()
RUNS = [(size, name) for size in (2, 4) for name, (sizes, _) in CHECKS.items() if size in sizes]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, str]]:
    return {size: outcomes(size, Path(tmp_path_factory.mktemp(f"world_{size}"))) for size in (2, 4)}


@pytest.mark.parametrize(("size", "name"), RUNS, ids=[f"{name}-{size}" for size, name in RUNS])
def test_on_processes(size: int, name: str, found: dict[int, dict[str, str]], cpu: object) -> None:
    assert not found[size][name], found[size][name]


def test_the_import_does_not_import_dtensor(cpu: object) -> None:
    """It takes half a second. The rules come with it, whoever imports it."""
    code = """
import sys
from importlib.util import find_spec
import illia_ext
assert find_spec("torch.distributed.tensor")  # to look for it is not to load it
assert "torch.distributed.tensor" not in sys.modules and "illia_ext._ops.dtensor" not in sys.modules
from torch.distributed.tensor import DTensor
assert "illia_ext._ops.dtensor" in sys.modules
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
