"""The benchmark's command line: `python -m bench --help`."""

import re
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

import illia_ext
from bench import machine, report
from bench.cases import CASES, COMPILE_OPTIONS
from bench.measure import Effort, Subject, measure, warm_up
from bench.peers import PEERS, load_peers
from bench.priors import priors
from bench.results import FORMAT, Row, Run, write
from bench.setting import CPU_SCALE, CUDA_SCALE, OURS, QUICK_SCALE, Scale, Setting
from bench.steps import steps
from bench.tensors import one_tensor, resnet50, resnet50_numels, samples
from bench.transforms import transforms

QUICK = Effort(seconds=0.5, min_rounds=3, max_rounds=8)
FULL = Effort(seconds=4, min_rounds=3, max_rounds=12)
PICTURES = (".png", ".svg", ".pdf")
NAMES = ", ".join([*CASES, *PEERS])
CHECK_BYTES = 160  # per drawn weight: eager's graph or the float64 check, at most 124 when measured


def refuse(option: str, reason: str) -> typer.BadParameter:
    return typer.BadParameter(f"{option}: {reason}")


def parse_counts(option: str, text: str) -> list[int]:
    """Numbers such as 1000 or 2^20, with commas."""
    parts = [re.fullmatch(r"(\d{1,12})(?:\^(\d{1,2}))?", part.strip()) for part in text.split(",")]
    numbers = [int(part[1]) ** int(part[2] or 1) for part in parts if part]
    if len(numbers) < len(parts) or not all(1 <= number <= 2**40 for number in numbers):
        raise refuse(option, f"expected numbers up to 2^40 such as 1000 or 2^20, with commas, got {text!r}")
    return sorted(set(numbers))


def parse_device(text: str) -> torch.device:
    if text == "cpu":
        return torch.device(text)
    if not re.fullmatch(r"cuda(:\d+)?", text):
        raise refuse("--device", f"expected cpu or cuda, got {text!r}")
    device, count = torch.device(text), torch.cuda.device_count()
    if not torch.cuda.is_available() or (device.index or 0) >= count:
        raise refuse("--device", f"there is no {text} here: torch {torch.__version__} sees {count} GPUs")
    if not illia_ext._C.build_info()["cuda"]:
        raise refuse("--device", f"{text} needs illia_ext built with CUDA")
    return device


def fit_memory(scale: Scale, device: torch.device, itemsize: int, asked: dict[str, str | None]) -> Scale:
    """The scale without the points that this machine has no memory for; one that was asked for is refused."""
    free = machine.free_bytes(device)
    rules = {
        "sizes": (scale.sizes, 4 * itemsize + CHECK_BYTES),
        "samples": (scale.samples, scale.samples_numel * (2 * itemsize + CHECK_BYTES)),
    }
    fitting = {}
    for name, (points, bytes_each) in rules.items():
        fitting[name] = [point for point in points if point * bytes_each <= free]
        if asked[name] is not None and fitting[name] != points:
            needed = max(points) * bytes_each / 2**30
            free_gib = free / 2**30
            raise refuse(f"--{name}", f"{max(points):,} need some {needed:.0f} GiB, and {free_gib:.0f} are free")
    return replace(scale, **fitting)


def check_picture(path: Path | None) -> None:
    if path is not None and path.suffix not in PICTURES:
        raise refuse("--plot", f"expected a name that ends in {', '.join(PICTURES)}, got {path}")
    if path is not None and not path.parent.is_dir():
        raise refuse("--plot", f"cannot write {path}: no such folder")


def read_run(option: str, path: Path | None) -> Run | None:
    try:
        return None if path is None else Run.read(path)
    except (OSError, ValueError) as error:
        raise refuse(option, str(error)) from None


def plan(scale: Scale, setting: Setting) -> dict[str, Callable[[], list[Subject]]]:
    """What is timed together, by its title, in the order of a run; peers have layers only."""
    groups = {}
    if setting.tensor_cases():
        groups |= {f"{numel:,} weights": partial(one_tensor, numel, setting) for numel in scale.sizes}
        if scale.samples:
            groups["samples"] = partial(samples, scale.samples, scale.samples_numel, setting)
        groups[f"{scale.tensors} tensors"] = partial(resnet50, scale.tensors, setting)
    if OURS in setting.cases:
        groups |= {
            f"priors, {scale.priors:,} weights": partial(priors, [scale.priors], setting),
            f"priors, {scale.tensors} tensors": partial(priors, resnet50_numels(scale.tensors), setting),
        }
        groups |= {f"transforms, {n:,} weights": partial(transforms, n, setting) for n in scale.transforms}
    return groups | {"training steps": partial(steps, scale.batches, setting)}


def save(path: Path | None, *records: dict[str, Any], mode: str = "a") -> None:
    try:
        write(path, *records, mode=mode)
    except OSError as error:
        raise refuse("--json", f"cannot write {path}: {error.strerror}") from None


