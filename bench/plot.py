"""A run as a picture: time per weight over size with the memory's limit, and the training step."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bench import counts
from bench.report import heading
from bench.results import Run

__all__ = ["plot"]

# One colour a case in all pictures (Okabe and Ito's, which colour-blind readers tell apart).
COLOURS = {
    "illia_ext": "#0072B2",
    "eager": "#D55E00",
    "compile": "#E69F00",
    "compile-randn": "#F0E442",
    "torchbnn": "#009E73",
    "bayesian-torch": "#CC79A7",
    "blitz": "#56B4E9",
    "not Bayesian": "#999999",
}


def _sizes(axes: Axes, run: Run) -> None:
    work = "forward + backward"
    points = run.points(work)
    for case in run.cases(work):
        rows = [row for row in (run.find(work, point, case) for point in points) if row and row.seconds]
        if case == "copy" or not rows:
            continue
        axes.plot(
            [row.point for row in rows],
            [counts.nanoseconds(row) for row in rows],
            "o-",
            color=COLOURS[case],
            label=case,
        )
    limits = [(point, value) for point in points if (value := counts.limit(run, work, point))]
    if limits:
        axes.plot(*zip(*limits), "k--", linewidth=1, label="memory's limit (copy)")
    axes.set(xscale="log", yscale="log", xlabel="weights", ylabel="ns per weight")
    axes.set_title("Sample and log density, forward + backward")
    axes.grid(True, which="major", alpha=0.3)
    if axes.lines:
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3)


def _steps(axes: Axes, run: Run) -> None:
    work = "training step"
    batches, cases = run.points(work), [case for case in run.cases(work) if case in COLOURS]
    width = 0.8 / max(1, len(cases))
    for index, case in enumerate(cases):
        rows = [run.find(work, batch, case) for batch in batches]
        heights = [row.seconds.median * 1e3 if row and row.seconds else float("nan") for row in rows]
        places = [place + (index - (len(cases) - 1) / 2) * width for place in range(len(batches))]
        bars = axes.bar(places, heights, width, color=COLOURS[case], label=case)
        axes.bar_label(bars, fmt="%.3g", padding=2, fontsize=7, rotation=90 if len(batches) > 1 else 0)
    axes.set_xticks(range(len(batches)), [f"batch {batch}" for batch in batches])
    axes.set(ylabel="ms", title="Training step, 784-1024-1024-10, Adam")
    axes.margins(y=0.15)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def plot(run: Run, path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.8), layout="constrained")
    _sizes(left, run)
    _steps(right, run)
    figure.suptitle(heading(run), fontsize=10)
    figure.savefig(path, dpi=150)
    plt.close(figure)
