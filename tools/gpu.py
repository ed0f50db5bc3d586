"""The one GPU command: builds, tests, looks for memory errors and races, and measures, in about eight minutes at most.

`python3 tools/gpu.py` runs on a bare machine with a GPU, torch, nvcc and no network, by that machine's own Python:
nothing is downloaded or installed, the library is built in place. Every step has a time limit, and one that fails
stops none of those behind it. The folder `--out` then holds gpu.jsonl and gpu.png of the benchmark and all output in
gpu.log; the end of each step's output is printed last, in under 150 lines. A fault may stand further up in a step's
output, and then only gpu.log shows it: read that first where a step failed.
"""

import argparse
import contextlib
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 180  # characters of a printed line
LATE = (124, 137, -9)  # how `timeout` ends: the command ended when it was interrupted, or both were killed
ABOUT = (
    "import torch; p = torch.cuda.get_device_properties(0); "
    "print(f'torch {torch.__version__}, {p.name}, sm_{p.major}{p.minor}, {p.total_memory / 2**30:.0f} GiB')"
)
LIBRARY = "from illia_ext import _C; print(_C.__file__, _C.build_info())"


class Step(NamedTuple):
    name: str
    command: Sequence[str]
    seconds: int  # limit
    num_lines: int  # of the end of its output, which are worth printing
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
        import torch
    except ImportError:
        raise RuntimeError(f"{sys.executable} has no torch") from None
    if not torch.cuda.is_available():
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        raise RuntimeError(f"torch {torch.__version__} finds no GPU here (it {built})")
    major, minor = torch.cuda.get_device_capability(0)
    return f"{major}.{minor}"


def make_steps(out: Path, arch: str, home: Path) -> list[Step]:
    """Their limits add up to eight minutes at most; a step that cannot be interrupted takes 5 s more."""
    python = sys.executable
    jobs = str(os.cpu_count() or 1)
    build = zip(("ILLIA_EXT_CUDA", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS"), ("1", str(home), arch, jobs))
    parallel = ["-n", str(min(6, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
    pytest = [python, "-m", "pytest", "--device", "cuda", "-q", "-rsfE", "--tb=short", "-m", "not slow", *parallel]
    sanitizer = shutil.which("compute-sanitizer") or str(home / "bin" / "compute-sanitizer")
    options = ["--target-processes", "all", "--error-exitcode", "9", "--print-limit", "5"]
    # torch would hand out pieces of one large allocation, and a write from one piece into the next is no error there
    apart = [("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")]
    checks = [
        Step(tool, [sanitizer, "--tool", tool, *options, python, "tools/gpu_small.py"], limit, 3, apart)
        for tool, limit in (("memcheck", 55), ("racecheck", 55), ("initcheck", 40))
    ]
    driver = ["nvidia-smi", "--query-gpu=name,driver_version,memory.used,memory.total", "--format=csv,noheader"]
    results = ["--json", str(out / "gpu.jsonl"), "--plot", str(out / "gpu.png")]
    bench = [python, "-m", "bench", "--device", "cuda", "--quick", "--sizes", "2^12,2^20,2^28", *results]
    return [
        Step("driver", driver, 5, 1),
        Step("compiler", [str(home / "bin" / "nvcc"), "--version"], 5, 1),
        Step("gpu", [python, "-c", ABOUT], 15, 1),
        Step("build", [python, "setup.py", "build_ext", "--inplace"], 90, 6, [*build]),
        Step("library", [python, "-c", LIBRARY], 10, 2),
        Step("tests", pytest, 130, 28),
        *checks,
        Step("benchmark", bench, 75, 75),
    ]


def full_command(step: Step) -> list[str]:
    """With its limit: `timeout` interrupts the step, so that pytest tells what failed, and kills it 5 s later."""
    return ["timeout", "--signal=INT", "--kill-after=5", str(step.seconds), *step.command]


def shown(step: Step) -> str:
    return shlex.join([*(f"{name}={value}" for name, value in step.environ), *full_command(step)])


def run_step(step: Step, log: Path) -> tuple[str, list[str]]:
    """How it ended, and the lines of its output, which is also appended to the log. Processes that it started and that
    still run then are killed: they would hold the GPU beside the next step."""
    environ = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "160", **dict(step.environ)}
    environ.pop("ILLIA_EXT_JIT", None)  # or the tests would not see the library built here
    with log.open("ab") as file:
        file.write(f"\n$ {shown(step)}\n".encode())
        file.flush()
        start = file.tell()
        command, streams = full_command(step), {"stdout": file, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, cwd=ROOT, env=environ, start_new_session=True, **streams)
        try:
            code = process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    lines = log.read_bytes()[start:].decode(errors="replace").splitlines()
    lines = [line.rstrip() for line in lines if line.strip()]
    if code in LATE:
        return "FAILED, its time was up", lines
    return f"FAILED, exit code {code}" if code else "ok", lines


def run(steps: Sequence[Step], log: Path) -> int:
    """Runs all of them, prints what matters, and returns the exit code."""
    log.write_bytes(b"")
    summary, failed = [], []
    for step in steps:
        started = time.monotonic()
        ended, lines = run_step(step, log)
        head = f"{step.name}: {ended}, {time.monotonic() - started:.0f} s"
        print(head, flush=True)
        summary += [f"== {head}", *(line[:WIDTH] for line in lines[-step.num_lines :])]
        failed += [step.name] * (ended != "ok")
    print(f"\nsummary; all output is in {log}", *summary, sep="\n")
    print(f"FAILED: {', '.join(failed)}" if failed else "every step is ok")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder of JSON, picture and log")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run none")
    options = parser.parse_args()
    out = options.out.resolve()
    home = cuda_home()
    if options.dry_run:
        for step in make_steps(out, "<of the GPU>", home or Path("/usr/local/cuda")):
            print(f"# {step.name}\n{shown(step)}")
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
