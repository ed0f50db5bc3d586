"""Train a small convolutional network on handwritten digits, made Bayesian in one line, beside plain PyTorch.

`python examples/digits.py --help` names the options.
"""

import sys
from functools import partial

import torch
from digits_picture import draw
from likelihoods import Categorical
from metrics import BINS, classification, separation
from options import training_parser
from picture import save
from report import print_table
from rich.console import Console
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]
from torch import nn
from training import Contender, Task, Training, contenders, run

__all__ = ["CAPTION", "digits_task", "judge"]

CAPTION = (
    f"Calibration error: the expected one, in {BINS} bins of confidence. AUROC: how well doubt tells test images "
    "rotated by 90 degrees from upright ones (mutual information; deterministic: entropy); 50 % is chance."
)


def digits_task(epochs: int, seed: int) -> Task:
    """1797 images of 8 x 8 pixels, normalised, a quarter of them for the test, also rotated as foreign inputs."""
    digits = load_digits()
    split = train_test_split(digits.images, digits.target, test_size=0.25, random_state=seed, stratify=digits.target)
    mean, deviation = split[0].mean(), split[0].std()
    images, test_images = (torch.tensor((part - mean) / deviation, dtype=torch.float32)[:, None] for part in split[:2])
    return Task(
        images,
        test_images,
        *(torch.tensor(part) for part in split[2:]),
        likelihood=Categorical,
        batch_size=128,
        epochs=epochs,
        learning_rate=2e-2,
        foreign_inputs=test_images.rot90(dims=(2, 3)),
    )


def judge(contender: Contender, task: Task) -> dict[str, float]:
    auroc = separation(contender.outputs, contender.foreign_outputs)
    return {**classification(contender.outputs, task.test_targets), "AUROC, %": 100 * auroc}


def setup(epochs: int, seed: int) -> Training:
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 10),
    )
    task = digits_task(epochs, seed)
    return Training(task, contenders(network, task))


def main() -> int:
    options = training_parser(__doc__.split("\n")[0], epochs=90, picture="digits.png").parse_args()
    console = Console()
    trainings = run(partial(setup, options.epochs), options, console)
    title = f"Handwritten digits: {len(trainings[0].task.test_targets)} test images"
    print_table(console, title, trainings, judge, ("illia_ext", "plain PyTorch"), CAPTION)
    return save(draw(trainings[0]), options.output, console)


if __name__ == "__main__":
    sys.exit(main())
