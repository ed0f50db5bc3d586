"""Derivatives of the backward ops, in plain PyTorch, which is why higher derivatives work too.

A backward op returns the gradient of a scalar function, so its products with cotangents (reverse mode) and with
tangents (forward mode) are one thing, a symmetric Hessian times a vector: the functions `*_hessian` serve both.
Symbols: see `autograd.py`; dh / d rho = h (1 - p - h) and dz / d rho = -h z.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import softplus

from illia_ext._expose import differentiable
from illia_ext.ops import op

__all__ = ["Terms", "refuse_prior_gradients", "refuse_prior_tangents", "save", "saved_primals"]

_standard_normal = op("standard_normal")
_kl_divergence_backward = op("gaussian_kl_divergence_backward")


def save(ctx: Any, *tensors: Tensor | None) -> None:
    ctx.save_for_backward(*tensors)
    if forward_ad._current_level >= 0:
        ctx.save_for_forward(*tensors)
    ctx.set_materialize_grads(False)  # what is not there stays None: it costs nothing, and a prior can tell


def saved_primals(ctx: Any) -> list[Any]:
    """For a `tangent`: the saved tensors without the tangents that they carry at this level of forward mode."""
    return [None if tensor is None else forward_ad.unpack_dual(tensor).primal for tensor in ctx.saved_tensors]


def refuse_prior_gradients(mu_prior: Tensor, std_prior: Tensor) -> None:
    if mu_prior.requires_grad or std_prior.requires_grad:
        name = "mu_prior" if mu_prior.requires_grad else "std_prior"
        raise RuntimeError(f"{name}: a gradient to the prior is not offered yet, got requires_grad=True; detach it")


def refuse_prior_tangents(mu_prior: Tensor | None, std_prior: Tensor | None) -> None:
    for name, tangent in (("mu_prior", mu_prior), ("std_prior", std_prior)):
        if tangent is not None:
            raise RuntimeError(f"{name}: a derivative to the prior is not offered yet; detach it")


class Terms:
    """The quantities that the formulas share, in the arithmetic type; a batch of samples is a first dimension."""

    def __init__(
        self,
        rho: Tensor,
        key: Tensor | None = None,
        mu: Tensor | None = None,
        mu_prior: Tensor | None = None,
        std_prior: Tensor | None = None,
    ) -> None:
        self.dtype = torch.float64 if rho.dtype == torch.float64 else torch.float32
        self.rho = rho.to(self.dtype)
        self.sigma = softplus(self.rho, threshold=60)
        self.p = torch.sigmoid(self.rho)
        if mu is not None:
            self.mu = mu.to(self.dtype)
        if mu_prior is not None and std_prior is not None:
            self.mu_prior = mu_prior.to(self.dtype).reshape(())
            self.variance = (std_prior.to(self.dtype) ** 2).reshape(())
        if key is not None:
            self.eps = _standard_normal(key, rho.shape, dtype=self.dtype)

    @property
    def h(self) -> Tensor:
        # The gradient of KL(q || p) to rho is -h under a flat prior: exact where p / sigma would be 0 / 0.
        scalar = self.rho.new_ones(())
        return -_kl_divergence_backward(scalar, self.rho, self.rho, scalar, scalar * torch.inf)[1]

    @property
    def dh(self) -> Tensor:
        # 1 - p - h = exp(-sigma) + expm1(-sigma) / sigma = sum over n >= 1 of (-1)^n n sigma^n / (n + 1)!, whose
        # terms cancel to nothing for small sigma. 16 terms leave 0.5^16 / 17! = 4e-20.
        small = self.sigma.clamp(max=0.5)
        series = torch.zeros_like(small)
        for n in range(16, 0, -1):
            series = (series + (-1) ** n * n / math.factorial(n + 1)) * small
        return self.h * torch.where(self.sigma < 0.5, series, 1 - self.p - self.h)

    def value(self, tensor: Tensor | None) -> Tensor:
        """A tangent or cotangent in the arithmetic type; None stands for zero."""
        return self.rho.new_zeros(()) if tensor is None else tensor.to(self.dtype)

    def per_sample(self, grad_log_prob: Tensor | None) -> Tensor:
        """[] or [S], to be multiplied with [*shape] or [S, *shape]."""
        grad = self.value(grad_log_prob)
        return grad.reshape([*grad.shape, *[1] * self.rho.dim()])

    def sum_elements(self, terms: Tensor) -> Tensor:
        return terms.sum(tuple(range(-self.rho.dim(), 0))) if self.rho.dim() else terms

    def sum_samples(self, terms: Tensor) -> Tensor:
        return terms.sum(0) if terms.dim() > self.rho.dim() else terms.expand_as(self.rho).contiguous()

    def w(self, x: Tensor) -> Tensor:
        return (x - self.mu_prior) / self.variance

    def sample_tangent(self, mu: Tensor | None, rho: Tensor | None) -> Tensor:
        return self.value(mu) + self.p * self.eps * self.value(rho)

    def sampled_log_prob_tangent(self, x: Tensor, rho: Tensor | None) -> Tensor:
        """`x` is the sample's own tangent, to which that of log q's quadratic term is zero."""
        sample = self.mu + self.sigma * self.eps
        return self.sum_elements(x.to(self.dtype) * self.w(sample) - self.h * self.value(rho))

    def log_prob_tangent(self, at: Tensor, x: Tensor | None, mu: Tensor | None, rho: Tensor | None) -> Tensor:
        at = at.to(self.dtype)
        z = (at - self.mu) / self.sigma
        from_posterior = (self.value(mu) - self.value(x)) * z / self.sigma + self.h * (z**2 - 1) * self.value(rho)
        return self.sum_elements(self.value(x) * self.w(at) + from_posterior)

    def kl_divergence_tangent(self, mu: Tensor | None, rho: Tensor | None) -> Tensor:
        grad_mu, grad_rho = self.w(self.mu), self.sigma * self.p / self.variance - self.h
        return (grad_mu * self.value(mu) + grad_rho * self.value(rho)).sum()

    def sample_hessian(
        self, grad_x: Tensor | None, grad_log_prob: Tensor | None, mu: Tensor, rho: Tensor
    ) -> tuple[Tensor, Tensor]:
        go = self.per_sample(grad_log_prob)
        x = self.sample_tangent(mu, rho)
        g = self.value(grad_x) + go * self.w(self.mu + self.sigma * self.eps)
        curved = self.value(rho) * self.p * (1 - self.p) * self.eps * g
        straight = x * go / self.variance
        hessian_rho = curved + straight * self.p * self.eps - self.value(rho) * self.dh * go
        return self.sum_samples(straight), self.sum_samples(hessian_rho)

    def log_prob_hessian(
        self, grad_log_prob: Tensor, at: Tensor, x: Tensor | None, mu: Tensor | None, rho: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        go, at = self.per_sample(grad_log_prob), at.to(self.dtype)
        x, mu, rho = self.value(x), self.value(mu), self.value(rho)
        z = (at - self.mu) / self.sigma
        shift = (x - mu) / self.sigma
        cross = (shift - 2 * rho * self.h * z) / self.sigma
        hessian_rho = 2 * shift * z * self.h + rho * (self.dh * (z**2 - 1) - 2 * (self.h * z) ** 2)
        hessian_x = (go * (x / self.variance - cross)).expand_as(at).contiguous()
        return hessian_x, self.sum_samples(go * cross), self.sum_samples(go * hessian_rho)

    def kl_divergence_hessian(self, grad: Tensor, mu: Tensor | None, rho: Tensor | None) -> tuple[Tensor, Tensor]:
        grad = self.value(grad)
        curvature = self.p * (self.p + self.sigma * (1 - self.p)) / self.variance - self.dh
        return self.sum_samples(grad * self.value(mu) / self.variance), grad * self.value(rho) * curvature


def _add(a: Tensor, b: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (a if b is None else a + b).to(dtype)


@differentiable(op("gaussian_sample_backward"))
class GaussianSampleBackward(torch.autograd.Function):
    """grad_rho = p sum over samples of grad_x eps."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad_x, rho, key, full_size, origin = inputs
        save(ctx, grad_x, rho, key)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, rho, key = ctx.saved_tensors
        terms = Terms(rho, key)
        hessian_rho = (1 - terms.p) * cotangent * op("gaussian_sample_backward")(grad_x, rho, key)
        return terms.sample_tangent(None, cotangent).to(grad_x.dtype), hessian_rho.to(rho.dtype), None, None, None

    @staticmethod
    def tangent(ctx: Any, grad_x_tangent: Any, rho_tangent: Any, *_: Any) -> Tensor:
        grad_x, rho, key = saved_primals(ctx)
        terms = Terms(rho, key)
        backward = op("gaussian_sample_backward")
        curved = (1 - terms.p) * terms.value(rho_tangent) * backward(grad_x, rho, key)
        return _add(curved, None if grad_x_tangent is None else backward(grad_x_tangent, rho, key), rho.dtype)


