"""Checks of DDP, and of BayesianModule on several processes: FSDP2 with its checkpoints."""

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as checkpoints
from distributed_training import BayesianLinear, make_data
from distributed_world import World, check
from helpers import make_key, make_keys, same_bits
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.distributions import Distribution, Laplace, StudentT
from torch.nn.parallel import DistributedDataParallel

from illia_ext import BayesianModule, ScaleMixture


class Network(nn.Module):
    """5 features, 3 classes, a tied weight and statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.again.weight = self.first.weight
        self.norm = nn.BatchNorm1d(5)

    def forward(self, features: Tensor) -> Tensor:
        return self.last(self.again(self.norm(self.first(features)).tanh()))


def make_network(**prior: Any) -> BayesianModule:
    torch.manual_seed(0)
    return BayesianModule(Network().double(), rho_init=-3.0, **(prior or {"std_prior": 1.0})).eval()


KEYS = (make_key(1, device="cpu"), make_keys((1, 2), (3, 4), (5, 6), device="cpu"))


def accumulate(model: nn.Module, features: Tensor, labels: Tensor, keys: Sequence[Tensor] = KEYS) -> list[Tensor]:
    """Outputs and log_probs for each of `keys`, whose gradients the parameters have thereafter."""
    results = []
    for key in keys:
        logits, log_prob = model(features, key=key)
        nll = nn.functional.cross_entropy(logits.flatten(0, -2), labels.repeat(log_prob.numel()))
        (nll + log_prob.mean() / 100).backward()
        results += [logits, log_prob]
    return results


@check(2, 4)
def ddp_gives_the_gradients_of_one_process(world: World) -> None:
    """The mean over ranks of a mean over a part of the batch is the mean over the batch; float64 leaves 1e-12."""
    features, labels = make_data(torch.float64)
    part = slice(world.rank, None, world.size)
    for alone, keys in ((make_network(), KEYS), (BayesianLinear(torch.float64), KEYS[:1])):
        together = copy.deepcopy(alone)
        accumulate(alone, features, labels, keys)
        accumulate(DistributedDataParallel(together), features[part], labels[part], keys)
        for ours, expected in zip(together.parameters(), alone.parameters()):
            torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-12, atol=1e-12)


@check(2)
def fsdp_shards_a_module_with_another_prior(world: World) -> None:
    """In forward all is whole. Outside, the kernels take shards, torch's distributions do not."""
    data = make_data(torch.float64)
    for prior in (ScaleMixture(0.4, 1.0, 0.1), lambda name, weight: Laplace(weight, 0.5), StudentT(3.0, 0.0, 1.0)):
        whole, sharded = make_network(prior=prior), fully_shard(make_network(prior=prior))
        for ours, expected in zip(accumulate(sharded, *data), accumulate(whole, *data)):
            assert same_bits(ours, expected)
        for ours, expected in zip(sharded.parameters(), whole.parameters()):
            torch.testing.assert_close(ours.grad.full_tensor(), expected.grad, rtol=1e-12, atol=1e-12)
        sharded.reshard()
        if not isinstance(prior, Distribution):
            with pytest.raises(RuntimeError, match="prior: a Laplace does not take DTensors"):
                sharded.kl_divergence()


@check(2)
def fsdp_shards_a_bayesian_module(world: World) -> None:
    """Outputs and log_probs are those of the whole, bit for bit, and gradients its shards."""
    data = make_data(torch.float64)
    whole, sharded = make_network(), fully_shard(make_network())
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    for ours, expected in zip(accumulate(sharded, *data), accumulate(whole, *data)):
        assert same_bits(ours, expected)
    for ours, expected in zip(sharded.parameters(), whole.parameters()):
        torch.testing.assert_close(ours.grad.full_tensor(), expected.grad, rtol=1e-12, atol=1e-12)
    sharded.reshard()
    torch.testing.assert_close(sharded.kl_divergence().full_tensor(), whole.kl_divergence(), rtol=1e-12, atol=0)
    with pytest.raises(RuntimeError, match=r"mixed torch.Tensor and DTensor"):
        sharded.mean_forward(data[0])
    register_fsdp_forward_method(sharded, "mean_forward")
    # products of weights that lie elsewhere in memory: their sums may be taken in another order
    torch.testing.assert_close(sharded.mean_forward(data[0]), whole.mean_forward(data[0]), rtol=1e-12, atol=1e-12)


class Blocked(nn.Module):
    """A loss inside `sampled()`; by forward, as DDP calls it, or by a method, as FSDP2 may."""

    def __init__(self) -> None:
        super().__init__()
        self.bnn = make_network()

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        with self.bnn.sampled(make_key(1, device="cpu")) as log_prob:
            return nn.functional.cross_entropy(self.bnn.module(features), labels) + log_prob / 100

    loss = forward


@check(2)
def ddp_and_fsdp_reduce_the_gradients_of_a_block(world: World) -> None:
    """In the forward pass of the module that DDP wraps, in a method that FSDP2 knows; without a warning."""
    features, labels = make_data(torch.float64)
    part = slice(world.rank, None, world.size)
    alone, replicated, sharded = Blocked(), Blocked(), Blocked()
    fully_shard(sharded)
    register_fsdp_forward_method(sharded, "loss")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="sampled")
        wrapped = DistributedDataParallel(replicated)  # which reduces as long as it lives
        wrapped(features[part], labels[part]).backward()
        sharded.loss(features[part], labels[part]).backward()
    with pytest.warns(UserWarning, match="sampled: no forward pass of DistributedDataParallel is active"):
        alone(features, labels).backward()
    for ours, shards, expected in zip(replicated.parameters(), sharded.parameters(), alone.parameters()):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(shards.grad.full_tensor(), expected.grad, rtol=1e-12, atol=1e-12)
    sharded.reshard()
    with (
        pytest.raises(RuntimeError, match="sampled: the parameters are sharded; open the block where FSDP2 holds them"),
        sharded.bnn.sampled(),
    ):
        pass


@check(2)
def fsdp_saves_a_frozen_bayesian_module(world: World) -> None:
    """Into a checkpoint that whole and sharded ones load."""
    features, _ = make_data(torch.float64)
    model = fully_shard(make_network())
    model.freeze(make_key(7, device="cpu"))
    expected, _ = model(features)
    model.reshard()
    checkpoints.save(model.state_dict(), checkpoint_id=world.directory)
    for other in (make_network(), fully_shard(make_network())):
        for parameter in other.parameters():
            nn.init.zeros_(parameter)
        state = other.state_dict()
        checkpoints.load(state, checkpoint_id=world.directory)
        other.load_state_dict(state)
        assert other.frozen and same_bits(other(features)[0], expected)


@check(2)
def a_sharded_part_is_refused(world: World) -> None:
    """FSDP2 would hold its weights sharded while the rest is whole."""
    model = make_network()
    fully_shard(model.module.last)
    fully_shard(model)
    with pytest.raises(RuntimeError, match=r"module.last.weight: expected the device_mesh of rho.last.weight"):
        model(make_data(torch.float64)[0])
