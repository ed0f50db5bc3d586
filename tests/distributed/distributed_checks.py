"""Checks that DTensor parameters give what the whole tensors give: samples, densities, gradients."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from distributed_world import World, assert_part_of, check, make_mesh, place, shard
from helpers import make_key, make_keys, make_parameters, same_bits, sigma
from torch import Tensor
from torch.distributed.tensor import DeviceMesh, DTensor, Partial, Placement, Replicate, Shard
from torch.utils._pytree import tree_leaves

from illia_ext import functional, reference

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


def layouts(world: World) -> Iterator[tuple[DeviceMesh, list[Placement], tuple[int, ...]]]:
    for sizes, placements in LAYOUTS[world.size]:
        for shape in SHAPES:
            yield make_mesh(*sizes), placements, shape


def log_prob_terms(
    x: Tensor, mu: Tensor, rho: Tensor, mu_prior: float, std_prior: float, eps: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The four summands of each element in float64; a drawn x has z = eps."""
    x, mu, rho = x.double(), mu.double(), rho.double()
    z = (x - mu) / sigma(rho) if eps is None else eps
    log_std_prior = torch.full_like(x, std_prior).log()
    return -reference.log_sigma(rho).expand_as(x), -(z**2) / 2, log_std_prior, ((x - mu_prior) / std_prior) ** 2 / 2


def assert_sums_agree(ours: Tensor, whole: Tensor, terms: tuple[Tensor, ...], num_dims: int) -> None:
    """Each rank's sum errs by 1e-6 of the sum of its terms' absolute values, and so does that of the whole; adding up
    to four of them in float32 adds 3 * 2^-24: 2.2e-6."""
    scale = sum(term.abs() for term in terms).sum(tuple(range(-num_dims, 0)))
    assert ours.dtype == whole.dtype and ours.shape == whole.shape
    assert ((ours - whole).abs() <= 2.2e-6 * scale).all(), (ours, whole)


@check(2, 4)
def a_sample_has_the_bits_of_the_whole(world: World) -> None:
    dtypes = [(torch.float32, None), (torch.float64, None), (torch.bfloat16, None), (torch.float32, torch.bfloat16)]
    for mesh, placements, shape in layouts(world):
        for dtype, sample_dtype in dtypes if shape == SHAPES[0] else dtypes[:1]:
            whole = make_parameters(shape, dtype, "cpu")
            for key, shift in ((KEY, 0), (KEYS, 1)):
                x = functional.gaussian_sample(*shard(whole, mesh, *placements), place(key, mesh), sample_dtype)
                assert list(x.placements) == [
                    Shard(p.dim % len(shape) + shift) if isinstance(p, Shard) else p for p in placements
                ]
                expected = functional.gaussian_sample(*whole, key, sample_dtype)
                assert_part_of(expected, x, (placements, shape, dtype))
                assert x.stride() == expected.stride()


@check(2, 4)
def log_prob_adds_up_to_that_of_the_whole(world: World) -> None:
    for mesh, placements, shape in layouts(world):
        whole = make_parameters(shape, device="cpu")
        parts = shard(whole, mesh, *placements)
        for key in (KEY, KEYS):
            x, log_prob = functional.gaussian_sample_and_log_prob(*parts, *PRIOR, place(key, mesh))
            expected_x, expected = functional.gaussian_sample_and_log_prob(*whole, *PRIOR, key)
            assert_part_of(expected_x, x)
            assert list(log_prob.placements) == [Partial() if p.is_shard() else Replicate() for p in placements]
            terms = log_prob_terms(expected_x, *whole, *PRIOR, reference.standard_normal(key, shape).double())
            assert_sums_agree(log_prob.full_tensor(), expected, terms, len(shape))
            at = functional.gaussian_log_prob(expected_x, *whole, *PRIOR)
            terms = log_prob_terms(expected_x, *whole, *PRIOR)
            for given in (x, place(expected_x, mesh)):
                ours = functional.gaussian_log_prob(given, *parts, *PRIOR)
                assert_sums_agree(ours.full_tensor(), at, terms, len(shape))