@differentiable(op("gaussian_log_prob_backward"))
class GaussianLogProbBackward(torch.autograd.Function):
    """Gradients to x, mu and rho; those that output_mask leaves out are empty."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        grad_log_prob, x, mu, rho, mu_prior, std_prior, ctx.output_mask = inputs
        refuse_prior_gradients(mu_prior, std_prior)
        save(ctx, grad_log_prob, x, mu, rho, mu_prior, std_prior)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_log_prob, x, mu, rho, mu_prior, std_prior = ctx.saved_tensors
        terms = Terms(rho, None, mu, mu_prior, std_prior)
        asked = [c if keep else None for c, keep in zip(cotangents, ctx.output_mask)][:3]
        hessian = terms.log_prob_hessian(grad_log_prob, x, *asked)
        to_grad = terms.log_prob_tangent(x, *asked).expand_as(grad_log_prob)
        return to_grad, *(h.to(a.dtype) for h, a in zip(hessian, (x, mu, rho))), None, None, None

    @staticmethod
    def tangent(ctx: Any, grad: Any, x_t: Any, mu_t: Any, rho_t: Any, mu_prior_t: Any, std_prior_t: Any, _: Any) -> Any:
        refuse_prior_tangents(mu_prior_t, std_prior_t)
        grad_log_prob, x, mu, rho, mu_prior, std_prior = saved_primals(ctx)
        terms = Terms(rho, None, mu, mu_prior, std_prior)
        hessian = [*terms.log_prob_hessian(grad_log_prob, x, x_t, mu_t, rho_t), *[mu.new_zeros(0)] * 2]
        linear: Any = [None] * 5
        if grad is not None:
            linear = op("gaussian_log_prob_backward")(grad, x, mu, rho, mu_prior, std_prior, ctx.output_mask)
        likes = (x, mu, rho, mu, mu)
        return tuple(
            _add(h, b, like.dtype) if keep else mu.new_zeros(0)
            for h, b, like, keep in zip(hessian, linear, likes, ctx.output_mask)
        )


@differentiable(op("gaussian_sample_and_log_prob_backward"))
class GaussianSampleAndLogProbBackward(torch.autograd.Function):
    """Gradients to mu and rho, summed over samples."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        refuse_prior_gradients(*inputs[4:6])
        save(ctx, *inputs[:7])

    @staticmethod
    def backward(ctx: Any, mu_cotangent: Any, rho_cotangent: Any, *_: Any) -> tuple[Tensor | None, ...]:
        grad_x, grad_log_prob, mu, rho, mu_prior, std_prior, key = ctx.saved_tensors
        terms = Terms(rho, key, mu, mu_prior, std_prior)
        hessian = terms.sample_hessian(grad_x, grad_log_prob, mu_cotangent, rho_cotangent)
        x_tangent = terms.sample_tangent(mu_cotangent, rho_cotangent)
        to_grad_x = None if grad_x is None else x_tangent.to(grad_x.dtype)
        to_grad_log_prob = None
        if grad_log_prob is not None:
            to_grad_log_prob = terms.sampled_log_prob_tangent(x_tangent, rho_cotangent)
        return to_grad_x, to_grad_log_prob, *(h.to(mu.dtype) for h in hessian), *[None] * 7

    @staticmethod
    def tangent(ctx: Any, grad_x_t: Any, grad_t: Any, mu_t: Any, rho_t: Any, *others: Any) -> tuple[Tensor, ...]:
        refuse_prior_tangents(*others[:2])
        grad_x, grad_log_prob, mu, rho, mu_prior, std_prior, key = saved_primals(ctx)
        hessian = Terms(rho, key, mu, mu_prior, std_prior).sample_hessian(grad_x, grad_log_prob, mu_t, rho_t)
        linear: Any = (None, None)
        if grad_x_t is not None or grad_t is not None:
            backward = op("gaussian_sample_and_log_prob_backward")
            linear = backward(grad_x_t, grad_t, mu, rho, mu_prior, std_prior, key)
        return *(_add(h, b, mu.dtype) for h, b in zip(hessian, linear)), mu.new_zeros(0), mu.new_zeros(0)


