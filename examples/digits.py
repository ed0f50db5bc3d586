"""Train a small convolutional network on handwritten digits, made Bayesian in one line, beside plain PyTorch.

`python examples/digits.py --help` names the options.
"""

import sys
from functools import partial

import torch
from digits_picture import draw
from likelihoods import Categorical
from metrics import BINS, classification
from options import training_parser
from picture import save
from report import print_table
from rich.console import Console
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]
from torch import nn
from training import Contender, Task, Training, contenders, run

__all__ = ["CAPTION", "digits_task", "judge"]

CAPTION = f"Calibration error: the expected one, in {BINS} bins of confidence."


def digits_task(epochs: int, seed: int) -> Task:
    """1797 images of 8 x 8 pixels from 0 to 16, a quarter of them for the test."""
    digits = load_digits()
    split = train_test_split(digits.images, digits.target, test_size=0.25, random_state=seed, stratify=digits.target)
    return Task(
        *(torch.tensor(part / 16, dtype=torch.float32)[:, None] for part in split[:2]),
        *(torch.tensor(part) for part in split[2:]),
        likelihood=Categorical,
        batch_size=128,
        epochs=epochs,
        learning_rate=1e-2,
        std_prior=1.0,
    )


def judge(contender: Contender, task: Task) -> dict[str, float]:
    return classification(contender.outputs, task.test_targets)


def setup(epochs: int, seed: int) -> Training:
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )
    task = digits_task(epochs, seed)
    return Training(task, contenders(network, task))


def main() -> int:
    options = training_parser(__doc__.split("\n")[0], epochs=30, picture="digits.png").parse_args()
    console = Console()
    trainings = run(partial(setup, options.epochs), options, console)
    title = f"Handwritten digits: {len(trainings[0].task.test_targets)} test images"
    print_table(console, title, trainings, judge, ("illia_ext", "plain PyTorch"), CAPTION)
    return save(draw(trainings[0]), options.output, console)


if __name__ == "__main__":
    sys.exit(main())
