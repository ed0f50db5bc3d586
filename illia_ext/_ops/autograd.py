"""First derivatives of the ops: reverse mode through the fused backward ops, forward mode by formula.

Nothing is kept for backward but the inputs and the key; the noise is drawn again. Symbols, here and in
`formulas.py`:

    sigma = softplus(rho)    p = d sigma / d rho = sigmoid(rho)    h = d log sigma / d rho = p / sigma
    z = (x - mu) / sigma     w = -d log p(x) / d x, for a Gaussian (x - mu_prior) / std_prior^2
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import illia_ext._ops.second_order  # noqa: F401  (derivatives of the backward ops)
from illia_ext._ops.dispatch import OpFunction
from illia_ext._ops.fake import op
from illia_ext._ops.formulas import Terms, save, saved_primals

__all__: list[str] = []  # importing it registers the derivatives

_NO_PRIOR = (False, False)


def _beside(mu: Tensor, priors: Sequence[Tensor], asked: tuple[bool, bool]) -> list[Tensor]:
    """`priors` for a backward op that gives gradients to both or to none, and to none on the CPU beside a GPU's mu:
    the one that is not asked for goes to mu's device, without waiting for that device."""
    return [
        prior if wanted or prior.device == mu.device else prior.new_zeros((), device=mu.device) + prior
        for prior, wanted in zip(priors, asked)
    ]


def _only(grads: Sequence[Tensor], asked: Sequence[bool]) -> list[Tensor | None]:
    return [grad if wanted else None for grad, wanted in zip(grads, asked)]


def _stick_the_landing_tangent(
    inputs: Sequence[Tensor], key: Tensor, direction: Sequence[Tensor | None], options: Mapping[str, Any]
) -> Tensor:
    """Of log_prob. By the backward op, which refuses the derivatives that this must not have, a sample at a time."""
    mu, rho, *priors = inputs
    asked = (direction[2] is not None, direction[3] is not None)
    options = {**options, "stick_the_landing": True, "prior_grads": asked != _NO_PRIOR}
    if options["prior_grads"]:
        priors = _beside(mu, priors, asked)
    tangents = [mu.new_zeros(())]
    together = 2 if options["antithetic"] else 1
    for keys in key.reshape(-1, together, 2):
        for one_of_them in torch.eye(together, dtype=mu.dtype, device=mu.device):
            grads = op("gaussian_sample_and_log_prob_backward")(None, one_of_them, mu, rho, *priors, keys, **options)
            tangents.append(sum(((grad * t).sum() for grad, t in zip(grads, direction) if t is not None), tangents[0]))
    return torch.stack(tangents)[1:].reshape(key.shape[:-1])


class GaussianSample(OpFunction):
    """x = mu + sigma eps."""

    overload = op("gaussian_sample")

    @staticmethod
    def save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        mu, rho, key, dtype, full_size, origin, antithetic = inputs
        save(ctx, rho, key)
        ctx.dtype, ctx.options = output.dtype, {"full_size": full_size, "origin": origin, "antithetic": antithetic}

    @staticmethod
    def gradients(ctx: Any, grad_x: Tensor) -> tuple[Tensor | None, ...]:
        rho, key = ctx.saved_tensors
        grad_mu = grad_rho = None
        if ctx.needs_input_grad[0]:
            grad_mu = grad_x.sum(0, dtype=rho.dtype) if key.dim() == 2 else grad_x.to(rho.dtype)
            grad_mu = grad_mu.contiguous()
        if ctx.needs_input_grad[1]:
            grad_rho = op("gaussian_sample_backward")(grad_x, rho, key, **ctx.options)
        return grad_mu, grad_rho, *[None] * 5

    @staticmethod
    def tangents(ctx: Any, mu: Tensor | None, rho: Tensor | None, *_: Any) -> Tensor:
        rho_value, key = saved_primals(ctx)
        return Terms(rho_value, key, **ctx.options).sample_tangent(mu, rho).to(ctx.dtype)


