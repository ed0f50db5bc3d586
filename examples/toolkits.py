"""Digits, evaluated by torch-uncertainty and by probly: their own Bayesian layers, illia_ext's, and a plain network.

`pip install '.[toolkits]'` first. `python examples/toolkits.py --help` names the options.
"""

import logging
import math
import sys
import warnings
from collections.abc import Callable
from functools import partial

import probly
import torch
from digits import digits_task
from options import training_parser
from plain import FixedWeights
from probly.quantification import classification as quantification
from report import spread
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torch_uncertainty import TUTrainer
from torch_uncertainty.layers.bayesian import BayesConv2d, BayesLinear
from torch_uncertainty.losses import ELBOLoss
from torch_uncertainty.routines import ClassificationRoutine
from training import Contender, Task, Training, run

from illia_ext import BayesianModule, elbo_loss

Judge = Callable[[Contender, Task], dict[str, float]]
OWN, OURS, AS_OWN = "its layers", "its layers, illia_ext's settings", "illia_ext, its settings"
SCORES = "zero_one_loss", "log_loss", "brier_score", "expected_calibration_error"
COLUMNS = [OWN, OURS, AS_OWN, "illia_ext", "deterministic"]

CAPTION = """\
illia_ext's settings: prior N(0, 1), initial sigma 0.0067, KL divergence / number of training images in the loss.
torch-uncertainty's: prior N(0, 0.1^2), initial sigma 0.0009, half of that KL divergence (its ELBOLoss takes the mean
over two layers). probly's: prior N(0, 1), initial sigma 0.05, 1e-5 KL divergence, which is 1/74 of the bound's. With
their own settings the toolkits' layers start from means that they draw, all others from the weights of the
deterministic network. Out of distribution: the test images rotated by 90 degrees, told by the largest mean probability
(torch-uncertainty) and by mutual information (probly; deterministic: by entropy). All have the same batches, epochs and
Adam's rate. deterministic: the most probable weights under the prior N(0, 1). Step: CPU time on one thread, median of
all steps."""


