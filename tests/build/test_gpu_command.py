"""The GPU command, as far as no GPU is needed: what it would run, and what a failing step does to the others."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "gpu.py"
STEPS = ["driver", "compiler", "gpu", "build", "library", "tests", "memcheck", "racecheck", "initcheck", "benchmark"]


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def step(gpu: ModuleType, name: str, code: str, seconds: float = 30, digest: str = "last") -> tuple:
    digest = gpu.last(3) if digest == "last" else getattr(gpu, digest)
    return gpu.Step(name, [sys.executable, "-c", code], seconds, digest)


def run_command(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)


def test_dry_run_prints_every_command_in_order(tmp_path: Path) -> None:
    """Nowhere near nvcc, a GPU, or the folder of the results."""
    result = run_command("--dry-run", "--out", str(tmp_path / "out"), PATH="", CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split(",")[0] for line in lines[::2]] == [f"# {name}" for name in STEPS]
    commands = dict(zip(STEPS, lines[1::2]))
    assert "ILLIA_EXT_CUDA=1 CUDA_HOME=" in commands["build"] and "build_ext --inplace" in commands["build"]
    assert "pytest --device cuda" in commands["tests"]
    for tool in ("memcheck", "racecheck", "initcheck"):
        assert f"--tool {tool} --target-processes all --error-exitcode" in commands[tool]
        assert "PYTORCH_NO_CUDA_MEMORY_CACHING=1" in commands[tool]
    out = f"--json {tmp_path}/out/gpu.json --plot {tmp_path}/out/gpu.png"
    assert "bench --device cuda --quick" in commands["benchmark"] and out in commands["benchmark"]
    assert not (tmp_path / "out").exists()


def test_without_a_gpu_one_line_says_so(tmp_path: Path) -> None:
    result = run_command("--out", str(tmp_path / "out"), PATH="", CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("tools/gpu.py: torch ") and "finds no GPU here" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:7", "--device: torch .* finds 0 CUDA devices, got 'cuda:7'"),
        ("gpu", "--device: expected cpu, cuda or cuda:N, got 'gpu'"),
    ],
)
def test_the_suite_refuses_a_device_that_is_not_there(device: str, message: str) -> None:
    command = [sys.executable, "-m", "pytest", "--device", device, "--collect-only", "-q", __file__]
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, cwd=SCRIPT.parents[1], env=environ, capture_output=True, text=True, timeout=60)
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert re.search(f"^ERROR: {message}$", result.stderr, re.MULTILINE), result.stderr


def test_all_limits_together_stay_below_eight_minutes(gpu: ModuleType, tmp_path: Path) -> None:
    steps = gpu.make_steps(tmp_path, "9.0", tmp_path)
    assert [step.name for step in steps] == STEPS
    assert sum(step.seconds for step in steps) <= 8 * 60


DEAF = "signal.signal(signal.SIGINT, signal.SIG_IGN)"


def test_a_failing_step_stops_no_other(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor one that takes too long, though it is first asked to end and may say what it knows, nor one not there."""
    monkeypatch.setattr(gpu, "GRACE", 1)
    steps = [
        step(gpu, "first", "print('one')"),
        step(gpu, "broken", "print('two'); raise SystemExit(3)"),
        step(gpu, "late", "import time; print('never seen'); time.sleep(60)", seconds=2),
        step(gpu, "deaf", f"import signal, time; {DEAF}; print('three'); time.sleep(60)", seconds=2),
        gpu.Step("absent", ["no-such-command"], 5, gpu.last(3)),
        step(gpu, "last", "print('four')"),
    ]
    log = tmp_path / "gpu.log"
    assert gpu.run(steps, log) == 1
    out = capsys.readouterr().out
    summary = out[out.index("\nsummary") :].splitlines()
    assert [re.sub(r", \d+ s$", "", line) for line in summary if line.startswith("==")] == [
        "== first: ok",
        "== broken: FAILED, exit code 3",
        "== late: FAILED, stopped after 2 s",
        "== deaf: FAILED, stopped after 2 s",
        "== absent: FAILED, cannot run no-such-command: No such file or directory",
        "== last: ok",
    ]
    assert "KeyboardInterrupt" in summary
    assert [word for word in ("one", "two", "three", "four") if word in summary] == ["one", "two", "three", "four"]
    assert summary[-1] == "FAILED: broken, late, deaf, absent"
    assert log.read_text().count("\n$ ") == 6 and "never seen" in log.read_text().splitlines()


def test_all_well_exits_with_zero(gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.run([step(gpu, "first", "print('one')")], tmp_path / "gpu.log") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "every step is ok"


def test_what_a_late_step_started_is_ended(gpu: ModuleType, tmp_path: Path) -> None:
    """Such as a test that waits in a process of its own: it would hold the GPU."""
    started = tmp_path / "started"
    child = f"import signal, time; {DEAF}; open({str(started)!r}, 'w'); time.sleep(4); print('still here', flush=True)"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]).wait()"
    log = tmp_path / "gpu.log"
    gpu.run([step(gpu, "late", code, seconds=2)], log)
    assert started.exists()
    gpu.run_step(step(gpu, "wait", "import time; time.sleep(3)"), log)
    assert "still here" not in log.read_text().splitlines()


NOISE = "for i in range(1000): print(f'line {i}, ' + 500 * 'x')\n"


def test_the_summary_fits_100_lines(gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """However much goes wrong in the real steps, and what counts is in it."""
    tests = NOISE + (
        "print('==== short test summary info ====')\n"
        "for i in range(300): print(f'FAILED tests/test_a.py::test_b[{i}] - AssertionError: wrong {i}')\n"
        "for i in range(300): print(f'SKIPPED [{i}] tests/conftest.py:{i}: about the CPU')\n"
        "print('300 failed, 900 skipped in 10 s'); raise SystemExit(1)"
    )
    sanitizer = NOISE + (
        "print('========= COMPUTE-SANITIZER')\n"
        "for i in range(300): print(f'========= Invalid __global__ write {i}')\n"
        "print('========= ERROR SUMMARY: 300 errors'); raise SystemExit(9)"
    )
    codes = {"build": NOISE + "print('a.cu(3): error: bad'); raise SystemExit(1)", "tests": tests}
    codes |= dict.fromkeys(("memcheck", "racecheck", "initcheck"), sanitizer)
    steps = [
        real._replace(command=[sys.executable, "-c", codes.get(real.name, NOISE)])
        for real in gpu.make_steps(tmp_path, "9.0", tmp_path)
    ]
    assert gpu.run(steps, tmp_path / "gpu.log") == 1
    lines = capsys.readouterr().out.splitlines()
    summary = lines[next(i for i, line in enumerate(lines) if line.startswith("summary")) :]
    assert len(summary) <= 100 and max(map(len, summary)) <= gpu.WIDTH
    text = "\n".join(summary)
    for needed in (
        "a.cu(3): error: bad",
        "FAILED tests/test_a.py::test_b[0] - AssertionError: wrong 0",
        "... and 285 more",
        "SKIPPED [0] tests/conftest.py:0: about the CPU",
        "300 failed, 900 skipped in 10 s",
        "========= Invalid __global__ write 0",
        "========= ERROR SUMMARY: 300 errors",
    ):
        assert text.count(needed) >= 1, needed
    assert summary[-1] == "FAILED: build, tests, memcheck, racecheck, initcheck"


def test_tests_that_crash_show_their_end(gpu: ModuleType) -> None:
    lines = [f"line {i}" for i in range(50)]
    assert gpu.test_summary(lines) == lines[-20:]
