"""Variance of the loss's gradient with antithetic samples, beside as many independent ones.

`python examples/antithetic.py --help` names the options.
"""

import sys
from functools import partial

import torch
from digits import digits_task
from options import training_parser
from report import print_means
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from training import Contender, Task, Training, run

from illia_ext import BayesianModule, elbo_loss

DRAWS = 200  # of the gradient
NUM_SAMPLES = (2, 8)


def gradient(bnn: BayesianModule, task: Task, num_samples: int, antithetic: bool) -> Tensor:
    """Of the loss on one fixed batch: [2, weights], to mu and to rho."""
    inputs, labels = task.inputs[: task.batch_size], task.targets[: task.batch_size]
    outputs, log_prob = bnn(inputs, num_samples=num_samples, antithetic=antithetic)
    nll = cross_entropy(outputs.flatten(0, 1), labels.repeat(num_samples))
    loss = elbo_loss(nll, log_prob, len(task.inputs))
    _, mus, rhos = zip(*bnn.named_gaussians())
    grads = torch.autograd.grad(loss, [*mus, *rhos])
    return torch.cat([grad.flatten() for grad in grads]).reshape(2, -1)


def ratios(bnn: BayesianModule, task: Task) -> list[float]:
    """The variance with antithetic samples over that with independent ones, summed over all weights: mu and rho of each
    of NUM_SAMPLES."""
    found = []
    for num_samples in NUM_SAMPLES:
        pairs, independent = (
            torch.stack([gradient(bnn, task, num_samples, antithetic) for _ in range(DRAWS)]).var(0).sum(-1)
            for antithetic in (True, False)
        )
        found += (pairs / independent).tolist()
    return found


def setup(epochs: int, seed: int) -> Training:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    task = digits_task(epochs, seed)
    return Training(task, {"illia_ext": Contender(BayesianModule(network), task)})


def main() -> int:
    options = training_parser(__doc__.split("\n")[0], epochs=60).parse_args()
    console = Console()
    new = [setup(options.epochs, options.seed + seed) for seed in range(options.seeds)]
    at_first = [ratios(each.contenders["illia_ext"].network, each.task) for each in new]
    trainings = run(partial(setup, options.epochs), options, console)
    trained = [ratios(each.contenders["illia_ext"].network, each.task) for each in trainings]
    found = {"at first": 100 * torch.tensor(at_first), "after training": 100 * torch.tensor(trained)}
    columns = ["", *(f"{to}, S={num_samples}" for num_samples in NUM_SAMPLES for to in ("mu", "rho"))]
    title = f"Variance of the gradient, % of that with independent samples, {options.seeds} seeds"
    print_means(console, title, columns, found, f"{DRAWS} gradients each, of one batch.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