class Rival(Contender):
    """Trained by a loss of its own; a network of a toolkit's layers gives logits alone, of one sample a call."""

    def __init__(self, network: nn.Module, task: Task, loss: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__(network, task)
        self.own_loss = loss

    def loss(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loss = self.own_loss(self.network, inputs, targets)
        return loss, loss, torch.tensor(math.nan)  # its parts are not known here

    @torch.no_grad()
    def predict(self, inputs: Tensor, num_samples: int) -> Tensor:
        if isinstance(self.network, BayesianModule):
            return super().predict(inputs, num_samples)
        return torch.stack([self.network(inputs) for _ in range(num_samples)])


class Samples(nn.Module):
    """The logits of all samples as torch-uncertainty takes them: [samples * cases, classes]."""

    def __init__(self, contender: Contender) -> None:
        super().__init__()
        self.contender, self.num_samples = contender, len(contender.outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.contender.predict(inputs, self.num_samples).flatten(0, 1)


def network(convolution: Callable[..., nn.Module], linear: Callable[..., nn.Module]) -> nn.Module:
    return nn.Sequential(convolution(1, 8, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), linear(128, 10))


@torch.no_grad()
def copy_means(start: nn.Module, layers: nn.Module) -> None:
    for name, parameter in start.named_parameters():
        layers.get_parameter(f"{name}_mu").copy_(parameter)


def setup(epochs: int, seed: int) -> Training:
    task = digits_task(epochs, seed)
    num_data, start = len(task.inputs), network(nn.Conv2d, nn.Linear)

    def torch_uncertainty(kl_weight: float, **settings: float) -> Contender:
        layers = network(partial(BayesConv2d, **settings), partial(BayesLinear, **settings))
        elbo = ELBOLoss(layers, nn.CrossEntropyLoss(), kl_weight, num_samples=1)
        return Rival(layers, task, lambda _, inputs, targets: elbo(inputs, targets))

    def by_probly(elbo: nn.Module, **settings: float) -> Contender:
        layers = probly.representation.Bayesian(start, **settings)
        return Rival(layers, task, lambda model, *batch: elbo(model(batch[0]), batch[1], model.kl_divergence))

    def ours(kl_weight: float, **settings: float) -> Contender:
        def loss(bnn: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
            logits, log_prob = bnn(inputs)
            return elbo_loss(cross_entropy(logits, targets), log_prob, num_data, kl_weight)

        return Rival(BayesianModule(start, **settings), task, loss)

    rivals = {
        f"torch-uncertainty, {OWN}": torch_uncertainty(1 / num_data),
        f"torch-uncertainty, {OURS}": torch_uncertainty(2 / num_data, prior_sigma_1=1.0, sigma_init=-5.0),
        f"torch-uncertainty, {AS_OWN}": ours(0.5, std_prior=0.1, rho_init=-7.0),
        f"probly, {OWN}": by_probly(probly.losses.ELBOLoss()),
        f"probly, {OURS}": by_probly(probly.losses.ELBOLoss(1 / num_data), posterior_std=math.log1p(math.exp(-5))),
        f"probly, {AS_OWN}": ours(1e-5 * num_data, rho_init=math.log(math.expm1(0.05))),
        "illia_ext": Contender(BayesianModule(start), task),
        "deterministic": Contender(FixedWeights(start), task),
    }
    copy_means(start, rivals[f"torch-uncertainty, {OURS}"].network)
    copy_means(start, rivals[f"probly, {OURS}"].network.model)
    return Training(task, rivals)


def judge_torch_uncertainty(contender: Contender, task: Task) -> dict[str, float]:
    # its score "msp", for torchmetrics' AUROC is wrong for mutual information, which can exceed 1
    options = {"is_ensemble": len(contender.outputs) > 1, "eval_ood": True, "ood_criterion": "msp"}
    routine = ClassificationRoutine(Samples(contender), num_classes=10, **options)
    parts = [TensorDataset(inputs, task.test_targets) for inputs in (task.test_inputs, task.foreign_inputs)]
    loaders = [DataLoader(part, batch_size=len(task.test_targets)) for part in parts]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}
    found = TUTrainer(**quiet).test(routine, loaders, verbose=False)[0]
    names = "test/cls/Acc", "test/cls/NLL", "test/cls/Brier", "test/cal/ECE", "test/sc/AURC", "ood/AUROC", "ood/FPR95"
    return {name.removeprefix("test/"): found[name] for name in names}


def judge_probly(contender: Contender, task: Task) -> dict[str, float]:
    outputs = contender.outputs, contender.foreign_outputs  # [samples, cases, classes]
    known, foreign = (part.double().softmax(-1).transpose(0, 1).numpy() for part in outputs)
    doubt = quantification.mutual_information if known.shape[1] > 1 else quantification.total_entropy
    probabilities, labels = known.mean(axis=1), task.test_targets.numpy()
    errors = probabilities.argmax(axis=1) != labels
    return {
        **{name: float(getattr(probly.metrics, name)(probabilities, labels)) for name in SCORES},
        "selective_prediction": probly.tasks.selective_prediction(doubt(known), errors)[0],
        "out_of_distribution_detection": probly.tasks.out_of_distribution_detection(doubt(known), doubt(foreign)),
    }


def print_table(console: Console, toolkit: str, trainings: list[Training], judge: Judge) -> None:
    columns = []
    for column in COLUMNS:
        each = [(one.contenders.get(f"{toolkit}, {column}") or one.contenders[column], one.task) for one in trainings]
        columns.append([{**judge(*one), "step, ms": one[0].step_ms} for one in each])
    table = Table(title=toolkit, box=SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ["", *COLUMNS]:
        table.add_column(heading.replace(", ", ",\n"), justify="right" if heading else "left", vertical="bottom")
    for label in columns[0][0]:
        table.add_row(label, *(spread([seed[label] for seed in column], 3) for column in columns))
    console.print(table)


def main() -> int:
    options = training_parser(__doc__.split("\n")[0], epochs=90).parse_args()
    warnings.filterwarnings("ignore", module=r"lightning|torchmetrics|torch_uncertainty")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    console = Console(width=max(120, Console().width))
    trainings = run(partial(setup, options.epochs), options, console)
    print_table(console, "torch-uncertainty", trainings, judge_torch_uncertainty)
    print_table(console, "probly", trainings, judge_probly)
    console.print(CAPTION, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
