"""Where a run takes place, and whether something else runs there."""

import datetime
import platform
from pathlib import Path

import psutil
import torch

from illia_ext import _C

__all__ = ["busy", "cpu_model", "describe", "free_bytes"]

BUSY_CORES = 0.5
OWN_GPU_BYTES = 2**30  # a process that has only begun holds less


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def describe(device: torch.device, threads: int) -> dict[str, object]:
    about: dict[str, object] = {
        "cpu": cpu_model(),
        "cores": psutil.cpu_count(),
        "capability": _C.cpu_capability(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "build": _C.build_info(),
        "date": datetime.date.today().isoformat(),
    }
    if device.type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(device)
        about["cuda"] = torch.version.cuda
    return about


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def busy(device: torch.device) -> str | None:
    """What else keeps this machine busy, seen for half a second; None when it is quiet."""
    cores = psutil.cpu_percent(interval=0.5) / 100 * (psutil.cpu_count() or 1)
    if cores > BUSY_CORES:
        return f"other programs keep {cores:.1f} cores busy"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        if total - free > OWN_GPU_BYTES:
            return f"other programs hold {(total - free) / 2**30:.1f} GiB of the GPU's memory"
    return None
