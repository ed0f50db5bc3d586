"""The one GPU command: builds, tests, times and watches the kernels within a time that may be short.

`python3 tools/gpu.py` runs on a bare machine with a GPU, torch, nvcc and no network, by that machine's own Python:
nothing is downloaded or installed, the library is built in place. What matters most comes first, and each result is
printed and appended to results.jsonl in the folder `--out` as soon as it is there, all output to gpu.log: who cuts the
command off keeps what it had. A step may take its own limit or what is left of all, whichever is less; only a failed
build stops those behind it. All processes stay in the command's process group.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 440  # of all steps
LAST = 40  # of these, kept for the last one
PATIENCE = 4  # for a step that is interrupted, out of its own time
CUDA_TESTS = ("execution", "foreach", "agreement", "memory", "modules")
RESULT = "RESULT "  # begins a line of output that holds a result in JSON


class Step(NamedTuple):
    name: str
    command: Sequence[str]
    seconds: int
    environ: Sequence[tuple[str, str]] = ()


def cuda_home() -> Path | None:
    """The toolkit's folder; what the environment names comes first."""
    nvcc = shutil.which("nvcc")
    folders = [os.environ.get("CUDA_HOME"), Path(nvcc).resolve().parents[1] if nvcc else None, "/usr/local/cuda"]
    needed = ("bin/nvcc", "include/cuda_runtime.h")
    return next((Path(f) for f in folders if f and all((Path(f) / name).is_file() for name in needed)), None)


def gpu_arch() -> str:
    """Of the first GPU, such as "9.0"; raises RuntimeError with one sentence when there is none."""
    try:
        command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.split()
    except (OSError, subprocess.SubprocessError) as error:
        raise RuntimeError(f"nvidia-smi shows no GPU: {error}") from None
    return answer[0]


