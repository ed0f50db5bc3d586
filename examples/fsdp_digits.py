"""Train a perceptron on handwritten digits on several processes, its parameters sharded by FSDP2, and compare draws.

`python examples/fsdp_digits.py` starts the processes itself; `--help` names the options.
"""

import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from options import Parser
from report import levelling
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DeviceMesh, DTensor, init_device_mesh
from torch.nn.functional import cross_entropy, linear
from torch.utils._python_dispatch import TorchDispatchMode
from training import last_tenths

from illia_ext import GaussianDistribution
from illia_ext.functional import gaussian_sample
from illia_ext.random import draw_key, fold_in

SIZES = [64, 512, 512, 10]
BATCH = 128
LEARNING_RATE = 3e-3
SAMPLES = 20  # of the weights for a prediction, on each process


class BayesianLinear(nn.Module):
    """A linear layer that draws its weights anew in each forward pass."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        prior = {"std_prior": 1.0, "rho_init": -4.0}  # sigma = softplus(-4) = 0.018
        self.weight = GaussianDistribution((out_features, in_features), **prior)
        self.bias = GaussianDistribution((out_features,), **prior)

    def forward(self, features: Tensor) -> Tensor:
        weight, weight_log_prob = self.weight.sample_and_log_prob()
        bias, bias_log_prob = self.bias.sample_and_log_prob()
        self.log_prob = weight_log_prob + bias_log_prob  # log q - log p of this sample
        return linear(features, weight, bias)


class Gathered(TorchDispatchMode):
    """Adds up the bytes that all-gathers of DTensors bring to this process, its own part included."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # DTensor comes first, and calls the collectives that are counted
        output = func(*args, **(kwargs or {}))
        if "all_gather" in str(func):
            self.bytes += output.nbytes
        return output


def make_network(mesh: DeviceMesh) -> nn.Sequential:
    layers = [BayesianLinear(inputs, outputs) for inputs, outputs in pairwise(SIZES)]
    first, *others = layers
    network = nn.Sequential(first, *(part for layer in others for part in (nn.ReLU(), layer)))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    return fully_shard(network, mesh=mesh, mp_policy=policy)


def train(network: nn.Sequential, images: Tensor, labels: Tensor, options: Any, rank: int, console: Console) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    order = torch.Generator().manual_seed(options.seed)  # one for all: each process takes its part of every batch
    kls = []  # [epochs]: log_prob / num_data
    for epoch in range(options.epochs):
        total = torch.zeros(2)  # nll, log_prob / num_data
        batches = torch.randperm(len(images), generator=order).split(BATCH)
        for batch in batches:
            mine = batch[rank :: options.processes]
            nll = cross_entropy(network(images[mine]), labels[mine])
            log_probs = [layer.log_prob for layer in network if isinstance(layer, BayesianLinear)]
            log_prob = torch.stack(log_probs).sum() / len(images)
            optimizer.zero_grad()
            (nll + log_prob).backward()
            optimizer.step()
            total += torch.stack([nll, log_prob]).detach()
        dist.all_reduce(total)
        mean_nll, mean_log_prob = total / len(batches) / options.processes
        kls.append(float(mean_log_prob))
        console.print(f"epoch {epoch + 1:2}  nll {mean_nll:.3f}  log_prob {mean_log_prob:.2f} nats an image")
    console.print(levelling("the sharded network", kls[0], *last_tenths(kls)), highlight=False)


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Of the mean prediction over the samples of all processes."""
    probabilities = sum(network(images).softmax(dim=-1) for _ in range(SAMPLES))
    dist.all_reduce(probabilities)
    return float((probabilities.argmax(dim=-1) == labels).float().mean())


@torch.no_grad()
def compare(weights: list[GaussianDistribution], mesh: DeviceMesh) -> tuple[bool, Table]:
    """Whether all weights, drawn as shards and drawn from the gathered mu and rho by the same keys, are equal; and the
    bytes that either way gathers."""
    key = draw_key(mesh=mesh)  # the first process's, on all of them
    keys = [fold_in(key, layer) for layer in range(len(weights))]
    with Gathered() as parameters:
        whole = [(part.mu.full_tensor(), part.rho.full_tensor()) for part in weights]
    unsharded = [gaussian_sample(mu, rho, key.to_local()) for (mu, rho), key in zip(whole, keys)]
    table = Table("gathered", "bytes", "share")
    table.add_row("mu and rho", f"{parameters.bytes:,}", "1.00")
    draws = {}
    for dtype in (torch.float32, torch.bfloat16):
        sharded = [gaussian_sample(part.mu, part.rho, key, dtype) for part, key in zip(weights, keys)]
        with Gathered() as samples:
            draws[dtype] = [x.full_tensor() for x in sharded]
        table.add_row(f"the sample in {dtype}", f"{samples.bytes:,}", f"{samples.bytes / parameters.bytes:.2f}")
    return all(torch.equal(*pair) for pair in zip(draws[torch.float32], unsharded)), table


def work(rank: int, options: Any, store: str) -> None:
    """One process of the training."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=options.processes)
    mesh = init_device_mesh("cpu", (options.processes,))
    console = Console(quiet=rank > 0)
    digits = load_digits()  # 1797 images of 8 x 8 pixels from 0 to 16
    split = train_test_split(digits.data / 16, digits.target, test_size=0.25, random_state=options.seed)
    images, test_images = (torch.tensor(part, dtype=torch.float32) for part in split[:2])
    labels, test_labels = (torch.tensor(part) for part in split[2:])

    torch.manual_seed(options.seed)  # the same initial weights on all processes
    network = make_network(mesh)
    torch.manual_seed(options.seed + 1 + rank)  # and draws that differ
    train(network, images, labels, options, rank, console)
    console.print(f"test accuracy {accuracy(network, test_images, test_labels):.2%}")

    weights = [part for part in network.modules() if isinstance(part, GaussianDistribution)]
    equal, table = compare(weights, mesh)
    console.print(table)
    console.print(f"sharded and unsharded draws are equal: {equal}")
    dist.destroy_process_group()


def main() -> int:
    parser = Parser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_numbers(
        ("--epochs", 10, 1, 10_000, "passes over the training images"),
        ("--processes", 2, 1, 64, "that share the parameters"),
        ("--seed", 0, 0, 2**31, "of the split, the initial weights and the noise"),
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        store = str(Path(directory) / "store")
        torch.multiprocessing.spawn(work, (options, store), nprocs=options.processes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
