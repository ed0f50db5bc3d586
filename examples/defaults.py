"""Train six networks with several priors and initial rhos: the tables that BayesianModule's defaults come from.

`python examples/defaults.py --help` names the options; `docs/defaults.md` holds what it prints.
"""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
from digits import digits_task
from metrics import classification, regression
from metrics import separation as by_mutual_information
from options import Parser
from plain import FixedWeights
from regression import diabetes_task
from rich.console import Console
from rich.progress import track
from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped]
from torch import Tensor, nn
from training import Contender, Task, fit

from illia_ext import BayesianModule, relative_rho

SAMPLES = 50  # of the weights, for a prediction
CHANCE = 20.0  # accuracy in %; 10 is that of guessing
PRETRAINING = 8  # epochs of the network that is converted when it is trained already


def scaled_to_inputs(name: str, weight: Tensor) -> float:
    return weight[0].numel() ** -0.5 if weight.dim() > 1 else 1.0


SETTINGS: dict[str, dict[str, Any] | None] = {
    "deterministic": None,
    "std_prior 0.1": {"std_prior": 0.1},
    "std_prior 0.1, norms around 0": {"std_prior": 0.1, "mu_prior": 0.0},
    "std_prior 0.3": {"std_prior": 0.3},
    "std_prior 0.3, norms around 0": {"std_prior": 0.3, "mu_prior": 0.0},
    "std_prior 1 (defaults)": {},
    "std_prior 1, norms around 0": {"mu_prior": 0.0},
    "std_prior 1, rho_init -3": {"rho_init": -3.0},
    "std_prior 1, relative_rho(0.1)": {"rho_init": relative_rho(0.1)},
    "std_prior 1 / sqrt(inputs)": {"std_prior": scaled_to_inputs},
}


class Schedule(NamedTuple):
    name: str
    learning_rate: float
    epochs: int
    settings: list[str]


LEARNING = ["deterministic", "std_prior 0.3", "std_prior 1 (defaults)", "std_prior 1, relative_rho(0.1)"]
SCHEDULES = [
    Schedule("README's recipe: Adam at 1e-3, 30 epochs", 1e-3, 30, list(SETTINGS)),
    Schedule("further: Adam at 1e-2, 100 epochs", 1e-2, 100, LEARNING),
]


class Transformer(nn.Module):
    """The rows of an image are its tokens."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.embedding, self.position = nn.Linear(8, width), nn.Parameter(torch.randn(8, width) / 50)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(images[:, 0]) + self.position).mean(dim=1))


def convolutions(norm: Callable[[int], nn.Module] = lambda channels: nn.Identity()) -> nn.Sequential:
    """52,000 weights."""
    first, second = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
    features = first, norm(32), nn.ReLU(), second, norm(64), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    return nn.Sequential(*features, nn.Linear(1024, 32), nn.ReLU(), nn.Linear(32, 10))


def perceptron(inputs: int, width: int, layers: int, *head: nn.Module) -> nn.Sequential:
    sizes = [inputs, *[width] * layers]
    hidden = [part for size in sizes[:-1] for part in (nn.Linear(size, width), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, *head)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "convolutions": convolutions,
    "convolutions, BatchNorm": lambda: convolutions(nn.BatchNorm2d),
    "perceptron": lambda: perceptron(64, 256, 2, nn.Linear(256, 10)),
    "transformer": Transformer,
    "pretrained, 6 layers": lambda: perceptron(64, 256, 6, nn.Linear(256, 10)),
    "regression": lambda: perceptron(10, 50, 2, nn.Linear(50, 1), nn.Flatten(-2)),
}
HAVE_NORMS = {"convolutions, BatchNorm", "transformer"}


def task_of(network: str, schedule: Schedule, seed: int) -> Task:
    task = diabetes_task(schedule.epochs, seed) if network == "regression" else digits_task(schedule.epochs, seed)
    task.learning_rate = schedule.learning_rate
    if network == "regression":
        task.foreign_inputs = 4 * task.test_inputs
    return task


def train(contender: Contender, task: Task, epochs: int) -> None:
    contender.network.train()
    fit([contender], task, epochs)
    contender.network.eval()


def separation(outputs: Tensor, foreign: Tensor) -> float:
    """AUROC, in %; of a regression's means [S, cases] by their variance over the weights."""
    if outputs.dim() == 3:
        return 100 * by_mutual_information(outputs, foreign)
    if len(outputs) == 1:
        return 50.0  # no variance
    labels = [0] * outputs.shape[1] + [1] * foreign.shape[1]
    return 100 * float(roc_auc_score(labels, torch.cat([outputs, foreign], dim=1).var(dim=0)))


def measure(case: tuple[str, str, int, int]) -> list[float]:
    """Accuracy in % or rms error, nll, calibration error in %, KL over data and its fall, AUROC in %."""
    network, setting, schedule, seed = case
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    task = task_of(network, SCHEDULES[schedule], seed)
    module, options = NETWORKS[network](), SETTINGS[setting]
    if network.startswith("pretrained"):
        start = Contender(FixedWeights(module), task)
        train(start, task, PRETRAINING)
        module = start.network.network  # type: ignore[assignment]
    contender = Contender(FixedWeights(module) if options is None else BayesianModule(module, **options), task)
    train(contender, task, task.epochs)
    outputs, foreign = (contender.predict(inputs, SAMPLES) for inputs in (task.test_inputs, task.foreign_inputs))
    if network == "regression":
        figures = regression(outputs, contender.likelihood.noise, task.test_targets)
    else:
        figures = classification(outputs, task.test_targets)
    before, last = contender.kls()
    return [*figures.values(), last, before - last, separation(outputs, foreign)]


def settings_of(network: str, schedule: int) -> Iterator[str]:
    for setting in SCHEDULES[schedule].settings:
        if network in HAVE_NORMS or "norms" not in setting:
            yield setting


def main() -> int:
    parser = Parser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_numbers(
        ("--seeds", 3, 1, 1000, "trainings of each network with each setting"),
        ("--jobs", 2, 1, 256, "processes, of one thread each"),
    )
    options = parser.parse_args()
    cases = [
        (network, setting, schedule, seed)
        for schedule in range(len(SCHEDULES))
        for network in NETWORKS
        for setting in settings_of(network, schedule)
        for seed in range(options.seeds)
    ]
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as processes:
        console = Console(stderr=True)
        found = dict(zip(cases, track(processes.map(measure, cases), "trainings", len(cases), console=console)))
    for schedule, (title, *_) in enumerate(SCHEDULES):
        print(f"\n### {title[0].upper()}{title[1:]}")
        for network in NETWORKS:
            print(f"\n**{network}**\n")
            decimals = [3 if network == "regression" else 1, 3, 1, 2, 2, 0]
            first = "rms error" if network == "regression" else "accuracy, %"
            print(f"| | {first} | nll, nats | calibration error, % | KL/data, nats | its last fall | AUROC, % |")
            print("|---|---|---|---|---|---|---|")
            for setting in settings_of(network, schedule):
                rows = [found[network, setting, schedule, seed] for seed in range(options.seeds)]
                spreads = [stdev(column) if options.seeds > 1 else 0.0 for column in zip(*rows)]
                cells = [
                    f"{mean(column):.{number}f} ± {spread:.{number}f}"
                    for column, spread, number in zip(zip(*rows), spreads, decimals)
                ]
                if network != "regression" and mean(row[0] for row in rows) < CHANCE:
                    cells[-1] = "-"  # a network that has learned nothing tells nothing
                print(f"| {setting} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
