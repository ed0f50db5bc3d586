"""The GPU command without a GPU: its plan, its steps' options, and what is left when they fail, hang or are cut."""

import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
STEPS = ["gpu", "nvcc", "headers", "build", "smoke", "times", "cuda tests"]
STEPS += ["memcheck", "racecheck", "initcheck", "other tests", "benchmark"]
# Of a step, as far as its program goes without a GPU: further arguments, its exit code and what it says.
PROGRAMS = {
    "times": (["cpu"], 0, r'^RESULT {"time": "gaussian_sample", "dtype": "torch.float16", "numel": 4096, '),
    "cuda tests": ([], 4, r"^ERROR: --device: torch \S+ finds 0 CUDA devices, got 'cuda'$"),
    "memcheck": (["calls", "cpu"], 0, r"^\d+ calls of ops on cpu$"),
    "benchmark": (["--help"], 0, "Usage: python -m bench"),  # an unknown option would come first
}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def plan(cpu: object) -> dict[str, tuple[int, list[str]]]:
    """Of each step its limit and its command."""
    result = run(sys.executable, "tools/gpu.py", "--dry-run", "--out", "/no/such/folder")
    assert result.returncode == 0, result.stderr
    heads = re.findall(r"^# (.+), at most (\d+) s\n(.+)$", result.stdout, re.MULTILINE)
    return {name: (int(limit), shlex.split(command)) for name, limit, command in heads}


def test_the_plan(plan: dict[str, tuple[int, list[str]]]) -> None:
    assert list(plan) == STEPS and all(limit > 0 for limit, _ in plan.values())
    assert sum(limit for limit, _ in plan.values()) <= 440
    assert "ILLIA_EXT_CUDA=1" in plan["build"][1] and plan["build"][1][-2:] == ["build_ext", "--inplace"]
    for tool in ("memcheck", "racecheck", "initcheck"):
        command = plan[tool][1]
        assert command[-1] == "tools/gpu_small.py" and f"--tool {tool}" in shlex.join(command)
        assert "PYTORCH_NO_CUDA_MEMORY_CACHING=1" in command


@pytest.mark.parametrize("step", PROGRAMS)
def test_options_exist(step: str, plan: dict[str, tuple[int, list[str]]]) -> None:
    if step == "benchmark":
        pytest.importorskip("typer")  # of the extra `bench`
    command = plan[step][1]
    more, code, said = PROGRAMS[step]
    result = run(*command[command.index(sys.executable) :], *more)
    assert result.returncode == code, result.stderr
    assert re.search(said, result.stdout + result.stderr, re.MULTILINE), result.stdout[-500:] + result.stderr


def test_the_first_step_on_a_gpu_needs_torch_alone(plan: dict[str, tuple[int, list[str]]]) -> None:
    absent = ("hypothesis", "matplotlib", "pandas", "psutil", "rich", "scipy", "sklearn", "tabulate", "typer")
    command = plan["smoke"][1]
    program, *arguments = command[command.index(sys.executable) + 1 :]
    code = f"import runpy, sys; sys.modules.update(dict.fromkeys({absent}))\n"
    code += f"sys.argv = {[program, *arguments, 'cpu']}; runpy.run_path({program!r}, run_name='__main__')"
    result = run(sys.executable, "-c", code)
    assert result.returncode == 0 and result.stdout.count("the CPU's bits") == 8, result.stderr
    assert 'RESULT {"smoke": "torch.bfloat16", "samples": 2, "ended": "the CPU\'s bits"}' in result.stdout


def test_without_a_gpu_one_line_says_so(tmp_path: Path, cpu: object) -> None:
    result = run(sys.executable, "tools/gpu.py", "--out", str(tmp_path / "out"))
    assert result.returncode == 2 and result.stdout == "" and not (tmp_path / "out").exists()
    assert re.fullmatch(r"tools/gpu.py: nvidia-smi shows no GPU: .*\n", result.stderr)


@pytest.fixture(scope="module")
def gpu(cpu: object) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu", ROOT / "tools" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_step(gpu: ModuleType, name: str, code: str, seconds: int = 30) -> tuple:
    return gpu.Step(name, [sys.executable, "-c", code], seconds)


