"""The CUDA side of a build, as far as it shows without a GPU: switches, registration, refusals."""

import shutil
from pathlib import Path

import pytest
import torch

from illia_ext import _C
from illia_ext._native import build
from illia_ext._ops.fake import NAMES, op

OFFERED = ["75", "80", "86", "90", "100"]


@pytest.fixture
def toolkit(monkeypatch: pytest.MonkeyPatch) -> build.Toolkit:
    """That of the loaded library."""
    built = _C.build_info()["cuda"]
    if not built:
        pytest.skip("this library was built without CUDA")
    monkeypatch.setenv("ILLIA_EXT_CUDA", "1")
    found = build.cuda.__wrapped__()
    assert found is not None
    return found._replace(version=built["version"], targets=built["targets"])


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n", False),
        ("__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", True),
        ('cuda = "12.8"\n', True),
        ("cuda = None\nhip = '6.4'\n", False),
    ],
)
def test_a_torch_with_cuda_is_known_from_its_folder(
    version: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only beside one are CUDA kernels built that nobody asked for."""
    (tmp_path / "version.py").write_text(version)
    monkeypatch.setattr(build, "torch_dir", lambda: tmp_path)
    assert build._torch_has_cuda() is expected
    monkeypatch.setattr(build, "_find_nvcc", lambda: "/no/such/nvcc")
    monkeypatch.setenv("ILLIA_EXT_CUDA", "auto")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    if expected:
        with pytest.raises(FileNotFoundError, match="/no/such/nvcc"):
            build.cuda.__wrapped__()
    else:
        assert build.cuda.__wrapped__() is None


@pytest.mark.parametrize("switch", ["0", "auto"])
def test_builds_without_nvcc(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path: None)
    monkeypatch.setenv("ILLIA_EXT_CUDA", switch)
    assert build.cuda.__wrapped__() is None


@pytest.mark.parametrize(
    ("variable", "value", "error", "message"),
    [
        ("ILLIA_EXT_CUDA", "yes", ValueError, "ILLIA_EXT_CUDA: expected 0, 1 or auto, got 'yes'"),
        ("ILLIA_EXT_CUDA", "1", RuntimeError, "ILLIA_EXT_CUDA=1 asks for CUDA kernels, and there is no nvcc"),
        ("CUDA_HOME", "/nowhere", RuntimeError, "CUDA_HOME: expected a folder with bin/nvcc, got '/nowhere'"),
    ],
)
def test_switches_refused(
    variable: str, value: str, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path: "nvcc" if variable == "CUDA_HOME" else None)
    monkeypatch.setenv("ILLIA_EXT_CUDA", "1")
    monkeypatch.setenv(variable, value)
    with pytest.raises(error, match=message):
        build.cuda.__wrapped__()


def test_an_nvcc_that_fails_is_quoted_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of CUDA_HOME comes before others."""
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho no host compiler >&2\nexit 1\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("ILLIA_EXT_CUDA", "1")
    with pytest.raises(RuntimeError, match=rf"^{nvcc} .* fails: no host compiler\nILLIA_EXT_CUDA=0 builds without"):
        build.cuda.__wrapped__()


@pytest.mark.parametrize(
    ("asked", "targets"),
    [
        ("", ["sm_80", "sm_86", "sm_90", "sm_100", "compute_80"]),
        ("9.0", ["sm_90"]),
        ("8.0;9.0+PTX", ["sm_80", "sm_90", "compute_80"]),
        (" 10.0 8.6 ", ["sm_86", "sm_100"]),
        ("7.5,9.0a", ["sm_75", "sm_90"]),
    ],
)
def test_architectures(asked: str, targets: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_visible_architectures", lambda: [])
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    assert build.cuda_targets(OFFERED) == targets


@pytest.mark.parametrize(
    ("shown", "targets"),
    [
        ("echo 9.0; echo 8.6; echo 9.0", ["sm_86", "sm_90", "compute_86"]),
        ("echo 12.1", ["sm_100", "compute_100"]),  # newer than this nvcc: by its newest, and PTX
        ("echo No devices were found; exit 6", ["sm_80", "sm_86", "sm_90", "sm_100", "compute_80"]),
    ],
)
def test_without_a_list_the_gpus_that_are_there(
    shown: str, targets: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{shown}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    assert build.cuda_targets(OFFERED) == targets


@pytest.mark.parametrize("asked", ["Hopper", "9", "12.0", "8.0;x", "9.0+SASS"])
def test_architectures_refused(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    with pytest.raises(ValueError, match=r"TORCH_CUDA_ARCH_LIST: .*\(7\.5 8\.0 8\.6 9\.0 10\.0\)"):
        build.cuda_targets(OFFERED)


def test_library_holds_the_kernels(toolkit: build.Toolkit) -> None:
    """And it is loaded: the suite runs on it, beside a torch with or without CUDA."""
    assert _C.build_info()["cuda"] == {"version": toolkit.version, "targets": toolkit.targets}
    for name in NAMES:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"illia_ext::{name}", "CUDA"), name


CUDA_KEY = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rho": torch.zeros(3)}, r"rho: expected the shape of mu, \[2\], got \[3\]"),
        ({"key": torch.zeros(3, dtype=torch.int64)}, r"key: expected shape \[2\] or \[num_samples, 2\], got \[3\]"),
        ({"std_prior": torch.ones(3)}, r"std_prior: expected one element, or a shape that broadcasts to .* got \[3\]"),
        ({"full_size": [4]}, r"origin: expected an index beside full_size, \[4\], got None"),
    ],
)
def test_cuda_kernels_refuse_what_the_cpu_refuses(
    arguments: dict[str, object], message: str, toolkit: build.Toolkit
) -> None:
    """Called by their dispatch key, with tensors of the CPU: they check before they look for a device."""
    given = {"mu": torch.zeros(2), "rho": torch.zeros(2), "mu_prior": torch.zeros(()), "std_prior": torch.ones(())}
    given |= {"key": torch.zeros(2, dtype=torch.int64)} | arguments
    positional = [given.pop(name) for name in ("mu", "rho", "mu_prior", "std_prior", "key")]
    with pytest.raises(RuntimeError, match=message):
        op("gaussian_sample_and_log_prob").redispatch(CUDA_KEY, *positional, **given)


def test_cuda_kernels_of_many_tensors_refuse_what_the_cpu_refuses(toolkit: build.Toolkit) -> None:
    one, key = [torch.zeros(2)], torch.zeros(2, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="mu: expected at least one tensor, got an empty list"):
        op("foreach_gaussian_sample_and_log_prob").redispatch(CUDA_KEY, [], [], one, one, key)
    with pytest.raises(RuntimeError, match=r"tensor 1: rho: expected the shape of mu, \[2\], got \[3\]"):
        op("foreach_gaussian_kl_divergence").redispatch(CUDA_KEY, one * 2, [*one, torch.zeros(3)], one, one)
