"""How the C++ library is built: the one description that setup.py, CMake and the JIT loader read.

Only the standard library is imported at the top: setup.py runs this file where torch lies on disk but cannot
be imported. The library uses the LibTorch stable ABI alone, so it runs on every torch >= 2.10, whichever of
them gave the headers.
"""

import fcntl
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

__all__ = ["CSRC", "compile_cuda", "compile_flags", "cuda", "link_flags", "load_jit", "nvcc_command", "sources"]

TORCH_MINIMUM = (2, 10)  # also in pyproject.toml and, as hexadecimal, in TORCH_TARGET_VERSION below
CXX_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",  # fused only where written: every instruction set gives the same bits
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-DTORCH_TARGET_VERSION=0x020A000000000000ULL",
]

CUDA_FLAGS = [
    "-std=c++17",
    "-O3",
    "--fmad=false",  # fused only where written: the bits of the CPU
    "--threads=0",
    "-Xfatbin=-compress-all",  # a kernel of many tensors stores 32 KiB of arguments for each architecture
    "-Xcompiler=-fPIC,-fvisibility=hidden,-g0",
]
CUDA_ARCHITECTURES = ["80", "86", "89", "90", "100", "120"]  # as far as nvcc offers them, and PTX

_PACKAGE = Path(__file__).resolve().parents[1]
CSRC = _PACKAGE / "csrc" if (_PACKAGE / "csrc").is_dir() else _PACKAGE.parent / "csrc"  # else: a checkout


def sources(suffix: str = "") -> list[str]:
    """The sources that end so, relative to CSRC, as csrc/SOURCES.txt lists them."""
    return [name for name in (CSRC / "SOURCES.txt").read_text().split() if name.endswith(suffix)]


def sources_digest() -> str:
    """Of all that the library is compiled from, which `setup.py` compiles into it: see `library.py`."""
    digest = hashlib.sha256()
    for path in sorted(path for path in CSRC.glob("*/*.*") if path.suffix in (".h", ".cpp", ".cuh", ".cu")):
        digest.update(b"%s %d\n" % (path.relative_to(CSRC).as_posix().encode(), path.stat().st_size))
        digest.update(path.read_bytes())
    return digest.hexdigest()


def torch_dir() -> Path | None:
    """Folder of torch >= 2.10 in the environment to install into, else on sys.path; torch is not imported."""
    for folder in [sysconfig.get_path("platlib"), sysconfig.get_path("purelib"), *sys.path]:
        for torch in importlib.metadata.distributions(name="torch", path=[folder]):
            include = Path(str(torch.locate_file("torch/include")))
            if tuple(int(n) for n in torch.version.split(".")[:2]) >= TORCH_MINIMUM and include.is_dir():
                return include.parent
    return None


def _require_torch() -> Path:
    torch = torch_dir()
    if torch is None:
        raise ModuleNotFoundError(f"compiling illia_ext needs torch >= 2.10, and {sys.executable} has none")
    return torch


def compile_flags() -> list[str]:
    """Flags of a C++ source, include folders too.

    Raises ModuleNotFoundError without torch or pybind11.
    """
    torch = _require_torch()
    if importlib.util.find_spec("pybind11") is None:
        raise ModuleNotFoundError(
            f"compiling illia_ext needs pybind11, and {sys.executable} has none: pip install 'illia_ext[jit]'"
        )
    import pybind11

    # messages of torch's headers name their file: without the folders of this machine
    anonymous = [f"-ffile-prefix-map={folder}/=" for folder in (CSRC, torch / "include", pybind11.get_include())]
    # torch bundles an older pybind11: behind -idirafter it is found after the one just imported
    toolkit = cuda()
    features = toolkit.features if toolkit else []
    return [
        *CXX_FLAGS,
        *features,
        *anonymous,
        f"-I{CSRC}",
        f"-I{pybind11.get_include()}",
        f"-idirafter{torch / 'include'}",
    ]


def link_flags() -> list[str]:
    """Flags of the link step; no rpath, because torch is always imported before the library."""
    toolkit = cuda()
    runtime = [f"-L{toolkit.libraries}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"] if toolkit else []
    return [f"-L{_require_torch() / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", *runtime]


class Toolkit(NamedTuple):
    """CUDA's compiler, and what it is to compile."""

    nvcc: str
    libraries: Path  # holds libcudart_static.a
    version: str
    targets: list[str]  # "sm_90" is machine code, "compute_90" PTX

    @property
    def features(self) -> list[str]:
        """What the C++ sources are told: that there are CUDA kernels, and which."""
        return [f"-DILLIA_CUDA_VERSION={self.version}", f"-DILLIA_CUDA_TARGETS={','.join(self.targets)}"]


