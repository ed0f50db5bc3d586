"""The stream never changes: a version that breaks this breaks every stored key. golden_bits.txt says more."""

from pathlib import Path

import golden_ops
import pytest
from helpers import run_python
from test_determinism import digest_of_everything

from illia_ext._native import library

pytestmark = pytest.mark.usefixtures("cpu")
FILE = Path(__file__).resolve().parents[1] / "data" / "golden_bits.txt"
EXPECTED = [line for line in FILE.read_text().splitlines() if line.startswith(("ops.", "random."))]


def test_ops_and_keys() -> None:
    assert golden_ops.lines() == EXPECTED


@pytest.mark.parametrize("capability", ["base", "avx2", "avx512"])
def test_every_instruction_set(capability: str) -> None:
    if capability not in library._C.build_info()["cpu_capabilities"]:
        pytest.skip(f"this library was built without {capability}")
    code = """if True:
        import golden_ops
        from illia_ext import _C
        from test_determinism import digest_of_everything
        print(_C.cpu_capability(), digest_of_everything(), *golden_ops.lines(), sep="\\n")"""
    result = run_python(code, ILLIA_EXT_CPU_CAPABILITY=capability)
    if "this CPU lacks" in result.stderr:
        pytest.skip(result.stderr.splitlines()[-1])
    assert result.stdout.splitlines() == [capability, digest_of_everything(), *EXPECTED], result.stderr
