"""Several processes that talk through gloo: they run a list of checks once, and each check is a test of its own.

What the checks share stands here too: meshes, and whole tensors taken apart.
"""

import json
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from importlib import import_module
from multiprocessing import connection
from pathlib import Path

import torch
import torch.distributed as dist
from helpers import same_bits
from torch import Tensor
from torch.distributed.tensor import DeviceMesh, DTensor, Placement, distribute_tensor, init_device_mesh

__all__ = ["CHECKS", "World", "assert_part_of", "check", "load_checks", "make_mesh", "outcomes", "place", "shard"]

SECONDS = 180  # for all checks of a world, which take twenty; a busy machine is no failure
LEFT_BEHIND = 10  # seconds that ranks have to end after the first, and to join one that failed: else they are stuck
PATIENCE = timedelta(seconds=60)  # of a rank with the others
CHECKS: dict[str, tuple[tuple[int, ...], Callable[["World"], None]]] = {}


@dataclass
class World:
    """What a check may know: this process's rank, how many there are, and an empty directory that they share."""

    rank: int
    size: int
    directory: Path


def check(*sizes: int) -> Callable[[Callable[[World], None]], Callable[[World], None]]:
    """Decorator: a check that worlds of these numbers of processes run, on all their ranks."""

    def decorate(function: Callable[[World], None]) -> Callable[[World], None]:
        CHECKS[function.__name__] = (sizes, function)
        return function

    return decorate


def load_checks() -> None:
    """Fills CHECKS."""
    for path in sorted(Path(__file__).parent.glob("distributed_*.py")):
        import_module(path.stem)


@cache
def make_mesh(*sizes: int) -> DeviceMesh:
    return init_device_mesh("cpu", sizes)


def place(whole: Tensor, mesh: DeviceMesh, *placements: Placement) -> DTensor:
    """Replicated, if no placement is given. Every rank has the whole: nothing is sent."""
    return distribute_tensor(whole.detach(), mesh, placements or None, src_data_rank=None)


def shard(wholes: Iterable[Tensor], mesh: DeviceMesh, *placements: Placement) -> list[DTensor]:
    """Leaves that require gradients."""
    return [place(whole.clone(), mesh, *placements).requires_grad_() for whole in wholes]


def assert_part_of(whole: Tensor, ours: Tensor, what: object = None) -> None:
    """That `ours` is a DTensor whose shard has the bits of its place in `whole`."""
    assert isinstance(ours, DTensor) and ours.shape == whole.shape, what
    part = place(whole, ours.device_mesh, *ours.placements)
    assert same_bits(ours.to_local(), part.to_local()), what


def _work(rank: int, size: int, directory: Path) -> None:
    """One process: a line of JSON for each check, [name, traceback or ""]."""
    load_checks()
    torch.set_num_threads(1)
    store = dist.FileStore(str(directory / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
    with open(directory / f"{rank}.jsonl", "w") as report:
        for name, (sizes, function) in CHECKS.items():
            if size not in sizes:
                continue
            failure = ""
            shared = directory / name
            shared.mkdir(exist_ok=True)
            try:
                torch.manual_seed(0)
                function(World(rank, size, shared))
            except Exception:
                failure = traceback.format_exc()
            print(json.dumps([name, failure]), file=report, flush=True)
            store.set(f"{name} {rank}", "done")
            patience = timedelta(seconds=LEFT_BEHIND) if failure else PATIENCE
            store.wait([f"{name} {other}" for other in range(size)], patience)
    dist.destroy_process_group()


def outcomes(size: int, directory: Path) -> dict[str, str]:
    """Runs the checks of a world: for each check what failed, on any rank; "" if nothing did."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed.tensor", "torch.distributed.fsdp"])  # paid once for all
    processes = [context.Process(target=_work, args=(rank, size, directory), daemon=True) for rank in range(size)]
    for process in processes:
        process.start()
    connection.wait([process.sentinel for process in processes], SECONDS)
    deadline = time.monotonic() + LEFT_BEHIND
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
    reports = []
    for rank in range(size):
        path = directory / f"{rank}.jsonl"
        reports.append(dict(map(json.loads, path.read_text().splitlines() if path.exists() else [])))
    result = {}
    for name, (sizes, _) in CHECKS.items():
        if size in sizes:
            told = [report.get(name, "did not run to its end") for report in reports]
            result[name] = "\n".join(f"rank {rank}: {text}" for rank, text in enumerate(told) if text)
    return result
