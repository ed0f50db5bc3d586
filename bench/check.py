"""Whether what is timed is right: against float64 formulas, at the weights that a case drew itself."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.layers import MU_PRIOR, NUM_DATA, STD_PRIOR, BayesianLinear, Network, WholeNetwork

__all__ = [
    "Wrong",
    "check_layer",
    "check_network",
    "check_noise",
    "check_outputs",
    "check_tensors_noise",
    "closed_form",
    "sampled",
]

LARGE = 2**12  # elements: fewer have fourth powers too far from their mean for check_noise


class Wrong(Exception):
    """A case's result differs from the reference; the message says where and by how much."""


def tolerance(dtype: torch.dtype) -> float:
    """Relative error that a case may have.

    In half types eight roundings in a row (float16: 0.8 %, bfloat16: 6 %). In float32 1e-3: the noise is recovered from
    the weights as (x - mu) / sigma, which costs up to 2^-24 / 0.0067 = 1e-5 of an eps at sigma = softplus(-5), and a
    wrong formula is off by far more. In float64 1e-6, because a rival adds up in float32.
    """
    return 1e-6 if dtype == torch.float64 else max(1e-3, 8 * torch.finfo(dtype).eps)


def compare(what: str, got: Tensor, want: Tensor, allowed: float, scale: Tensor | None = None) -> None:
    """`scale`: what the error is relative to; by default `want` itself."""
    scale = want.detach().norm() if scale is None else scale.detach()
    error = float((got.detach().double() - want.detach()).norm() / scale)
    if not error <= allowed:
        raise Wrong(f"{what} is off by {error:.1e}")


def sampled(x: Tensor, mu: Tensor, sigma: Tensor, mu_prior: float, std_prior: float) -> Tensor:
    """log q(x) - log p(x) of every element; x carries its own dependence on mu and sigma."""
    z, z_prior = (x - mu) / sigma, (x - mu_prior) / std_prior
    return -torch.log(sigma / std_prior) - z**2 / 2 + z_prior**2 / 2


def closed_form(mu: Tensor, sigma: Tensor, mu_prior: float, std_prior: float) -> Tensor:
    """KL(q || p) of every element."""
    return torch.log(std_prior / sigma) + (sigma**2 + (mu - mu_prior) ** 2) / (2 * std_prior**2) - 0.5


def check_noise(draws: list[Tensor], dtype: torch.dtype) -> None:
    """Draws of eps [n], one a sample or call: standard normal by their moments, and each drawn anew. Raises Wrong.

    Six standard errors of a mean over n are allowed, that a right case exceeds once in 10^8, and what rounding the
    weights to `dtype` adds to eps.
    """
    moments = {"mean": (1, 0.0, 1.0), "square": (2, 1.0, math.sqrt(2)), "fourth power": (4, 3.0, math.sqrt(96))}
    for eps, other in zip(draws, [*draws[1:], draws[0]]):
        standard_error = 1 / math.sqrt(max(1, eps.numel()))
        for name, (power, mean, deviation) in moments.items():
            error = abs(float((eps**power).mean()) - mean)
            if not error <= deviation * (6 * standard_error + tolerance(dtype)):
                raise Wrong(f"noise: mean {name} is off by {error:.1e}")
        correlation = abs(float((eps * other).mean()))
        if not (correlation <= 6 * standard_error + tolerance(dtype) or len(draws) == 1):
            raise Wrong(f"noise: two draws have a correlation of {correlation:.2f}")


def check_tensors_noise(draws: list[Tensor], dtype: torch.dtype) -> None:
    """The same of draws of several tensors, by the first elements of the larger ones: no two may share their noise."""
    check_noise([eps[:LARGE] for eps in draws if eps.numel() >= LARGE], dtype)


def check_outputs(
    xs: Sequence[Tensor],
    log_prob: Tensor,
    parameters: Sequence[tuple[Tensor, Tensor]],
    output_grads: tuple[Sequence[Tensor], Tensor],
    grads: Sequence[Tensor],
) -> list[Tensor]:
    """Draws x of tensors ([*shape] or [S, *shape] each), their common log_prob and the gradients. Raises Wrong.

    Args:
        parameters: mu and rho of each tensor.
        output_grads: those that arrive at the draws, and that at log_prob.
        grads: those to mu and rho of each tensor in turn.

    Returns:
        eps of each tensor and sample, flat.
    """
    noise, costs, scales, pairs = [], [], [], []
    for x, pair, grad_x, *got_grads in zip(xs, parameters, output_grads[0], grads[::2], grads[1::2], strict=True):
        samples = list(x.shape[: x.dim() - pair[0].dim()])
        right = (x.dtype == got_grads[0].dtype == pair[0].dtype, list(log_prob.shape) == samples)
        if list(x.shape) != [*samples, *pair[0].shape] or not all(right):
            wrong = f"log_prob {list(log_prob.shape)}, a gradient {got_grads[0].dtype}"
            raise Wrong(f"x is {x.dtype} {list(x.shape)}, {wrong}")
        mu, rho = (p.detach().double().requires_grad_() for p in pair)
        sigma = F.softplus(rho)
        eps = ((x.detach().double() - mu) / sigma).detach()
        exact = mu + sigma * eps
        terms = sampled(exact, mu, sigma, MU_PRIOR, STD_PRIOR)
        weights = tuple(range(len(samples), x.dim()))
        arriving = (grad_x.double(), output_grads[1].double())
        want_grads = torch.autograd.grad((exact, terms.sum(weights)), (mu, rho), arriving)
        pairs += zip(("grad_mu", "grad_rho"), got_grads, want_grads)
        costs.append(terms.detach().sum(weights))
        scales.append(terms.detach().abs().sum(weights))
        noise += eps.reshape([math.prod(samples), mu.numel()])
    compare("log_prob", log_prob, sum(costs), tolerance(xs[0].dtype), scale=sum(scales).norm())
    for name, got_grad, want_grad in pairs:
        compare(name, got_grad, want_grad, tolerance(xs[0].dtype))
    return noise


