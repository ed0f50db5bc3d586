"""Predict how diabetes progresses, and how sure that is, with a perceptron made Bayesian in one line.

`python examples/regression.py --help` names the options.
"""

import sys
from functools import partial

import torch
from likelihoods import Gaussian
from metrics import LEVELS, regression
from options import training_parser
from picture import save
from regression_picture import draw
from report import print_table
from rich.console import Console
from sklearn.datasets import load_diabetes  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]
from sklearn.preprocessing import StandardScaler  # type: ignore[import-untyped]
from torch import nn
from training import Contender, Task, Training, contenders, run


def diabetes_task(epochs: int, seed: int) -> Task:
    """442 patients with 10 features, a quarter of them for the test; all in units of the training data's spread."""
    table = load_diabetes(scaled=False)
    split = train_test_split(table.data, table.target[:, None], test_size=0.25, random_state=seed)
    scaler = {0: StandardScaler().fit(split[0]), 1: StandardScaler().fit(split[2])}
    scaled = [torch.tensor(scaler[k // 2].transform(part), dtype=torch.float32) for k, part in enumerate(split)]
    return Task(
        *scaled[:2],
        *(part[:, 0] for part in scaled[2:]),
        likelihood=Gaussian,
        batch_size=64,
        epochs=epochs,
        learning_rate=1e-2,
    )


def judge(contender: Contender, task: Task) -> dict[str, float]:
    return regression(contender.outputs, contender.likelihood.noise, task.test_targets)


def setup(epochs: int, seed: int) -> Training:
    task = diabetes_task(epochs, seed)
    network = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 1), nn.Flatten(-2))  # [batch]
    return Training(task, contenders(network, task))


def main() -> int:
    options = training_parser(__doc__.split("\n")[0], epochs=300, picture="regression.png").parse_args()
    console = Console()
    trainings = run(partial(setup, options.epochs), options, console)
    title = f"Progression of diabetes: {len(trainings[0].task.test_targets)} test patients"
    caption = (
        "Error and likelihood: of a target in units of its standard deviation. Calibration error: mean distance of "
        f"nominal and empirical coverage of the central predictive intervals of {len(LEVELS)} levels, "
        f"{LEVELS[0]:.0%} to {LEVELS[-1]:.0%}."
    )
    print_table(console, title, trainings, judge, ("illia_ext", "plain PyTorch"), caption)
    return save(draw(trainings[0]), options.output, console)


if __name__ == "__main__":
    sys.exit(main())
