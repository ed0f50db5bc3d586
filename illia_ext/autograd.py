"""First derivatives of the ops: reverse mode through the fused backward ops, forward mode by formula.

Nothing is kept for backward but the inputs and the key; the noise is drawn again. Symbols, here and in
`second_order.py`:

    sigma = softplus(rho)    p = d sigma / d rho = sigmoid(rho)    h = d log sigma / d rho = p / sigma
    z = (x - mu) / sigma     w = (x - mu_prior) / std_prior^2
"""

from typing import Any

import torch
from torch import Tensor

from illia_ext import second_order  # (registers the derivatives of the backward ops)
from illia_ext._expose import differentiable, unrecorded
from illia_ext.ops import op
from illia_ext.second_order import Terms, refuse_prior_gradients, refuse_prior_tangents, save, saved_primals

__all__ = ["GaussianKLDivergence", "GaussianLogProb", "GaussianSample", "GaussianSampleAndLogProb", "second_order"]

_sample_backward = unrecorded(op("gaussian_sample_backward"))
_log_prob_backward = unrecorded(op("gaussian_log_prob_backward"))
_sample_and_log_prob_backward = unrecorded(op("gaussian_sample_and_log_prob_backward"))
_kl_divergence_backward = unrecorded(op("gaussian_kl_divergence_backward"))


@differentiable(op("gaussian_sample"))
class GaussianSample(torch.autograd.Function):
    """x = mu + sigma eps."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        mu, rho, key, dtype, full_size, origin = inputs
        save(ctx, rho, key)
        ctx.dtype = output.dtype

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor) -> tuple[Tensor | None, ...]:
        rho, key = ctx.saved_tensors
        grad_mu = grad_rho = None
        if ctx.needs_input_grad[0]:
            grad_mu = grad_x.sum(0, dtype=rho.dtype) if key.dim() == 2 else grad_x.to(rho.dtype)
            grad_mu = grad_mu.contiguous()
        if ctx.needs_input_grad[1]:
            grad_rho = _sample_backward(grad_x, rho, key)
        return grad_mu, grad_rho, None, None, None, None

    @staticmethod
    def tangent(ctx: Any, mu: Tensor | None, rho: Tensor | None, *_: Any) -> Tensor:
        terms = Terms(*saved_primals(ctx))
        return terms.sample_tangent(mu, rho).to(ctx.dtype)


@differentiable(op("gaussian_log_prob"))
class GaussianLogProb(torch.autograd.Function):
    """Sum of log q(x) - log p(x) at a given x."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, mu, rho, mu_prior, std_prior = inputs
        refuse_prior_gradients(mu_prior, std_prior)
        save(ctx, x, mu, rho, mu_prior, std_prior)

    @staticmethod
    def backward(ctx: Any, grad_log_prob: Tensor) -> tuple[Tensor | None, ...]:
        mask = list(ctx.needs_input_grad[:5])
        grads = _log_prob_backward(grad_log_prob, *ctx.saved_tensors, mask)
        return tuple(grad if asked else None for grad, asked in zip(grads, mask))

    @staticmethod
    def tangent(ctx: Any, x: Any, mu: Any, rho: Any, mu_prior: Any, std_prior: Any) -> Tensor:
        refuse_prior_tangents(mu_prior, std_prior)
        x_value, mu_value, rho_value, mu_prior_value, std_prior_value = saved_primals(ctx)
        terms = Terms(rho_value, None, mu_value, mu_prior_value, std_prior_value)
        return terms.log_prob_tangent(x_value, x, mu, rho)


@differentiable(op("gaussian_sample_and_log_prob"))
class GaussianSampleAndLogProb(torch.autograd.Function):
    """A sample and its sum of log q(x) - log p(x)."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        mu, rho, mu_prior, std_prior, key, dtype, stick_the_landing, full_size, origin = inputs
        refuse_prior_gradients(mu_prior, std_prior)
        save(ctx, mu, rho, mu_prior, std_prior, key)
        ctx.dtype = output[0].dtype

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor | None, grad_log_prob: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_mu, grad_rho, _, _ = _sample_and_log_prob_backward(grad_x, grad_log_prob, *ctx.saved_tensors)
        return grad_mu, grad_rho, None, None, None, None, None, None, None

    @staticmethod
    def tangent(ctx: Any, mu: Any, rho: Any, mu_prior: Any, std_prior: Any, *_: Any) -> tuple[Tensor, Tensor]:
        refuse_prior_tangents(mu_prior, std_prior)
        mu_value, rho_value, mu_prior_value, std_prior_value, key = saved_primals(ctx)
        terms = Terms(rho_value, key, mu_value, mu_prior_value, std_prior_value)
        x_tangent = terms.sample_tangent(mu, rho)
        return x_tangent.to(ctx.dtype), terms.sampled_log_prob_tangent(x_tangent, rho)


@differentiable(op("gaussian_kl_divergence"))
class GaussianKLDivergence(torch.autograd.Function):
    """KL(q || p) in closed form."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        mu, rho, mu_prior, std_prior = inputs
        refuse_prior_gradients(mu_prior, std_prior)
        save(ctx, mu, rho, mu_prior, std_prior)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_mu, grad_rho, _, _ = _kl_divergence_backward(grad, *ctx.saved_tensors)
        return grad_mu, grad_rho, None, None

    @staticmethod
    def tangent(ctx: Any, mu: Any, rho: Any, mu_prior: Any, std_prior: Any) -> Tensor:
        refuse_prior_tangents(mu_prior, std_prior)
        mu_value, rho_value, mu_prior_value, std_prior_value = saved_primals(ctx)
        return Terms(rho_value, None, mu_value, mu_prior_value, std_prior_value).kl_divergence_tangent(mu, rho)
