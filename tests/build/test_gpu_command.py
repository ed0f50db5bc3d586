"""The GPU command without a GPU: what it would run, that the options exist, and what a failing step does to others."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

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


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu", ROOT / "tools" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_step(gpu: ModuleType, name: str, code: str, seconds: int = 30) -> tuple:
    return gpu.Step(name, [sys.executable, "-c", code], seconds, 3)


def test_a_failing_step_stops_no_other(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], cpu: object
) -> None:
    """Nor does one that takes too long, or one whose program does not exist."""
    steps = [
        make_step(gpu, "broken", "print('one'); raise SystemExit(3)"),
        make_step(gpu, "late", "import time; time.sleep(60)", seconds=2),
        gpu.Step("absent", ["no-such-command"], 5, 3),
        make_step(gpu, "last", "print('two')"),
    ]
    assert gpu.run(steps, tmp_path / "gpu.log") == 1
    out = capsys.readouterr().out
    summary = out[out.index("\nsummary") :].splitlines()
    heads = [re.sub(r", \d+ s$", "", line) for line in summary if line.startswith("==")]
    ends = ["FAILED, exit code 3", "FAILED, its time was up", "FAILED, exit code 127", "ok"]
    assert heads == [f"== {step.name}: {end}" for step, end in zip(steps, ends)]
    assert {"one", "KeyboardInterrupt", "two"} < set(summary) and summary[-1] == "FAILED: broken, late, absent"


def test_what_a_late_step_started_is_ended(gpu: ModuleType, tmp_path: Path, cpu: object) -> None:
    """Such as a test that waits in a process of its own and ignores the interrupt: it would hold the GPU."""
    started, log = tmp_path / "started", tmp_path / "gpu.log"
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    child = f"{deaf}; open({str(started)!r}, 'w'); time.sleep(4); print('still here', flush=True)"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]).wait()"
    gpu.run([make_step(gpu, "late", code, seconds=2)], log)
    assert started.exists()
    gpu.run_step(make_step(gpu, "wait", "import time; time.sleep(3)"), log)
    assert "still here" not in log.read_text().splitlines()
