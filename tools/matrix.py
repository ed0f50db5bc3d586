"""One wheel under many torches: builds it, installs that very wheel beside each torch, runs the core tests there.

`python tools/matrix.py [VERSION...]` makes an environment in build/matrix for each torch and keeps it for the next
time; `--env 2.11.0=FOLDER` takes one that exists, with torch and the packages of the extra `test`, and installs nothing
into it. The tests run from a copy beside no source folder, so they see the wheel. Prints one table; the exit code is 1
if a test failed anywhere, or a torch had none to run.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCHES = ["2.11.0", "2.13.0", "2.15.0"]
# These tests read the checkout, and not the wheel.
CHECKOUT = ["programs", "test_cuda_*", "test_elementary*", "test_gpu_command*", "test_packaging*"]
ABOUT = "import torch; from illia_ext import _C; print(torch.__version__, _C.__file__)"


def pip(python: Path | str, *arguments: Path | str) -> None:
    """Raises CalledProcessError; pip itself says why."""
    constraints = str(ROOT / "constraints.txt")  # pip 23 reads the first for its build environments, pip 26 the second
    pins = {"PIP_CONSTRAINT": constraints, "PIP_BUILD_CONSTRAINT": constraints} if arguments[0] == "wheel" else {}
    command = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, env={**os.environ, **pins}, check=True)


def build_wheel(folder: Path, isolated: bool) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    pip(sys.executable, "wheel", "--no-deps", *[] if isolated else ["--no-build-isolation"], "-w", folder, ROOT)
    return next(folder.glob("*.whl"))


def environment(torch: str, wheel: Path, folder: Path) -> Path:
    """Python of an environment with this torch and what the tests import; made where it is not complete."""
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, clear=True, with_pip=True)
        pip(python, "install", f"torch=={torch}", f"{wheel}[test]")
        (folder / "complete").touch()
    return python


def run_tests(torch: str, python: Path, wheel: Path, folder: Path, options: list[str]) -> tuple[bool, str]:
    """Whether all passed, and pytest's last line, or why there is none. `folder` then holds the wheel and the tests."""
    shutil.rmtree(folder, ignore_errors=True)
    site = folder / "site"
    pip(python, "install", "--no-deps", "--target", site, wheel)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns(*CHECKOUT, "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    environ = {**os.environ, "PYTHONPATH": str(site)}
    environ.pop("ILLIA_EXT_JIT", None)  # or the tests would not see the wheel

    pipe = subprocess.PIPE
    about = subprocess.run([python, "-c", ABOUT], cwd=folder, env=environ, stdout=pipe, text=True, check=True)
    found, library = about.stdout.split(maxsplit=1)
    if found.split("+")[0] != torch or site not in Path(library).parents:
        return False, f"the environment has torch {found} and loads {library.strip()}"
    print(f"== torch {found}, {library}", end="", flush=True)
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    with subprocess.Popen(pytest, cwd=folder, env=environ, stdout=pipe, text=True) as running:
        last = "pytest prints nothing"
        for last in running.stdout or ():
            print(last, end="", flush=True)
    return running.returncode == 0, last.strip()  # without a test to run pytest ends with 5


def parse_environment(text: str) -> tuple[str, Path]:
    torch, _, folder = text.partition("=")
    python = Path(folder).absolute() / "bin" / "python"
    if not folder or not python.is_file():
        raise argparse.ArgumentTypeError(f"expected VERSION=FOLDER, a folder with bin/python, got {text!r}")
    return torch, python


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("torch", nargs="*", help=f"versions; by default those of --env, or {TORCHES}")
    parser.add_argument(
        "--env", nargs="+", action="extend", type=parse_environment, default=[], metavar="VERSION=FOLDER"
    )
    parser.add_argument("--no-isolation", action="store_true", help="build with this Python's own torch and setuptools")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "matrix", help="folder of all that is made")
    parser.add_argument("--pytest", type=shlex.split, default=[], metavar="OPTIONS", help="such as '-m \"not slow\"'")
    options = parser.parse_args()
    work, given = options.work.absolute(), dict(options.env)
    wheel = build_wheel(work / "wheel", not options.no_isolation)
    rows = []
    for torch in options.torch or [*given] or TORCHES:
        try:
            python = given.get(torch) or environment(torch, wheel, work / f"env-{torch}")
            rows.append((torch, *run_tests(torch, python, wheel, work / f"run-{torch}", options.pytest)))
        except subprocess.CalledProcessError as error:
            rows.append((torch, False, str(error)))
    print(f"\n{wheel.name}", *(f"{torch:8} {'ok' if ok else 'FAILED':6} {said}" for torch, ok, said in rows), sep="\n")
    return 0 if all(ok for _, ok, _ in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
