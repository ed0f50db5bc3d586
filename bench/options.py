"""What the command line asks for, checked before anything is measured."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import typer

import illia_ext
from bench import machine
from bench.cases import CASES
from bench.peers import load_peers
from bench.results import Run
from bench.setting import Scale

__all__ = [
    "DTYPES",
    "check_writable",
    "fit_memory",
    "parse_cases",
    "parse_counts",
    "parse_device",
    "parse_dtype",
    "read_run",
    "refuse",
    "write",
]

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}
PICTURES = (".png", ".svg", ".pdf")
CHECK_BYTES = 160  # per drawn weight: eager's graph or the float64 check, at most 124 when measured


def refuse(option: str, reason: str) -> typer.BadParameter:
    return typer.BadParameter(f"{option}: {reason}")


def parse_counts(option: str, text: str) -> list[int]:
    """Numbers such as 1000 or 2^20, with commas."""
    parts = [re.fullmatch(r"(\d{1,12})(?:\^(\d{1,2}))?", part.strip()) for part in text.split(",")]
    numbers = [int(part[1]) ** int(part[2] or 1) for part in parts if part]
    if len(numbers) < len(parts) or not all(1 <= number <= 2**40 for number in numbers):
        raise refuse(option, f"expected numbers up to 2^40 such as 1000 or 2^20, with commas, got {text!r}")
    return list(dict.fromkeys(numbers))


def parse_device(text: str) -> torch.device:
    try:
        device = torch.device(text)
    except RuntimeError:
        raise refuse("--device", f"expected cpu or cuda, got {text!r}") from None
    if device == torch.device("cpu"):
        return device
    if device.type != "cuda":
        raise refuse("--device", f"expected cpu or cuda, got {text!r}")
    if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
        raise refuse(
            "--device", f"there is no {text} here: torch {torch.__version__} sees {torch.cuda.device_count()} GPUs"
        )
    if not illia_ext._C.build_info()["cuda"]:
        raise refuse("--device", f"{text} needs illia_ext built with CUDA")
    return device


def parse_dtype(text: str) -> torch.dtype:
    if text not in DTYPES:
        raise refuse("--dtype", f"expected {', '.join(DTYPES)}, got {text!r}")
    return DTYPES[text]


def parse_cases(text: str | None, usual: list[str]) -> tuple[list[str], dict[str, Any], dict[str, str]]:
    """Cases to run (`usual` and all peers where `text` is None), the peers among them, and those that do not import."""
    peers, missing = load_peers()
    known = [*CASES, *peers, *missing]
    names = [*usual, *peers, *missing] if text is None else list(dict.fromkeys(s.strip() for s in text.split(",")))
    for name in names:
        if name not in known:
            raise refuse("--cases", f"expected some of {', '.join(known)}, got {name!r}")
    chosen = {name: layer for name, layer in peers.items() if name in names}
    return names, chosen, {name: reason for name, reason in missing.items() if name in names}


def check_writable(option: str, path: Path | None) -> None:
    """Before any measurement, and without leaving an empty file behind."""
    if path is None:
        return
    if option == "--plot" and path.suffix not in PICTURES:
        raise refuse(option, f"expected a name that ends in {', '.join(PICTURES)}, got {path}")
    existed = path.exists()
    try:
        path.open("a").close()
    except OSError as error:
        raise refuse(option, f"cannot write {path}: {error.strerror}") from None
    if not existed:
        path.unlink()


def write(option: str, path: Path, action: Callable[[Path], None]) -> None:
    try:
        action(path)
    except OSError as error:
        raise refuse(option, f"cannot write {path}: {error.strerror}") from None


def read_run(option: str, path: Path | None) -> Run | None:
    if path is None:
        return None
    try:
        return Run.read(path)
    except (OSError, ValueError) as error:
        raise refuse(option, str(error)) from None


def fit_memory(scale: Scale, device: torch.device, dtype: torch.dtype, asked: dict[str, str | None]) -> Scale:
    """The scale without the points that this machine has no memory for; one that was asked for is refused."""
    free = machine.free_bytes(device)
    itemsize = dtype.itemsize
    rules = {
        "--sizes": (scale.sizes, 4 * itemsize + CHECK_BYTES),
        "--samples": (scale.samples, scale.samples_numel * (2 * itemsize + CHECK_BYTES)),
    }
    fitting = {}
    for option, (points, bytes_each) in rules.items():
        fitting[option] = [point for point in points if point * bytes_each <= free]
        if asked[option] is not None and fitting[option] != points:
            needed = max(points) * bytes_each
            raise refuse(option, f"{max(points):,} need some {needed / 2**30:.0f} GiB, and {free / 2**30:.0f} are free")
    return replace(scale, sizes=fitting["--sizes"], samples=fitting["--samples"])
