"""Every value and gradient of the ops in float64, from the op's own noise, with what rounding may add to each."""

from typing import NamedTuple

import torch
from agreement import Arguments
from helpers import UNIT_ROUNDOFF, arithmetic_dtype, function_roundoffs, noise, sigma
from torch import Tensor

from illia_ext import reference

REFERENCES = {torch.float32: 1, torch.float64: 2}  # in float64 the reference errs as we do, and both bounds add up


class Exact(NamedTuple):
    value: Tensor  # float64
    bound: Tensor
    dtype: torch.dtype


def roundoff(mu: Tensor) -> float:
    precise = arithmetic_dtype(mu.dtype)
    return REFERENCES[precise] * UNIT_ROUNDOFF[precise]


def stored(value: Tensor, bound: Tensor, dtype: torch.dtype, precise: torch.dtype) -> Exact:
    """A half type rounds once more, by half of float16's smallest number at least."""
    if dtype != precise:
        bound = bound + UNIT_ROUNDOFF[dtype] * (value.abs() + bound) + 2.0**-25
    return Exact(value, bound, dtype)


def exact_sample(mu: Tensor, rho: Tensor, eps: Tensor, dtype: torch.dtype) -> Exact:
    """sigma errs by 2.5 ulp <= 5 u of itself (see function_roundoffs), and fma rounds once."""
    spread = sigma(rho) * eps
    x = mu.double() + spread
    bound = roundoff(mu) * (function_roundoffs(5, mu) * spread.abs() + x.abs())
    return stored(x, bound, dtype, arithmetic_dtype(mu.dtype))


def exact_sum(terms: list[Tensor], mu: Tensor) -> Exact:
    """design.md, section 5: 1e-6 of the sum of absolute values (2^-29 of that in double) and one final rounding."""
    rows = torch.stack(torch.broadcast_tensors(*terms))
    rows = rows.reshape(*rows.shape[: rows.dim() - mu.dim()], mu.numel())
    total, scale, precise = rows.sum((0, -1)), rows.abs().sum((0, -1)), arithmetic_dtype(mu.dtype)
    bound = 1e-6 * 2**24 * roundoff(mu) * scale + UNIT_ROUNDOFF[precise] * total.abs()
    return Exact(total, bound, precise)


def seen_priors(a: Arguments) -> list[Tensor]:
    """In float64, as the ops read them: two numbers as double, others rounded to the arithmetic type."""
    priors = (a.mu_prior, a.std_prior)
    if any(prior.numel() != 1 for prior in priors):
        priors = tuple(prior.to(arithmetic_dtype(a.mu.dtype)) for prior in priors)
    return [prior.double().reshape(()) if prior.numel() == 1 else prior.double().expand_as(a.mu) for prior in priors]


def drawn_terms(rho: Tensor, eps: Tensor, x: Tensor, mu_prior: Tensor, std_prior: Tensor) -> list[Tensor]:
    """The four summands of log_prob of each element, where z = (x - mu) / sigma is eps."""
    log_sigma = reference.log_sigma(rho.double()).expand_as(x)
    return [-log_sigma, -(eps**2) / 2, std_prior.log(), ((x - mu_prior) / std_prior) ** 2 / 2]


def every_exact(a: Arguments) -> dict[str, Exact]:
    """By the names of agreement.every_output."""
    mu, rho, x, mu_prior, std_prior = (
        t.detach().double().requires_grad_() for t in (a.mu, a.rho, a.x, *seen_priors(a))
    )
    inputs, priors, eps = (mu, rho, x, mu_prior, std_prior), (mu_prior, std_prior), noise(a.key, a.mu)
    drawn, s = mu + sigma(rho) * eps, sigma(rho)
    terms = {
        "fused": drawn_terms(rho, eps, drawn, *priors),
        "log_prob": drawn_terms(rho, (x - mu) / s, x, *priors),
        # log q with mu and rho held fixed, at a sample that moves with both: z is eps and only its derivative is there
        "stick_the_landing": drawn_terms(rho.detach(), eps + (drawn - drawn.detach()) / s.detach(), drawn, *priors),
    }
    kl = [*drawn_terms(rho, torch.ones_like(mu), mu, *priors), (s / priors[1]) ** 2 / 2]

    # 1. values
    detached = {name: exact_sum([term.detach() for term in each], a.mu) for name, each in {**terms, "kl": kl}.items()}
    sample = exact_sample(a.mu, a.rho, eps, a.x.dtype)
    result = {"sample": sample, "fused x": sample, "fused log_prob": detached["fused"]}
    result |= {"log_prob": detached["log_prob"], "kl_divergence": detached["kl"]}

    # 2. gradients
    dims, batch = a.mu.dim(), a.key.dim() == 2
    go, grad = a.grad_log_prob.double().reshape([*a.grad_log_prob.shape, *[1] * dims]), a.grad_kl_divergence.double()
    to_x = (a.grad_x.double() * drawn).sum()
    totals = {name: (go * sum(each)).sum() for name, each in terms.items()}
    scalars = {"sample": to_x, "fused": to_x + totals["fused"], "fused log_prob alone": totals["fused"]}
    scalars |= {"log_prob": totals["log_prob"], "kl_divergence": grad * sum(kl).sum()}
    scalars["stick_the_landing"] = to_x + totals["stick_the_landing"]
    grads = {
        name: torch.autograd.grad(scalar, inputs, retain_graph=True, materialize_grads=True)
        for name, scalar in scalars.items()
    }
    names, likes = ("mu", "rho", "x", "mu_prior", "std_prior"), (a.mu, a.rho, a.x, a.mu_prior, a.std_prior)
    for name, size in gradient_sizes(a, eps, batch).items():
        of, to = name.split(": grad_")
        place = names.index(to)
        if to.endswith("_prior"):
            of = of.replace("fused", "fused log_prob alone")  # as every_output has it
        result[name] = exact_gradient(grads[of][place], size, likes[place], a, to.endswith("_prior"))
    return result


