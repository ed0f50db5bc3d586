"""A run as a picture: time per weight over size with the memory's limit, and the training step."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bench.report import heading, times
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


def _wide(run: Run, work: str) -> pd.DataFrame:
    """Times by point and case, of the cases that have a colour."""
    rows = run.rows[(run.rows["work"] == work) & run.rows["case"].isin(COLOURS)]
    wide = rows.assign(time=times(rows, work)).pivot(index="point", columns="case", values="time")
    return wide[rows["case"].unique()]


def _sizes(axes: Axes, run: Run) -> None:
    work = "forward + backward"
    _wide(run, work).plot(ax=axes, style="o-", color=COLOURS)
    rows = run.rows[run.rows["work"] == work].set_index("point")
    copy = rows[rows["case"] == "copy"]
    bandwidth = copy["minimum_bytes"] / copy["median"]
    traffic = rows[rows["case"] != "copy"].groupby("point")[["minimum_bytes", "weights"]].first()
    limit = traffic["minimum_bytes"] / traffic["weights"] / bandwidth * 1e9
    axes.plot(limit, "k--", linewidth=1, label="memory's limit (copy)")
    axes.set(xscale="log", yscale="log", xlabel="weights", ylabel="ns per weight")
    axes.set_title("Sample and log density, forward + backward")
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3)


def _steps(axes: Axes, run: Run) -> None:
    wide = _wide(run, "training step").rename(index="batch {}".format)
    wide.plot.bar(ax=axes, color=COLOURS, width=0.8, rot=0)
    for bars in axes.containers:
        axes.bar_label(bars, fmt="%.3g", padding=2, fontsize=7, rotation=90 if len(wide) > 1 else 0)
    axes.set(xlabel="", ylabel="ms", title="Training step, 784-1024-1024-10, Adam")
    axes.margins(y=0.15)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def plot(run: Run, path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.8), layout="constrained")
    for draw, axes, work in (_sizes, left, "forward + backward"), (_steps, right, "training step"):
        rows = run.rows[run.rows["work"] == work]
        if rows["median"].notna().any():
            draw(axes, run)
        else:
            axes.set_axis_off()
    figure.suptitle(heading(run), fontsize=10)
    figure.savefig(path, dpi=150)
    plt.close(figure)