@differentiable(op("gaussian_kl_divergence_backward"))
class GaussianKLDivergenceBackward(torch.autograd.Function):
    """Gradients to mu and rho."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        refuse_prior_gradients(*inputs[3:5])
        save(ctx, *inputs[:5])

    @staticmethod
    def backward(ctx: Any, mu_cotangent: Any, rho_cotangent: Any, *_: Any) -> tuple[Tensor | None, ...]:
        grad, mu, rho, mu_prior, std_prior = ctx.saved_tensors
        terms = Terms(rho, None, mu, mu_prior, std_prior)
        hessian = terms.kl_divergence_hessian(grad, mu_cotangent, rho_cotangent)
        to_grad = terms.kl_divergence_tangent(mu_cotangent, rho_cotangent)
        return to_grad, *(h.to(mu.dtype) for h in hessian), None, None, None

    @staticmethod
    def tangent(ctx: Any, grad_t: Any, mu_t: Any, rho_t: Any, *others: Any) -> tuple[Tensor, ...]:
        refuse_prior_tangents(*others[:2])
        grad, mu, rho, mu_prior, std_prior = saved_primals(ctx)
        hessian = Terms(rho, None, mu, mu_prior, std_prior).kl_divergence_hessian(grad, mu_t, rho_t)
        linear: Any = (None, None)
        if grad_t is not None:
            linear = _kl_divergence_backward(grad_t, mu, rho, mu_prior, std_prior)
        return *(_add(h, b, mu.dtype) for h, b in zip(hessian, linear)), mu.new_zeros(0), mu.new_zeros(0)
