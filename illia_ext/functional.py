"""The fused functions. Shapes: mu and rho are [*shape]; a key [2] gives one sample, [S, 2] gives S.

sigma = softplus(rho). mu_prior and std_prior are each a number, a 0-dim tensor on the CPU, or a tensor on mu's device
with one element or of a shape that broadcasts to mu's; they may require a gradient (empirical Bayes), but for a CPU's
beside parameters on a GPU. A tensor std_prior is never read by Python (that would make a GPU wait): a value <= 0 in it
makes log_prob NaN, while gradients may be finite. The dtype is one of float32, float64, float16 and bfloat16, and
priors may have another of them; log_prob is float32 for half types, else the parameters' type.

All functions raise TypeError and ValueError for arguments of a wrong kind, and RuntimeError, from C++, for
tensors that do not fit together; the message names the argument and shows its value.
"""

import sys
from numbers import Real
from typing import Any

import torch
from torch import Tensor

import illia_ext.autocast  # noqa: F401  (the dtype of a sample under autocast)
from illia_ext.autograd import GaussianKLDivergence, GaussianLogProb, GaussianSample, GaussianSampleAndLogProb

__all__ = ["gaussian_kl_divergence", "gaussian_log_prob", "gaussian_sample", "gaussian_sample_and_log_prob"]

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

_sample = GaussianSample.apply
_log_prob = GaussianLogProb.apply
_sample_and_log_prob = GaussianSampleAndLogProb.apply
_kl_divergence = GaussianKLDivergence.apply


def _explain(**tensors: Any) -> None:
    """After the op has refused: says in Python's terms what is of the wrong kind, if anything is.

    The op checks everything by itself, so that a call that is in order need not pay for a second look.
    """
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {value!r}") from None
    mu, rho, key = tensors["mu"], tensors["rho"], tensors.get("key")
    if mu.dtype not in DTYPES:
        raise TypeError(f"mu: expected float32, float64, float16 or bfloat16, got {mu.dtype}") from None
    if rho.shape != mu.shape:
        raise ValueError(f"rho: expected the shape of mu, {list(mu.shape)}, got {list(rho.shape)}") from None
    if rho.dtype != mu.dtype:
        raise TypeError(f"rho: expected the dtype of mu, {mu.dtype}, got {rho.dtype}") from None
    if key is not None:
        if key.dtype not in (torch.int64, torch.uint64):
            raise TypeError(f"key: expected int64 or uint64, got {key.dtype}") from None
        if key.dim() not in (1, 2) or key.shape[-1] != 2:
            raise ValueError(f"key: expected shape [2] or [num_samples, 2], got {list(key.shape)}") from None


def _check_number(name: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    return value


def check_std_prior(value: float) -> float:
    """A standard deviation given as a number."""
    if not 0 < _check_number("std_prior", value) <= sys.float_info.max:
        raise ValueError(f"std_prior: expected a positive finite number, got {value}")
    return value


def check_finite(name: str, value: float) -> float:
    """Another number, such as the prior's mean."""
    # comparisons, because they also trace a number that is dynamic under torch.compile
    if not -sys.float_info.max <= _check_number(name, value) <= sys.float_info.max:
        raise ValueError(f"{name}: expected a finite number, got {value}")
    return value


def _prior(mu_prior: Tensor | float, std_prior: Tensor | float) -> tuple[Tensor, Tensor]:
    if not isinstance(mu_prior, Tensor):
        mu_prior = torch.scalar_tensor(check_finite("mu_prior", mu_prior), dtype=torch.float64, device="cpu")
    if not isinstance(std_prior, Tensor):
        std_prior = torch.scalar_tensor(check_std_prior(std_prior), dtype=torch.float64, device="cpu")
    return mu_prior, std_prior


def gaussian_sample(mu: Tensor, rho: Tensor, key: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """x = mu + softplus(rho) * eps, with eps drawn from the stream of `key`.

    Args:
        mu, rho: [*shape].
        key: [2] or [S, 2], int64 or uint64, on mu's device.
        dtype: of the sample: mu's, or float16 or bfloat16 beside float32 parameters. None is mu's, and under autocast
            autocast's for float32 parameters.

    Returns:
        [*shape] or [S, *shape], contiguous.

    Source: Blundell et al., "Weight uncertainty in neural networks" (2015); Kingma & Welling (2014).
    """
    try:
        return _sample(mu, rho, key, dtype)
    except RuntimeError:
        _explain(mu=mu, rho=rho, key=key)
        raise


def gaussian_log_prob(
    x: Tensor, mu: Tensor, rho: Tensor, mu_prior: Tensor | float, std_prior: Tensor | float
) -> Tensor:
    """Sum over all elements of log q(x) - log p(x), q = N(mu, softplus(rho)^2), p = N(mu_prior, std_prior^2).

    Args:
        x: [*shape], or [S, *shape] for S samples.
        mu, rho: [*shape].
        mu_prior, std_prior: numbers, or tensors with one element or broadcastable to [*shape].

    Returns:
        Scalar, or [S]; in nats.
    """
    mu_prior, std_prior = _prior(mu_prior, std_prior)
    try:
        return _log_prob(x, mu, rho, mu_prior, std_prior)
    except RuntimeError:
        _explain(x=x, mu=mu, rho=rho)
        raise


def gaussian_sample_and_log_prob(
    mu: Tensor,
    rho: Tensor,
    mu_prior: Tensor | float,
    std_prior: Tensor | float,
    key: Tensor,
    dtype: torch.dtype | None = None,
    stick_the_landing: bool = False,
) -> tuple[Tensor, Tensor]:
    """`gaussian_sample` and the `gaussian_log_prob` of that sample, in one pass.

    Args:
        mu, rho, key, dtype: as of `gaussian_sample`.
        mu_prior, std_prior: as of `gaussian_log_prob`.
        stick_the_landing: hold log q's own mu and rho fixed in the gradient, which drops the score term. Its mean is
            zero, and its variance rules where q is close to the posterior. The values stay the same; there are no
            second derivatives.

    Returns:
        x: [*shape] or [S, *shape], contiguous.
        log_prob: scalar or [S], in nats: sum of log q(x) - log p(x). Its mean over keys is the KL divergence.

    Source of stick_the_landing: Roeder, Wu & Duvenaud, "Sticking the landing: simple, lower-variance gradient
    estimators for variational inference" (2017).
    """
    mu_prior, std_prior = _prior(mu_prior, std_prior)
    try:
        return _sample_and_log_prob(mu, rho, mu_prior, std_prior, key, dtype, stick_the_landing)
    except RuntimeError:
        _explain(mu=mu, rho=rho, key=key)
        raise


def gaussian_kl_divergence(mu: Tensor, rho: Tensor, mu_prior: Tensor | float, std_prior: Tensor | float) -> Tensor:
    """KL(q || p), summed over all elements, in closed form.

    Returns:
        Scalar, in nats.
    """
    mu_prior, std_prior = _prior(mu_prior, std_prior)
    try:
        return _kl_divergence(mu, rho, mu_prior, std_prior)
    except RuntimeError:
        _explain(mu=mu, rho=rho)
        raise
