"""Networks that are trained in turns on the same batches, and how long their steps take."""

import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median

import torch
from plain import FixedWeights, PlainBayesian
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from illia_ext import BayesianModule, elbo_loss

__all__ = ["Contender", "Task", "Training", "contenders", "fit", "last_tenths", "run"]

WARM_UP = 5  # steps that the median time leaves out


def last_tenths(values: list[float]) -> tuple[float, float]:
    """Means over the last tenth but one of a training's values, and over the last."""
    tenth = max(1, len(values) // 10)
    return fmean(values[-2 * tenth : -tenth] or values), fmean(values[-tenth:])


@dataclass
class Task:
    """Data, and how networks are trained on it."""

    inputs: Tensor  # [num_data, ...]
    test_inputs: Tensor  # [tests, ...]
    targets: Tensor  # [num_data]
    test_targets: Tensor  # [tests]
    likelihood: Callable[[], nn.Module]  # of likelihoods.py
    batch_size: int
    epochs: int
    learning_rate: float
    foreign_inputs: Tensor | None = None  # [foreign, ...]: of another kind than the training's


class Contender:
    """A network, its optimizer and what was measured while it trained."""

    # after training
    outputs: Tensor  # [samples, tests, ...]
    foreign_outputs: Tensor  # [samples, foreign, ...]

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        num_samples: int | None = None,
        kl_weight: float = 1.0,
        penalty: float = 1.0,
    ) -> None:
        self.network, self.num_samples, self.num_data = network, num_samples, len(task.inputs)
        self.kl_weight = kl_weight
        self.likelihood = task.likelihood()
        # to fixed weights the prior N(0, 1 / penalty) is a penalty, which makes them the most probable ones
        weight_decay = penalty / self.num_data if isinstance(network, FixedWeights) else 0.0
        groups = [
            {"params": list(network.parameters()), "weight_decay": weight_decay},
            {"params": list(self.likelihood.parameters())},
        ]
        self.optimizer = torch.optim.Adam(groups, lr=task.learning_rate, fused=True)
        self.seconds: list[float] = []  # [steps]
        self.losses: list[tuple[float, float]] = []  # [steps]: nll, log_prob / num_data

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        start = time.process_time()  # of this process alone: steps on one thread, beside others on the machine
        loss, nll, log_prob = self.loss(inputs, targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.seconds.append(time.process_time() - start)
        self.losses.append((nll.item(), log_prob.mean().item() / self.num_data))

    def loss(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of a batch: what is minimised, nll and log_prob."""
        outputs, log_prob = self.network(inputs, num_samples=self.num_samples)
        nll = self.likelihood(outputs, targets)
        return elbo_loss(nll, log_prob, self.num_data, self.kl_weight), nll, log_prob

    @torch.no_grad()
    def predict(self, inputs: Tensor, num_samples: int) -> Tensor:
        """Outputs [num_samples, ...], each under one sample of the weights; [1, ...] for fixed weights."""
        outputs: Tensor = self.network(inputs, num_samples=num_samples)[0]
        return outputs

    @property
    def step_ms(self) -> float:
        return 1e3 * median(self.seconds[WARM_UP:])

    def kls(self) -> tuple[float, float]:
        """KL divergence over num_data in the last tenth of the training but one, and in the last."""
        return last_tenths([log_prob for _, log_prob in self.losses])


@dataclass
class Training:
    """All contenders, trained with one seed."""

    task: Task
    contenders: dict[str, Contender]


def contenders(network: nn.Module, task: Task) -> dict[str, Contender]:
    """Three copies of `network`: Bayesian by illia_ext, Bayesian in plain PyTorch, and deterministic."""
    return {
        "illia_ext": Contender(BayesianModule(network), task),
        "plain PyTorch": Contender(PlainBayesian(network), task),
        "deterministic": Contender(FixedWeights(network), task),
    }


def fit(members: list[Contender], task: Task, epochs: int) -> None:
    """Trains all in turn on the same batches."""
    for _ in range(epochs):
        for batch in torch.randperm(len(task.inputs)).split(task.batch_size):
            for member in members:
                member.step(task.inputs[batch], task.targets[batch])


def run(setup: Callable[[int], Training], options: Namespace, console: Console) -> list[Training]:
    """Trains and tests what `setup` makes of each seed."""
    torch.set_num_threads(1)  # enough here, and so CPU time is the time that passes
    trainings = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as progress:
        bar = progress.add_task("epochs", total=options.seeds * options.epochs, note="")
        for seed in range(options.seed, options.seed + options.seeds):
            torch.manual_seed(seed)
            training = setup(seed)
            task, members = training.task, list(training.contenders.values())
            for _ in range(task.epochs):
                fit(members, task, epochs=1)
                progress.update(bar, advance=1, note=f"seed {seed}, nll {members[0].losses[-1][0]:.3f}")
            for contender in members:
                contender.outputs = contender.predict(task.test_inputs, options.samples)
                if task.foreign_inputs is not None:
                    contender.foreign_outputs = contender.predict(task.foreign_inputs, options.samples)
            trainings.append(training)
    return trainings
