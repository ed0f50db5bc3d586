"""What illia_ext computes, in plain PyTorch: the specification, the oracle of the tests and the eager baseline.

Every function has the meaning of its namesake in `illia_ext.functional`, gradients by PyTorch's own autograd, at
the cost that plain PyTorch has. `standard_normal` is the noise stream itself.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Laplace
from torch.nn.functional import softplus

from illia_ext.random import advance, philox4x32

__all__ = [
    "foreach_gaussian_kl_divergence",
    "foreach_gaussian_sample_and_log_prob",
    "gaussian_kl_divergence",
    "gaussian_log_prob",
    "gaussian_sample",
    "gaussian_sample_and_log_prob",
    "standard_normal",
]


def _box_muller(radius_uniform: Tensor, angle_uniform: Tensor) -> list[Tensor]:
    radius = torch.sqrt(-2 * torch.log(radius_uniform))
    angle = 2 * math.pi * angle_uniform
    return [radius * torch.cos(angle), radius * torch.sin(angle)]


def standard_normal(
    key: Tensor,
    size: Sequence[int],
    dtype: torch.dtype = torch.float32,
    *,
    full_size: Sequence[int] | None = None,
    origin: Sequence[int] | None = None,
) -> Tensor:
    """Standard normals of shape [*size], or [S, *size] for S keys; element i is normal i of the key's stream.

    float64 has a stream of its own (two normals a Philox block, 64-bit uniforms); the other types share that of
    float32 (four normals a block). The transform runs in float64 and is rounded once.

    With full_size and origin: the block of `size`, starting at index origin, of the normals of full_size.
    """
    if (full_size is None) != (origin is None):
        raise ValueError(f"full_size, origin: expected both or neither, got {full_size} and {origin}")
    if full_size is not None and origin is not None:
        block = standard_normal(key, full_size, dtype)
        for dim, (start, length) in enumerate(zip(origin, size, strict=True), block.dim() - len(full_size)):
            block = block.narrow(dim, start, length)
        return block
    if key.dim() == 2:
        samples = [standard_normal(one, size, dtype) for one in key]
        return torch.stack(samples) if samples else key.new_empty(0, *size, dtype=dtype)
    key = key.to(torch.int64)
    numel = math.prod(size)
    per_block = 2 if dtype == torch.float64 else 4
    blocks = torch.arange((numel + per_block - 1) // per_block, device=key.device)
    words = philox4x32(key[0], key[1] + blocks)
    if dtype == torch.float64:
        uniforms = [
            high.double() * 2.0**-32 + (low.double() * 2.0**-64 + 2.0**-65) for high, low in (words[0:2], words[2:4])
        ]
        normals = _box_muller(*uniforms)
    else:
        uniforms = [(word.float() * 2.0**-32 + 2.0**-33).double() for word in words]
        normals = _box_muller(*uniforms[0:2]) + _box_muller(*uniforms[2:4])
    return torch.stack(normals, dim=-1).flatten()[:numel].reshape(size).to(dtype)


def log_sigma(rho: Tensor) -> Tensor:
    """log(softplus(rho)), finite for every finite rho, with finite derivatives."""
    # where: below -40 softplus(rho) is exp(rho) to the last bit, and its logarithm is rho
    small = rho < -40
    return torch.where(small, rho, torch.log(softplus(torch.where(small, 0.0, rho), threshold=60)))


def _sum_samples(terms: Tensor, mu: Tensor) -> Tensor:
    """Sum over mu's dimensions, in float32 for half types; a leading dimension of samples stays."""
    dtype = torch.float64 if mu.dtype == torch.float64 else torch.float32
    return terms.flatten(terms.dim() - mu.dim()).sum(-1, dtype=dtype) if mu.dim() else terms.to(dtype)


def _draw(key: Tensor, mu: Tensor, antithetic: bool = False, **block: Any) -> Tensor:
    """eps; of antithetic samples eps and -eps in turns, two for each key."""
    eps = standard_normal(key, mu.shape, mu.dtype, **block)
    return torch.stack([eps, -eps], 1).flatten(0, 1) if antithetic else eps


def _minus_log_p(
    x: Tensor,
    mu: Tensor,
    mu_prior: Tensor | float | None,
    std_prior: Tensor | float | None,
    family: str | None,
    family_parameters: Sequence[float] | None,
) -> Tensor:
    """-log p(x) of each element, without the log(2 pi) / 2 that log q lacks too."""
    half_log_two_pi = math.log(2 * math.pi) / 2
    if family not in (None, "normal", "laplace", "scale_mixture"):
        raise ValueError(f"family: expected None, normal, laplace or scale_mixture, got {family!r}")
    if (mu_prior is None) != (std_prior is None):
        raise ValueError("mu_prior, std_prior: expected both or neither to be None, got one")
    if mu_prior is None or std_prior is None:
        return torch.full_like(x, -half_log_two_pi)
    mu_prior, std_prior = _prior(mu_prior, mu), _prior(std_prior, mu)
    if family == "laplace":
        log_p: Tensor = Laplace(mu_prior, std_prior, validate_args=False).log_prob(x)
        return -log_p - half_log_two_pi
    squares = ((x - mu_prior) / std_prior) ** 2 / 2
    if family in (None, "normal"):
        return torch.log(std_prior) + squares
    weight, ratio = family_parameters or ()
    wide = math.log(weight) - squares
    narrow = math.log((1 - weight) / ratio) - squares / ratio**2
    return torch.log(std_prior) - wide - softplus(narrow - wide, threshold=60)  # logaddexp has NaN second derivatives


