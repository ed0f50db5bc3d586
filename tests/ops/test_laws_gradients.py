"""Laws of the gradients: linear in what comes in, and those of the plain formulas."""

from typing import Any

import torch
from agreement import Arguments, assert_agree, every_bound, every_output
from helpers import noise, sigma
from hypothesis import given
from hypothesis import strategies as st
from law_cases import arguments, flatten, roundoff, seen
from torch import Tensor

from illia_ext import reference
from illia_ext._ops.fake import op

# float16 has too few powers of two
SCALABLE = st.sampled_from((torch.float32, torch.float64, torch.bfloat16))


def every_backward(a: Arguments, factor: float, stick_the_landing: bool) -> dict[str, list[Tensor]]:
    """Of incoming gradients times `factor`, with those to the priors."""
    prior, grad_x = (a.mu_prior, a.std_prior), factor * a.grad_x
    grad_log_prob, grad = factor * a.grad_log_prob, factor * a.grad_kl_divergence
    options: dict[str, Any] = {"stick_the_landing": stick_the_landing, "prior_grads": True}
    both, plain = op("gaussian_sample_and_log_prob_backward"), (a.mu, a.rho, *prior, a.key)
    grads = {
        "sample": op("gaussian_sample_backward")(grad_x, a.rho, a.key),
        "both": both(grad_x, grad_log_prob, *plain, **options),
        "x alone": both(grad_x, None, *plain, **options),
        "log_prob alone": both(None, grad_log_prob, *plain, **options),
        "log_prob": op("gaussian_log_prob_backward")(grad_log_prob, a.x, a.mu, a.rho, *prior, [True] * 5),
        "kl": op("gaussian_kl_divergence_backward")(grad, a.mu, a.rho, *prior, prior_grads=True),
    }
    return {name: flatten(tensors) for name, tensors in grads.items()}


@given(arguments(SCALABLE), st.integers(-8, 8), st.sampled_from((-1.0, 1.0)), st.booleans())
def test_a_power_of_two_passes_through_backward(a: Arguments, k: int, sign: float, stick_the_landing: bool) -> None:
    """Exactly: every product and sum is that of before times sign 2^k, in a range far from both ends. Both ends of
    float16 are near: a gradient to an x of that type is not made smaller, because that would round it, and where one is
    stored, only normal numbers are compared."""
    factor = sign * 2.0 ** (abs(k) if a.x.dtype == torch.float16 else k)
    ours = every_backward(a, factor, stick_the_landing)
    for name, grads in every_backward(a, 1.0, stick_the_landing).items():
        for scaled, one in zip(ours[name], grads, strict=True):
            expected = factor * one
            if one.dtype == torch.float16:  # a number beside the smallest may have been rounded up to it
                normal = (one.abs() > torch.finfo(one.dtype).smallest_normal) & expected.isfinite()
                scaled, expected = scaled[normal], expected[normal]
            assert torch.equal(scaled, expected), name


@given(arguments(), st.booleans())
def test_backward_adds_up(a: Arguments, stick_the_landing: bool) -> None:
    """The gradient of both outputs is the sum of those of each. All have the same eps, sigma and derivatives, so only
    sums and products round: of each sample 6 at most, and S samples are added. Three results err so, of sizes that
    every_bound's docstring names, and are stored in mu's dtype."""
    grads = every_backward(a, 1.0, stick_the_landing)
    mu_prior, std_prior = seen(a.mu_prior, a.mu), seen(a.std_prior, a.mu)
    eps, s, dims = noise(a.key, a.mu).abs(), sigma(a.rho), a.mu.dim()
    p = torch.sigmoid(a.rho.double())
    go = a.grad_log_prob.double().abs().reshape([*a.grad_log_prob.shape, *[1] * dims])
    x = a.mu.double().abs() + s * eps
    to_x = a.grad_x.double().abs() + go * (x + mu_prior.abs()) / std_prior**2
    held = go * eps / s * stick_the_landing
    sizes = (to_x + held, p * to_x * eps + go * p / s * (eps**2 if stick_the_landing else 1))
    samples = 1 if a.key.dim() == 1 else a.key.shape[0]
    stored = torch.finfo(a.mu.dtype)
    for both, one, other, size in zip(grads["both"], grads["x alone"], grads["log_prob alone"], sizes):
        size = size.sum(0) if a.key.dim() == 2 else size
        parts = one.double().abs() + other.double().abs()
        bound = 3 * (samples + 6) * roundoff(a.mu) * size + stored.eps * parts + stored.smallest_normal * stored.eps
        assert ((both.double() - one.double() - other.double()).abs() <= bound).all()


@given(arguments(st.just(torch.float64), broadcast=False))
def test_values_and_gradients_are_those_of_the_plain_formulas(a: Arguments) -> None:
    """`reference` in float64 with PyTorch's own derivatives: two implementations of one stream, as two devices are."""
    ours = every_output(a)
    inputs = [tensor.detach().clone().requires_grad_() for tensor in (a.mu, a.rho, a.mu_prior, a.std_prior, a.x)]
    mu, rho, mu_prior, std_prior, x = inputs
    arguments = (mu, rho, mu_prior, std_prior)
    drawn, fused = reference.gaussian_sample_and_log_prob(*arguments, a.key)
    _, held = reference.gaussian_sample_and_log_prob(*arguments, a.key, stick_the_landing=True)
    log_prob, kl_divergence = reference.gaussian_log_prob(x, *arguments), reference.gaussian_kl_divergence(*arguments)
    outputs = {
        "sample": ([drawn], [a.grad_x]),
        "fused": ([drawn, fused], [a.grad_x, a.grad_log_prob]),
        "fused log_prob alone": ([fused], [a.grad_log_prob]),
        "log_prob": ([log_prob], [a.grad_log_prob]),
        "kl_divergence": ([kl_divergence], [a.grad_kl_divergence]),
    }
    outputs["stick_the_landing"] = ([drawn, held], [a.grad_x, a.grad_log_prob])
    expected = {"sample": reference.gaussian_sample(mu, rho, a.key), "fused x": drawn, "fused log_prob": fused}
    expected |= {"log_prob": log_prob, "kl_divergence": kl_divergence}
    for name, (values, grads) in outputs.items():
        names = [f"{name}: grad_{to}" for to in ("mu", "rho", "mu_prior", "std_prior", "x")]
        to_inputs = torch.autograd.grad(values, inputs, grads, allow_unused=True, retain_graph=True)
        expected |= {key: grad for key, grad in zip(names, to_inputs) if key in ours}
    # the fused gradients to priors are those of log_prob alone
    to_priors = torch.autograd.grad(fused, [mu_prior, std_prior], a.grad_log_prob)
    expected |= {f"fused: grad_{to}_prior": grad for to, grad in zip(("mu", "std"), to_priors)}
    assert_agree(ours, {name: value.detach().cpu() for name, value in expected.items()}, every_bound(a))