def exact_gradient(value: Tensor, size: Tensor, like: Tensor, a: Arguments, to_prior: bool) -> Exact:
    """sigma errs by 5 u, sigmoid by 10, h by 6, z by 7: no term multiplies up more than 24, or three functions of a GPU
    (see function_roundoffs), and S samples take S additions. To a prior x errs by 8 of its terms' sizes, z by 3 more
    and as z^2 twice; 32 lanes of 8 a tile add up by 8, what follows is in double, and the prior's dtype rounds."""
    roundoffs = 3 * function_roundoffs(8, a.mu) + (a.key.shape[0] if a.key.dim() == 2 else 1)
    if not to_prior:
        return stored(value, roundoffs * roundoff(a.mu) * size, like.dtype, arithmetic_dtype(a.mu.dtype))
    shape = like.shape if like.numel() != 1 else ()
    value, size = (tensor.sum_to_size(shape).reshape(like.shape) for tensor in (value, size))
    bound = (roundoffs + 16) * roundoff(a.mu) * size + 2 * UNIT_ROUNDOFF[like.dtype] * value.abs() + 2.0**-24
    return Exact(value, bound, like.dtype)


def gradient_sizes(a: Arguments, eps: Tensor, batch: bool) -> dict[str, Tensor]:
    """The sum of the absolute values of a gradient's terms. A mu_prior in float64 is rounded beside float32."""
    mu, s, p, x = a.mu.double(), sigma(a.rho), torch.sigmoid(a.rho.double()), a.x.double()
    mu_prior, std_prior = seen_priors(a)
    h, e, variance, z = p / s, eps.abs(), std_prior**2, ((x - mu) / s).abs()
    go, grad = a.grad_log_prob.double().abs().reshape([*a.grad_log_prob.shape, *[1] * mu.dim()]), a.grad_kl_divergence
    grad, grad_x, drawn = grad.double().abs(), a.grad_x.double().abs(), mu.abs() + s * e

    def samples(t: Tensor) -> Tensor:
        return t.expand_as(x).sum(0) if batch else t.expand_as(x)

    prior = go * (drawn + mu_prior.abs()) / variance
    both = grad_x + prior
    sizes = {
        "sample: grad_mu": samples(grad_x),
        "sample: grad_rho": p * samples(grad_x * e),
        "fused: grad_mu": samples(both),
        "fused: grad_rho": samples(p * both * e + go * h),
        "fused log_prob alone: grad_mu": samples(prior),
        "fused log_prob alone: grad_rho": samples(p * prior * e + go * h),
        "log_prob: grad_mu": samples(go * z / s),
        "log_prob: grad_rho": samples(go * h * (z**2 + 1)),
        "log_prob: grad_x": go * z / s + go * (x.abs() + mu_prior.abs()) / variance,
        "kl_divergence: grad_mu": grad * (mu.abs() + mu_prior.abs()) / variance,
        "kl_divergence: grad_rho": grad * p * (s / variance + 1 / s),
        "stick_the_landing: grad_mu": samples(both + go * e / s),
        "stick_the_landing: grad_rho": samples(p * both * e + go * e**2 * h),
    }
    for name, point in (("fused", drawn), ("log_prob", x.abs()), ("kl_divergence", mu.abs())):
        is_kl = name == "kl_divergence"
        z_prior, spread = (point + mu_prior.abs()) / std_prior, s / std_prior if is_kl else 0
        weight, add = (grad, lambda t: t) if is_kl else (go, samples)
        sizes[f"{name}: grad_mu_prior"] = add(weight * z_prior / std_prior)
        sizes[f"{name}: grad_std_prior"] = add(weight * (1 + z_prior**2 + spread**2) / std_prior)
    return sizes


def assert_exact(ours: dict[str, Tensor], expected: dict[str, Exact]) -> None:
    """Where a half type overflows, so does the value rounded to it. test_noise.py compares eps."""
    assert ours.keys() - {"eps"} == expected.keys()
    for name, (value, bound, dtype) in expected.items():
        output = ours[name]
        assert (output.dtype, output.shape, output.device) == (dtype, value.shape, value.device), name
        assert output.is_contiguous(), name
        assert (((output.double() - value).abs() <= bound) | (output == value.to(dtype))).all(), name
