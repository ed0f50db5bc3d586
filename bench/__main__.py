"""The benchmark's command line: `python -m bench --help`."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import machine, options, report
from bench.cases import CASES, COMPILE_OPTIONS
from bench.counts import OURS
from bench.measure import Effort, measure, warm_up
from bench.plan import plan
from bench.results import Run
from bench.setting import Scale, Setting

WIDTH = 120  # of the tables: a narrower terminal wraps them rather than losing figures
QUICK = Effort(seconds=0.5, min_rounds=3, max_rounds=10)
FULL = Effort(seconds=2, min_rounds=5, max_rounds=15)
QUICK_SCALE = Scale(sizes=[2**12, 2**18], samples=[], samples_numel=2**14, tensors=33, transforms=[2**10], batches=[32])
CPU_SCALE = Scale(
    sizes=[2**10, 2**16, 2**20],
    samples=[1, 8, 32],
    samples_numel=2**18,
    tensors=161,
    transforms=[2**10, 2**16],
    batches=[32, 256, 1024],
)
CUDA_SCALE = replace(CPU_SCALE, sizes=[2**12, 2**16, 2**20, 2**24, 2**28])


def measure_all(run: Run, scale: Scale, setting: Setting, effort: Effort) -> None:
    warm_up(setting.device, with_compile=any(name in COMPILE_OPTIONS for name in setting.cases))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # No refreshing by itself: its thread would run beside what is timed.
    with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as progress:
        groups = plan(scale, setting)
        task = progress.add_task("", total=len(groups))
        for group in groups:
            progress.update(task, description=group.title, refresh=True)
            if not setting.compile_once:
                torch._dynamo.reset()  # every group is compiled for itself, as it would be in a program of its own
            run.measurements += measure(group.subjects(), effort, setting.device)
            progress.advance(task)


def new_run(
    device: str, dtype: str, sizes: str | None, samples: str | None, threads: int | None, cases: str | None, quick: bool
) -> Run:
    where = options.parse_device(device)
    usual = [name for name in CASES if name != "compile-randn" or not (quick or where.type == "cuda")]
    names, peers, skipped = options.parse_cases(cases, usual)
    setting = Setting(names, peers, where, options.parse_dtype(dtype), compile_once=quick)
    scale = QUICK_SCALE if quick else CUDA_SCALE if where.type == "cuda" else CPU_SCALE
    if sizes is not None:
        scale = replace(scale, sizes=options.parse_counts("--sizes", sizes))
    if samples is not None:
        scale = replace(scale, samples=options.parse_counts("--samples", samples))
    scale = options.fit_memory(scale, where, setting.dtype, {"--sizes": sizes, "--samples": samples})
    torch.set_num_threads(threads or torch.get_num_threads())
    if where.type == "cuda":
        torch.cuda.set_device(where)  # the one that torch's clock waits for
    settings = {"device": where.type, "dtype": dtype, "quick": quick, "cases": names}
    run = Run(machine.describe(where, torch.get_num_threads()), settings, skipped)
    before = machine.busy(where)
    # A quick run may find compiled code on disk; a full one compiles anew, so that its first calls are honest.
    with torch._inductor.config.patch(force_disable_caches=not quick), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="dynamo_pgo")
        measure_all(run, scale, setting, QUICK if quick else FULL)
    busy = before or machine.busy(torch.device("cpu"))
    if busy:
        run.machine["busy"] = busy
    return run


def main(
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")] = "cpu",
    dtype: Annotated[str, typer.Option(help=f"Of the parameters: {', '.join(options.DTYPES)}.")] = "float32",
    sizes: Annotated[str | None, typer.Option(help="Weights of one tensor: numbers such as 2^20, with commas.")] = None,
    samples: Annotated[str | None, typer.Option(help="Numbers of samples, with commas.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; by default torch's own number.")] = None,
    cases: Annotated[str | None, typer.Option(help="Names with commas; by default all that can be imported.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer points and rounds.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Draw the results here, in png, svg or pdf.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Results of an earlier run: show what got slower.")] = None,
    load: Annotated[Path | None, typer.Option(help="Show these results instead of measuring.")] = None,
) -> None:
    """Gaussian weights and their log q(x) - log p(x), side by side: plain PyTorch, torch.compile, illia_ext, peers.

    Every case is checked against float64 formulas before it gets a time; the exit code is 1 where illia_ext fails.
    bench/README.md tells how to read the tables.
    """
    console = Console()
    console.width = max(console.width, WIDTH)
    old, run = options.read_run("--compare", compare), options.read_run("--load", load)
    options.check_writable("--json", json_file)
    options.check_writable("--plot", plot_file)
    if run is None:
        run = new_run(device, dtype, sizes, samples, threads, cases, quick)
    elif quick or any(option is not None for option in (sizes, samples, threads, cases)):
        raise options.refuse(
            "--load", "measures nothing, so --sizes, --samples, --threads, --cases, --quick do not go with it"
        )
    console.print(report.tables(run))
    if old is not None:
        console.print(report.compared(old, run))
    if json_file is not None:
        options.write("--json", json_file, run.write)
    if plot_file is not None:
        from bench.plot import plot  # matplotlib takes a second to import

        options.write("--plot", plot_file, lambda path: plot(run, path))
    if any(row.untimed and (row.case.startswith(OURS) or row.work == "transforms") for row in run.measurements):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
