"""Programs that come from Debian's packages, unpacked into build/validation: nothing is installed, no root is
needed."""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

__all__ = ["program"]

FOLDER = Path(__file__).resolve().parents[1] / "build" / "validation" / "debian"


def apt(command: str, *arguments: str) -> str:
    """With lists and files in FOLDER, which any user may write. Raises RuntimeError with apt's own words."""
    own = [f"Dir::State::Lists={FOLDER}/lists", f"Dir::Cache={FOLDER}", "Debug::NoLocking=1", "APT::Sandbox::User="]
    options = [word for option in own for word in ("-o", option)]
    for name in ("lists/partial", "archives/partial"):
        (FOLDER / name).mkdir(parents=True, exist_ok=True)
    result = subprocess.run([command, *options, *arguments], cwd=FOLDER, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{command} {' '.join(arguments)}: {result.stderr.strip()}")
    return result.stdout


def unpack(package: str) -> Path:
    """The package, and what it depends on and this machine does not have."""
    root = FOLDER / package
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / "lock", "w") as lock:  # parts run side by side
        fcntl.flock(lock, fcntl.LOCK_EX)
        if root.exists():
            return root
        apt("apt-get", "-qq", "update")
        only_needed = [
            f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
        ]
        closure = apt("apt-cache", "depends", "--recurse", *only_needed, package)
        names = {line.strip() for line in closure.splitlines() if line and line[0] not in " |<"}
        installed = subprocess.run(
            ["dpkg-query", "-Wf", "${Package} ${db:Status-Abbrev}\n"], capture_output=True, text=True
        )
        have = {line.split()[0] for line in installed.stdout.splitlines() if line.endswith("ii ")}
        partial = FOLDER / f"{package}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        for name in sorted(names - have):
            apt("apt-get", "-qq", "download", name)
            for archive in FOLDER.glob(f"{name}_*.deb"):
                subprocess.run(["dpkg", "-x", archive, partial], check=True)
        partial.rename(root)
        return root


def program(name: str, package: str) -> tuple[str, dict[str, str]]:
    """The program's path, and the environment to run it in. Raises RuntimeError where it cannot be had."""
    if path := shutil.which(name):
        return path, dict(os.environ)
    missing = f"{name} is not on PATH: install Debian's package {package}"
    if not all(map(shutil.which, ("apt-get", "apt-cache", "dpkg", "dpkg-query"))):
        raise RuntimeError(missing)
    try:
        root = unpack(package)
    except RuntimeError as error:
        raise RuntimeError(f"{missing} ({error})") from None
    libraries = [str(folder) for folder in (*root.glob("usr/lib/*-linux-gnu"), root / "usr/lib")]
    search = os.pathsep.join([*libraries, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])
    return str(root / "usr" / "bin" / name), {**os.environ, "LD_LIBRARY_PATH": search}
