"""What the pictures of the examples share: colours, a figure, and how it is saved."""

import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

__all__ = ["BLUE", "GREY", "INK", "ORANGE", "finish", "make_figure", "plot_means", "save"]

BLUE, ORANGE, GREY, INK = "#2563a8", "#c8501e", "#9aa0a8", "#22262b"


def make_figure(width: float, height: float) -> Figure:
    rcParams.update({"font.size": 10.5, "axes.titlesize": 12, "axes.titleweight": "bold"})
    return Figure(figsize=(width, height), layout="constrained")


def finish(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def plot_means(axes: Axes, places: Sequence[float], values: dict[str, Tensor]) -> None:
    """Means over seeds of values [seeds, places] by name, with one standard deviation."""
    for (name, rows), colour in zip(values.items(), (BLUE, ORANGE, GREY)):
        error = rows.std(0) if len(rows) > 1 else None
        axes.errorbar(places, rows.mean(0), error, label=name, color=colour, linewidth=2.5, capsize=3)
    finish(axes)


def save(figure: Figure, path: Path, console: Console) -> int:
    """Returns the exit code of the example: 1 where the file cannot be written."""
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        print(f"{Path(sys.argv[0]).name}: cannot write {path}: {error.strerror}", file=sys.stderr)
        return 1
    console.print(f"Picture: {path.resolve()}", soft_wrap=True, highlight=False, markup=False)
    return 0
