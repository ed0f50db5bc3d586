"""Five tasks one after the other, each to tell two digits apart: what a network forgets, and what its prior keeps.

All tasks share the network and its two outputs, and each is trained on its own two digits alone. With
`posterior_to_prior()` after each task, what was certain then stays where it was (Nguyen et al., "Variational continual
learning", 2018). `python examples/continual.py --help` names the options.
"""

import sys
from statistics import fmean

import torch
from digits import digits_task
from matplotlib.ticker import MaxNLocator
from metrics import classification
from options import training_parser
from picture import make_figure, plot_means, save
from report import print_means
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from training import Task

from illia_ext import BayesianModule, elbo_loss

__all__ = ["accuracies"]

TASKS = [(2 * i, 2 * i + 1) for i in range(5)]
CARRIED, SAME, PLAIN = "posterior as prior", "the same prior", "not Bayesian"
BATCH_SIZE, LEARNING_RATE = 32, 1e-2


def of_digits(inputs: Tensor, targets: Tensor, pair: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Images of the two digits, and which of the two."""
    chosen = (targets == pair[0]) | (targets == pair[1])
    return inputs[chosen], targets[chosen] - pair[0]


def accuracies(name: str, network: nn.Module, task: Task, num_samples: int) -> list[list[float]]:
    """After each task, the accuracy on it and on all before it."""
    is_bayesian = name != PLAIN
    model = BayesianModule(network) if is_bayesian else network
    rows: list[list[float]] = []
    for number, pair in enumerate(TASKS):
        inputs, targets = of_digits(task.inputs, task.targets, pair)
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
        for _ in range(task.epochs):
            for batch in torch.randperm(len(inputs)).split(BATCH_SIZE):
                output = model(inputs[batch])
                logits, log_prob = output if is_bayesian else (output, torch.zeros(()))
                optimizer.zero_grad()
                elbo_loss(cross_entropy(logits, targets[batch]), log_prob, len(inputs)).backward()
                optimizer.step()
        if name == CARRIED:
            model.posterior_to_prior()
        rows.append([accuracy(model, task, old, num_samples) for old in TASKS[: number + 1]])
    return rows


@torch.no_grad()
def accuracy(model: nn.Module, task: Task, pair: tuple[int, int], num_samples: int) -> float:
    inputs, targets = of_digits(task.test_inputs, task.test_targets, pair)
    outputs = model(inputs, num_samples=num_samples)[0] if isinstance(model, BayesianModule) else model(inputs)[None]
    return classification(outputs, targets)["accuracy, %"]


def main() -> int:
    options = training_parser(__doc__.split("\n")[0], epochs=100, picture="continual.png").parse_args()
    torch.set_num_threads(1)
    console = Console()
    means: dict[str, Tensor] = {}  # [seeds, tasks]: over the tasks so far
    for name in (CARRIED, SAME, PLAIN):
        rows = []
        for seed in range(options.seed, options.seed + options.seeds):
            torch.manual_seed(seed)
            network = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 2))
            task = digits_task(options.epochs, seed)
            with console.status(f"{name}, seed {seed}"):
                rows.append([fmean(row) for row in accuracies(name, network, task, options.samples)])
        means[name] = torch.tensor(rows)
    title = f"Mean accuracy on all tasks so far, %, {options.seeds} seeds"
    columns = ["after digits", *(f"{first}, {second}" for first, second in TASKS)]
    print_means(console, title, columns, means, "50 % is chance.")
    figure = make_figure(7.5, 4.6)
    axes = figure.subplots()
    axes.set(xlabel="tasks learned, of two digits each", ylabel="accuracy on all of them, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("What is forgotten", loc="left")
    plot_means(axes, range(1, len(TASKS) + 1), means)
    return save(figure, options.output, console)


if __name__ == "__main__":
    sys.exit(main())