class GaussianLogProb(OpFunction):
    """Sum of log q(x) - log p(x) at a given x."""

    overload = op("gaussian_log_prob")

    @staticmethod
    def save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, family, family_parameters = inputs
        save(ctx, *tensors)
        ctx.options = {"family": family, "family_parameters": family_parameters}

    @staticmethod
    def gradients(ctx: Any, grad_log_prob: Tensor) -> tuple[Tensor | None, ...]:
        mask = list(ctx.needs_input_grad[:5])
        grads = op("gaussian_log_prob_backward")(grad_log_prob, *ctx.saved_tensors, mask, **ctx.options)
        return *_only(grads, mask), None, None

    @staticmethod
    def tangents(ctx: Any, *direction_and_options: Any) -> Tensor:
        x, mu, rho, mu_prior, std_prior = saved_primals(ctx)
        return Terms(rho, None, mu, mu_prior, std_prior, **ctx.options).log_prob_tangent(x, *direction_and_options[:5])


class GaussianSampleAndLogProb(OpFunction):
    """A sample and its sum of log q(x) - log p(x)."""

    overload = op("gaussian_sample_and_log_prob")

    @staticmethod
    def save_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, dtype, ctx.stick_the_landing, full_size, origin, family, family_parameters, antithetic = inputs
        save(ctx, *tensors)
        ctx.dtype, ctx.options = output[0].dtype, {"full_size": full_size, "origin": origin, "antithetic": antithetic}
        ctx.options.update(family=family, family_parameters=family_parameters)

    @staticmethod
    def gradients(ctx: Any, grad_x: Tensor | None, grad_log_prob: Tensor | None) -> tuple[Tensor | None, ...]:
        mu, rho, *priors, key = ctx.saved_tensors
        asked = ctx.needs_input_grad[2:4]
        if asked != _NO_PRIOR:
            priors = _beside(mu, priors, asked)
        options = {"stick_the_landing": ctx.stick_the_landing, "prior_grads": asked != _NO_PRIOR, **ctx.options}
        grads = op("gaussian_sample_and_log_prob_backward")(grad_x, grad_log_prob, mu, rho, *priors, key, **options)
        return *grads[:2], *_only(grads[2:], asked), *[None] * 8

    @staticmethod
    def tangents(ctx: Any, mu: Any, rho: Any, mu_prior: Any, std_prior: Any, *_: Any) -> tuple[Tensor, Tensor]:
        mu_value, rho_value, mu_prior_value, std_prior_value, key = saved_primals(ctx)
        terms = Terms(rho_value, key, mu_value, mu_prior_value, std_prior_value, **ctx.options)
        x_tangent = terms.sample_tangent(mu, rho)
        if ctx.stick_the_landing:
            inputs, direction = (terms.mu, terms.rho, mu_prior_value, std_prior_value), (mu, rho, mu_prior, std_prior)
            log_prob_tangent = _stick_the_landing_tangent(inputs, key, direction, ctx.options)
        else:
            log_prob_tangent = terms.sampled_log_prob_tangent(x_tangent, rho, mu_prior, std_prior)
        return x_tangent.to(ctx.dtype), log_prob_tangent


class GaussianKLDivergence(OpFunction):
    """KL(q || p) in closed form."""

    overload = op("gaussian_kl_divergence")

    @staticmethod
    def save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        save(ctx, *inputs)

    @staticmethod
    def gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mu, rho, *priors = ctx.saved_tensors
        asked = ctx.needs_input_grad[2:4]
        if asked != _NO_PRIOR:
            priors = _beside(mu, priors, asked)
        grads = op("gaussian_kl_divergence_backward")(grad, mu, rho, *priors, asked != _NO_PRIOR)
        return *grads[:2], *_only(grads[2:], asked)

    @staticmethod
    def tangents(ctx: Any, *direction: Tensor | None) -> Tensor:
        mu, rho, mu_prior, std_prior = saved_primals(ctx)
        return Terms(rho, None, mu, mu_prior, std_prior).kl_divergence_tangent(*direction)
