"""Derivatives of the backward ops, by the formulas of `formulas.py`."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from illia_ext._ops.dispatch import OpFunction
from illia_ext._ops.fake import op
from illia_ext._ops.formulas import Terms, save, saved_primals

__all__: list[str] = []  # importing it registers the derivatives

_Tensors = Sequence[Tensor]


def _reduce(terms: Tensor, like: Tensor, plus: Tensor | None = None) -> Tensor:
    """Summed over samples, and over what a prior was broadcast to, in the shape and dtype of `like`."""
    total = (terms.sum() if like.numel() == 1 else terms.sum_to_size(like.shape)).reshape(like.shape)
    return (total if plus is None else total + plus).to(like.dtype).contiguous()


def _gradients(hessian: _Tensors, inputs: _Tensors, needed: Sequence[bool]) -> list[Tensor | None]:
    return [_reduce(terms, like) if wanted else None for terms, like, wanted in zip(hessian, inputs, needed)]


def _tangents(
    hessian: _Tensors, linear: _Tensors | None, inputs: _Tensors, output_mask: Sequence[bool], mu: Tensor
) -> tuple[Tensor, ...]:
    """`hessian` comes from tangents of the inputs, `linear` from those of the gradients: the op is linear in these."""
    return tuple(
        _reduce(terms, like, None if linear is None else linear[i]) if kept else mu.new_zeros(0)
        for i, (terms, like, kept) in enumerate(zip(hessian, inputs, output_mask, strict=True))
    )


def _asked(cotangents: Sequence[Tensor | None], output_mask: Sequence[bool]) -> list[Tensor | None]:
    return [cotangent if kept else None for cotangent, kept in zip(cotangents, output_mask, strict=True)]


def _refuse_stick_the_landing(stick_the_landing: bool) -> None:
    if stick_the_landing:
        raise RuntimeError(
            "stick_the_landing: second derivatives are not offered, got True; differentiate twice without it"
        )


class GaussianSampleBackward(OpFunction):
    """grad_rho = p sum over samples of grad_x eps."""

    overload = op("gaussian_sample_backward")

    @staticmethod
    def save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, full_size, origin, antithetic = inputs
        save(ctx, *tensors)
        ctx.options = {"full_size": full_size, "origin": origin, "antithetic": antithetic}

    @staticmethod
    def gradients(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, rho, key = ctx.saved_tensors
        terms = Terms(rho, key, **ctx.options)
        hessian_rho = (1 - terms.p) * cotangent * op("gaussian_sample_backward")(grad_x, rho, key, **ctx.options)
        return terms.sample_tangent(None, cotangent).to(grad_x.dtype), hessian_rho.to(rho.dtype), *[None] * 4

    @staticmethod
    def tangents(ctx: Any, grad_x_tangent: Any, rho_tangent: Any, *_: Any) -> Tensor:
        grad_x, rho, key = saved_primals(ctx)
        terms, backward = Terms(rho, key, **ctx.options), partial(op("gaussian_sample_backward"), **ctx.options)
        tangent = (1 - terms.p) * terms.value(rho_tangent) * backward(grad_x, rho, key)
        linear = None if grad_x_tangent is None else backward(grad_x_tangent, rho, key)
        return _reduce(tangent, rho, linear)


class GaussianLogProbBackward(OpFunction):
    """Gradients to x, mu, rho and the priors; those that output_mask leaves out are empty."""

    overload = op("gaussian_log_prob_backward")

    @staticmethod
    def save_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.output_mask, family, family_parameters = inputs
        save(ctx, *tensors)
        ctx.options = {"family": family, "family_parameters": family_parameters}

    @staticmethod
    def gradients(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_log_prob, x, mu, rho, mu_prior, std_prior = ctx.saved_tensors
        terms = Terms(rho, None, mu, mu_prior, std_prior, **ctx.options)
        direction = _asked(cotangents, ctx.output_mask)
        hessian = terms.log_prob_hessian(grad_log_prob, x, *direction)
        to_grad = terms.log_prob_tangent(x, *direction)
        needed = ctx.needs_input_grad[1:6]
        return to_grad, *_gradients(hessian, (x, mu, rho, mu_prior, std_prior), needed), *[None] * 3

    @staticmethod
    def tangents(ctx: Any, grad_t: Any, *direction_and_others: Any) -> tuple[Tensor, ...]:
        grad_log_prob, *inputs = saved_primals(ctx)
        x, mu, rho, mu_prior, std_prior = inputs
        terms = Terms(rho, None, mu, mu_prior, std_prior, **ctx.options)
        hessian = terms.log_prob_hessian(grad_log_prob, x, *direction_and_others[:5])
        linear = None
        if grad_t is not None:
            linear = op("gaussian_log_prob_backward")(grad_t, *inputs, ctx.output_mask, **ctx.options)
        return _tangents(hessian, linear, inputs, ctx.output_mask, mu)


class GaussianSampleAndLogProbBackward(OpFunction):
    """Gradients to mu, rho and the priors, summed over samples."""

    overload = op("gaussian_sample_and_log_prob_backward")

    @staticmethod
    def save_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.stick_the_landing, full_size, origin, prior_grads, family, family_parameters, antithetic = inputs
        save(ctx, *tensors)
        ctx.output_mask = (True, True, prior_grads, prior_grads)
        ctx.options = {"full_size": full_size, "origin": origin, "antithetic": antithetic}
        ctx.options.update(family=family, family_parameters=family_parameters)

    @staticmethod
    def gradients(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        _refuse_stick_the_landing(ctx.stick_the_landing)
        grad_x, grad_log_prob, mu, rho, mu_prior, std_prior, key = ctx.saved_tensors
        terms = Terms(rho, key, mu, mu_prior, std_prior, **ctx.options)
        direction = _asked(cotangents, ctx.output_mask)
        hessian = terms.sample_hessian(grad_x, grad_log_prob, *direction)
        x_tangent = terms.sample_tangent(*direction[:2])
        to_grad_x = None if grad_x is None else x_tangent.to(grad_x.dtype)
        to_grad_log_prob = None
        if grad_log_prob is not None:
            to_grad_log_prob = terms.sampled_log_prob_tangent(x_tangent, *direction[1:])
        grads = _gradients(hessian, (mu, rho, mu_prior, std_prior), ctx.needs_input_grad[2:6])
        return to_grad_x, to_grad_log_prob, *grads, *[None] * 8

    @staticmethod
    def tangents(ctx: Any, grad_x_t: Any, grad_t: Any, *direction_and_others: Any) -> tuple[Tensor, ...]:
        _refuse_stick_the_landing(ctx.stick_the_landing)
        grad_x, grad_log_prob, *inputs, key = saved_primals(ctx)
        mu, rho, mu_prior, std_prior = inputs
        terms = Terms(rho, key, mu, mu_prior, std_prior, **ctx.options)
        hessian = terms.sample_hessian(grad_x, grad_log_prob, *direction_and_others[:4])
        linear = None
        if grad_x_t is not None or grad_t is not None:
            backward = op("gaussian_sample_and_log_prob_backward")
            linear = backward(grad_x_t, grad_t, *inputs, key, prior_grads=ctx.output_mask[2], **ctx.options)
        return _tangents(hessian, linear, inputs, ctx.output_mask, mu)


class GaussianKLDivergenceBackward(OpFunction):
    """Gradients to mu, rho and the priors."""

    overload = op("gaussian_kl_divergence_backward")

    @staticmethod
    def save_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, prior_grads = inputs
        ctx.output_mask = (True, True, prior_grads, prior_grads)
        save(ctx, *tensors)

    @staticmethod
    def gradients(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, mu, rho, mu_prior, std_prior = ctx.saved_tensors
        terms = Terms(rho, None, mu, mu_prior, std_prior)
        direction = _asked(cotangents, ctx.output_mask)
        hessian = terms.kl_divergence_hessian(grad, *direction)
        to_grad = terms.kl_divergence_tangent(*direction)
        return to_grad, *_gradients(hessian, (mu, rho, mu_prior, std_prior), ctx.needs_input_grad[1:5]), None

    @staticmethod
    def tangents(ctx: Any, grad_t: Any, *direction_and_flag: Any) -> tuple[Tensor, ...]:
        grad, *inputs = saved_primals(ctx)
        mu, rho, mu_prior, std_prior = inputs
        hessian = Terms(rho, None, mu, mu_prior, std_prior).kl_divergence_hessian(grad, *direction_and_flag[:4])
        linear = None
        if grad_t is not None:
            linear = op("gaussian_kl_divergence_backward")(grad_t, *inputs, ctx.output_mask[2])
        return _tangents(hessian, linear, inputs, ctx.output_mask, mu)
