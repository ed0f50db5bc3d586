"""The one GPU command: builds, tests, looks for memory errors and races, and measures, in under eight minutes.

`python3 tools/gpu.py` runs on a bare machine with a GPU, torch, nvcc and no network, by that machine's own Python:
nothing is downloaded or installed, the library is built in place. Every step has a time limit, and one that fails
stops none of those behind it. The folder `--out` then holds gpu.json and gpu.png of the benchmark and all output in
gpu.log; what is needed to judge the kernels is printed last, in under 100 lines.
"""

import argparse
import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 180  # characters of a printed line
GRACE = 5  # seconds to end in, for a step whose time is up: pytest then tells what failed until then
ABOUT = (
    "import torch; p = torch.cuda.get_device_properties(0); "
    "print(f'torch {torch.__version__}, {p.name}, sm_{p.major}{p.minor}, {p.total_memory / 2**30:.0f} GiB')"
)
LIBRARY = "from illia_ext import _C; print(_C.__file__, _C.build_info())"


class Step(NamedTuple):
    name: str
    command: Sequence[str]
    seconds: float  # limit
    digest: Callable[[list[str]], list[str]]  # from a step's lines to those worth printing
    environ: Sequence[tuple[str, str]] = ()


def last(count: int) -> Callable[[list[str]], list[str]]:
    return lambda lines: lines[-count:]


def errors(lines: list[str]) -> list[str]:
    """Of a compiler: its first errors, its last words."""
    return [line for line in lines if re.search(r"\berror\b|Error", line)][:5] + lines[-2:]


def test_summary(lines: list[str]) -> list[str]:
    """Failures by name and reason, skips by count and reason, and the counts."""
    first = next((i for i, line in enumerate(lines) if "short test summary" in line), None)
    if first is None:  # it crashed, or ran out of time
        return lines[-20:]
    summary = lines[first + 1 :]
    failed = [line for line in summary[:-1] if line.startswith(("FAILED", "ERROR"))]
    skipped = [line for line in summary[:-1] if line.startswith("SKIPPED")]
    more = [f"... and {len(failed) - 15} more"] if len(failed) > 15 else []
    return [*failed[:15], *more, *skipped[:12], summary[-1]]


def sanitizer_summary(lines: list[str]) -> list[str]:
    found = [line for line in lines if line.startswith("=========")]
    text = [line for line in found if line.strip("= ") and "COMPUTE-SANITIZER" not in line]
    totals = [line for line in text if "SUMMARY" in line]
    return [line for line in text if line not in totals][:3] + totals[-1:] + lines[-1:]


def cuda_home() -> Path | None:
    """The toolkit's folder; what the environment names comes first."""
    nvcc = shutil.which("nvcc")
    folders = [os.environ.get("CUDA_HOME"), Path(nvcc).resolve().parents[1] if nvcc else None, "/usr/local/cuda"]
    needed = ("bin/nvcc", "include/cuda_runtime.h")
    return next((Path(f) for f in folders if f and all((Path(f) / name).is_file() for name in needed)), None)


def gpu_arch() -> str:
    """Of the first GPU, such as "9.0"; raises RuntimeError with one sentence when there is none."""
    try:
        import torch
    except ImportError:
        raise RuntimeError(f"{sys.executable} has no torch") from None
    if not torch.cuda.is_available():
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        raise RuntimeError(f"torch {torch.__version__} finds no GPU here (it {built})")
    major, minor = torch.cuda.get_device_capability(0)
    return f"{major}.{minor}"


