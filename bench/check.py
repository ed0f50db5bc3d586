"""Whether what is timed is right: against float64 formulas, at the weights that a case drew itself."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal
from torch.nn import functional as F

from bench.layers import MU_PRIOR, NUM_DATA, STD_PRIOR, Layer, Pair, Sigma

__all__ = [
    "Wrong",
    "check_draw",
    "check_layer",
    "check_network",
    "check_noise",
    "check_pairs",
    "closed_form",
    "compare",
    "sampled",
]

LARGE, SMALL = 2**12, 2**6  # elements: fewer are too few for check_noise's moments, and for its correlations


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
    """`scale`: what the error is relative to; by default `want` itself. Raises Wrong."""
    scale = want.detach().norm() if scale is None else scale
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


@dataclass
class Exact:
    """Draws in float64, as functions of fresh leaves: x = mu + sigma * eps, with the noise of the draws given."""

    leaves: list[Tensor]  # mu and raw of each tensor in turn
    xs: list[Tensor]  # [*shape] or [S, *shape] each
    log_prob: Tensor  # [] or [S]
    scale: Tensor  # the sum of the magnitudes of log_prob's terms
    noise: list[tuple[Tensor, ...]]  # for each sample, eps of each tensor, flat


def exact(
    xs: Sequence[Tensor],
    pairs: Sequence[Pair],
    sigma_of: Sigma = F.softplus,
    closed: bool = False,
    prior: Distribution | None = None,
) -> Exact:
    """`prior`: by default the Gaussian of all works but the one on priors."""
    leaves, draws, log_probs, scales, noise = [], [], [], [], []
    for x, pair in zip(xs, pairs, strict=True):
        mu, raw = (leaf.detach().double().requires_grad_() for leaf in pair)
        sigma = sigma_of(raw)
        eps = ((x.detach().double() - mu) / sigma).detach()
        draw = mu + sigma * eps
        if prior is not None:
            terms = Normal(mu, sigma).log_prob(draw) - prior.log_prob(draw)
        else:
            terms = (closed_form if closed else partial(sampled, draw))(mu, sigma, MU_PRIOR, STD_PRIOR)
        terms = terms.flatten(x.dim() - mu.dim())
        leaves += [mu, raw]
        draws.append(draw)
        log_probs.append(terms.sum(-1))
        scales.append(terms.detach().abs().sum(-1))
        noise.append(eps.reshape(-1, mu.numel()))
    return Exact(leaves, draws, sum(log_probs), sum(scales).norm(), list(zip(*noise)))


def check_noise(draws: Sequence[Sequence[Tensor]], dtype: torch.dtype) -> None:
    """eps of every tensor [n], for each draw of them all: standard normal by moments, each drawn anew. Raises Wrong.

    Tensors with too few elements count together. Six standard errors of a mean over n are allowed, which a right mean
    exceeds once in 10^8, and what rounding the weights to `dtype` adds to eps. Squares and fourth powers have longer
    tails, and count from 100 and 1000 elements on (once in 10^6, once in 10^5 there). Correlations are of the first
    elements, and of every pair: P(|N(0, 1)| > t) <= exp(-t^2 / 2), so t^2 = 36 + 2 log(pairs) bounds all of them as 6
    bounds one. The same noise, rounded apart, correlates by more than 0.99.
    """
    moments = {
        "mean": (1, 0.0, 1.0, 1),
        "square": (2, 1.0, math.sqrt(2), 100),
        "fourth power": (4, 3.0, math.sqrt(96), 1000),
    }
    for eps in _merged(draws, LARGE):
        allowed = 6 / math.sqrt(eps.numel()) + tolerance(dtype)
        for name, (power, mean, deviation, least) in moments.items():
            error = abs(float((eps**power).mean()) - mean)
            if eps.numel() >= least and not error <= deviation * allowed:
                raise Wrong(f"noise: mean {name} is off by {error:.1e}")
    every = _merged(draws, SMALL)
    for size in (LARGE, 8 * SMALL, SMALL):
        first = [eps[:size] for eps in every if eps.numel() >= size]
        if len(first) > 1:
            rows = F.normalize(torch.stack(first), dim=1)
            correlation = float((rows @ rows.T).fill_diagonal_(0).abs().max())
            allowed = math.sqrt((36 + 2 * math.log(math.comb(len(first), 2))) / size) + tolerance(dtype)
            if not correlation <= min(allowed, 0.99):
                raise Wrong(f"noise: two draws have a correlation of {correlation:.2f}")


def check_pairs(noise: Sequence[tuple[Tensor, ...]], dtype: torch.dtype) -> list[tuple[Tensor, ...]]:
    """Antithetic samples: each second one has the noise of the one before it, negated. Gives the first ones."""
    for first, second in zip(noise[::2], noise[1::2], strict=True):
        compare("the noise of a pair", torch.cat(second), -torch.cat(first), tolerance(dtype))
    return list(noise[::2])


def _merged(draws: Sequence[Sequence[Tensor]], least: int) -> list[Tensor]:
    """All tensors of at least so many elements; the others of each draw as one."""
    merged = []
    for draw in draws:
        merged += [eps for eps in draw if eps.numel() >= least]
        small = [eps for eps in draw if eps.numel() < least]
        merged += [torch.cat(small)] if small else []
    return merged


def check_draw(
    outputs: Sequence[Tensor],
    pairs: Sequence[Pair],
    grads: Sequence[Tensor],
    output_grads: Sequence[Tensor],
    layer: Layer | None = None,
    prior: Distribution | None = None,
) -> list[tuple[Tensor, ...]]:
    """Draws x of tensors ([*shape] or [S, *shape] each), then their log_prob, and the gradients. Raises Wrong.

    Args:
        pairs: mu and rho of each tensor.
        grads: those to mu and rho of each tensor in turn; none where only the draw is checked.
        output_grads: those that arrive at the outputs.
        layer: what drew, where it may have other formulas than softplus and the density at x.
        prior: of torch.distributions, where it is not the usual one.

    Returns:
        For each sample eps of each tensor, flat.
    """
    *xs, log_prob = outputs
    dtype = pairs[0][0].dtype
    samples = list(xs[0].shape[: xs[0].dim() - pairs[0][0].dim()])
    for x, (mu, _) in zip(xs, pairs, strict=True):
        if x.dtype != dtype or list(x.shape) != [*samples, *mu.shape] or list(log_prob.shape) != samples:
            raise Wrong(f"x is {x.dtype} {list(x.shape)}, log_prob is {list(log_prob.shape)}")
    want = exact(xs, pairs, layer.sigma, layer.closed) if layer else exact(xs, pairs, prior=prior)
    # A layer's weight is the difference of two outputs, each rounded.
    allowed = 2 * tolerance(dtype) if layer else tolerance(dtype)
    compare("log_prob", log_prob, want.log_prob, allowed, want.scale)
    if not grads:
        return want.noise
    arriving = [grad.double() for grad in output_grads]
    want_grads = torch.autograd.grad([*want.xs, want.log_prob], want.leaves, arriving)
    allowed = max(allowed, layer.gradient_error) if layer else allowed
    for index, (grad, want_grad) in enumerate(zip(grads, want_grads, strict=True)):
        compare(("grad_mu", "grad_rho")[index % 2], grad, want_grad, allowed)
    return want.noise


def check_layer(*layers: Layer) -> None:
    """Two calls: costs, gradients and noise, the weights read from the outputs at x = 0 and at the unit vectors."""
    noise: list[list[Tensor]] = [[], []]
    for draw, layer in product(noise, layers):
        pairs = layer.pairs()
        mu = pairs[0][0]
        x = torch.cat([mu.new_zeros(1, mu.shape[1]), torch.eye(mu.shape[1], dtype=mu.dtype, device=mu.device)])
        # A loss that weighs every drawn weight differently.
        slopes = [torch.cos(torch.arange(m.numel(), device=m.device)).reshape(m.shape).to(m.dtype) for m, _ in pairs]
        y, cost = layer(x)
        outputs = ((y[1:] - y[:1]).T, y[0], cost)
        output_grads = [*slopes, torch.ones_like(cost)]
        grads = torch.autograd.grad(outputs, [leaf for pair in pairs for leaf in pair], output_grads)
        draw += check_draw(outputs, pairs, grads, output_grads, layer)[0]
    check_noise(noise, mu.dtype)


def check_network(
    loss: Tensor, network: nn.Module, x: Tensor, target: Tensor, draws: Sequence[Tensor] | None = None
) -> list[tuple[Tensor, ...]]:
    """A loss of a network of `bench.layers` and its gradients: the mean over samples. Raises Wrong.

    `draws` are the weights of all samples, [S, *shape] for each tensor. Layers show none: theirs are left out, and
    `raw` has to be -16 all over. This finds what a layer by itself does not show: layers wired wrongly, a cost left out
    or weighed wrongly, all of which move the loss or a gradient by a third and more. sigma is then 1e-7, a millionth of
    the weights, so the output is that of the means, and the cost is its mean, the closed form, but for
    sum (1 - eps^2) / 2: some 1e3 of 3e7 nats. Gradients may be off by 15 %: sigma is only 20 roundings of a weight in
    float32, so formulas that recover eps from the weights have each within 5 % or so, their squares within 10 %, and
    the last bias has ten of them.

    Returns:
        For each sample eps of each tensor, flat.
    """
    pairs = network.pairs()
    grads = torch.autograd.grad(loss, [leaf for pair in pairs for leaf in pair])
    means = draws is None
    want = exact([mu for mu, _ in pairs] if means else draws, pairs, network.sigma, closed=means)
    losses = []
    for weights in [want.xs] if means else zip(*want.xs):
        hidden = x.double()
        for index, (weight, bias) in enumerate(zip(weights[::2], weights[1::2])):
            hidden = F.linear(hidden.relu() if index else hidden, weight, bias)
        losses.append(F.cross_entropy(hidden, target))
    want_loss = sum(losses) / len(losses) + want.log_prob.mean() / NUM_DATA
    want_grads = torch.autograd.grad(want_loss, want.leaves)
    compare("loss", loss, want_loss, 1e-3 if means else tolerance(loss.dtype))
    for index, (grad, want_grad) in enumerate(zip(grads, want_grads)):
        parameter = ("weight.mu", "weight.raw", "bias.mu", "bias.raw")[index % 4]
        allowed = 0.15 if means else tolerance(loss.dtype)
        compare(f"gradient of layer {index // 4}'s {parameter}", grad, want_grad, allowed)
    return want.noise
