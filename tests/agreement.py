"""Values and gradients of every op, and how far those of two devices may lie apart."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from helpers import DEVICES_AGREE, UNIT_ROUNDOFF, arithmetic_dtype, make_keys, make_parameters, noise, sigma
from torch import Tensor

from illia_ext import functional, reference

MU_PRIOR, STD_PRIOR = 0.25, 0.125  # exact in every dtype


class Arguments(NamedTuple):
    """Of every op: S keys, or one without a dimension of its own."""

    mu: Tensor  # [*shape]
    rho: Tensor  # [*shape]
    x: Tensor  # [S, *shape]
    grad_x: Tensor  # [S, *shape]
    grad_log_prob: Tensor  # [S]
    grad_kl_divergence: Tensor  # []
    key: Tensor  # [S, 2]
    mu_prior: Tensor  # [1] or [*shape]
    std_prior: Tensor  # [1] or [*shape]

    @classmethod
    def make(
        cls,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        sample_dtype: torch.dtype | None = None,
        num_samples: int | None = None,
        each_prior: bool = False,
    ) -> "Arguments":
        """On the CPU. The given x lies up to some 5 sigma from mu, as samples do."""
        samples = () if num_samples is None else (num_samples,)
        keys = make_keys(*[(42 + i, 2**64 - 1 - i) for i in range(num_samples or 1)], device="cpu")
        mu, rho = make_parameters(shape, torch.float64, "cpu")
        x, grad_x = (make_parameters((*samples, *shape), torch.float64, "cpu", seed)[0] for seed in (1, 2))
        x = mu + 2 * sigma(rho) * x
        total = arithmetic_dtype(dtype)
        priors = [torch.tensor([value], dtype=dtype) for value in (MU_PRIOR, STD_PRIOR)]
        if each_prior:
            apart = make_parameters(shape, torch.float64, "cpu", seed=4)[0]
            priors = [(MU_PRIOR + apart).to(dtype), (STD_PRIOR * (1 + apart.abs())).to(dtype)]
        return cls(
            *(mu.to(dtype), rho.to(dtype), x.to(sample_dtype or dtype), grad_x.to(sample_dtype or dtype)),
            *(make_parameters(size, total, "cpu", seed=3)[0] for size in (samples, ())),
            keys[0] if num_samples is None else keys[:num_samples],
            *priors,
        )

    def to(self, device: torch.device) -> "Arguments":
        return Arguments(*(tensor.to(device) for tensor in self))


def every_output(a: Arguments, prior_grads: bool = True) -> dict[str, Tensor]:
    """The sample's dtype is that of x. Gradients to the priors come from calls of their own, and where asked for."""
    mu, rho, x = (tensor.detach().requires_grad_() for tensor in (a.mu, a.rho, a.x))
    priors, parameters = (a.mu_prior, a.std_prior), [mu, rho]
    sample = functional.gaussian_sample(mu, rho, a.key, dtype=x.dtype)
    fused = functional.gaussian_sample_and_log_prob(mu, rho, *priors, a.key, dtype=x.dtype)
    log_prob = functional.gaussian_log_prob(x, mu, rho, *priors)
    kl_divergence = functional.gaussian_kl_divergence(mu, rho, *priors)
    grads = {
        "sample": torch.autograd.grad(sample, parameters, a.grad_x),
        "fused": torch.autograd.grad(fused, parameters, (a.grad_x, a.grad_log_prob), retain_graph=True),
        "fused log_prob alone": torch.autograd.grad(fused[1], parameters, a.grad_log_prob),
        "log_prob": torch.autograd.grad(log_prob, [*parameters, x], a.grad_log_prob),
        "kl_divergence": torch.autograd.grad(kl_divergence, parameters, a.grad_kl_divergence),
    }
    held = torch.ops.illia_ext.gaussian_sample_and_log_prob(
        mu, rho, *priors, a.key, dtype=x.dtype, stick_the_landing=True
    )
    grads["stick_the_landing"] = torch.autograd.grad(held, parameters, (a.grad_x, a.grad_log_prob))
    return {
        "eps": torch.ops.illia_ext.standard_normal(a.key, list(mu.shape), dtype=mu.dtype),
        "sample": sample.detach(),
        "fused x": fused[0].detach(),
        "fused log_prob": fused[1].detach(),
        "log_prob": log_prob.detach(),
        "kl_divergence": kl_divergence.detach(),
        **{f"{op}: grad_{to}": g for op, both in grads.items() for to, g in zip(("mu", "rho", "x"), both)},
        **(every_prior_grad(a) if prior_grads else {}),
    }


