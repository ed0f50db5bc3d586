"""The table of an example: figures of all contenders, their means and spread over the seeds."""

from collections.abc import Callable
from statistics import mean, stdev
from textwrap import wrap

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor
from training import WARM_UP, Contender, Task, Training

__all__ = ["has_levelled", "levelling", "print_means", "print_table"]

DECIMALS = {"accuracy, %": 1, "rms error": 3, "nll, nats": 2, "calibration error, %": 1, "AUROC, %": 0}


def spread(values: list[float], decimals: int, sign: str = "") -> str:
    deviation = f" ± {stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.{decimals}f}{deviation}"


def has_levelled(first: float, before: float, last: float) -> bool:
    """Whether the posterior has been reached, as far as KL over data tells.

    It must be less than half of what it was at first, and change by less than 5 % of its value between the last two
    tenths, or by less than 0.05 nats if it is more than 1 nat.

    Args:
        first, before, last: KL over data in the first step, in the last tenth but one of the training, and in the last.
    """
    return last < first / 2 and abs(before - last) < 0.05 * min(1, last)


def levelling(name: str, first: float, before: float, last: float) -> str:
    """That in words."""
    verdict = (
        "has levelled off"
        if has_levelled(first, before, last)
        else "has not levelled off, so this may not be the posterior (--epochs)"
    )
    return (
        f"KL/data of {name} {verdict}: {first:.2f} nats at first, {before:.3f} and {last:.3f} in the last two tenths."
    )


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
    for label in [*labels, "KL/data", "step, ms"]:
        table.add_column(
            "\n".join(wrap(label, 6, break_long_words=False)), justify="right", vertical="bottom", no_wrap=True
        )
    for name in names:
        cells = [spread([seed[name][label] for seed in figures], DECIMALS[label]) for label in labels]
        kl = f"{mean(training.contenders[name].kls()[1] for training in trainings):.2f}"
        table.add_row(name, *cells, kl, f"[bold]{mean(milliseconds[name]):.1f}[/]")
    differences = [[seed[pair[0]][label] - seed[pair[1]][label] for seed in figures] for label in labels]
    cells = [spread(values, DECIMALS[label], "+") for label, values in zip(labels, differences)]
    table.add_row("difference", *cells, style="dim")
    console.print(table)
    ratios = ", ".join(f"{name} {mean(milliseconds[name]) / mean(milliseconds[names[-1]]):.1f}" for name in names[:-1])

    def kls_of(name: str) -> list[float]:
        kls = [[training.contenders[name].losses[0][1], *training.contenders[name].kls()] for training in trainings]
        return [mean(values) for values in zip(*kls)]

    steps = len(trainings[0].contenders[names[0]].seconds) - WARM_UP
    number = f"{len(trainings)} seeds, means ± standard deviations" if len(trainings) > 1 else "One seed"
    for line in (
        f"{number}; difference: {pair[0]} less {pair[1]}, seed by seed.",
        caption,
        f"{names[-1]}: its most probable weights under the same prior, after as many steps.",
        *(levelling(name, *kls_of(name)) for name in names[:-1]),
        f"Step: CPU time on one thread, median of {steps} a seed (forward, backward, Adam), all networks in turn: "
        f"{ratios} times {names[-1]}'s.",
    ):
        console.print(line, highlight=False)


def print_means(console: Console, title: str, columns: list[str], values: dict[str, Tensor], caption: str) -> None:
    """Means over seeds of values [seeds, columns] by name, with one standard deviation."""
    table = Table(title=title, title_justify="left", box=SIMPLE, caption=caption, caption_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=True)
    for name, rows in values.items():
        table.add_row(name, *(spread(column.tolist(), 0) for column in rows.T))
    console.print(table)