def _prior(prior: Tensor | float, mu: Tensor) -> Tensor:
    """A tensor that broadcasts with mu's dimensions, and never with the samples before them."""
    prior = torch.as_tensor(prior, dtype=mu.dtype, device=mu.device)
    return prior.reshape(()) if prior.numel() == 1 else prior.expand(mu.shape)


def gaussian_sample(
    mu: Tensor,
    rho: Tensor,
    key: Tensor,
    dtype: torch.dtype | None = None,
    *,
    antithetic: bool = False,
    full_size: Sequence[int] | None = None,
    origin: Sequence[int] | None = None,
) -> Tensor:
    """x = mu + softplus(rho) * eps."""
    eps = _draw(key, mu, antithetic, full_size=full_size, origin=origin)
    return (mu + softplus(rho, threshold=60) * eps).to(dtype or mu.dtype)


def gaussian_log_prob(
    x: Tensor,
    mu: Tensor,
    rho: Tensor,
    mu_prior: Tensor | float | None,
    std_prior: Tensor | float | None,
    *,
    family: str | None = None,
    family_parameters: Sequence[float] | None = None,
) -> Tensor:
    """Sum of log q(x) - log p(x)."""
    z = (x - mu) / softplus(rho, threshold=60)
    minus_log_p = _minus_log_p(x, mu, mu_prior, std_prior, family, family_parameters)
    return _sum_samples(-log_sigma(rho) - z**2 / 2 + minus_log_p, mu)


def gaussian_sample_and_log_prob(
    mu: Tensor,
    rho: Tensor,
    mu_prior: Tensor | float | None,
    std_prior: Tensor | float | None,
    key: Tensor,
    dtype: torch.dtype | None = None,
    *,
    stick_the_landing: bool = False,
    family: str | None = None,
    family_parameters: Sequence[float] | None = None,
    antithetic: bool = False,
    full_size: Sequence[int] | None = None,
    origin: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """A sample and the sum of its log q(x) - log p(x); the quadratic term of log q is -eps^2 / 2.

    stick_the_landing: log q's own mu and rho are constants of the derivative, which then has no score term: Roeder,
    Wu & Duvenaud, "Sticking the landing: simple, lower-variance gradient estimators for variational inference" (2017).
    """
    eps = _draw(key, mu, antithetic, full_size=full_size, origin=origin)
    sigma = softplus(rho, threshold=60)
    x = mu + sigma * eps
    z, log_q_rho = eps, rho
    if stick_the_landing:  # the value of z stays eps, and x alone moves it
        z, log_q_rho = eps + (x - x.detach()) / sigma.detach(), rho.detach()
    minus_log_p = _minus_log_p(x, mu, mu_prior, std_prior, family, family_parameters)
    log_prob = _sum_samples(-log_sigma(log_q_rho) - z**2 / 2 + minus_log_p, mu)
    return x.to(dtype or mu.dtype), log_prob


def gaussian_kl_divergence(mu: Tensor, rho: Tensor, mu_prior: Tensor | float, std_prior: Tensor | float) -> Tensor:
    """KL(q || p) in closed form."""
    mu_prior, std_prior = _prior(mu_prior, mu), _prior(std_prior, mu)
    squares = (softplus(rho, threshold=60) / std_prior) ** 2 + ((mu - mu_prior) / std_prior) ** 2
    return _sum_samples(torch.log(std_prior) - log_sigma(rho) + (squares - 1) / 2, mu)


def _each(mu: Sequence[Tensor], rho: Sequence[Tensor], *priors: Any) -> Iterator[tuple[Any, Any, Any, Any]]:
    """mu, rho, mu_prior and std_prior of each tensor."""
    mu_prior, std_prior = (list(prior) if isinstance(prior, (list, tuple)) else [prior] for prior in priors)
    for k, (m, r) in enumerate(zip(mu, rho, strict=True)):
        yield m, r, mu_prior[k if len(mu_prior) > 1 else 0], std_prior[k if len(std_prior) > 1 else 0]


def foreach_gaussian_sample_and_log_prob(
    mu: Sequence[Tensor],
    rho: Sequence[Tensor],
    mu_prior: Tensor | float | Sequence[Tensor | float],
    std_prior: Tensor | float | Sequence[Tensor | float],
    key: Tensor,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> tuple[list[Tensor], Tensor]:
    """Samples of many tensors, which share the key's stream, and the sum of their log q(x) - log p(x)."""
    samples = []
    for inputs in _each(mu, rho, mu_prior, std_prior):
        samples.append(gaussian_sample_and_log_prob(*inputs, key, dtype, **options))
        per_block = 2 if inputs[0].dtype == torch.float64 else 4
        key = advance(key, (inputs[0].numel() + per_block - 1) // per_block)
    x, log_probs = zip(*samples)
    return list(x), torch.stack(log_probs).sum(0)


def foreach_gaussian_kl_divergence(
    mu: Sequence[Tensor],
    rho: Sequence[Tensor],
    mu_prior: Tensor | float | Sequence[Tensor | float],
    std_prior: Tensor | float | Sequence[Tensor | float],
) -> Tensor:
    """KL(q || p) of many tensors."""
    return torch.stack([gaussian_kl_divergence(*inputs) for inputs in _each(mu, rho, mu_prior, std_prior)]).sum()
