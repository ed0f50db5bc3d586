"""What several test files share: inputs, dtypes, and runs in a fresh interpreter."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

DEVICE = torch.device("cpu")  # under test, as conftest.py sets it: for what is made at import; tests take the fixture
FLOAT_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
HALF_DTYPES = (torch.float16, torch.bfloat16)
# numel: none, one, and around a row (16), a tile of noise (64) and a chunk (1024) of the CPU kernels
SHAPES = ((), (0,), (3, 0, 2), (1,), (15,), (17,), (63,), (65,), (5, 13), (1023,), (1024,), (1025,), (3, 7, 131))
# Views of a [2, 10, 6, 34] tensor that lie in memory in another way than a fresh tensor of their shape.
LAYOUTS = {
    "transposed": lambda tensor: tensor.permute(3, 1, 0, 2),
    "sliced": lambda tensor: tensor[:, 1::3, :, 3::2],
    "expanded": lambda tensor: tensor[:1, :, :, :1].expand(3, 10, 6, 34),
    "channels_last": lambda tensor: tensor.contiguous(memory_format=torch.channels_last),
    "offset": lambda tensor: tensor.flatten()[1:],
}
UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.float64: 2.0**-53, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
DEVICES_AGREE = 2e-6  # eps in float32, relative to max(1, |eps|): between the CPU and a GPU, with its own intrinsics


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the noise, the sums and log_prob: half types are computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def function_roundoffs(on_cpu: float, like: Tensor) -> float:
    """Error of sigma, sigmoid or h in units of roundoff: `on_cpu`, as csrc/core states it for code that is the same
    bits everywhere. In float32 on a GPU x may be DEVICES_AGREE * sigma off, 34 roundoffs; 2 more for a product."""
    if like.is_cuda and arithmetic_dtype(like.dtype) == torch.float32:
        return DEVICES_AGREE / UNIT_ROUNDOFF[torch.float32] + 2
    return on_cpu


def make_keys(*words: tuple[int, int], device: torch.device | str | None = None) -> Tensor:
    """[S, 2] from S pairs (seed, offset) of unsigned words; int64, as the library draws them.

    Here and below: on the device under test, if no other is named.
    """
    signed = [[word - 2**64 if word >= 2**63 else word for word in pair] for pair in words]
    return torch.tensor(signed, dtype=torch.int64, device=device or DEVICE).reshape(-1, 2)


def make_key(seed: int, offset: int = 0, device: torch.device | str | None = None) -> Tensor:
    """[2]."""
    return make_keys((seed, offset), device=device)[0]


def make_parameters(
    shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """mu ~ N(0, 1/4) and rho uniform in [-8, 4), leaves without requires_grad."""
    generator = torch.Generator().manual_seed(seed)
    mu = torch.randn(tuple(shape), generator=generator, dtype=torch.float64) / 2
    rho = torch.rand(tuple(shape), generator=generator, dtype=torch.float64) * 12 - 8
    return mu.to(device or DEVICE, dtype), rho.to(device or DEVICE, dtype)


def make_strided(layout: str, dtype: torch.dtype, device: torch.device | str | None = None, seed: int = 0) -> Tensor:
    """Values as of mu in `make_parameters`, in one of LAYOUTS."""
    return LAYOUTS[layout](make_parameters((2, 10, 6, 34), dtype, device, seed)[0])


def rng_state(device: torch.device) -> Tensor:
    """Of PyTorch's own generator there."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.random.get_rng_state()


def noise(key: Tensor, like: Tensor) -> Tensor:
    """The very eps that an op with parameters like this one draws, in float64."""
    return torch.ops.illia_ext.standard_normal(key, like.shape, dtype=arithmetic_dtype(like.dtype)).double()


def sigma(rho: Tensor) -> Tensor:
    """In float64."""
    return softplus(rho.double(), threshold=60)


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bit patterns as integers: torch.equal of these also tells -0 from 0 and compares NaN."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().resolve_neg().contiguous().view(integers[tensor.element_size()])


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


@contextmanager
def interrupted_at(place: int, *files: str) -> Iterator[None]:
    """A KeyboardInterrupt at the line of that number of those that run in these files of the package."""
    lines = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal lines
        if frame.f_code.co_filename.endswith(files) and event == "line":
            lines += 1
            if lines == place:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def run_python(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a new interpreter that sees this checkout and these tests."""
    tests = Path(__file__).resolve().parent
    folders = [tests.parent, tests, *(folder for folder in tests.iterdir() if folder.is_dir())]
    path = os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, **environ}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)


PATIENCE = 60  # seconds; a child that takes longer hangs


def end(child: int) -> int:
    """Its exit code; a child that hangs is killed."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"the child has not ended in {PATIENCE} s")
