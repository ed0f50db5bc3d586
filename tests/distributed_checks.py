"""Checks that DTensor parameters give what the whole tensors give: samples, densities, gradients, keys, refusals."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from distributed_world import World, check
from helpers import log_prob_terms, make_key, make_keys, make_parameters, same_bits
from torch import Tensor
from torch.distributed.tensor import (
    DeviceMesh,
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
    init_device_mesh,
)

from illia_ext import GaussianDistribution, functional, random, reference

PRIOR = (0.25, 0.75)
KEY, KEYS = make_key(3, device="cpu"), make_keys((1, 2), (3, 4), (5, 6), device="cpu")
# For each number of processes the mesh's sizes and what its dimensions shard.
LAYOUTS: dict[int, list[tuple[tuple[int, ...], list[Placement]]]] = {
    2: [((2,), [Shard(0)]), ((2,), [Shard(1)]), ((2,), [Shard(-1)]), ((2,), [Replicate()])],
    4: [
        ((4,), [Shard(0)]),
        ((4,), [Shard(-1)]),
        ((2, 2), [Shard(0), Shard(1)]),
        ((2, 2), [Shard(1), Shard(0)]),
        ((2, 2), [Shard(0), Shard(0)]),
        ((2, 2), [Shard(1), Replicate()]),
        ((2, 2), [Replicate(), Shard(0)]),
    ],
}
# Rows and columns that 2 or 4 do not divide, fewer rows than processes, several chunks of 1024 elements.
SHAPES = ((5, 3), (1, 6), (3, 7, 131))


@cache
def make_mesh(sizes: tuple[int, ...]) -> DeviceMesh:
    return init_device_mesh("cpu", sizes)


def layouts(world: World) -> Iterator[tuple[DeviceMesh, list[Placement], tuple[int, ...]]]:
    for sizes, placements in LAYOUTS[world.size]:
        for shape in SHAPES:
            yield make_mesh(sizes), placements, shape


def shard(tensors: Any, mesh: DeviceMesh, placements: list[Placement]) -> Any:
    return [distribute_tensor(tensor.clone(), mesh, placements).requires_grad_() for tensor in tensors]


def line(world: World) -> DeviceMesh:
    return make_mesh((world.size,))


def assert_sums_agree(ours: Tensor, whole: Tensor, terms: tuple[Tensor, ...], num_dims: int) -> None:
    """Each rank's sum errs by 1e-6 of the sum of its terms' absolute values, and so does that of the whole; adding up
    to four of them in float32 adds 3 * 2^-24: 2.2e-6."""
    scale = sum(term.abs() for term in terms)
    dims = tuple(range(-num_dims, 0))
    assert ours.dtype == whole.dtype and ours.shape == whole.shape
    assert ((ours - whole).abs() <= 2.2e-6 * scale.sum(dims)).all(), (ours, whole)


@check(2, 4)
def a_sample_has_the_bits_of_the_whole(world: World) -> None:
    dtypes = [(torch.float32, None), (torch.float64, None), (torch.bfloat16, None), (torch.float32, torch.bfloat16)]
    for mesh, placements, shape in layouts(world):
        for dtype, sample_dtype in dtypes:
            whole = make_parameters(shape, dtype, "cpu")
            parts = shard(whole, mesh, placements)
            for key, shift in ((KEY, 0), (KEYS, 1)):
                x = functional.gaussian_sample(*parts, distribute_tensor(key, mesh), dtype=sample_dtype)
                expected = functional.gaussian_sample(*whole, key, dtype=sample_dtype)
                assert same_bits(x.full_tensor(), expected), (placements, shape, dtype)
                assert x.stride() == expected.stride()
                normal = [Shard(p.dim % len(shape) + shift) if p.is_shard() else p for p in placements]
                assert list(x.placements) == normal


@check(2, 4)
def log_prob_adds_up_to_that_of_the_whole(world: World) -> None:
    for mesh, placements, shape in layouts(world):
        whole = make_parameters(shape, device="cpu")
        parts = shard(whole, mesh, placements)
        for key in (KEY, KEYS):
            x, log_prob = functional.gaussian_sample_and_log_prob(*parts, *PRIOR, distribute_tensor(key, mesh))
            expected_x, expected = functional.gaussian_sample_and_log_prob(*whole, *PRIOR, key)
            assert same_bits(x.full_tensor(), expected_x)
            assert list(log_prob.placements) == [Partial() if p.is_shard() else Replicate() for p in placements]
            eps = reference.standard_normal(key, shape).double()
            terms = log_prob_terms(expected_x, *whole, *PRIOR, eps)
            assert_sums_agree(log_prob.full_tensor(), expected, terms, len(shape))
            at = functional.gaussian_log_prob(expected_x, *whole, *PRIOR)
            terms = log_prob_terms(expected_x, *whole, *PRIOR)
            for given in (x, distribute_tensor(expected_x, mesh)):
                ours = functional.gaussian_log_prob(given, *parts, *PRIOR)
                assert_sums_agree(ours.full_tensor(), at, terms, len(shape))


@check(2, 4)
def a_kl_divergence_adds_up(world: World) -> None:
    """The terms of log_prob at x = mu, but for sigma^2 / (2 std_prior^2) in place of z^2 / 2: at least 1e-6 of the
    largest, which a sum of positive terms cannot be far above."""
    for mesh, placements, shape in layouts(world):
        mu, rho = make_parameters(shape, torch.float64, "cpu")
        ours = functional.gaussian_kl_divergence(*shard((mu, rho), mesh, placements), *PRIOR).full_tensor()
        torch.testing.assert_close(ours, functional.gaussian_kl_divergence(mu, rho, *PRIOR), rtol=1e-13, atol=0)


FUNCTIONS: dict[str, Callable[..., list[Tensor]]] = {
    "sample": lambda mu, rho, key: [functional.gaussian_sample(mu, rho, key)],
    "sample_and_log_prob": lambda mu, rho, key: list(functional.gaussian_sample_and_log_prob(mu, rho, *PRIOR, key)),
    "log_prob alone": lambda mu, rho, key: [functional.gaussian_sample_and_log_prob(mu, rho, *PRIOR, key)[1]],
    "log_prob": lambda mu, rho, key: [functional.gaussian_log_prob(mu.detach() * 2, mu, rho, *PRIOR)],
    "kl_divergence": lambda mu, rho, key: [functional.gaussian_kl_divergence(mu, rho, *PRIOR)],
}


def loss(outputs: list[Tensor]) -> Tensor:
    """Its derivative to element i is i + 1, to a sum -3: exact numbers, the same however the outputs lie."""
    total = outputs[0].new_zeros(())
    for output in outputs:
        weight = torch.full_like(output, -3.0)
        if output.dim() > 1:
            weight = torch.arange(1.0, output.numel() + 1, dtype=output.dtype).view(output.shape)
        total = total + (output * weight).sum()
    return total


@check(2, 4)
def gradients_have_the_bits_of_the_whole(world: World) -> None:
    for mesh, placements, shape in layouts(world):
        for name, function in FUNCTIONS.items():
            for key in (KEY, KEYS):
                whole = [tensor.requires_grad_() for tensor in make_parameters(shape, device="cpu")]
                parts = shard(make_parameters(shape, device="cpu"), mesh, placements)
                loss(function(*whole, key)).backward()
                outputs = function(*parts, distribute_tensor(key, mesh))
                loss([output.full_tensor() for output in outputs]).backward()
                for part, tensor in zip(parts, whole):
                    assert part.grad.placements == part.placements
                    assert same_bits(part.grad.full_tensor(), tensor.grad), (name, placements, shape)


@check(2)
def a_gradient_may_come_in_any_placement(world: World) -> None:
    """A product with DTensors leaves grad_x Partial or replicated, as the sharding of the others has it."""
    mesh = line(world)
    whole = [tensor.requires_grad_() for tensor in make_parameters((5, 3), torch.float64, "cpu")]
    factor, features = make_parameters((5, 3), torch.float64, "cpu", seed=1)[0], torch.eye(3, dtype=torch.float64)
    (features @ functional.gaussian_sample(*whole, KEY).T * factor.T).sum().backward()
    for placement in (Shard(0), Shard(1), Replicate()):
        parts = shard([tensor.detach() for tensor in whole], mesh, [Shard(0)])
        x = functional.gaussian_sample(*parts, distribute_tensor(KEY, mesh))
        product = distribute_tensor(features, mesh, [placement]) @ x.T
        (product * distribute_tensor(factor.T.contiguous(), mesh, [Replicate()])).sum().full_tensor().backward()
        for part, tensor in zip(parts, whole):
            torch.testing.assert_close(part.grad.full_tensor(), tensor.grad, rtol=1e-13, atol=1e-13)


@check(2)
def nothing_is_recorded_without_gradients(world: World) -> None:
    whole = make_parameters((5, 3), device="cpu")
    parts = shard(whole, line(world), [Shard(0)])
    key = distribute_tensor(KEY, line(world))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            x, log_prob = functional.gaussian_sample_and_log_prob(*parts, *PRIOR, key)
            assert not x.requires_grad and not log_prob.requires_grad
            assert same_bits(x.full_tensor(), functional.gaussian_sample(*whole, KEY))


@check(2)
def a_scalar_and_an_empty_tensor(world: World) -> None:
    mesh = line(world)
    for shape, placement in (((), Replicate()), ((0, 3), Shard(0)), ((4, 0), Shard(0))):
        whole = make_parameters(shape, device="cpu")
        x, log_prob = functional.gaussian_sample_and_log_prob(
            *shard(whole, mesh, [placement]), *PRIOR, distribute_tensor(KEY, mesh)
        )
        expected_x, expected = functional.gaussian_sample_and_log_prob(*whole, *PRIOR, KEY)
        assert same_bits(x.full_tensor(), expected_x) and same_bits(log_prob.full_tensor(), expected)


@check(2, 4)
def a_distribution_draws_one_key_for_its_mesh(world: World) -> None:
    """Rank 0's, whatever the other ranks would have drawn; all generators move alike."""
    sizes, placements = LAYOUTS[world.size][-1]
    weights = GaussianDistribution((5, 3))
    parts = GaussianDistribution((5, 3))
    for name in ("mu", "rho"):
        whole = torch.nn.Parameter(make_parameters((5, 3), device="cpu")[name == "rho"])
        setattr(weights, name, whole)
        setattr(parts, name, torch.nn.Parameter(distribute_tensor(whole.data, make_mesh(sizes), placements)))
    for num_samples in (None, 3):
        torch.manual_seed(0)
        expected = weights.sample(num_samples)
        torch.manual_seed(world.rank)
        assert same_bits(parts.sample(num_samples).full_tensor(), expected)
        moved = torch.get_rng_state()
        torch.manual_seed(world.rank)
        random.draw_key(num_samples)
        assert torch.equal(moved, torch.get_rng_state())