def _drawn_weights(layer: BayesianLinear, in_features: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, bias and cost of one call, read from the outputs at x = 0 and at the unit vectors."""
    x = torch.cat([like.new_zeros(1, in_features), torch.eye(in_features, dtype=like.dtype, device=like.device)])
    y, cost = layer(x)
    return (y[1:] - y[:1]).T, y[0], cost


def _check_one_call(layer: BayesianLinear) -> Tensor:
    """Cost and gradients of one call, for a loss that weighs every drawn weight differently; eps of the weight."""
    leaves = [leaf for gaussian in layer.gaussians() for leaf in gaussian]
    weight, bias, cost = _drawn_weights(layer, leaves[0].shape[1], leaves[0])
    directions = [torch.cos(torch.arange(w.numel(), device=w.device)).reshape(w.shape) for w in (weight, bias)]

    def loss(weights: list[Tensor], total: Tensor) -> Tensor:
        return total + sum((w * direction.to(w.dtype)).sum() for w, direction in zip(weights, directions))

    grads = torch.autograd.grad(loss([weight, bias], cost), leaves)
    want_leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    exact, noise, want_cost = [], [], torch.zeros((), dtype=torch.float64, device=weight.device)
    for mu, raw, drawn in zip(want_leaves[::2], want_leaves[1::2], (weight, bias)):
        sigma = layer.sigma(raw)
        noise.append(((drawn.detach().double() - mu) / sigma).detach())
        exact.append(mu + sigma * noise[-1])
        closed = layer.density == "closed form"
        terms = (mu, sigma) if closed else (exact[-1], mu, sigma)
        want_cost = want_cost + (closed_form if closed else sampled)(*terms, MU_PRIOR, STD_PRIOR).sum()
    want_grads = torch.autograd.grad(loss(exact, want_cost), want_leaves)
    # The weight is the difference of two outputs, each rounded; and blitz's prior is off by up to 5e-3 in a gradient.
    allowed = max(0.01, 2 * tolerance(weight.dtype))
    compare("cost", cost, want_cost, 2 * tolerance(weight.dtype))
    for name, grad, want in zip(("weight.mu", "weight.raw", "bias.mu", "bias.raw"), grads, want_grads):
        compare(f"gradient of {name}", grad, want, allowed)
    return noise[0].flatten()


def check_layer(layer: BayesianLinear) -> None:
    """Two calls of a layer: costs, gradients and noise. Raises Wrong."""
    check_noise([_check_one_call(layer) for _ in range(2)], layer.gaussians()[0].mu.dtype)


def check_network(
    loss: Tensor, network: Network | WholeNetwork, x: Tensor, target: Tensor, draws: list[list[Tensor]] | None = None
) -> list[Tensor]:
    """A loss of `network` and its gradients: the mean over `draws`, the weights of each sample. Raises Wrong.

    Layers show no draws: theirs are left out, and `raw` has to be -16 all over. This finds what a layer by itself does
    not show: layers wired wrongly, a cost left out or weighed wrongly, all of which move the loss or a gradient by a
    third and more. sigma is then 1e-7, a millionth of the weights, so the output is that of the means, and the cost is
    its mean, the closed form, but for sum (1 - eps^2) / 2: some 1e3 of 3e7 nats. Gradients may be off by 15 %: sigma is
    only 20 roundings of a weight in float32, so formulas that recover eps from the weights have each within 5 % or so,
    their squares within 10 %, and the last bias has ten of them.

    Returns:
        eps of each draw and tensor, flat.
    """
    leaves = [leaf for gaussian in network.gaussians() for leaf in gaussian]
    grads = torch.autograd.grad(loss, leaves)
    want_leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    mus, sigmas = want_leaves[::2], [network.sigma(raw) for raw in want_leaves[1::2]]
    noise, want_losses = [], []
    for drawn in draws or [mus]:
        eps = [((weight.detach() - mu) / sigma).detach() for weight, mu, sigma in zip(drawn, mus, sigmas)]
        weights = [mu + sigma * e for mu, sigma, e in zip(mus, sigmas, eps)]
        terms = zip(weights, mus, sigmas) if draws else zip(mus, sigmas)
        cost = sum((sampled if draws else closed_form)(*term, MU_PRIOR, STD_PRIOR).sum() for term in terms)
        hidden = x.double()
        for index, (weight, bias) in enumerate(zip(weights[::2], weights[1::2])):
            hidden = F.linear(hidden.relu() if index else hidden, weight, bias)
        want_losses.append(F.cross_entropy(hidden, target) + cost / NUM_DATA)
        noise += [e.flatten() for e in eps]
    want_loss = sum(want_losses) / len(want_losses)
    want_grads = torch.autograd.grad(want_loss, want_leaves)
    compare("loss", loss, want_loss, tolerance(loss.dtype) if draws else 1e-3)
    for index, (grad, want) in enumerate(zip(grads, want_grads)):
        parameter = ("weight.mu", "weight.raw", "bias.mu", "bias.raw")[index % 4]
        allowed = tolerance(loss.dtype) if draws else 0.15
        compare(f"gradient of layer {index // 4}'s {parameter}", grad, want, allowed)
    return noise