def every_prior_grad(a: Arguments) -> dict[str, Tensor]:
    priors = [prior.detach().requires_grad_() for prior in (a.mu_prior, a.std_prior)]
    outputs = {
        "fused": (functional.gaussian_sample_and_log_prob(a.mu, a.rho, *priors, a.key)[1], a.grad_log_prob),
        "log_prob": (functional.gaussian_log_prob(a.x, a.mu, a.rho, *priors), a.grad_log_prob),
        "kl_divergence": (functional.gaussian_kl_divergence(a.mu, a.rho, *priors), a.grad_kl_divergence),
    }
    grads = {op: torch.autograd.grad(output, priors, grad) for op, (output, grad) in outputs.items()}
    return {f"{op}: grad_{to}_prior": g for op, both in grads.items() for to, g in zip(("mu", "std"), both)}


def every_op(a: Arguments, general: bool = False) -> dict[str, Callable[[], Any]]:
    """Calls of the ops themselves, backward ones too; `general` ones of a block and with gradients to the priors."""
    prior, mask = (a.mu_prior, a.std_prior), [True, True, True, general, general]
    place: dict[str, Any] = {"full_size": [n + 3 for n in a.mu.shape], "origin": [1] * a.mu.dim()} if general else {}
    calls = {
        "standard_normal": lambda op: op(a.key, a.mu.shape, dtype=a.mu.dtype, **place),
        "gaussian_sample": lambda op: op(a.mu, a.rho, a.key, dtype=a.x.dtype, **place),
        "gaussian_sample_backward": lambda op: op(a.grad_x, a.rho, a.key, **place),
        "gaussian_log_prob": lambda op: op(a.x, a.mu, a.rho, *prior),
        "gaussian_log_prob_backward": lambda op: op(a.grad_log_prob, a.x, a.mu, a.rho, *prior, mask),
        "gaussian_sample_and_log_prob": lambda op: op(a.mu, a.rho, *prior, a.key, dtype=a.x.dtype, **place),
        "gaussian_sample_and_log_prob_backward": lambda op: op(
            a.grad_x, a.grad_log_prob, a.mu, a.rho, *prior, a.key, prior_grads=general, **place
        ),
        "gaussian_kl_divergence": lambda op: op(a.mu, a.rho, *prior),
        "gaussian_kl_divergence_backward": lambda op: op(a.grad_kl_divergence, a.mu, a.rho, *prior, general),
    }
    return {name: partial(call, getattr(torch.ops.illia_ext, name).default) for name, call in calls.items()}


