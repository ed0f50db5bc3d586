"""Train a Bayesian classifier of handwritten digits, beside the same network in plain PyTorch.

`python examples/digits.py --help` names the options.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import torch
from digits_report import PICTURE_FORMATS, Result, save_picture, table
from plain_weights import PointWeight, ReferenceGaussian
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from illia_ext import GaussianDistribution

SIZES = [64, 512, 512, 10]
BATCH = 128
LEARNING_RATE = 3e-3
STD_PRIOR = 1.0
RHO_INIT = -4.0  # sigma = softplus(-4) = 0.018


class BayesianLinear(nn.Module):
    """A linear layer that draws its weights anew in each forward pass."""

    def __init__(self, in_features: int, out_features: int, distribution: Callable[..., Any]) -> None:
        super().__init__()
        self.weight = distribution((out_features, in_features), std_prior=STD_PRIOR, rho_init=RHO_INIT)
        self.bias = distribution((out_features,), std_prior=STD_PRIOR, rho_init=RHO_INIT)

    def forward(self, features: Tensor) -> Tensor:
        weight, weight_log_prob = self.weight.sample_and_log_prob()
        bias, bias_log_prob = self.bias.sample_and_log_prob()
        self.log_prob = weight_log_prob + bias_log_prob  # log q - log p of this sample
        return linear(features, weight, bias)


class Classifier:
    """A network, its optimizer and what was measured while it trained."""

    def __init__(self, name: str, distribution: Callable[..., Any], seed: int, num_steps: int) -> None:
        torch.manual_seed(seed)
        self.layers = [BayesianLinear(inputs, outputs, distribution) for inputs, outputs in pairwise(SIZES)]
        first, *others = self.layers
        self.network = nn.Sequential(first, *(part for layer in others for part in (nn.ReLU(), layer)))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=LEARNING_RATE, fused=True)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, num_steps)
        self.name = name
        self.seconds: list[float] = []  # [steps]
        self.losses: list[tuple[float, float]] = []  # [steps]: nll, log_prob / num_data

    def step(self, images: Tensor, labels: Tensor, num_data: int) -> None:
        start = time.perf_counter()
        nll = cross_entropy(self.network(images), labels)
        log_prob = torch.stack([layer.log_prob for layer in self.layers]).sum()
        loss = nll + log_prob / num_data  # minus the evidence lower bound, per image
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - start)
        self.losses.append((nll.item(), log_prob.item() / num_data))
        self.schedule.step()

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Class probabilities [images, 10] under one sample of the weights."""
        logits: Tensor = self.network(images)
        return logits.softmax(dim=-1)

    @torch.no_grad()
    def kl_divergence(self) -> float:
        return sum(float(part.kl_divergence()) for layer in self.layers for part in (layer.weight, layer.bias))


def run(epochs: int, seed: int, samples: int, console: Console) -> tuple[list[Result], Tensor]:
    """Trains and measures the three classifiers in turns; also returns the test images."""
    digits = load_digits()  # 1797 images of 8 x 8 pixels from 0 to 16
    data, target = digits.data / 16, digits.target
    split = train_test_split(data, target, test_size=0.25, random_state=seed, stratify=target)
    images, test_images = (torch.tensor(part, dtype=torch.float32) for part in split[:2])
    labels, test_labels = (torch.tensor(part) for part in split[2:])
    num_steps = epochs * math.ceil(len(images) / BATCH)
    classifiers = [
        Classifier("illia_ext", GaussianDistribution, seed, num_steps),
        Classifier("plain PyTorch", ReferenceGaussian, seed, num_steps),
        Classifier("not Bayesian", PointWeight, seed, num_steps),
    ]
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as progress:
        task = progress.add_task("training  ", total=num_steps, note="")
        for epoch in range(epochs):
            for batch in torch.randperm(len(images)).split(BATCH):
                for classifier in classifiers:
                    classifier.step(images[batch], labels[batch], len(images))
                note = f"epoch {epoch + 1}, nll {classifiers[0].losses[-1][0]:.3f}"
                progress.update(task, advance=1, note=note)
        task = progress.add_task("predicting", total=samples, note="")
        probabilities = torch.zeros(len(classifiers), len(test_images), SIZES[-1])
        for _ in range(samples):
            probabilities += torch.stack([classifier.predict(test_images) for classifier in classifiers])
            progress.update(task, advance=1)
    results = [
        Result(c.name, mean, test_labels, c.kl_divergence(), c.seconds, torch.tensor(c.losses), epochs)
        for c, mean in zip(classifiers, probabilities / samples, strict=True)
    ]
    return results, test_images


def whole_number(lowest: int, highest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isdecimal() and lowest <= int(text) <= highest):
            raise argparse.ArgumentTypeError(f"expected a whole number from {lowest} to {highest}, got {text!r}")
        return int(text)

    return parse


def writable_picture(text: str) -> Path:
    path = Path(text)
    if path.suffix[1:].lower() not in PICTURE_FORMATS:
        formats = ", ".join(PICTURE_FORMATS)
        raise argparse.ArgumentTypeError(f"expected a file name that ends in one of {formats}, got {text!r}")
    try:
        is_new = not os.path.lexists(path)
        path.open("ab").close()
        if is_new:
            path.unlink()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: {error.strerror}") from None
    return path


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")  # one line, without the usage


def main() -> int:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = Parser(description=__doc__.split("\n")[0], formatter_class=formatter, allow_abbrev=False)
    for name, default, lowest, highest, text in (
        ("--epochs", 30, 1, 10_000, "passes over the training images"),
        ("--seed", 0, 0, 2**32 - 1, "of the split, the initial weights and the noise"),
        ("--samples", 50, 1, 10_000, "samples of the weights for a prediction"),
    ):
        parser.add_argument(name, type=whole_number(lowest, highest), default=default, metavar="N", help=text)
    parser.add_argument("--output", type=writable_picture, default="digits.png", metavar="FILE", help="the picture")
    options = parser.parse_args()
    torch.set_num_threads(1)  # enough here, and fair: threads that wait for busy cores would be timed too
    console = Console()
    results, images = run(options.epochs, options.seed, options.samples, console)
    console.print(table(results))
    try:
        save_picture(options.output, results, images)
    except OSError as error:
        print(f"{parser.prog}: cannot write {options.output}: {error.strerror}", file=sys.stderr)
        return 1
    console.print(f"Picture: {options.output.resolve()}", soft_wrap=True, highlight=False, markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
