"""The matrix of torches, with a small wheel in place of ours: what it runs, counts, and ends with."""

import importlib.util
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "matrix.py"
VERSION = torch.__version__.split("+")[0]
FILES = {
    "illia_ext/__init__.py": "",
    "illia_ext/_C.py": "",
    "illia_ext-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: illia-ext\nVersion: 1\n",
    "illia_ext-1.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "illia_ext-1.dist-info/RECORD": "",
}
TESTS = """
import illia_ext, pytest
def test_passes(): assert "site" in illia_ext.__file__
def test_fails(): assert False
@pytest.fixture
def broken(): raise RuntimeError
def test_errs(broken): pass
def test_skips(): pytest.skip()
"""


@pytest.fixture
def matrix(cpu: torch.device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """Of a checkout whose tests are TESTS, and whose wheel holds FILES."""
    spec = importlib.util.spec_from_file_location("matrix", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    root = tmp_path / "root"
    (root / "tests").mkdir(parents=True)
    (root / "tests" / "test_core.py").write_text(TESTS)
    (root / "tests" / "test_bench_page.py").write_text("raise RuntimeError('a test of the checkout, not of the wheel')")
    (root / "pyproject.toml").touch()
    wheel = tmp_path / "illia_ext-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in FILES.items():
            archive.writestr(name, text)
    monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.setattr(module, "build_wheel", lambda folder, isolated: wheel)
    return module


def rows(output: str) -> list[list[str]]:
    lines = output.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("torch "))
    return [line.split(maxsplit=6) for line in lines[first + 1 :]]


def test_failures_and_wrong_environments_are_counted(
    matrix: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    environments = [f"{VERSION}={sys.prefix}", f"1.0.0={sys.prefix}"]
    assert matrix.main(["--work", str(tmp_path / "work"), "--env", *environments]) == 1
    tested, wrong = rows(capfd.readouterr().out)
    assert tested[0] == VERSION and tested[2:5] == ["1", "2", "1"]
    assert wrong[0] == "1.0.0" and wrong[2:5] == ["0", "0", "0"]
    assert wrong[6].startswith(f"the environment has torch {torch.__version__} and loads {tmp_path}/work/run-1.0.0")


def test_it_is_well_when_all_pass(matrix: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--work", str(tmp_path / "work"), "--env", f"{VERSION}={sys.prefix}"]
    assert matrix.main([*arguments, "--", "-k", "passes or skips"]) == 0
    assert rows(capfd.readouterr().out)[0][2:5] == ["1", "0", "1"]


@pytest.mark.parametrize(("tests", "skipped", "trouble"), [(3, 3, "no test ran"), (0, 0, "no test ran"), (3, 2, "")])
def test_a_run_of_no_test_is_trouble(
    matrix: ModuleType, tests: int, skipped: int, trouble: str, tmp_path: Path
) -> None:
    counts = f'tests="{tests}" failures="0" errors="0" skipped="{skipped}" time="1.5"'
    (tmp_path / "report.xml").write_text(f"<testsuites><testsuite {counts}/></testsuites>")
    row = matrix.read_report("2.13.0", "3.11", tmp_path / "report.xml")
    assert (row.passed, row.skipped, row.seconds, row.trouble) == (tests - skipped, skipped, 1.5, trouble)


def test_a_folder_without_python_is_refused(matrix: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        matrix.main(["--env", "2.13.0=/nowhere"])
    assert "expected VERSION=FOLDER, a folder with bin/python, got '2.13.0=/nowhere'" in capfd.readouterr().err


def test_what_pip_cannot_do_is_said(matrix: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^pip install: ERROR: "):
        matrix.pip(sys.executable, "install", "--no-index", "--target", tmp_path, tmp_path / "no.whl")
