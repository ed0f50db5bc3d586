"""Several processes: fork after threads were used, spawn, parameters in shared memory, workers of a DataLoader."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import make_key, same_bits
from torch import Tensor, multiprocessing
from torch.utils.data import DataLoader, Dataset

from illia_ext import GaussianDistribution
from illia_ext.random import fold_in

pytestmark = pytest.mark.usefixtures("cpu", "two_threads")
KEY = make_key(3, device="cpu")
NUMEL = 256 * 1024 + 777  # enough for two threads
SECONDS = 60  # a child that takes longer hangs


@pytest.fixture
def distribution() -> GaussianDistribution:
    """Its forward and backward have used both threads; what a child does to it is seen here."""
    torch.manual_seed(0)
    distribution = GaussianDistribution(NUMEL, rho_init=-1.0)
    distribution.log_prob().backward()
    distribution.zero_grad()
    return distribution.share_memory()


def run_child(method: str, action: Callable[..., Any], *args: Any) -> None:
    child = multiprocessing.get_context(method).Process(target=_run, args=(action, *args))
    child.start()
    child.join(SECONDS)
    child.kill()
    child.join()
    assert child.exitcode == 0


def _run(action: Callable[..., Any], *args: Any) -> None:
    # As workers of a DataLoader do: a forked child has lost its parent's threads, for which OpenMP would wait.
    torch.set_num_threads(1)
    action(*args)


def train(distribution: GaussianDistribution, outputs: list[Tensor]) -> None:
    """One step in place, then a sample and its log_prob."""
    x, log_prob = distribution.sample_and_log_prob(key=KEY)
    (x.sum() + log_prob).backward()
    with torch.no_grad():
        for parameter in distribution.parameters():
            parameter.sub_(parameter.grad, alpha=1e-3)
        for output, result in zip(outputs, distribution.sample_and_log_prob(key=KEY)):
            output.copy_(result)


def make_outputs() -> list[Tensor]:
    return [torch.zeros(NUMEL).share_memory_(), torch.zeros(()).share_memory_()]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_training_in_shared_memory(method: str, distribution: GaussianDistribution) -> None:
    here, outputs, expected = copy.deepcopy(distribution), make_outputs(), make_outputs()
    run_child(method, train, distribution, outputs)
    train(here, expected)
    assert all(map(same_bits, outputs, expected))
    assert all(map(same_bits, distribution.parameters(), here.parameters()))
    assert outputs[0].any()


def draw(distribution: GaussianDistribution, drawn: Tensor, folded: Tensor) -> None:
    drawn.copy_(distribution.sample().detach())
    folded.copy_(distribution.sample(key=fold_in(KEY, 1)).detach())


def test_a_forked_child_draws_what_its_parent_draws(distribution: GaussianDistribution) -> None:
    """It inherits torch's generator: known, of torch. A key with the child's number folded in is its own."""
    drawn, folded = make_outputs()[0], make_outputs()[0]
    torch.manual_seed(5)
    run_child("fork", draw, distribution, drawn, folded)
    assert same_bits(drawn, distribution.sample())
    assert same_bits(folded, distribution.sample(key=fold_in(KEY, 1)))
    assert not same_bits(folded, distribution.sample(key=fold_in(KEY, 0)))


class Draws(Dataset):
    """Samples of one key, and of a key that the worker draws."""

    def __init__(self, distribution: GaussianDistribution) -> None:
        self.distribution = distribution

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return torch.stack([self.distribution.sample(key=KEY), self.distribution.sample()]).detach()


def test_workers_of_a_data_loader(distribution: GaussianDistribution) -> None:
    """torch seeds them apart, and alike for one seed of the parent."""
    loader = DataLoader(Draws(distribution), batch_size=None, num_workers=2, timeout=SECONDS)
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        runs.append([item.clone() for item in loader])
    expected = distribution.sample(key=KEY)
    for of_key, _ in runs[0]:
        assert same_bits(of_key, expected)
    assert len({drawn.sum().item() for _, drawn in runs[0]}) == 4
    assert all(map(same_bits, *runs))
