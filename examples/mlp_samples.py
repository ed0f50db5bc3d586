"""Train a perceptron on handwritten digits with 8 samples of the weights a step, beside 1 and beside plain PyTorch.

`python examples/mlp_samples.py --help` names the options.
"""

import sys
from functools import partial
from statistics import mean

from digits import CAPTION, digits_task, judge
from options import training_parser
from plain import FixedWeights, PlainBayesian
from report import print_table
from rich.console import Console
from torch import nn
from training import Contender, Training, run

from illia_ext import BayesianModule

ONE, MANY = "S=1", "S=8"
NUM_SAMPLES = {ONE: None, MANY: 8}  # a step


def setup(epochs: int, seed: int) -> Training:
    task = digits_task(epochs, seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    contenders = {
        f"{name}, {samples}": Contender(kind(network), task, number)
        for name, kind in (("illia_ext", BayesianModule), ("plain", PlainBayesian))
        for samples, number in NUM_SAMPLES.items()
    }
    contenders["deterministic"] = Contender(FixedWeights(network), task)
    return Training(task, contenders)


def main() -> int:
    options = training_parser(__doc__.split("\n")[0], epochs=60).parse_args()
    console = Console()
    trainings = run(partial(setup, options.epochs), options, console)

    def ratio(name: str) -> float:
        steps = [(each.contenders[f"{name}, {MANY}"], each.contenders[f"{name}, {ONE}"]) for each in trainings]
        return mean(many.step_ms / one.step_ms for many, one in steps)

    title = f"Handwritten digits: {len(trainings[0].task.test_targets)} test images, S samples of the weights a step"
    caption = (
        f"{CAPTION} A step with {NUM_SAMPLES[MANY]} samples takes {ratio('illia_ext'):.1f} times one with one sample "
        f"in illia_ext, {ratio('plain'):.1f} times in plain PyTorch, which loops over them."
    )
    print_table(console, title, trainings, judge, (f"illia_ext, {MANY}", f"plain, {MANY}"), caption)
    return 0


if __name__ == "__main__":
    sys.exit(main())