def _find_nvcc() -> str | None:
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    path = os.pathsep.join([f"{home}/bin" for home in homes] + [os.environ.get("PATH", os.defpath)])
    return shutil.which("nvcc", path=f"{path}{os.pathsep}/usr/local/cuda/bin")


def _torch_has_cuda() -> bool:
    """By its version.py on disk, where `cuda` is a version or None."""
    torch = torch_dir()
    text = (torch / "version.py").read_text() if torch else ""
    return bool(re.search(r"^cuda\b[^=\n]*= *['\"]", text, re.MULTILINE))


def _visible_architectures() -> list[str]:
    """Of the GPUs that nvidia-smi shows, such as "90"; none on a login node or in a docker build."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    found = {match[1] + match[2] for match in re.finditer(r"^(\d+)\.(\d)$", answer.stdout, re.MULTILINE)}
    return sorted(found, key=int)


def cuda_targets(offered: list[str]) -> list[str]:
    """What TORCH_CUDA_ARCH_LIST asks for, such as "8.0;9.0+PTX"; else the GPUs here, else CUDA_ARCHITECTURES, and PTX.

    All machine code is made from the PTX of the oldest architecture, which is also what +PTX adds: we use nothing
    that a newer one has, its code came out the same, and nvcc takes half the time. Raises ValueError for an
    architecture that is none, or that is not among those `offered`, such as "90".
    """
    asked = re.split(r"[;,\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip())
    if asked == [""]:
        wanted = _visible_architectures() or CUDA_ARCHITECTURES
        numbers = [number for number in wanted if number in offered] or offered[-1:]
        return [*(f"sm_{number}" for number in numbers), f"compute_{numbers[0]}"]
    numbers, with_ptx = [], False
    for name in asked:
        match = re.fullmatch(r"(\d+)\.(\d)[af]?(\+PTX)?", name)
        number = match[1] + match[2] if match else ""
        if number not in offered:
            choice = " ".join(f"{n[:-1]}.{n[-1]}" for n in offered)
            raise ValueError(
                f"TORCH_CUDA_ARCH_LIST: expected architectures that this nvcc offers ({choice}), each perhaps with "
                f"+PTX, got {name!r}"
            )
        numbers.append(number)
        with_ptx |= name.endswith("+PTX")
    numbers = sorted(set(numbers), key=int)
    return [*(f"sm_{number}" for number in numbers), *[f"compute_{numbers[0]}"] * with_ptx]


@functools.cache
def cuda() -> Toolkit | None:
    """The CUDA toolkit to build with, or None.

    ILLIA_EXT_CUDA decides: 0 never, 1 always, auto (the default) beside a torch with CUDA where nvcc is on PATH, in
    CUDA_HOME or in /usr/local/cuda. A visible GPU plays a part in `cuda_targets` alone. Raises ValueError for another
    value, and RuntimeError when CUDA is asked for and cannot be had.
    """
    switch = os.environ.get("ILLIA_EXT_CUDA", "auto")
    if switch not in ("0", "1", "auto"):
        raise ValueError(f"ILLIA_EXT_CUDA: expected 0, 1 or auto, got {switch!r}")
    nvcc = _find_nvcc()
    if switch == "0" or (switch == "auto" and not (nvcc and _torch_has_cuda())):
        return None
    if nvcc is None:
        raise RuntimeError(
            "ILLIA_EXT_CUDA=1 asks for CUDA kernels, and there is no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda"
        )
    home = os.environ.get("CUDA_HOME")
    if home and not Path(home, "bin/nvcc").is_file():
        raise RuntimeError(f"CUDA_HOME: expected a folder with bin/nvcc, got {home!r}; unset it, or ILLIA_EXT_CUDA=0")

    def ask(*arguments: str) -> str:
        answer = subprocess.run([nvcc, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if answer.returncode:
            question = shlex.join([nvcc, *arguments])
            raise RuntimeError(f"{question} fails: {answer.stdout.strip()}\nILLIA_EXT_CUDA=0 builds without CUDA")
        return answer.stdout

    # on PATH may stand a script that calls the compiler elsewhere: only nvcc itself knows its folders
    plan = ask("--dryrun", "-x", "cu", "-c", os.devnull)
    folders = [Path(folder).resolve() for folder in re.findall(r'"-L([^"]+)"', plan)]
    libraries = [folder for folder in folders if (folder / "libcudart_static.a").exists()]
    if not libraries:
        raise RuntimeError(
            f"{nvcc} has no libcudart_static.a in {', '.join(map(str, folders))}: install CUDA's runtime library, "
            "or build without CUDA by ILLIA_EXT_CUDA=0"
        )
    version = re.search(r"release (\d+\.\d+)", ask("--version"))
    offered = sorted(set(re.findall(r"compute_(\d+)", ask("--list-gpu-arch"))), key=int)
    return Toolkit(nvcc, libraries[0], version[1] if version else "unknown", cuda_targets(offered))


def nvcc_command() -> list[str]:
    """The command that compiles a .cu, but for `-c SOURCE -o OBJECT`; empty in a build without CUDA: see `cuda`."""
    toolkit = cuda()
    if toolkit is None:
        return []
    oldest = toolkit.targets[0].replace("sm_", "compute_")
    codes = f"-gencode=arch={oldest},code=[{','.join(toolkit.targets)}]"
    return [toolkit.nvcc, *CUDA_FLAGS, f"-I{CSRC}", codes]


def compile_cuda(folder: Path) -> list[str]:
    """Compiles the .cu sources into `folder`, and returns the object files; none in a build without CUDA: see `cuda`.

    torch's builders refuse a .cu beside a torch without CUDA, which ours need not know of. An object is named after
    all that goes into it, so an existing one is up to date.
    """
    command, toolkit = nvcc_command(), cuda()
    if toolkit is None:
        return []
    parts = [path.read_bytes() for path in sorted(CSRC.rglob("*.*")) if path.suffix in (".h", ".cu", ".cuh")]
    options = shlex.join(command).replace(str(CSRC), "csrc")
    digest = hashlib.sha256(b"\0".join([options.encode(), toolkit.version.encode(), *parts])).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    objects = {name: folder.resolve() / f"{Path(name).stem}-{digest}.o" for name in sources(".cu")}
    running, partial = {}, f".{os.getpid()}.partial.o"  # another build may run here
    for name, target in objects.items():
        if not target.exists():
            compile_one = [*command, "-c", str(CSRC / name), "-o", str(target.with_suffix(partial))]
            running[name] = subprocess.Popen(compile_one, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output = {name: process.communicate()[0] for name, process in running.items()}
    for name, process in running.items():
        if process.returncode:
            raise RuntimeError(f"nvcc cannot compile {name}:\n{output[name]}\nILLIA_EXT_CUDA=0 builds without CUDA")
        objects[name].with_suffix(partial).rename(objects[name])
    return [str(target) for target in objects.values()]


def _require_ninja_and_compiler() -> str:
    """The PATH on which both are found; raises ImportError with the one sentence that helps."""
    # Python run as .venv/bin/python, without activation, has its own ninja beside it and not on PATH.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])
    if shutil.which("ninja", path=path) is None:
        raise ImportError("compiling illia_ext needs ninja, and PATH has none: pip install 'illia_ext[jit]'")
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(shlex.split(compiler)[0], path=path) is None:
        raise ImportError(
            f"compiling illia_ext needs a C++ compiler, and PATH has no {compiler!r}: install g++, "
            "or name another compiler in the environment variable CXX"
        )
    return path


def load_jit() -> ModuleType:
    """Compiles the library for the running torch, seconds when nothing changed, and loads it.

    Raises ImportError when a tool is missing, the cache cannot be written or the operators are in this process already,
    and RuntimeError with the compiler's output when the compilation fails.
    """
    import torch
    from torch.utils import cpp_extension

    flags = [shlex.quote(flag) for flag in compile_flags()]
    os.environ["PATH"] = _require_ninja_and_compiler()

    if hasattr(torch.ops.illia_ext, "standard_normal"):
        raise ImportError("illia_ext's operators are in this process already; a second copy would crash it")
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root()
    toolkit = cuda()
    targets = toolkit.targets if toolkit else []  # on a shared disk those of another machine's GPUs may stand beside
    folder = Path(root) / "-".join([f"illia_ext-{sys.implementation.cache_tag}-torch-{torch.__version__}", *targets])
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # what others write here would run
        print(f"illia_ext: compiling the C++ library in {folder}", file=sys.stderr, flush=True)
        with open(folder / "illia_ext.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Before 2.15 torch waits for ever on the lock that a killed process left. We hold ours: nobody holds that.
            (folder / "lock").unlink(missing_ok=True)
            library: ModuleType = cpp_extension.load(
                name="illia_ext_C",
                sources=[str(CSRC / name) for name in sources(".cpp")],
                extra_cflags=flags,
                extra_ldflags=[shlex.quote(flag) for flag in [*compile_cuda(folder), *link_flags()]],
                build_directory=str(folder),
            )
            return library
    except OSError as error:
        raise ImportError(
            f"compiling illia_ext in {folder} fails: {error}; the environment variable TORCH_EXTENSIONS_DIR names "
            "another folder"
        ) from error
    except (RuntimeError, subprocess.CalledProcessError) as error:
        raise RuntimeError(
            f"{error}\ncompiling illia_ext in {folder} fails: the reason stands above; the environment variable CXX "
            "names another compiler"
        ) from error
