"""What the command line asks for, checked before anything is measured."""

from pathlib import Path
from typing import Any

import torch
import typer

import illia_ext
from bench import machine
from bench.cases import CASES
from bench.peers import load_peers
from bench.results import Run
from bench.works import Scale

__all__ = [
    "DTYPES",
    "check_memory",
    "check_writable",
    "parse_cases",
    "parse_counts",
    "parse_device",
    "parse_dtype",
    "read_run",
]

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}
PICTURES = (".png", ".svg", ".pdf")
FLOATS_NEEDED = 40  # per weight, at most: inputs, eager's graph and the float64 check


def refuse(option: str, reason: str) -> typer.BadParameter:
    return typer.BadParameter(f"{option}: {reason}")


def parse_counts(option: str, text: str) -> list[int]:
    """Numbers such as 1000 or 2^20, with commas."""
    try:
        numbers = [
            int(base) ** int(power or 1) for base, _, power in (s.strip().partition("^") for s in text.split(","))
        ]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise refuse(option, f"expected positive numbers such as 1000 or 2^20, with commas, got {text!r}")
    return list(dict.fromkeys(numbers))


def parse_device(text: str) -> torch.device:
    try:
        device = torch.device(text)
    except RuntimeError:
        raise refuse("--device", f"expected cpu or cuda, got {text!r}") from None
    if device.type == "cpu":
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


def parse_cases(text: str | None) -> tuple[list[str], dict[str, Any], dict[str, str]]:
    """Cases to run, the peers among them, and those that were asked for but cannot be imported."""
    peers, missing = load_peers()
    known = [*CASES, *peers, *missing]
    names = known if text is None else list(dict.fromkeys(name.strip() for name in text.split(",")))
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


def read_run(option: str, path: Path | None) -> Run | None:
    if path is None:
        return None
    try:
        return Run.read(path)
    except (OSError, ValueError) as error:
        raise refuse(option, str(error)) from None


def check_memory(scale: Scale, device: torch.device, dtype: torch.dtype) -> None:
    largest = max([*scale.sizes, *(count * scale.samples_numel for count in scale.samples)])
    needed, free = FLOATS_NEEDED * dtype.itemsize * largest, machine.free_bytes(device)
    if needed > free:
        raise refuse(
            "--sizes", f"{largest:,} weights need some {needed / 2**30:.0f} GiB, and {free / 2**30:.0f} are free"
        )
