"""Checks of training distributions on several processes: FSDP2 with its checkpoints, and what travels between them."""

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoints
from distributed_checks import KEY
from distributed_keys import Weights
from distributed_world import World, assert_part_of, check, make_mesh, place, shard
from helpers import make_parameters, same_bits
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Partial, Shard, init_device_mesh
from torch.nn.functional import cross_entropy, linear
from torch.utils._python_dispatch import TorchDispatchMode

from illia_ext import GaussianDistribution, functional

NUM_DATA = 12


class BayesianLinear(nn.Module):
    """5 features, 3 classes; forward gives the logits and the log_prob of the weights that it drew."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = GaussianDistribution((3, 5), std_prior=1.0, rho_init=-3.0, dtype=dtype)

    def forward(self, features: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
        weight, log_prob = self.weight.sample_and_log_prob(key=key)
        return linear(features, weight), log_prob


def make_data(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(NUM_DATA, 5, generator=generator, dtype=dtype)
    return features, features[:, :3].argmax(dim=1)


def train(model: nn.Module, features: Tensor, labels: Tensor, keys: list[Any], lr: float = 0.1) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    losses = []
    for key in keys:
        logits, log_prob = model(features, key)
        loss = cross_entropy(logits.to(log_prob.dtype), labels) + log_prob / NUM_DATA
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@check(2)
def ranks_draw_alike_if_they_are_seeded_alike(world: World) -> None:
    weights = GaussianDistribution((3, 5))
    for seed, alike in ((0, True), (world.rank, False)):
        torch.manual_seed(seed)
        x = weights.sample().detach()
        drawn = [torch.empty_like(x) for _ in range(world.size)]
        dist.all_gather(drawn, x)
        assert same_bits(*drawn) == alike


@check(2, 4)
def fsdp_trains_draws_and_saves(world: World) -> None:
    """Three rows on four processes leave one of them without any."""
    torch.manual_seed(0)
    model, whole = BayesianLinear(), BayesianLinear()
    fully_shard(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))
    features, labels = make_data()
    assert isinstance(model.weight.mu, DTensor) and model.weight.mu.placements == (Shard(0),)
    losses = train(model, features.bfloat16(), labels, [None] * 60)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5]), losses  # each with noise of its own, hence five
    assert model.weight.mu.dtype == torch.float32

    checkpoints.save(model.state_dict(), checkpoint_id=world.directory)
    loaded = whole.state_dict()
    checkpoints.load(loaded, checkpoint_id=world.directory)
    whole.load_state_dict(loaded)
    for name, tensor in model.state_dict().items():
        assert same_bits(tensor.full_tensor() if isinstance(tensor, DTensor) else tensor, loaded[name])

    model.reshard()
    x, log_prob = model.weight.sample_and_log_prob(key=place(KEY, make_mesh(world.size)))
    expected_x, expected = whole.weight.sample_and_log_prob(key=KEY)
    assert same_bits(x.full_tensor(), expected_x)
    torch.testing.assert_close(log_prob.full_tensor(), expected, rtol=1e-5, atol=0)  # far from a rank's part missing


@check(2)
def learned_priors_take_steps_on_shards(world: World) -> None:
    """A gradient lies as its parameter does, or accumulation and the optimizer's updates in place would be refused.
    One element of each prior on two ranks; float64 leaves 1e-12."""
    torch.manual_seed(0)
    priors = [nn.Parameter(torch.tensor([value], dtype=torch.float64)) for value in (0.3, 0.7)]
    whole = GaussianDistribution((5, 3), *priors, dtype=torch.float64)
    sharded = fully_shard(copy.deepcopy(whole))
    for weights, key in ((whole, KEY), (sharded, place(KEY, make_mesh(world.size)))):
        optimizer = torch.optim.SGD(weights.parameters(), lr=0.01)
        for _ in range(2):
            log_prob = weights.sample_and_log_prob(key=key)[1]
            (log_prob.full_tensor() if weights is sharded else log_prob).backward()
        optimizer.step()
    for ours, expected in zip(sharded.parameters(), whole.parameters()):
        torch.testing.assert_close(ours.full_tensor(), expected, rtol=1e-12, atol=1e-12)


@check(4)
def fsdp_over_tensor_parallel(world: World) -> None:
    """Sharded along the same dimension twice, in an order of FSDP2's own, which is refused by name; while FSDP2 has
    gathered them, the parameters lie as on the tensor parallel mesh."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    data, tensor = mesh["data"], mesh["tensor"]
    whole = make_parameters((8, 5), device="cpu")
    weights = Weights(*shard(whole, tensor, Shard(0)))
    fully_shard(weights, mesh=data)
    with pytest.raises(RuntimeError, match="mu: expected to be sharded or replicated, got _StridedShard"):
        weights.sample()
    register_fsdp_forward_method(weights, "sample")
    assert_part_of(functional.gaussian_sample(*whole, KEY), weights.sample(key=place(KEY, tensor)))


class GatheredBytes(TorchDispatchMode):
    """Adds up the bytes that all-gathers bring to this rank, its own included."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # DTensor comes first, and calls the collectives that are counted
        output = func(*args, **(kwargs or {}))
        if "all_gather_into_tensor" in str(func):
            self.total += output.nbytes
        return output


@check(2)
def gathering_a_sample_is_half_the_traffic(world: World) -> None:
    """Of gathering mu and rho; a quarter in bfloat16."""
    mesh = make_mesh(world.size)
    mu, rho = shard(make_parameters((6, 4), device="cpu"), mesh, Shard(0))
    key = place(KEY, mesh)
    samples = [functional.gaussian_sample(mu, rho, key, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    received = []
    for tensors in ([mu, rho], samples[:1], samples[1:]):
        with torch.no_grad(), GatheredBytes() as gathered:
            for tensor in tensors:
                tensor.full_tensor()
        received.append(gathered.total)
    assert received == [2 * 4 * 24, 4 * 24, 2 * 24]


@check(2)
def a_gathered_sample_trains(world: World) -> None:
    """Each rank has data of its own; its gradient to the gathered sample is a part of a sum over ranks."""
    features, labels = make_data(torch.float64)
    parameters = [tensor.requires_grad_() for tensor in make_parameters((3, 5), torch.float64, "cpu")]
    parts = shard(parameters, make_mesh(world.size), Shard(0))
    cross_entropy(linear(features, functional.gaussian_sample(*parameters, KEY)), labels).backward()
    x = functional.gaussian_sample(*parts, place(KEY, make_mesh(world.size))).full_tensor(grad_placements=[Partial()])
    mine = slice(world.rank, None, world.size)
    (cross_entropy(linear(features[mine], x), labels[mine]) / world.size).backward()
    for part, tensor in zip(parts, parameters):
        torch.testing.assert_close(part.grad.full_tensor(), tensor.grad, rtol=1e-12, atol=1e-12)
