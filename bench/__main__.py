"""The benchmark's command line: `python -m bench --help`."""

import datetime
import json
import platform
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.cases import CASES
from bench.measure import Inputs, backward, check, forward, interleave, saved_for_backward
from illia_ext import _C

SIZES = "2^10,2^16,2^20,2^24"


def parse_sizes(text: str) -> list[int]:
    """Numbers of elements, such as 1000 or 2^20."""
    try:
        sizes = [int(base) ** int(power or 1) for base, _, power in (s.strip().partition("^") for s in text.split(","))]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise typer.BadParameter(f"sizes: expected positive numbers such as 1000 or 2^20, with commas, got {text!r}")
    return sizes


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def machine(threads: int) -> dict[str, object]:
    return {
        "cpu": cpu_model(),
        "capability": _C.cpu_capability(),
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "build": _C.build_info(),
        "date": datetime.date.today().isoformat(),
    }


def measure_size(numel: int, rounds: int, threads: int) -> dict[str, dict[str, object]]:
    """All cases at one size; a case that is wrong gets no time."""
    torch._dynamo.reset()  # each size is compiled for itself, and Dynamo allows eight of them
    inputs = Inputs.make(numel)
    wrong = {name: check(case, inputs) for name, case in CASES.items()}
    right = {name: case for name, case in CASES.items() if wrong[name] is None}
    tasks = {("forward", name): partial(forward, case, inputs) for name, case in right.items()}
    tasks |= {("both", name): partial(backward, case, inputs) for name, case in right.items()}
    tasks["forward", "torch.randn"] = partial(torch.randn, numel)
    timings = interleave(tasks, rounds, threads)
    rows: dict[str, dict[str, object]] = {name: {"wrong": reason} for name, reason in wrong.items()}
    rows["torch.randn"] = {"wrong": None}
    for (direction, name), timing in timings.items():
        rows[name][direction] = asdict(timing)
    for name, case in right.items():
        rows[name]["saved_bytes"] = saved_for_backward(case, inputs)
    return rows


def table(results: dict[int, dict[str, dict[str, object]]], title: str) -> Table:
    out = Table(title=title)
    for column in ("elements", "case", "forward, ns", "forward + backward, ns", "slower than illia_ext", "kept, bytes"):
        out.add_column(column, justify="left" if column == "case" else "right")
    for numel, rows in results.items():
        ours = rows["illia_ext"].get("both")
        for name, row in rows.items():
            cells = []
            for direction in ("forward", "both"):
                timing = row.get(direction)
                cells.append(f"{timing['median'] / numel * 1e9:.2f}" if isinstance(timing, dict) else "")
            both = row.get("both")
            compared = isinstance(both, dict) and isinstance(ours, dict)
            ratio = f"{both['median'] / ours['median']:.1f}x" if compared else str(row["wrong"] or "")
            out.add_row(f"{numel:,}", name, *cells, ratio, f"{row.get('saved_bytes', '')}")
        out.add_section()
    return out


def main(
    sizes: Annotated[str, typer.Option(help="Numbers of elements, with commas.")] = SIZES,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    rounds: Annotated[int, typer.Option(min=2, help="Turns that each case gets; the median counts.")] = 15,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
) -> None:
    """Sampling weights with log q(x) - log p(x), float32 on the CPU, side by side; times are medians per element."""
    numels = parse_sizes(sizes)
    if json_file is not None:
        try:
            json_file.touch()
        except OSError as error:
            raise typer.BadParameter(f"--json: cannot write {json_file}: {error.strerror}") from None
    torch.set_num_threads(threads)
    console = Console()
    results = {}
    for numel in track(numels, description="measuring", console=Console(stderr=True), transient=True):
        results[numel] = measure_size(numel, rounds, threads)
    about = machine(threads)
    console.print(table(results, f"{about['cpu']}, {about['capability']}, {threads} thread, torch {about['torch']}"))
    if json_file is not None:
        json_file.write_text(json.dumps({"machine": about, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