def every_bound(a: Arguments) -> dict[str, Tensor]:
    """How far the outputs of two devices may lie apart, from arguments on the CPU, in float64.

    eps differs by d = 2e-6 max(1, |eps|) (twice 2^-29 of it in double, where each device errs by that), x by sigma d
    and one ulp, two sums by 1e-6 of their absolute summands each and by what d moves. A gradient multiplies up three
    functions, of 2e-6 each on a GPU, and at most eps^2; S samples take S additions; both devices err.
    """
    mu, rho, x, go, dims = a.mu.double(), a.rho.double(), a.x.double(), a.grad_log_prob.double(), a.mu.dim()
    u = UNIT_ROUNDOFF[arithmetic_dtype(a.mu.dtype)]
    unit = 1.0 if u == 2.0**-24 else 2 * 2.0**-29
    eps, s, p = noise(a.key, a.mu), sigma(rho), torch.sigmoid(rho)
    e, h = eps.abs().clamp(min=1), p / s
    mu_prior, std_prior = (t.double().reshape(t.shape if t.numel() != 1 else ()) for t in (a.mu_prior, a.std_prior))
    variance = std_prior**2
    d = unit * DEVICES_AGREE * e
    signed_go, grad = go.reshape([*go.shape, *[1] * dims]), a.grad_kl_divergence.double()
    go = signed_go.abs()

    def samples(t: Tensor) -> Tensor:
        return t.expand(a.x.shape).sum(0) if a.x.dim() > dims else t

    def by_sample(t: Tensor) -> Tensor:
        return t.reshape(*t.shape[: t.dim() - dims], a.mu.numel())

    def total(*terms: Tensor) -> Tensor:
        flat = by_sample(torch.stack(torch.broadcast_tensors(*terms)))
        return unit * 2e-6 * flat.abs().sum((0, -1)) + 2 * u * flat.sum((0, -1)).abs()

    def narrowed(bound: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
        return bound + 2 * UNIT_ROUNDOFF[dtype] * (value.abs() + bound) + (0 if dtype == torch.float64 else 2.0**-24)

    # 1. values
    drawn, log_std_prior, log_sigma = mu + s * eps, std_prior.log().expand_as(mu), reference.log_sigma(rho)
    moved = (eps.abs() + s * (drawn - mu_prior).abs() / variance) * d
    z, prior_score = (x - mu) / s, (x - mu_prior) / std_prior
    bounds = {
        "eps": narrowed(d, eps, a.mu.dtype),
        "sample": narrowed(s * d, drawn, a.x.dtype),
        "fused log_prob": total(-log_sigma, -(eps**2) / 2, log_std_prior, ((drawn - mu_prior) / std_prior) ** 2 / 2)
        + by_sample(moved).sum(-1),
        "log_prob": total(-log_sigma, -(z**2) / 2, log_std_prior, prior_score**2 / 2),
        "kl_divergence": total(-log_sigma, log_std_prior, s**2 / variance / 2, (mu - mu_prior) ** 2 / variance / 2)
        + unit * 1e-6 * mu.numel(),
    }
    bounds["fused x"] = bounds["sample"]

    # 2. gradients, from the sums of their absolute terms
    relative = unit * (2 * 3 + 2) * DEVICES_AGREE + 2 * u * (3 + a.key[..., 0].numel())
    grad_x, prior_terms = a.grad_x.double().abs(), (mu.abs() + s * e + mu_prior.abs()) / variance
    both, w, abs_grad = grad_x + go * prior_terms, go * z.abs(), grad.abs()
    scales = {
        "sample: grad_mu": samples(grad_x),
        "sample: grad_rho": p * samples(grad_x * e),
        "fused: grad_mu": samples(both),
        "fused: grad_rho": samples(p * both * e + go * h),
        "fused log_prob alone: grad_mu": samples(go * prior_terms),
        "fused log_prob alone: grad_rho": samples(p * go * prior_terms * e + go * h),
        "log_prob: grad_mu": samples(w / s),
        "log_prob: grad_rho": samples(go * h * (z**2 + 1)),
        "log_prob: grad_x": w / s + go * (x.abs() + mu_prior.abs()) / variance,
        "kl_divergence: grad_mu": abs_grad * (mu.abs() + mu_prior.abs()) / variance,
        "kl_divergence: grad_rho": abs_grad * p * (s / variance + 1 / s),
        "stick_the_landing: grad_mu": samples(both + go * e / s),
        "stick_the_landing: grad_rho": samples(p * both * e + go * e**2 * h),
    }
    for name, scale in scales.items():
        bounds[name] = narrowed(relative * scale, scale, a.x.dtype if name.endswith("_x") else a.mu.dtype)

    # 3. gradients to the priors; that of one element adds up to 32 floats in a row
    relative += 2 * 32 * u

    def to_prior(t: Tensor, prior: Tensor, kl: bool) -> Tensor:
        each = t if kl else samples(t)
        return each if prior.numel() != 1 else each.sum().reshape(prior.shape)

    for name, point in (("fused", drawn), ("log_prob", x), ("kl_divergence", mu)):
        kl = name == "kl_divergence"
        weight, spread = (grad, s**2 / variance) if kl else (signed_go, 0)
        score, far = (point - mu_prior) / std_prior, (point.abs() + mu_prior.abs() + (0 if kl else s * d)) / std_prior
        for to, prior, value, scale in (
            ("mu", a.mu_prior, -score / std_prior, far / std_prior),
            ("std", a.std_prior, (1 - score**2 - spread) / std_prior, (1 + far**2 + spread) / std_prior),
        ):
            value, scale = (to_prior(t, prior, kl) for t in (weight * value, weight.abs() * scale))
            bounds[f"{name}: grad_{to}_prior"] = narrowed(relative * scale, value, a.mu.dtype)
    return bounds


def device_bounds(a: Arguments) -> dict[str, Tensor]:
    """The same between two devices: nothing but for sums, and for the gradient to mu of a sample of S keys, which is
    torch's own sum."""
    sums = {"fused log_prob", "log_prob", "kl_divergence", *["sample: grad_mu"] * (a.key.dim() == 2)}
    bounds = every_bound(a)
    return {
        name: bound if name in sums or name.endswith("_prior") else bound.new_zeros(())
        for name, bound in bounds.items()
    }


def assert_agree(ours: dict[str, Tensor], expected: dict[str, Tensor], bounds: dict[str, Tensor]) -> None:
    """Equal infinities agree."""
    for name, value in expected.items():
        got = ours[name].cpu()
        assert (got.dtype, got.shape) == (value.dtype, value.shape) and got.is_contiguous(), name
        error = (got.double() - value.double()).abs()
        wrong = ~((error <= bounds[name]) | (got == value))
        assert not wrong.any(), (
            f"{name}: {int(wrong.sum())} of {wrong.numel()} differ, first at {wrong.nonzero()[0].tolist()}: "
            f"{got[wrong][0].item()!r} on the device, {value[wrong][0].item()!r} on the CPU, "
            f"allowed {bounds[name].expand(value.shape)[wrong][0].item():.3g}"
        )
