"""What the tests of the multi-tensor functions share: lists of tensors, and the same by single calls."""

from collections.abc import Sequence
from typing import Any

import torch
from helpers import make_parameters
from torch import Tensor

from illia_ext import functional, random

# An empty one, one without dimensions, ends inside a block of noise, and one of several chunks of the CPU kernels.
SHAPES = ((3, 5), (), (0, 4), (7,), (1,), (2, 1025))


def make_lists(dtype: torch.dtype, device: torch.device, shapes: Any = SHAPES) -> tuple[list[Tensor], list[Tensor]]:
    """mu and rho, leaves that require gradients."""
    pairs = [make_parameters(shape, dtype, device, seed) for seed, shape in enumerate(shapes)]
    mu, rho = ([tensor.requires_grad_() for tensor in tensors] for tensors in zip(*pairs))
    return mu, rho


def make_priors(kind: str, mu: Sequence[Tensor]) -> tuple[Any, Any]:
    """mu_prior and std_prior."""
    if kind == "numbers":
        return 0.25, 0.75
    if kind == "a tensor for all":
        return torch.tensor([0.25], device=mu[0].device), torch.tensor(0.75, dtype=torch.float64)
    # for each: of one element, of the elements, or a number
    elementwise = [torch.linspace(0.5, 1.5, max(m.numel(), 1), device=m.device)[: m.numel()] for m in mu]
    return (
        [0.25 * k if k % 2 else m.detach() / 2 for k, m in enumerate(mu)],
        [e.reshape(m.shape).to(m.dtype) if k % 3 else 0.5 + k for k, (e, m) in enumerate(zip(elementwise, mu))],
    )


PRIOR_KINDS = ("numbers", "a tensor for all", "one for each")


def prior_of(prior: Any, k: int) -> Any:
    return prior[k] if isinstance(prior, list) else prior


def move_keys(mu: Sequence[Tensor], key: Tensor) -> list[Tensor]:
    """The key of each tensor, by the words of the specification."""
    keys = []
    for tensor in mu:
        keys.append(key)
        blocks = -(-tensor.numel() // (2 if tensor.dtype == torch.float64 else 4))
        key = random.advance(key, blocks)
    return keys


def one_by_one(
    mu: Sequence[Tensor], rho: Sequence[Tensor], mu_prior: Any, std_prior: Any, key: Tensor, *options: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """The samples, and what each adds to log_prob, by single calls with moved keys."""
    keys = move_keys(mu, key)
    pairs = [
        functional.gaussian_sample_and_log_prob(
            mu[k], rho[k], prior_of(mu_prior, k), prior_of(std_prior, k), keys[k], *options
        )
        for k in range(len(mu))
    ]
    x, log_probs = zip(*pairs)
    return list(x), list(log_probs)


def assert_is_sum(total: Tensor, parts: Sequence[Tensor]) -> None:
    """Of double sums, of which `total` and each part are roundings to the arithmetic type.

    In float64 the parts are not rounded, and on a CPU the order of the tensors gives the same bits; on CUDA it is an
    order of all tiles, some ten additions deep. In float32 each part errs by 2^-24 of itself, and so does the total;
    1e-6 of that bound is ample for the additions in double.
    """
    expected = sum(part.detach().double() for part in parts)
    if total.dtype == torch.float64 and not total.is_cuda:
        assert torch.equal(total, expected)
    else:
        epsilon = 10 * 2.0**-53 if total.dtype == torch.float64 else 2.0**-24
        bound = epsilon * (sum(part.detach().double().abs() for part in parts) + total.detach().double().abs())
        assert ((total.double() - expected).abs() <= (1 + 1e-6) * bound).all()
