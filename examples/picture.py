"""What the pictures of the examples share: colours, a figure, and how it is saved."""

import sys
from pathlib import Path

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

__all__ = ["BLUE", "GREY", "INK", "ORANGE", "finish", "make_figure", "save"]

BLUE, ORANGE, GREY, INK = "#2563a8", "#c8501e", "#9aa0a8", "#22262b"


def make_figure(width: float, height: float) -> Figure:
    rcParams.update({"font.size": 10.5, "axes.titlesize": 12, "axes.titleweight": "bold"})
    return Figure(figsize=(width, height), layout="constrained")


def finish(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def save(figure: Figure, path: Path, console: Console) -> int:
    """Returns the exit code of the example: 1 where the file cannot be written."""
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        print(f"{Path(sys.argv[0]).name}: cannot write {path}: {error.strerror}", file=sys.stderr)
        return 1
    console.print(f"Picture: {path.resolve()}", soft_wrap=True, highlight=False, markup=False)
    return 0
