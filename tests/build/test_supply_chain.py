"""What the installed package could do to a machine: what it links to, and what it connects to."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import run_python

from illia_ext import _C

pytestmark = pytest.mark.usefixtures("cpu")
ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path(_C.__file__)
RUNTIME = r"libtorch(_cpu)?\.so|lib(stdc\+\+|m|gcc_s|c|dl|rt|pthread)\.so\.\d+|ld-linux-[\w-]+\.so\.\d+"


def readelf(*options: str) -> str:
    if shutil.which("readelf") is None:
        pytest.skip("readelf, of binutils, is not on PATH")
    return subprocess.run(["readelf", "--wide", *options, LIBRARY], check=True, capture_output=True, text=True).stdout


def test_library_links_to_torch_and_the_runtime_alone() -> None:
    dynamic = readelf("--dynamic")
    needed = re.findall(r"\(NEEDED\)\s+Shared library: \[(.*)\]", dynamic)
    assert "libtorch.so" in needed and [name for name in needed if not re.fullmatch(RUNTIME, name)] == []
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic and "TEXTREL" not in dynamic


def test_library_has_no_executable_stack_and_its_tables_become_read_only() -> None:
    segments = readelf("--segments")
    assert re.search(r"GNU_STACK +(0x\w+ +){5}RW +", segments) and "GNU_RELRO" in segments
    assert not re.search(r"LOAD +(0x\w+ +){5}RWE", segments)


@pytest.mark.skipif(bool(_C.build_info()["cuda"]), reason="CUDA's runtime, linked in, looks for its driver")
def test_library_calls_no_socket_and_starts_no_program() -> None:
    imported = set(re.findall(r"UND (\w+)", readelf("--dyn-syms")))
    assert "memcpy" in imported
    assert (
        imported & {"socket", "connect", "bind", "getaddrinfo", "system", "popen", "execve", "fork", "dlopen"} == set()
    )


def test_library_names_no_folder_of_this_machine() -> None:
    assert str(ROOT).encode() not in LIBRARY.read_bytes()


@pytest.mark.skipif(os.environ.get("ILLIA_EXT_JIT") == "1", reason="compilation starts programs")
def test_import_and_draw_open_no_socket_and_start_no_program() -> None:
    """By Python's own audit events; torch is imported before, which may do what it likes."""
    code = """if True:
        import sys, torch, torch.distributed
        seen = []
        watched = ("socket.", "urllib.", "http.", "subprocess.", "os.system", "os.exec", "os.posix_spawn")
        sys.addaudithook(lambda event, _: seen.append(event) if event.startswith(watched) else None)
        import illia_ext
        from torch import nn
        bnn = illia_ext.BayesianModule(nn.Linear(3, 2))
        output, log_prob = bnn(torch.ones(4, 3))
        (output.sum() + log_prob).backward()
        illia_ext.GaussianDistribution(3).sample()
        assert seen == [], seen
        import socket
        socket.socket().close()
        assert seen == ["socket.__new__"], seen"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
