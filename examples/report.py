"""The table of an example: figures of all contenders, their means and spread over the seeds."""

from collections.abc import Callable
from statistics import mean, stdev

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from training import WARM_UP, Contender, Task, Training

__all__ = ["print_table"]

DECIMALS = {"accuracy, %": 1, "rms error": 3, "nll, nats": 3, "calibration error, %": 1, "step, ms": 2}


def spread(values: list[float], decimals: int, sign: str = "") -> str:
    deviation = f" ± {stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.{decimals}f}{deviation}"


def print_table(
    console: Console,
    title: str,
    trainings: list[Training],
    judge: Callable[[Contender, Task], dict[str, float]],
    pair: tuple[str, str],
    caption: str,
) -> None:
    """One row a contender.

    Args:
        judge: the figures of a contender's predictions.
        pair: names of the two contenders that should end at the same quality; their difference is shown too.
        caption: what it says about the figures; the sentences about spread and time are added.
    """
    names = list(trainings[0].contenders)
    figures = [{name: judge(one, seed.task) for name, one in seed.contenders.items()} for seed in trainings]
    labels = list(figures[0][names[0]])
    milliseconds = {name: [training.contenders[name].step_ms for training in trainings] for name in names}
    table = Table(title=title, box=SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    for label in [*labels, "step, ms", "ratio"]:
        table.add_column(label.replace(" error,", "\nerror,"), justify="right", vertical="bottom", no_wrap=True)
    for name in names:
        cells = [spread([seed[name][label] for seed in figures], DECIMALS[label]) for label in labels]
        ratio = mean(milliseconds[name]) / mean(milliseconds[names[-1]])
        table.add_row(name, *cells, f"[bold]{spread(milliseconds[name], DECIMALS['step, ms'])}[/]", f"{ratio:.1f}")
    differences = [[seed[pair[0]][label] - seed[pair[1]][label] for seed in figures] for label in labels]
    cells = [spread(values, DECIMALS[label], "+") for label, values in zip(labels, differences)]
    table.add_row("difference", *cells, style="dim")
    console.print(table)
    steps = len(trainings[0].contenders[names[0]].seconds) - WARM_UP
    number = f"{len(trainings)} seeds, means ± standard deviations" if len(trainings) > 1 else "One seed"
    for line in (
        f"{number}; difference: {pair[0]} less {pair[1]}, seed by seed.",
        caption,
        f"Step: CPU time on one thread, median of {steps} a seed (forward, backward, Adam), all networks in turn; "
        f"ratio: to {names[-1]}.",
    ):
        console.print(line, highlight=False)