def make_steps(out: Path, arch: str, home: Path) -> list[Step]:
    python = sys.executable
    build = zip(
        ("ILLIA_EXT_CUDA", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS"), ("1", str(home), arch, str(os.cpu_count()))
    )
    about = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap,memory.total", "--format=csv,noheader"]
    header = f"import os; assert os.path.isfile({sysconfig.get_path('include') + '/Python.h'!r}), 'no Python.h'"
    parallel = ["-n", "4"] if importlib.util.find_spec("xdist") else []
    pytest = [python, "-m", "pytest", "--device", "cuda", "-q", "-rsfE", "--tb=short", "-m", "not slow", *parallel]
    sanitizer = shutil.which("compute-sanitizer") or str(home / "bin" / "compute-sanitizer")
    options = ["--target-processes", "all", "--error-exitcode", "9", "--print-limit", "5"]
    # torch would hand out pieces of one large allocation, and a write from one piece into the next is no error there
    apart = [("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")]
    bench = [python, "-m", "bench", "--device", "cuda", "--quick", "--cases", "eager,compile,illia_ext"]
    return [
        Step("gpu", about, 5),
        Step("nvcc", [str(home / "bin" / "nvcc"), "--version"], 5),
        Step("headers", [python, "-c", header], 5),
        Step("build", [python, "setup.py", "build_ext", "--inplace"], 90, [*build]),
        Step("smoke", [python, "tools/gpu_small.py", "smoke"], 25, [("CUDA_LAUNCH_BLOCKING", "1")]),
        Step("times", [python, "tools/gpu_small.py", "times"], 40),
        Step("cuda tests", [*pytest, *(f"tests/cuda/test_cuda_{name}.py" for name in CUDA_TESTS)], 75),
        *(
            Step(tool, [sanitizer, "--tool", tool, *options, python, "tools/gpu_small.py"], 30, apart)
            for tool in ("memcheck", "racecheck", "initcheck")
        ),
        Step("other tests", [*pytest, "--ignore", "tests/cuda"], SECONDS),
        Step("benchmark", [*bench, "--json", str(out / "gpu.jsonl")], LAST),
    ]


def descendants(process: int) -> Iterator[int]:
    """The process and those that it started, the youngest first."""
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{process}/task").iterdir():
            for child in (thread / "children").read_text().split():
                yield from descendants(int(child))
    yield process


def stop(process: subprocess.Popen[bytes]) -> None:
    """By an interruption, so that pytest tells what failed; then what still runs is killed, for it holds the GPU."""
    started = set(descendants(process.pid))
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE)
    for each in started | set(descendants(process.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # one that hangs in the driver does not end
        process.wait(1)


class Record:
    """What is there is on disk: results.jsonl has one line a result, gpu.log all output."""

    def __init__(self, out: Path) -> None:
        self.results, self.log = out / "results.jsonl", out / "gpu.log"
        for path in (self.results, self.log):
            path.write_bytes(b"")

    def add(self, **result: object) -> None:
        line = json.dumps(result)
        print(line, flush=True)
        with self.results.open("a") as file:
            print(line, file=file)

    def output(self, line: str) -> None:
        with self.log.open("a") as file:
            print(line, file=file)
        if line.startswith(RESULT):
            with contextlib.suppress(json.JSONDecodeError):  # of a line that was cut off
                self.add(**json.loads(line.removeprefix(RESULT)))


def _hear() -> None:
    """A shell lets what it starts in the background ignore interruptions."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run_step(step: Step, seconds: float, record: Record) -> bool:
    """Whether it succeeded within its time. Its last lines are part of its result."""
    environ = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "160", **dict(step.environ)}
    environ.pop("ILLIA_EXT_JIT", None)  # or the tests would not see the library built here
    record.output(f"$ {shlex.join([*(f'{name}={value}' for name, value in step.environ), *step.command])}")
    started, lines, rest, late = time.monotonic(), [""], b"", False
    try:
        process = subprocess.Popen(
            step.command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=_hear
        )
    except OSError as error:
        record.add(step=step.name, ended=str(error), seconds=0)
        return False
    ended = None
    while ended is None:
        ready = select.select([process.stdout], [], [], 0.1)[0]
        chunk = os.read(process.stdout.fileno(), 1 << 16) if ready else b""  # type: ignore[union-attr]
        over = not chunk and (process.poll() is not None or late)
        *whole, rest = (rest + chunk + (b"\n" if over and rest else b"")).split(b"\n")
        for line in whole:
            lines.append(line.decode(errors="replace").rstrip())
            record.output(lines[-1])
        if over:
            ended = "ok" if process.returncode == 0 else f"exit code {process.returncode}"
            ended = f"stopped after {seconds:.0f} s" if late else ended
        elif not late and time.monotonic() - started > max(1, seconds - PATIENCE):
            late = True
            stop(process)
    told = [line[:180] for line in lines if line.strip() and not line.startswith(RESULT)][-12:]
    record.add(step=step.name, ended=ended, seconds=round(time.monotonic() - started, 1), output=told)
    return ended == "ok"


def limits(steps: Sequence[Step], seconds: float) -> list[float]:
    """Of each step, if all before it take theirs."""
    found: list[float] = []
    for step in steps:
        kept = 0 if step is steps[-1] else LAST
        found.append(max(0, min(step.seconds, seconds - sum(found) - kept)))
    return found


def run(steps: Sequence[Step], out: Path, seconds: float = SECONDS) -> int:
    """The exit code: 1 where a step failed."""
    record, started, failed = Record(out), time.monotonic(), []
    for i, step in enumerate(steps):
        limit = limits(steps[i:], seconds - (time.monotonic() - started))[0]
        if limit < 1:
            record.add(step=step.name, ended="no time left")
        elif not run_step(step, limit, record):
            failed.append(step.name)
            if step.name == "build":
                break
    record.add(step="all", ended=f"failed: {', '.join(failed)}" if failed else "ok")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder of results and log")
    parser.add_argument("--dry-run", action="store_true", help="print the plan with its limits and run nothing")
    options = parser.parse_args()
    out, home = options.out.resolve(), cuda_home()
    if options.dry_run:
        steps = make_steps(out, "<of the GPU>", home or Path("/usr/local/cuda"))
        for step, limit in zip(steps, limits(steps, SECONDS)):
            environ = [f"{name}={value}" for name, value in step.environ]
            print(f"# {step.name}, at most {limit:.0f} s\n{shlex.join([*environ, *step.command])}")
        return 0
    try:
        arch = gpu_arch()
        if home is None:
            raise RuntimeError("no nvcc: put it on PATH, or name its toolkit's folder in CUDA_HOME")
        out.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, OSError) as error:
        print(f"tools/gpu.py: {error}", file=sys.stderr)
        return 2
    warming = subprocess.Popen([sys.executable, "-c", "import torch"])  # it reads torch's files from disk meanwhile
    try:
        return run(make_steps(out, arch, home), out)
    finally:
        warming.wait()


if __name__ == "__main__":
    sys.exit(main())
