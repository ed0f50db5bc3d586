"""The formulas that the derivatives share, in plain PyTorch, which is why higher derivatives work too.

A gradient's products with cotangents (reverse mode) and with tangents (forward mode) are one thing, a symmetric Hessian
times a vector: the functions `*_hessian` serve both. Symbols: see `autograd.py`; dh / d rho = h (1 - p - h) and
dz / d rho = -h z. What is named x_t is the tangent of x; arguments named as inputs of the op, after `at` if there is
one, are tangents or cotangents of these.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import softplus

from illia_ext._ops.fake import op

__all__ = ["Terms", "save", "saved_primals"]

_standard_normal = op("standard_normal")
_kl_divergence_backward = op("gaussian_kl_divergence_backward")


def save(ctx: Any, *tensors: Tensor | None) -> None:
    ctx.save_for_backward(*tensors)
    if forward_ad._current_level >= 0:
        ctx.save_for_forward(*tensors)
    ctx.set_materialize_grads(False)  # what is not there stays None: it costs nothing


def saved_primals(ctx: Any) -> list[Any]:
    """For `tangents`: the saved tensors without the tangents that they carry at this level of forward mode."""
    return [None if tensor is None else forward_ad.unpack_dual(tensor).primal for tensor in ctx.saved_tensors]


class Terms:
    """The quantities that the formulas share, in the arithmetic type; a batch of samples is a first dimension.

    A prior is of one element or broadcasts with the dimensions of [*shape], and so do its tangents and cotangents.
    """

    def __init__(
        self,
        rho: Tensor,
        key: Tensor | None = None,
        mu: Tensor | None = None,
        mu_prior: Tensor | None = None,
        std_prior: Tensor | None = None,
        *,
        full_size: Sequence[int] | None = None,
        origin: Sequence[int] | None = None,
        antithetic: bool = False,
        family: str | None = None,
        family_parameters: Sequence[float] | None = None,
    ) -> None:
        self.dtype = torch.float64 if rho.dtype == torch.float64 else torch.float32
        self.rho = rho.to(self.dtype)
        self.sigma = softplus(self.rho, threshold=60)
        self.p = torch.sigmoid(self.rho)
        self.family, self.family_parameters = family, family_parameters
        if mu is not None:
            self.mu = mu.to(self.dtype)
        if mu_prior is not None and std_prior is not None:
            self.mu_prior, self.std_prior = self.of_prior(mu_prior), self.of_prior(std_prior)
        if key is not None:
            self.eps: Tensor = _standard_normal(key, rho.shape, dtype=self.dtype, full_size=full_size, origin=origin)
            if antithetic:
                first = self.eps[::2]
                self.eps = torch.stack([first, -first], 1).flatten(0, 1)

    @cached_property
    def h(self) -> Tensor:
        # The gradient of KL(q || p) to rho is -h under a flat prior: exact where p / sigma would be 0 / 0.
        scalar = self.rho.new_ones(())
        grad_rho: Tensor = _kl_divergence_backward(scalar, self.rho, self.rho, scalar, scalar * torch.inf)[1]
        return -grad_rho

    @cached_property
    def dh(self) -> Tensor:
        # 1 - p - h = exp(-sigma) + expm1(-sigma) / sigma = sum over n >= 1 of (-1)^n n sigma^n / (n + 1)!, whose
        # terms cancel to nothing for small sigma. 16 terms leave 0.5^16 / 17! = 4e-20.
        small = self.sigma.clamp(max=0.5)
        series = torch.zeros_like(small)
        for n in range(16, 0, -1):
            series = (series + (-1) ** n * n / math.factorial(n + 1)) * small
        return self.h * torch.where(self.sigma < 0.5, series, 1 - self.p - self.h)

    @cached_property
    def sample(self) -> Tensor:
        return self.mu + self.sigma * self.eps

    def value(self, tensor: Tensor | None) -> Tensor:
        """A tangent or cotangent in the arithmetic type; None stands for zero."""
        return self.rho.new_zeros(()) if tensor is None else tensor.to(self.dtype)

    def of_prior(self, tensor: Tensor | None) -> Tensor:
        """The same of a prior, or a prior itself."""
        value = self.value(tensor)
        return value.reshape(()) if value.numel() == 1 else value

    def per_sample(self, grad_log_prob: Tensor | None) -> Tensor:
        """[] or [S], to be multiplied with [*shape] or [S, *shape]."""
        grad = self.value(grad_log_prob)
        return grad.reshape([*grad.shape, *[1] * self.rho.dim()])

    def sum_elements(self, terms: Tensor) -> Tensor:
        return terms.sum(tuple(range(-self.rho.dim(), 0))) if self.rho.dim() else terms

    def w(self, x: Tensor) -> Tensor:
        return self.slopes((x - self.mu_prior) / self.std_prior)[0] / self.std_prior

    def slopes(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The first and second derivatives of the prior's energy (csrc/core/gaussian.h)."""
        if self.family in (None, "normal"):
            return z, torch.ones_like(z)
        if self.family == "laplace":
            return z.sign(), torch.zeros_like(z)
        if self.family == "flat":
            return torch.zeros_like(z), torch.zeros_like(z)
        weight, ratio = self.family_parameters or ()
        excess = 1 / ratio**2 - 1
        p = torch.sigmoid(math.log((1 - weight) / (weight * ratio)) - excess / 2 * z**2)
        return z * (1 + excess * p), 1 + excess * p * (1 - excess * z**2 * (1 - p))

    # The prior adds to each element's log_prob log std_prior + energy(z) with z = (x - mu_prior) / std_prior and, with
    # x = mu and variance = sigma^2, to its KL divergence log std_prior + (z^2 + variance / std_prior^2) / 2.

    def prior_tangent(
        self,
        x: Tensor,
        x_t: Tensor,
        mu_prior: Tensor | None,
        std_prior: Tensor | None,
        variance: Tensor | float = 0.0,
    ) -> Tensor:
        """Its tangent for a fixed variance."""
        z = (x - self.mu_prior) / self.std_prior
        slope, _ = self.slopes(z)
        tangent = (x_t - self.of_prior(mu_prior)) * slope / self.std_prior
        if std_prior is None or self.family == "flat":
            return tangent
        to_std_prior = (1 - z * slope - variance / self.std_prior**2) / self.std_prior
        return tangent + self.of_prior(std_prior) * to_std_prior

    def prior_hessian(
        self,
        x: Tensor,
        x_t: Tensor,
        mu_prior: Tensor | None,
        std_prior: Tensor | None,
        variance: Tensor | float = 0.0,
        variance_t: Tensor | float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tangents of its gradients to x, mu_prior and std_prior."""
        z, ratio = (x - self.mu_prior) / self.std_prior, self.of_prior(std_prior) / self.std_prior
        z_t = (x_t - self.of_prior(mu_prior)) / self.std_prior - z * ratio
        slope, curvature = self.slopes(z)
        slope_t = curvature * z_t
        square, square_t = z * slope, z_t * slope + z * slope_t
        share, share_t = variance / self.std_prior**2, variance_t / self.std_prior**2
        to_x = ((slope_t - slope * ratio) / self.std_prior).expand_as(x)
        to_std_prior = ((square + 3 * share - 1) * ratio - square_t - share_t) / self.std_prior
        return to_x, -to_x, to_std_prior

    def sample_tangent(self, mu: Tensor | None, rho: Tensor | None) -> Tensor:
        return self.value(mu) + self.p * self.eps * self.value(rho)

    def sampled_log_prob_tangent(
        self, x_t: Tensor, rho: Tensor | None, mu_prior: Tensor | None, std_prior: Tensor | None
    ) -> Tensor:
        """`x_t` is that of the sample, to which the tangent of log q's quadratic term is zero."""
        from_prior = self.prior_tangent(self.sample, x_t.to(self.dtype), mu_prior, std_prior)
        return self.sum_elements(from_prior - self.h * self.value(rho))

    def log_prob_tangent(
        self,
        at: Tensor,
        x: Tensor | None,
        mu: Tensor | None,
        rho: Tensor | None,
        mu_prior: Tensor | None,
        std_prior: Tensor | None,
    ) -> Tensor:
        at, x_t = at.to(self.dtype), self.value(x)
        z = (at - self.mu) / self.sigma
        from_posterior = (self.value(mu) - x_t) * z / self.sigma + self.h * (z**2 - 1) * self.value(rho)
        return self.sum_elements(self.prior_tangent(at, x_t, mu_prior, std_prior) + from_posterior)

    def kl_divergence_tangent(
        self, mu: Tensor | None, rho: Tensor | None, mu_prior: Tensor | None, std_prior: Tensor | None
    ) -> Tensor:
        from_prior = self.prior_tangent(self.mu, self.value(mu), mu_prior, std_prior, self.sigma**2)
        to_rho = self.sigma * self.p / self.std_prior**2 - self.h
        return (from_prior + to_rho * self.value(rho)).sum()

    def sample_hessian(
        self,
        grad_x: Tensor | None,
        grad_log_prob: Tensor | None,
        mu: Tensor | None,
        rho: Tensor | None,
        mu_prior: Tensor | None,
        std_prior: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Of each sample, to mu, rho, mu_prior and std_prior."""
        go, x = self.per_sample(grad_log_prob), self.sample
        of_prior = self.prior_hessian(x, self.sample_tangent(mu, rho), mu_prior, std_prior)
        to_mu, to_mu_prior, to_std_prior = (go * term for term in of_prior)
        g = self.value(grad_x) + go * self.w(x)
        curved = self.value(rho) * (self.p * (1 - self.p) * self.eps * g - self.dh * go)
        return to_mu, curved + to_mu * self.p * self.eps, to_mu_prior, to_std_prior

    def log_prob_hessian(
        self,
        grad_log_prob: Tensor,
        at: Tensor,
        x: Tensor | None,
        mu: Tensor | None,
        rho: Tensor | None,
        mu_prior: Tensor | None,
        std_prior: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Of each sample, to x, mu, rho, mu_prior and std_prior."""
        at, x_t, rho_t = at.to(self.dtype), self.value(x), self.value(rho)
        z, shift = (at - self.mu) / self.sigma, (x_t - self.value(mu)) / self.sigma
        to_mu = (shift - 2 * rho_t * self.h * z) / self.sigma
        to_rho = 2 * shift * z * self.h + rho_t * (self.dh * (z**2 - 1) - 2 * (self.h * z) ** 2)
        to_x, *to_priors = self.prior_hessian(at, x_t, mu_prior, std_prior)
        go = self.per_sample(grad_log_prob)
        return tuple(go * term for term in (to_x - to_mu, to_mu, to_rho, *to_priors))

    def kl_divergence_hessian(
        self,
        grad: Tensor,
        mu: Tensor | None,
        rho: Tensor | None,
        mu_prior: Tensor | None,
        std_prior: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """To mu, rho, mu_prior and std_prior."""
        slope, rho_t = 2 * self.sigma * self.p, self.value(rho)
        to_mu, *to_priors = self.prior_hessian(
            self.mu, self.value(mu), mu_prior, std_prior, self.sigma**2, slope * rho_t
        )
        to_rho = rho_t * (self.p * (self.p + self.sigma * (1 - self.p)) / self.std_prior**2 - self.dh)
        if std_prior is not None:
            to_rho = to_rho - slope * self.of_prior(std_prior) / self.std_prior**3
        grad = self.value(grad)
        return tuple(grad * term for term in (to_mu, to_rho, *to_priors))
