"""Checks of the keys that DTensor parameters take, drawn, derived and compiled; and of what is refused beside them."""

import pytest
import torch
from distributed_checks import KEY, KEYS, LAYOUTS, PRIOR
from distributed_world import World, assert_part_of, check, make_mesh, place, shard
from helpers import make_parameters, same_bits
from torch import Tensor, nn
from torch.distributed.tensor import DeviceMesh, DTensor, Partial, Replicate, Shard, init_device_mesh

from illia_ext import GaussianDistribution, functional, random, reference


class Weights(GaussianDistribution):
    """A distribution with given parameters."""

    def __init__(self, mu: Tensor, rho: Tensor) -> None:
        super().__init__(mu.shape)
        self.mu, self.rho = nn.Parameter(mu), nn.Parameter(rho)


@check(2, 4)
def a_distribution_draws_one_key_for_its_mesh(world: World) -> None:
    """Rank 0's, whatever the other ranks would have drawn; all generators move alike."""
    sizes, placements = LAYOUTS[world.size][0 if world.size == 2 else -1]
    whole = make_parameters((5, 3), device="cpu")
    weights, parts = Weights(*whole), Weights(*shard(whole, make_mesh(*sizes), *placements))
    for num_samples in (None, 3, 0):
        torch.manual_seed(0)
        expected = weights.sample(num_samples)
        torch.manual_seed(world.rank)
        assert_part_of(expected, parts.sample(num_samples))
        moved = torch.get_rng_state()
        torch.manual_seed(world.rank)
        random.draw_key(num_samples)
        assert torch.equal(moved, torch.get_rng_state())


@check(2)
def a_compiled_distribution_draws_as_an_eager_one(world: World) -> None:
    """In one graph, key, sample and gradients."""
    parts = Weights(*shard(make_parameters((5, 3), device="cpu"), make_mesh(2), Shard(0)))
    results = []
    eager = parts.sample_and_log_prob
    for function in (eager, torch.compile(eager, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(world.rank)
        x, log_prob = function()
        (x.sum() + log_prob).full_tensor().backward()
        results.append([x, log_prob, parts.mu.grad, parts.rho.grad])
        parts.zero_grad()
    for expected, compiled in zip(*results):
        assert expected.placements == compiled.placements
        assert same_bits(expected.to_local(), compiled.to_local())


@check(2)
def keys_are_derived_on_every_rank(world: World) -> None:
    """torch returns a DTensor that it should shift unchanged: words computed from it would be wrong."""
    key = place(KEY, make_mesh(2))
    for ours, whole in (
        (random.fold_in(key, 7), random.fold_in(KEY, 7)),
        (random.fold_in(key, torch.tensor(7)), random.fold_in(KEY, 7)),
        (random.split(key, 3), random.split(KEY, 3)),
    ):
        assert isinstance(ours, DTensor) and ours.placements == (Replicate(),)
        assert torch.equal(ours.full_tensor(), whole)
    with pytest.raises(TypeError, match="plain tensors, got a DTensor"):
        reference.standard_normal(key, [3])
    eps = torch.ops.illia_ext.standard_normal(key, [2], dtype=torch.float32, full_size=[9], origin=[5])
    assert same_bits(eps.full_tensor(), torch.ops.illia_ext.standard_normal(KEY, [9], dtype=torch.float32)[5:7])


@check(2)
def refusals(world: World) -> None:
    mesh, other = make_mesh(2), init_device_mesh("cpu", (1, 2))
    whole = make_parameters((4, 2), device="cpu")
    mu, rho = shard(whole, mesh, Shard(0))
    key = place(KEY, mesh)
    sample, density = functional.gaussian_sample, functional.gaussian_log_prob
    partial = DTensor.from_local(whole[0], mesh, [Partial()], run_check=False)
    rows = whole[0][: 1 + 2 * world.rank]
    ragged = DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=mu.shape, stride=mu.stride())
    line_to_write = r"torch.distributed.tensor.distribute_tensor\(key, mu.device_mesh, \[Replicate\(\)\]\)"
    for call, message in (
        (lambda: sample(mu, rho, KEY), f"key: expected a DTensor, as mu is, got a plain tensor; {line_to_write}"),
        (lambda: Weights(mu, rho).sample(key=KEY), "key: expected a DTensor"),
        (lambda: sample(mu, rho, place(KEY, mesh, Shard(0))), r"key: expected placements \(Replicate.*got \(Shard"),
        (lambda: sample(mu, rho, place(KEY, other)), "key: expected the mesh of mu"),
        (lambda: sample(*whole, key), r"key: expected a plain tensor, as mu is.*key.full_tensor\(\)"),
        (lambda: sample(mu, whole[1], key), "rho: expected a DTensor, as mu is"),
        (
            lambda: sample(mu, rho.redistribute(placements=[Replicate()]), key),
            r"rho: expected placements \(Shard.*got \(Repl",
        ),
        (lambda: sample(partial, partial, key), "mu: expected to be sharded or replicated, got Partial"),
        (lambda: sample(ragged, ragged, key), r"mu: expected a shard of \[2, 2\].*got \[(1|3), 2\]"),
        (lambda: density(whole[0], mu, rho, *PRIOR), r"x: expected a DTensor.*mu.device_mesh, \[Shard\(dim=0\)\]\)"),
        (
            lambda: density(place(torch.ones(2, 4), mesh), mu, rho, *PRIOR),
            r"x: expected a shape as mu has it, \[4, 2\], got \[2, 4\]",
        ),
        (lambda: density(mu, mu, rho, 0.0, place(torch.ones(3, 1), mesh)), "std_prior: expected a shape as mu has it"),
        (lambda: density(mu, mu, rho, 0.0, torch.ones(4, 1)), "std_prior: expected a DTensor, as mu is"),
        (
            lambda: torch.ops.illia_ext.gaussian_sample(mu, rho, key, full_size=[8, 2], origin=[0, 0]),
            "full_size: follows from the placements of mu",
        ),
        (lambda: random.split(place(KEYS, mesh, Shard(0))), "key: expected to be replicated"),
    ):
        with pytest.raises((RuntimeError, ValueError), match=message):
            call()
    first = DeviceMesh("cpu", [0])
    theirs = shard(whole, first, Shard(0))
    if world.rank == 1:
        with pytest.raises(ValueError, match="mesh: expected one with this rank on it"):
            random.draw_key(mesh=first)
        with pytest.raises(RuntimeError, match="mu: expected a mesh with this rank on it"):
            functional.gaussian_kl_divergence(*theirs, *PRIOR)