@check(2, 4)
def a_kl_divergence_adds_up(world: World) -> None:
    """float64; with these parameters the sum is a hundredth of its largest terms at least."""
    for mesh, placements, shape in layouts(world):
        whole = make_parameters(shape, torch.float64, "cpu")
        ours = functional.gaussian_kl_divergence(*shard(whole, mesh, *placements), *PRIOR).full_tensor()
        torch.testing.assert_close(ours, functional.gaussian_kl_divergence(*whole, *PRIOR), rtol=1e-13, atol=0)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sample": lambda mu, rho, key: functional.gaussian_sample(mu, rho, key),
    "sample_and_log_prob": lambda mu, rho, key: functional.gaussian_sample_and_log_prob(mu, rho, *PRIOR, key),
    "log_prob of the sample": lambda mu, rho, key: functional.gaussian_sample_and_log_prob(mu, rho, *PRIOR, key)[1],
    "stick the landing": lambda mu, rho, key: torch.ops.illia_ext.gaussian_sample_and_log_prob(
        mu, rho, *map(torch.tensor, PRIOR), key, stick_the_landing=True
    ),
    "log_prob": lambda mu, rho, key: functional.gaussian_log_prob(mu * 2, mu, rho, *PRIOR),
    "kl_divergence": lambda mu, rho, key: functional.gaussian_kl_divergence(mu, rho, *PRIOR),
}


