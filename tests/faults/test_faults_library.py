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

pytestmark = [
    pytest.mark.usefixtures("cpu"),
    pytest.mark.skipif(PACKAGE not in LIBRARY.parents, reason="the library under test is compiled at import"),
]


class Fault(NamedTuple):
    what: str
    make: Callable[[Path], object]  # in the library of a whole package
    sentence: str
    code: int = 1
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


FAULTS = [
    Fault("whole", lambda library: None, r"torch.Size\(\[3\]\)$", code=0),
    Fault("stripped", stripped, r"torch.Size\(\[3\]\)$", code=0),
    Fault("whole, in a checkout", in_a_checkout, r"torch.Size\(\[3\]\)$", code=0),
    Fault(
        "built from other sources, in a checkout",
        with_newer_sources_in_a_checkout,
        r"ImportError: LIBRARY was built from other sources than those in CHECKOUT/csrc; pip install -e \. builds it ",
    ),
    Fault("beside other sources, installed", with_newer_sources, r"torch.Size\(\[3\]\)$", code=0),
    Fault(
        "without sources",
        lambda library: shutil.rmtree(library.parent / "csrc"),
        r"torch.Size\(\[3\]\)$",
        code=0,
    ),
    Fault(
        "of another machine",
        of_another_machine,
        r"ImportError: LIBRARY does not load on \S+ beside Python \S+ and torch \S+ \(LIBRARY: .*\); install illia_ext "
        "again on this machine, or ILLIA_EXT_JIT=1 compiles it$",
    ),
    Fault(
        "of another Python",
        of_another_python,
        "ImportError: Python version mismatch: module was compiled for Python 3.99, but the interpreter version is",
    ),
    Fault(
        "named for another Python, without a compiler",
        lambda library: library.rename(library.with_name("_C.cpython-399-x86_64-linux-gnu.so")),
        "ImportError: compiling illia_ext needs a C[+][+] compiler, and PATH has no 'no-such-compiler': install ",
        before="os.environ['CXX'] = 'no-such-compiler'",
    ),
    Fault(
        "beside a torch before its release",
        lambda library: None,
        r"torch.Size\(\[3\]\)$",
        code=0,
        before="torch.__version__ = torch.torch_version.TorchVersion('2.10.0a0+b4e4ee81d3.nv25.12')",
    ),
    Fault(
        "beside torch 2.9.1",
        lambda library: None,
        "ImportError: illia_ext needs torch >= 2.10, got 2.9.1: pip install -U torch$",
        before="torch.__version__ = torch.torch_version.TorchVersion('2.9.1')",
    ),
]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """How the import ended under each fault."""
    folder = tmp_path_factory.mktemp("faults")
    for fault in FAULTS:
        package = folder / fault.what / "illia_ext"
        shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("*.so", "__pycache__", "csrc"))
        shutil.copytree(build.CSRC, package / "csrc")
        fault.make(Path(shutil.copy(LIBRARY, package)))
    cases = imports({fault.what: (folder / fault.what, fault.before) for fault in FAULTS}, folder)

    def anonymous(what: str, said: str) -> str:
        package = folder / what / "illia_ext"
        names = {package / LIBRARY.name: "LIBRARY", package: "PACKAGE", package.parent: "CHECKOUT"}
        for path, name in names.items():
            said = said.replace(str(path), name)
        return said

    return {what: Ended(code, anonymous(what, said)) for what, (code, said) in cases.items()}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_import(fault: Fault, ended: dict[str, Ended], record_property: Callable[[str, object], None]) -> None:
    result = ended[fault.what]
    assert result.code == fault.code, result.said
    assert re.match(fault.sentence, result.sentence), result.said
    if fault.code:
        record_property(f"a library {fault.what.partition(',')[0]}", result.sentence)


def test_libraries_for_other_pythons_are_named(ended: dict[str, Ended]) -> None:
    tag = sys.implementation.cache_tag
    said = ended["named for another Python, without a compiler"].said
    assert f"illia_ext: no library for {tag}, only _C.cpython-399-x86_64-linux-gnu.so\n" in said