def make_steps(out: Path, arch: str, home: Path) -> list[Step]:
    """Their limits add up to less than eight minutes."""
    python = sys.executable
    jobs = str(os.cpu_count() or 1)
    build = zip(("ILLIA_EXT_CUDA", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS"), ("1", str(home), arch, jobs))
    parallel = ["-n", str(min(6, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
    pytest = [python, "-m", "pytest", "--device", "cuda", "-q", "-rfEs", "--tb=short", "-m", "not slow", *parallel]
    sanitizer = shutil.which("compute-sanitizer") or str(home / "bin" / "compute-sanitizer")
    options = ["--target-processes", "all", "--error-exitcode", "9", "--print-limit", "5"]
    # torch would hand out pieces of one large allocation, and a write from one piece into the next is no error there
    apart = [("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")]
    checks = [
        Step(tool, [sanitizer, "--tool", tool, *options, python, "tools/gpu_small.py"], limit, sanitizer_summary, apart)
        for tool, limit in (("memcheck", 55), ("racecheck", 55), ("initcheck", 40))
    ]
    driver = ["nvidia-smi", "--query-gpu=name,driver_version,memory.used,memory.total", "--format=csv,noheader"]
    results = ["--json", str(out / "gpu.json"), "--plot", str(out / "gpu.png")]
    bench = [python, "-m", "bench", "--device", "cuda", "--quick", "--sizes", "2^12,2^20,2^28", *results]
    return [
        Step("driver", driver, 5, last(1)),
        Step("compiler", [str(home / "bin" / "nvcc"), "--version"], 5, last(1)),
        Step("gpu", [python, "-c", ABOUT], 15, last(1)),
        Step("build", [python, "setup.py", "build_ext", "--inplace"], 90, errors, [*build]),
        Step("library", [python, "-c", LIBRARY], 10, last(2)),
        Step("tests", pytest, 130, test_summary),
        *checks,
        Step("benchmark", bench, 75, last(36)),
    ]


def run_step(step: Step, log: Path) -> tuple[str, list[str]]:
    """How it ended, "" for well, and its lines, which are also appended to the log."""
    environ = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "160", **dict(step.environ)}
    environ.pop("ILLIA_EXT_JIT", None)  # or the tests would not see the library built here
    with log.open("ab") as file:
        file.write(f"\n$ {shown(step)}\n".encode())
        file.flush()
        start = file.tell()
        try:
            process = subprocess.Popen(
                step.command, cwd=ROOT, env=environ, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            return f"cannot run {step.command[0]}: {error.strerror}", []
        try:
            code = process.wait(step.seconds)
            ended = f"exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            ended = f"stopped after {step.seconds:g} s"
            os.killpg(process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:  # and with it the processes that it started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    text = log.read_bytes()[start:].decode(errors="replace")
    return ended, [line.rstrip() for line in re.split(r"[\r\n]", text) if line.strip()]


def shown(step: Step) -> str:
    return shlex.join([*(f"{name}={value}" for name, value in step.environ), *step.command])


def run(steps: Sequence[Step], log: Path) -> int:
    """Runs all of them, prints what matters, and returns the exit code."""
    log.write_bytes(b"")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it, and so would its steps
    results = []
    for step in steps:
        started = time.monotonic()
        ended, lines = run_step(step, log)
        results.append((step, ended, lines, time.monotonic() - started))
        print(f"{step.name}: {ended or 'ok'}, {results[-1][-1]:.0f} s", flush=True)
    print(f"\nsummary; all output is in {log}")
    for step, ended, lines, seconds in results:
        print(f"== {step.name}: {f'FAILED, {ended}' if ended else 'ok'}, {seconds:.0f} s")
        for line in step.digest(lines) if lines else []:
            print(line[:WIDTH])
    failed = [step.name for step, ended, *_ in results if ended]
    print(f"FAILED: {', '.join(failed)}" if failed else "every step is ok")
    return 1 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder of JSON, picture and log")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run none")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    home = cuda_home()
    if options.dry_run:
        for step in make_steps(out, "<of the GPU>", home or Path("/usr/local/cuda")):
            print(f"# {step.name}, at most {step.seconds:g} s\n{shown(step)}")
        return 0
    try:
        arch = gpu_arch()
        if home is None:
            raise RuntimeError("no nvcc: put it on PATH, or name its toolkit's folder in CUDA_HOME")
        out.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, OSError) as error:
        print(f"tools/gpu.py: {error}", file=sys.stderr)
        return 2
    return run(make_steps(out, arch, home), out / "gpu.log")


if __name__ == "__main__":
    sys.exit(main())
