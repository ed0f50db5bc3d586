"""The quantities of validation/oracle.py by our ops, and by eager PyTorch."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import softplus

from illia_ext import functional
from illia_ext._ops.fake import op
from validation.points import Points, arithmetic

__all__ = ["eager", "ours"]

Outputs = dict[str, Tensor]


def gradients(name: str, outputs: Tensor, grads: Tensor, leaves: dict[str, Tensor]) -> Outputs:
    """Of those leaves that the outputs depend on."""
    found = torch.autograd.grad(outputs, list(leaves.values()), grads, retain_graph=True, allow_unused=True)
    return {f"{name}: grad_{to}": grad for to, grad in zip(leaves, found) if grad is not None}


def leaves_of(points: Points, convert: Callable[[Tensor], Tensor]) -> tuple[Points, dict[str, Tensor]]:
    """Priors that are numbers have no gradient here: it would be the sum of all elements'."""
    tensors = {name: convert(getattr(points, name).detach()) for name in ("mu", "rho", "x", "mu_prior", "std_prior")}
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items() if tensor.dim()}
    return Points(**{**vars(points), **tensors}), leaves


def ours(points: Points) -> Outputs:
    """Gradients from one call of all elements; log densities from one of each, or of each pair."""
    p, leaves = leaves_of(points, Tensor.clone)
    parameters = {name: leaves[name] for name in ("mu", "rho")}
    priors, go = (p.mu_prior, p.std_prior), p.grad_log_prob
    if not p.mu_prior.dim():
        priors = (p.mu_prior.item(), p.std_prior.item())
    sample = functional.gaussian_sample(p.mu, p.rho, p.key)
    drawn = functional.gaussian_sample_and_log_prob(p.mu, p.rho, *priors, p.key)[1]
    held = functional.gaussian_sample_and_log_prob(p.mu, p.rho, *priors, p.key, stick_the_landing=True)[1]
    log_prob = functional.gaussian_log_prob(p.x, p.mu, p.rho, *priors)
    kl = functional.gaussian_kl_divergence(p.mu, p.rho, *priors)
    return {
        "sample": sample.detach(),
        **gradients("sample", sample, p.grad_x, leaves),
        **gradients("drawn", drawn, go, leaves),
        **gradients("stick_the_landing", held, go, parameters),
        **gradients("log_prob", log_prob, go, leaves),
        **gradients("kl_divergence", kl, go, leaves),
        **log_densities(points),
    }


def log_densities(points: Points) -> Outputs:
    found: dict[str, list[Tensor]] = {"drawn": [], "log_prob": [], "kl_divergence": []}
    fused, given, closed = (op(f"gaussian_{name}") for name in ("sample_and_log_prob", "log_prob", "kl_divergence"))
    size = [points.mu.numel()]
    parts = [tensor.split(points.group) for tensor in (points.mu, points.rho, points.x)]
    priors = [
        prior.split(points.group) if prior.dim() else [prior.double()] * len(parts[0])
        for prior in (points.mu_prior, points.std_prior)
    ]
    for k, (mu, rho, x, *prior) in enumerate(zip(*parts, *priors)):
        block = {"full_size": size, "origin": [k * points.group]}
        found["drawn"].append(fused(mu, rho, *prior, points.key, **block)[1])
        found["log_prob"].append(given(x, mu, rho, *prior))
        found["kl_divergence"].append(closed(mu, rho, *prior))
    return {name: torch.stack(values) for name, values in found.items()}


def eager(points: Points) -> Outputs:
    """By softplus, torch.distributions and autograd; of half types in float32, rounded to what our ops return."""
    dtype, total = points.mu.dtype, arithmetic(points.mu.dtype)
    p, leaves = leaves_of(points, lambda tensor: tensor.to(total, copy=True))
    parameters = {name: leaves[name] for name in ("mu", "rho")}
    sigma = softplus(p.rho)
    sample = p.mu + sigma * p.eps
    q, prior = Normal(p.mu, sigma, validate_args=False), Normal(p.mu_prior, p.std_prior, validate_args=False)
    q_held = Normal(p.mu.detach(), sigma.detach(), validate_args=False)
    log_prior = prior.log_prob(sample)
    drawn = q.log_prob(sample) - log_prior
    log_prob = q.log_prob(p.x) - prior.log_prob(p.x)
    kl = kl_divergence(q, prior)
    go = p.grad_log_prob.expand(p.mu.shape)
    outputs = {
        "sample": sample.detach(),
        **gradients("sample", sample, p.grad_x.to(total), leaves),
        **gradients("drawn", drawn, go, leaves),
        **gradients("stick_the_landing", q_held.log_prob(sample) - log_prior, go, parameters),
        **gradients("log_prob", log_prob, go, leaves),
        **gradients("kl_divergence", kl, go, leaves),
    }
    outputs = {name: tensor.to(dtype) for name, tensor in outputs.items()}
    for name, terms in (("drawn", drawn), ("log_prob", log_prob), ("kl_divergence", kl)):
        outputs[name] = terms.detach().reshape(-1, points.group).sum(1)
    return outputs
