"""Checks of BayesianModule on several processes: DDP, and FSDP2 with its checkpoints."""

import copy
from typing import Any

import torch
from distributed_checks import KEY
from distributed_training import make_data, train
from distributed_world import World, check
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from illia_ext import BayesianModule


class Network(nn.Module):
    """5 features, 3 classes, a tied weight and statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(5, 5), nn.Linear(5, 5, bias=False)
        self.again.weight = self.first.weight
        self.norm = nn.BatchNorm1d(5)
        self.last = nn.Linear(5, 3)

    def forward(self, features: Tensor) -> Tensor:
        return self.last(self.again(self.norm(self.first(features)).tanh()))


def make_network(dtype: torch.dtype = torch.float64, **arguments: Any) -> BayesianModule:
    torch.manual_seed(0)
    return BayesianModule(Network().to(dtype), std_prior=1.0, rho_init=-3.0, **arguments)


def with_keys(model: nn.Module) -> Any:
    """As `train` calls it."""
    return lambda features, key: model(features, key=key)


@check(2)
def ddp_trains_a_bayesian_module(world: World) -> None:
    """As in `ddp_trains_as_one_process`, without statistics, which DDP leaves each rank its own of."""
    features, labels = make_data(torch.float64)
    keys = [KEY] * 3
    alone = make_network()
    alone.eval()
    together = copy.deepcopy(alone)
    train(alone, features, labels, keys)
    part = slice(world.rank, None, world.size)
    train(DistributedDataParallel(together), features[part], labels[part], keys)
    for ours, expected in zip(together.parameters(), alone.parameters()):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