def gradients(
    outputs: Sequence[Tensor], leaves: Sequence[Tensor], ours: Sequence[Tensor], parts: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """To each of `leaves` and to its part, for the same gradients of the outputs: another number for each element."""
    cotangents = [torch.arange(1.0, output.numel() + 1, dtype=output.dtype).view(output.shape) for output in outputs]
    placed = [
        place(c, o.device_mesh, *(Replicate() if p.is_partial() else p for p in o.placements))
        for c, o in zip(cotangents, ours)
    ]
    return zip(torch.autograd.grad(outputs, leaves, cotangents), torch.autograd.grad(ours, parts, placed), strict=True)


@check(2, 4)
def gradients_have_the_bits_of_the_whole(world: World) -> None:
    for mesh, placements, shape in layouts(world):
        for name, function in FUNCTIONS.items():
            for key in (KEY, KEYS) if shape == SHAPES[0] else (KEYS,):
                whole = [tensor.requires_grad_() for tensor in make_parameters(shape, device="cpu")]
                parts = shard(whole, mesh, *placements)
                outputs, ours = tree_leaves(function(*whole, key)), tree_leaves(function(*parts, place(key, mesh)))
                for expected, gradient in gradients(outputs, whole, ours, parts):
                    assert gradient.placements == parts[0].placements
                    assert_part_of(expected, gradient, (name, placements, shape))


@check(2)
def a_gradient_may_come_in_any_placement(world: World) -> None:
    """A product with DTensors leaves grad_x Partial or replicated, as the sharding of the others has it."""
    mesh = make_mesh(2)
    whole = [tensor.requires_grad_() for tensor in make_parameters((5, 3), torch.float64, "cpu")]
    factor, features = make_parameters((5, 3), torch.float64, "cpu", seed=1)[0].T, torch.eye(3, dtype=torch.float64)
    (features @ functional.gaussian_sample(*whole, KEY).T * factor).sum().backward()
    for placement in (Shard(0), Shard(1), Replicate()):
        parts = shard(whole, mesh, Shard(0))
        x = functional.gaussian_sample(*parts, place(KEY, mesh))
        (place(features, mesh, placement) @ x.T * place(factor, mesh)).sum().full_tensor().backward()
        for part, tensor in zip(parts, whole):
            torch.testing.assert_close(part.grad.full_tensor(), tensor.grad, rtol=1e-13, atol=1e-13)


@check(2)
def second_derivatives(world: World) -> None:
    """A Hessian times a vector, in float64: what differs is the order of sums."""
    direction = make_parameters((5, 3), torch.float64, "cpu", seed=1)

    def product(function: Any, parameters: Any, key: Tensor, vector: Any) -> Any:
        output = function(*parameters, key)
        gradients = torch.autograd.grad((output * output).sum(), parameters, create_graph=True)
        return torch.autograd.grad(sum((g * v).sum() for g, v in zip(gradients, vector)), parameters)

    for name in ("sample", "log_prob of the sample", "log_prob", "kl_divergence"):
        whole = [tensor.requires_grad_() for tensor in make_parameters((5, 3), torch.float64, "cpu")]
        parts = shard(whole, make_mesh(2), Shard(0))
        vector = [place(tensor, make_mesh(2), Shard(0)) for tensor in direction]
        ours = product(FUNCTIONS[name], parts, place(KEY, make_mesh(2)), vector)
        for gradient, expected in zip(ours, product(FUNCTIONS[name], whole, KEY, direction)):
            torch.testing.assert_close(gradient.full_tensor(), expected, rtol=1e-12, atol=1e-12)


PRIORED: list[Callable[..., Tensor]] = [
    lambda mu, rho, priors, key: functional.gaussian_sample_and_log_prob(mu, rho, *priors, key)[1].sum(),
    lambda mu, rho, priors, key: functional.gaussian_log_prob(mu * 2, mu, rho, *priors),
    lambda mu, rho, priors, key: functional.gaussian_kl_divergence(mu, rho, *priors),
]


@check(2, 4)
def priors_and_their_gradients(world: World) -> None:
    """Of one element or for parts of the weights; plain, replicated or sharded in another way than mu. float64."""
    for sizes, placements in LAYOUTS[world.size][1::2]:
        mesh = make_mesh(*sizes)
        for prior_shape, kinds in (
            ((1,), (None, Replicate(), Shard(0))),
            ((5, 3), (Replicate(), Shard(1))),
            ((5, 1), (Replicate(), Shard(0))),
            ((3,), (Replicate(), Shard(0))),
        ):
            mu_prior, std_prior = make_parameters(prior_shape, torch.float64, "cpu", seed=1)
            priors = [mu_prior.requires_grad_(), std_prior.abs().requires_grad_()]
            whole = make_parameters((5, 3), torch.float64, "cpu")
            for function in PRIORED:
                value = function(*whole, priors, KEYS)
                expected = torch.autograd.grad(value, priors)
                for kind in kinds:
                    if kind is None:
                        given: list[Any] = [prior.detach().requires_grad_() for prior in priors]
                    else:
                        given = shard(priors, mesh, *[kind] * mesh.ndim)
                    ours = function(*shard(whole, mesh, *placements), given, place(KEYS, mesh)).full_tensor()
                    torch.testing.assert_close(ours, value, rtol=1e-12, atol=0)
                    for gradient, prior in zip(torch.autograd.grad(ours, given), expected):
                        assert isinstance(gradient, DTensor) == (kind is not None)
                        assert kind is None or gradient.placements == tuple([kind] * mesh.ndim)
                        total = gradient if kind is None else gradient.full_tensor()
                        torch.testing.assert_close(total, prior, rtol=1e-12, atol=1e-12)


def many(mu: list[Tensor], rho: list[Tensor], std_prior: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    x, log_prob = functional.foreach_gaussian_sample_and_log_prob(mu, rho, 0.25, std_prior, key)
    return *x, log_prob, functional.foreach_gaussian_kl_divergence(mu, rho, 0.25, std_prior)


@check(2, 4)
def many_tensors_share_a_stream(world: World) -> None:
    """Samples and gradients have the bits of the whole; in float64 sums over ranks differ by some 1e-15."""
    for sizes, placements in LAYOUTS[world.size][::2]:
        mesh = make_mesh(*sizes)
        pairs = [make_parameters(shape, torch.float64, "cpu", seed) for seed, shape in enumerate(SHAPES)]
        wholes = [[tensor.requires_grad_() for tensor in tensors] for tensors in zip(*pairs)]
        parts = [shard(tensors, mesh, *placements) for tensors in wholes]
        for is_learned in (False, True):
            std_prior = torch.tensor(0.75, dtype=torch.float64, requires_grad=is_learned)
            outputs, ours = many(*wholes, std_prior, KEYS), many(*parts, std_prior, place(KEYS, mesh))
            for whole, part in zip(outputs[:-2], ours[:-2]):
                assert_part_of(whole, part, placements)
            for whole, part in zip(outputs[-2:], ours[-2:]):
                assert list(part.placements) == [Partial() if p.is_shard() else Replicate() for p in placements]
                torch.testing.assert_close(part.full_tensor(), whole, rtol=1e-12, atol=0)
            leaves, leaves_of_parts = ([*lists[0], *lists[1], *[std_prior] * is_learned] for lists in (wholes, parts))
            for expected, gradient in gradients(outputs, leaves, ours, leaves_of_parts):
                if isinstance(gradient, DTensor):
                    assert_part_of(expected, gradient, placements)
                else:  # to the prior
                    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)


@check(2)
def nothing_is_recorded_without_gradients(world: World) -> None:
    whole = make_parameters((5, 3), device="cpu")
    parts = shard(whole, make_mesh(2), Shard(0))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            x, log_prob = functional.gaussian_sample_and_log_prob(*parts, *PRIOR, place(KEY, make_mesh(2)))
            assert not x.requires_grad and not log_prob.requires_grad
            assert same_bits(x.full_tensor(), functional.gaussian_sample(*whole, KEY))


@check(2)
def a_scalar_and_an_empty_tensor(world: World) -> None:
    mesh = make_mesh(2)
    for shape, placement in (((), Replicate()), ((0, 3), Shard(0)), ((4, 0), Shard(0))):
        whole = make_parameters(shape, device="cpu")
        parts = shard(whole, mesh, placement)
        x, log_prob = functional.gaussian_sample_and_log_prob(*parts, *PRIOR, place(KEY, mesh))
        expected_x, expected = functional.gaussian_sample_and_log_prob(*whole, *PRIOR, KEY)
        assert same_bits(x.full_tensor(), expected_x) and same_bits(log_prob.full_tensor(), expected)