def measure_all(scale: Scale, setting: Setting, effort: Effort, json_file: Path | None) -> list[Row]:
    """Writes each group's rows when it is done."""
    rows, done = [], []
    try:
        warm_up(setting.device, with_compile=any(name in COMPILE_OPTIONS for name in setting.cases))
        for title, subjects in plan(scale, setting).items():
            typer.echo(title, err=True)
            if not setting.compile_once:
                torch._dynamo.reset()  # every group is compiled for itself, as it would be in a program of its own
            measured = measure(subjects(), effort, setting.device)
            save(json_file, *map(asdict, measured))
            rows += measured
            done.append(title)
    except KeyboardInterrupt:
        kept = f"{json_file} keeps: {'; '.join(done) or 'no group'}" if json_file else "nothing is kept without --json"
        typer.echo(f"interrupted; {kept}", err=True)
        raise
    return rows


def run_and_write(about: dict[str, Any], scale: Scale, setting: Setting, effort: Effort, json_file: Path | None) -> Run:
    start = time.perf_counter()
    about |= {"busy": machine.busy(setting.device)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="dynamo_pgo")
        save(json_file, {"format": FORMAT} | about, mode="w")
        rows = measure_all(scale, setting, effort, json_file)
        end = {"seconds": time.perf_counter() - start, "busy": about["busy"] or machine.busy(torch.device("cpu"))}
        save(json_file, end)
    return Run.of(about | end, rows)


def new_run(
    device: str, dtype: str, counts: dict[str, str | None], cases: str | None, quick: bool, json_file: Path | None
) -> Run:
    where = parse_device(device)
    peers, missing = load_peers()
    usual = [name for name in CASES if name != "compile-randn" or not (quick or where.type == "cuda")]
    known = [*CASES, *peers, *missing]
    names = [*usual, *peers, *missing] if cases is None else list(dict.fromkeys(s.strip() for s in cases.split(",")))
    for name in names:
        if name not in known:
            raise refuse("--cases", f"expected some of {', '.join(known)}, got {name!r}")
    chosen = {name: make for name, make in peers.items() if name in names}
    setting = Setting(names, chosen, where, getattr(torch, dtype), compile_once=quick)
    asked = {name: parse_counts(f"--{name}", text) for name, text in counts.items() if text is not None}
    scale = replace(QUICK_SCALE if quick else CUDA_SCALE if where.type == "cuda" else CPU_SCALE, **asked)
    scale = fit_memory(scale, where, setting.dtype.itemsize, counts)
    if where.type == "cuda":
        torch.cuda.set_device(where)  # the one that torch's clock waits for
    about = {
        "machine": machine.describe(where, torch.get_num_threads()),
        "settings": {"device": where.type, "dtype": dtype, "quick": quick, "cases": names},
        "skipped": {name: reason for name, reason in missing.items() if name in names},
    }
    # A quick run may find compiled code on disk; a full one compiles anew, so that its first calls are honest.
    with torch._inductor.config.patch(force_disable_caches=not quick):
        return run_and_write(about, scale, setting, QUICK if quick else FULL, json_file)


def main(
    device: Annotated[str | None, typer.Option(help="cpu (the default), cuda or cuda:1.")] = None,
    dtype: Annotated[
        Literal["float32", "float64", "float16", "bfloat16"] | None,
        typer.Option(help="Of the parameters; float32 by default."),
    ] = None,
    sizes: Annotated[str | None, typer.Option(help="Weights of one tensor: numbers such as 2^20, with commas.")] = None,
    samples: Annotated[str | None, typer.Option(help="Numbers of samples, with commas.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; by default torch's own number.")] = None,
    cases: Annotated[str | None, typer.Option(help=f"Some of {NAMES}; by default all that can be imported.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer points and rounds.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write results here as they come, in lines.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Draw the results here, in png, svg or pdf.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Results of an earlier run: show new times / old times.")] = None,
    load: Annotated[Path | None, typer.Option(help="Show these results instead of measuring.")] = None,
) -> None:
    """Gaussian weights and their log q(x) - log p(x), side by side: plain PyTorch, torch.compile, illia_ext, peers.

    Every case is checked against float64 formulas before it gets a time; the exit code is 1 where illia_ext fails.
    bench/README.md tells how to read the tables.
    """
    old, run = read_run("--compare", compare), read_run("--load", load)
    check_picture(plot_file)
    if run is None:
        torch.set_num_threads(threads or torch.get_num_threads())
        counts = {"sizes": sizes, "samples": samples}
        run = new_run(device or "cpu", dtype or "float32", counts, cases, quick, json_file)
    elif quick or any(option is not None for option in (device, dtype, sizes, samples, threads, cases, json_file)):
        options = "--device, --dtype, --sizes, --samples, --threads, --cases, --quick, --json"
        raise refuse("--load", f"measures nothing, so {options} do not go with it")
    typer.echo(report.text(run))
    if old is not None:
        typer.echo(f"\n{report.compared(old, run)}")
    if plot_file is not None:
        from bench.plot import plot  # matplotlib takes a second to import

        plot(run, plot_file)
    ours = run.rows["case"].str.startswith(OURS) | (run.rows["work"] == "transforms")
    if run.rows["untimed"][ours].notna().any():
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