def results(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_failing_and_late_steps_stop_no_other(gpu: ModuleType, tmp_path: Path) -> None:
    """Nor does one whose program does not exist, or a result that is cut off. Others come before the step's end."""
    steps = [
        make_step(gpu, "broken", "print('one'); raise SystemExit(3)"),
        make_step(gpu, "late", "import time; print('two', flush=True); time.sleep(60)", seconds=7),
        gpu.Step("absent", ["no-such-command"], 5),
        make_step(gpu, "last", 'print(\'RESULT {"time": "copy"}\')'),
    ]
    assert gpu.run(steps, tmp_path, seconds=60) == 1
    found = results(tmp_path)
    ends = [(result.get("step"), re.sub("^.*No such file.*", "absent", result.get("ended", ""))) for result in found]
    expected = [("broken", "exit code 3"), ("late", "stopped after 7 s"), ("absent", "absent"), (None, "")]
    assert ends == [*expected, ("last", "ok"), ("all", "failed: broken, late, absent")]
    assert found[0]["output"] == ["one"] and found[1]["output"][0] == "two" and found[3] == {"time": "copy"}
    assert "KeyboardInterrupt" in found[1]["output"]


def test_nothing_follows_a_failed_build(gpu: ModuleType, tmp_path: Path) -> None:
    steps = [make_step(gpu, "build", "raise SystemExit(1)"), make_step(gpu, "tests", "print('no')")]
    assert gpu.run(steps, tmp_path) == 1
    assert [result["step"] for result in results(tmp_path)] == ["build", "all"]


def test_a_limit_is_a_steps_own_or_what_is_left(gpu: ModuleType) -> None:
    steps = [make_step(gpu, name, "", seconds) for name, seconds in (("a", 30), ("b", 100), ("c", 50), ("last", 40))]
    assert gpu.limits(steps, 440) == [30, 100, 50, 40]
    assert gpu.limits(steps, 150) == [30, 80, 0, 40]
    assert gpu.limits(steps, 20) == [0, 0, 0, 20]


def test_what_a_late_step_started_is_ended(gpu: ModuleType, tmp_path: Path) -> None:
    """Such as a test that waits in a process of its own and ignores the interrupt: it would hold the GPU."""
    started = tmp_path / "started"
    deaf = "import os, signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    child = f"{deaf}; open({str(started)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]).wait()"
    gpu.run([make_step(gpu, "late", code, seconds=9)], tmp_path, seconds=90)
    stat, deadline = Path(f"/proc/{started.read_text()}/stat"), time.monotonic() + 20  # of 60 that it would live
    while stat.exists() and stat.read_text().split()[2] != "Z":  # then nobody has asked how it ended
        assert time.monotonic() < deadline, stat.read_text()
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_cut_leaves_what_it_had(number: int, gpu: ModuleType, tmp_path: Path) -> None:
    """All of its processes are in its group."""
    tell = "import os, time\nfor i in range(100):\n"
    tell += " print('RESULT {\"time\":', i, ', \"group\":', os.getpgid(0), '}', flush=True); time.sleep(0.2)"
    code = (
        "import gpu, sys; from pathlib import Path\nsteps = [gpu.Step('first', [sys.executable, '-c', 'print(1)'], 9)"
    )
    code += f", gpu.Step('times', [sys.executable, '-c', {tell!r}], 99)]\ngpu.run(steps, Path({str(tmp_path)!r}))"
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "tools")}
    process = subprocess.Popen([sys.executable, "-c", code], env=environ, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "results.jsonl").exists() or len(results(tmp_path)) < 4:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, number)
    process.wait()
    found = results(tmp_path)
    assert found[0]["step"] == "first" and found[0]["ended"] == "ok"
    assert found[1:4] == [{"time": i, "group": process.pid} for i in range(3)]
    with pytest.raises(ProcessLookupError):
        for _ in range(50):
            os.killpg(process.pid, 0)
            time.sleep(0.1)
