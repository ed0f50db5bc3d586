"""The GPU command, as far as it shows without a GPU: the commands that it would run, and that their options exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STEPS = ["driver", "compiler", "gpu", "build", "library", "tests", "memcheck", "racecheck", "initcheck", "benchmark"]
# Of a step, as far as its program goes without a GPU: further arguments, its exit code and what it says.
PROGRAMS = {
    "tests": (["tests/test_collection.py"], 4, r"^ERROR: --device: torch \S+ finds 0 CUDA devices, got 'cuda'$"),
    "memcheck": (["cpu"], 0, r"^\d+ calls of ops on cpu$"),
    "benchmark": (["--help"], 0, "Usage: python -m bench"),  # an unknown option would come first
}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def commands(cpu: object) -> dict[str, list[str]]:
    result = run(sys.executable, "tools/gpu.py", "--dry-run", "--out", "/no/such/folder")
    assert result.returncode == 0, result.stderr
    names, lines = result.stdout.splitlines()[::2], result.stdout.splitlines()[1::2]
    return {name.removeprefix("# "): shlex.split(line) for name, line in zip(names, lines, strict=True)}


def test_dry_run_prints_every_command(commands: dict[str, list[str]]) -> None:
    assert list(commands) == STEPS
    assert "ILLIA_EXT_CUDA=1" in commands["build"] and commands["build"][-2:] == ["build_ext", "--inplace"]
    for tool in ("memcheck", "racecheck", "initcheck"):
        assert commands[tool][-1] == "tools/gpu_small.py" and f"--tool {tool}" in shlex.join(commands[tool])
        assert "PYTORCH_NO_CUDA_MEMORY_CACHING=1" in commands[tool]
    limits = [int(command[command.index("--kill-after=5") + 1]) for command in commands.values()]
    assert sum(limits) <= 8 * 60


@pytest.mark.parametrize("step", PROGRAMS)
def test_options_exist(step: str, commands: dict[str, list[str]]) -> None:
    if step == "benchmark":
        pytest.importorskip("typer")  # of the extra `bench`
    program = commands[step][commands[step].index(sys.executable) :]
    more, code, said = PROGRAMS[step]
    result = run(*program, *more)
    assert result.returncode == code, result.stderr
    assert re.search(said, result.stdout + result.stderr, re.MULTILINE), result.stderr


def test_without_a_gpu_one_line_says_so(tmp_path: Path, cpu: object) -> None:
    result = run(sys.executable, "tools/gpu.py", "--out", str(tmp_path / "out"))
    assert result.returncode == 2 and result.stdout == "" and not (tmp_path / "out").exists()
    assert re.fullmatch(r"tools/gpu.py: torch \S+ finds no GPU here .*\n", result.stderr)
