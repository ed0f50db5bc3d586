"""Weights removed by |mu| / sigma, those first that the posterior is least sure of, beside those that are smallest.

`signal_to_noise()` says which weights matter (Graves, 2011; Blundell et al., 2015).
`python examples/pruning.py --help` names the options.
"""

import sys
from functools import partial

import torch
from digits import digits_task
from matplotlib.ticker import PercentFormatter
from metrics import classification
from options import training_parser
from picture import make_figure, plot_means, save
from report import print_means
from rich.console import Console
from torch import nn
from training import Contender, Task, Training, run

from illia_ext import BayesianModule

__all__ = ["CRITERIA", "accuracies", "pruned"]

SHARES = (0.0, 0.5, 0.75, 0.9, 0.95, 0.98)
CRITERIA = ("|mu| / sigma", "|mu|", "at random")


def pruned(bnn: BayesianModule, by: str, share: float) -> nn.Module:
    """The network of the means, without that share of its weights."""
    if by == "|mu| / sigma":
        scores = bnn.signal_to_noise()
    else:
        scores = {name: mu.detach().abs() for name, mu, _ in bnn.named_gaussians()}
    if by == "at random":
        scores = {name: torch.rand_like(score) for name, score in scores.items()}
    weights = torch.cat([score.flatten() for score in scores.values()]).sort().values
    least = weights[int(share * len(weights))]  # the first that stays
    network = bnn.mean_module()
    for name, parameter in network.named_parameters():
        parameter.data[scores[name] < least] = 0.0
    return network


@torch.no_grad()
def accuracies(bnn: BayesianModule, task: Task, by: str) -> list[float]:
    """Of each of SHARES."""
    outputs = [pruned(bnn, by, share)(task.test_inputs)[None] for share in SHARES]
    return [classification(each, task.test_targets)["accuracy, %"] for each in outputs]


def setup(epochs: int, seed: int) -> Training:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 10))
    task = digits_task(epochs, seed)
    return Training(task, {"illia_ext": Contender(BayesianModule(network), task)})


def main() -> int:
    options = training_parser(__doc__.split("\n")[0], epochs=90, picture="pruning.png").parse_args()
    console = Console()
    trainings = run(partial(setup, options.epochs), options, console)
    members = [(training.contenders["illia_ext"].network, training.task) for training in trainings]
    found = {by: torch.tensor([accuracies(network, task, by) for network, task in members]) for by in CRITERIA}
    title = f"Accuracy of the means without a share of their weights, %, {options.seeds} seeds"
    print_means(console, title, ["removed by", *(f"{share:.0%}" for share in SHARES)], found, "10 % is chance.")
    figure = make_figure(7.5, 4.6)
    axes = figure.subplots()
    axes.set(xlabel="weights set to 0", ylabel="accuracy on the test images, %", ylim=(0, 105))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_title("Which weights matter", loc="left")
    plot_means(axes, SHARES, found)
    return save(figure, options.output, console)


if __name__ == "__main__":
    sys.exit(main())
