"""Another library than the one that was built for this Python, this machine and these sources: what import says."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from fault_imports import Ended, imports

import illia_ext
from illia_ext import _C
from illia_ext._native import build

PACKAGE, LIBRARY = Path(illia_ext.__file__).parent, Path(_C.__file__)
AARCH64 = b"\xb7\x00"  # e_machine of an ELF header, at byte 18
RUNS = r"torch.Size\(\[3\]\)$"
TORCH = "torch.__version__ = torch.torch_version.TorchVersion('{}')"

pytestmark = [
    pytest.mark.usefixtures("cpu"),
    pytest.mark.skipif(PACKAGE not in LIBRARY.parents, reason="the library under test is compiled at import"),
]


class Fault(NamedTuple):
    sentence: str  # the last line; an import that says RUNS ends with 0, another with 1
    make: Callable[[Path], object] = lambda library: None  # in the library of a whole package
    before: str = ""  # a line of Python before the import


def replace(old: bytes, new: bytes, library: Path) -> None:
    content = library.read_bytes()
    assert content.count(old) == 1
    library.write_bytes(content.replace(old, new))


def of_another_machine(library: Path) -> None:
    header = library.read_bytes()[:64]
    replace(header, header[:18] + AARCH64 + header[20:], library)


def of_another_python(library: Path) -> None:
    """pybind11 wrote the version into it."""
    replace(b"\0%d.%d\0" % sys.version_info[:2], b"\0003.99\0", library)


def with_newer_sources(library: Path) -> None:
    with open(library.parent / "csrc" / "ops" / "library.cpp", "a") as file:
        file.write("// an op that the library lacks\n")


def in_a_checkout(library: Path) -> None:
    (library.parent / "csrc").rename(library.parent.parent / "csrc")


def with_newer_sources_in_a_checkout(library: Path) -> None:
    with_newer_sources(library)
    in_a_checkout(library)


def stripped(library: Path) -> None:
    """As distributions do to every library."""
    size = library.stat().st_size
    subprocess.run(["strip", library], check=True)
    assert library.stat().st_size < size


FAULTS = {
    "stripped": Fault(RUNS, stripped),
    "whole, in a checkout": Fault(RUNS, in_a_checkout),
    "built from other sources, in a checkout": Fault(
        r"ImportError: LIBRARY was built from other sources than those in CHECKOUT/csrc; pip install -e \. builds it ",
        with_newer_sources_in_a_checkout,
    ),
    "beside other sources, installed": Fault(RUNS, with_newer_sources),
    "without sources": Fault(RUNS, lambda library: shutil.rmtree(library.parent / "csrc")),
    "of another machine": Fault(
        r"ImportError: LIBRARY does not load on \S+ beside Python \S+ and torch \S+ \(LIBRARY: .*\); install illia_ext "
        "again on this machine, or ILLIA_EXT_JIT=1 compiles it$",
        of_another_machine,
    ),
    "of another Python": Fault(
        "ImportError: Python version mismatch: module was compiled for Python 3.99, but the interpreter version is",
        of_another_python,
    ),
    "named for another Python, without a compiler": Fault(
        "ImportError: compiling illia_ext needs a C[+][+] compiler, and PATH has no 'no-such-compiler': install ",
        lambda library: library.rename(library.with_name("_C.cpython-399-x86_64-linux-gnu.so")),
        "os.environ['CXX'] = 'no-such-compiler'",
    ),
    "whole, beside a torch before its release": Fault(RUNS, before=TORCH.format("2.10.0a0+b4e4ee81d3.nv25.12")),
    "beside torch 2.9.1": Fault(
        "ImportError: illia_ext needs torch >= 2.10, got 2.9.1: pip install -U torch$", before=TORCH.format("2.9.1")
    ),
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """How the import ended under each fault."""
    folder = tmp_path_factory.mktemp("faults")
    for what, fault in FAULTS.items():
        package = folder / what / "illia_ext"
        shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("*.so", "__pycache__", "csrc"))
        shutil.copytree(build.CSRC, package / "csrc")
        fault.make(Path(shutil.copy(LIBRARY, package)))
    cases = imports({what: (folder / what, fault.before) for what, fault in FAULTS.items()}, folder)

    def anonymous(what: str, said: str) -> str:
        library = folder / what / "illia_ext" / LIBRARY.name
        return said.replace(str(library), "LIBRARY").replace(str(folder / what), "CHECKOUT")

    return {what: Ended(code, anonymous(what, said)) for what, (code, said) in cases.items()}


@pytest.mark.parametrize("what", FAULTS)
def test_import(what: str, ended: dict[str, Ended]) -> None:
    result, expected = ended[what], FAULTS[what].sentence
    assert result.code == int(expected != RUNS), result.said
    assert re.match(expected, result.sentence), result.said
    if what.startswith("named for another Python"):
        other = f"no library for {sys.implementation.cache_tag}, only _C.cpython-399-x86_64-linux-gnu.so"
        assert f"illia_ext: {other}\n" in result.said