@check(2)
def keys_are_derived_on_every_rank(world: World) -> None:
    """torch returns a DTensor that it should shift unchanged: words computed from it would be wrong."""
    key = distribute_tensor(KEY, line(world))
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
    mesh = line(world)
    other = init_device_mesh("cpu", (1, 2))
    whole = make_parameters((4, 2), device="cpu")
    mu, rho = shard(whole, mesh, [Shard(0)])
    key = distribute_tensor(KEY, mesh)
    sample, density = functional.gaussian_sample, functional.gaussian_log_prob
    partial = DTensor.from_local(whole[0], mesh, [Partial()], run_check=False)
    ragged = DTensor.from_local(whole[0][: 1 + 2 * world.rank], mesh, [Shard(0)], shape=mu.shape, stride=mu.stride())
    line_to_write = r"torch.distributed.tensor.distribute_tensor\(key, mu.device_mesh\)"
    for call, message in (
        (lambda: sample(mu, rho, KEY), f"key: expected a DTensor, as mu is, got a plain tensor; {line_to_write}"),
        (lambda: GaussianDistribution.sample(Weights(mu, rho), key=KEY), "key: expected a DTensor"),
        (lambda: sample(mu, rho, distribute_tensor(KEY, mesh, [Shard(0)])), "key: expected to be replicated.*Shard"),
        (lambda: sample(mu, rho, distribute_tensor(KEY, other)), "key: expected the mesh of mu"),
        (lambda: sample(*whole, key), r"key: expected a plain tensor, as mu is.*key.full_tensor\(\)"),
        (lambda: sample(mu, whole[1], key), "rho: expected a DTensor, as mu is"),
        (lambda: sample(mu, rho.redistribute(placements=[Shard(1)]), key), "rho: expected the placements of mu"),
        (lambda: sample(partial, partial, key), "mu: placement .*Partial.* is not offered"),
        (lambda: sample(ragged, ragged, key), r"mu: expected a shard of shape \[2, 2\].*got \[(1|3), 2\]"),
        (lambda: density(whole[0], mu, rho, *PRIOR), r"x: expected a DTensor.*device_mesh, \[Shard\(dim=0\)\]\)"),
        (lambda: density(distribute_tensor(torch.ones(2, 4), mesh), mu, rho, *PRIOR), r"x: expected the shape of mu"),
        (lambda: density(mu, mu, rho, 0.0, torch.ones(4, 1)), "std_prior: expected a DTensor, as mu is"),
        (
            lambda: torch.ops.illia_ext.gaussian_sample(mu, rho, key, full_size=[8, 2], origin=[0, 0]),
            "full_size: follows from the placements of mu",
        ),
        (lambda: random.split(distribute_tensor(KEYS, mesh, [Shard(0)])), "key: expected to be replicated"),
    ):
        with pytest.raises((RuntimeError, ValueError), match=message):
            call()


class Weights(GaussianDistribution):
    """A distribution of given parameters."""

    def __init__(self, mu: Tensor, rho: Tensor) -> None:
        super().__init__(mu.shape)
        self.mu, self.rho = torch.nn.Parameter(mu), torch.nn.Parameter(rho)
