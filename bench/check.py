"""Whether what is timed is right: against float64 formulas, at the weights that a case drew itself."""

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.layers import MU_PRIOR, NUM_DATA, STD_PRIOR, BayesianLinear, Network

__all__ = ["Wrong", "check_layer", "check_network", "check_outputs", "closed_form", "compare", "sampled"]


class Wrong(Exception):
    """A case's result differs from the reference; the message says where and by how much."""


def tolerance(dtype: torch.dtype) -> float:
    """Relative error that a case may have.

    Eight roundings of its dtype in a row (float16: 0.8 %, bfloat16: 6 %). In float32 and float64 1e-3: the noise is
    recovered from the weights as (x - mu) / sigma, which costs float32 up to 2^-24 * 1 / sigma(-5) = 1e-5 of an eps,
    and a wrong formula is off by far more.
    """
    return max(1e-3, 8 * torch.finfo(dtype).eps)


def compare(what: str, got: Tensor, want: Tensor, allowed: float) -> None:
    error = float((got.detach().double() - want.detach()).norm() / want.detach().norm())
    if not error <= allowed:
        raise Wrong(f"{what} is off by {error:.1e}")


def sampled(x: Tensor, mu: Tensor, sigma: Tensor, mu_prior: float, std_prior: float) -> Tensor:
    """log q(x) - log p(x) of every element; x carries its own dependence on mu and sigma."""
    z, z_prior = (x - mu) / sigma, (x - mu_prior) / std_prior
    return -torch.log(sigma / std_prior) - z**2 / 2 + z_prior**2 / 2


def closed_form(mu: Tensor, sigma: Tensor, mu_prior: float, std_prior: float) -> Tensor:
    """KL(q || p) of every element."""
    return torch.log(std_prior / sigma) + (sigma**2 + (mu - mu_prior) ** 2) / (2 * std_prior**2) - 0.5


def check_outputs(
    x: Tensor,
    log_prob: Tensor,
    parameters: tuple[Tensor, Tensor],
    priors: tuple[float, float],
    output_grads: tuple[Tensor, Tensor],
    grads: tuple[Tensor, ...],
) -> None:
    """A draw x ([*shape] or [S, *shape]), its log_prob and the gradients to mu and rho. Raises Wrong."""
    mu, rho = (p.detach().double().requires_grad_() for p in parameters)
    sigma = F.softplus(rho)
    eps = ((x.detach().double() - mu) / sigma).detach()
    exact = mu + sigma * eps
    weights = tuple(range(x.dim() - mu.dim(), x.dim()))
    want = sampled(exact, mu, sigma, *priors).sum(weights)
    want_grads = torch.autograd.grad((exact, want), (mu, rho), [grad.double() for grad in output_grads])
    allowed = tolerance(x.dtype)
    compare("log_prob", log_prob, want, allowed)
    for name, got_grad, want_grad in zip(("grad_mu", "grad_rho"), grads, want_grads):
        compare(name, got_grad, want_grad, allowed)


def _drawn_weights(layer: BayesianLinear, in_features: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, bias and cost of one call, read from the outputs at x = 0 and at the unit vectors."""
    x = torch.cat([like.new_zeros(1, in_features), torch.eye(in_features, dtype=like.dtype, device=like.device)])
    y, cost = layer(x)
    return (y[1:] - y[:1]).T, y[0], cost


def check_layer(layer: BayesianLinear) -> None:
    """Cost and gradients of one call, for a loss that weighs every drawn weight differently. Raises Wrong."""
    gaussians = layer.gaussians()
    leaves = [leaf for gaussian in gaussians for leaf in gaussian]
    weight, bias, cost = _drawn_weights(layer, gaussians[0].mu.shape[1], gaussians[0].mu)
    directions = [torch.cos(torch.arange(w.numel(), device=w.device)).reshape(w.shape) for w in (weight, bias)]

    def loss(weights: list[Tensor], total: Tensor) -> Tensor:
        return total + sum((w * direction.to(w.dtype)).sum() for w, direction in zip(weights, directions))

    grads = torch.autograd.grad(loss([weight, bias], cost), leaves)
    want_leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    exact, want_cost = [], torch.zeros((), dtype=torch.float64, device=weight.device)
    for mu, raw, drawn in zip(want_leaves[::2], want_leaves[1::2], (weight, bias)):
        sigma = layer.sigma(raw)
        exact.append(mu + sigma * ((drawn.detach().double() - mu) / sigma).detach())
        closed = layer.density == "closed form"
        terms = (mu, sigma) if closed else (exact[-1], mu, sigma)
        want_cost = want_cost + (closed_form if closed else sampled)(*terms, MU_PRIOR, STD_PRIOR).sum()
    want_grads = torch.autograd.grad(loss(exact, want_cost), want_leaves)
    # In float32 the weight is the difference of two outputs, each rounded: twice the loss of `tolerance`.
    allowed = 2 * tolerance(weight.dtype)
    compare("cost", cost, want_cost, allowed)
    for name, grad, want in zip(("weight.mu", "weight.raw", "bias.mu", "bias.raw"), grads, want_grads):
        compare(f"gradient of {name}", grad, want, allowed)


def check_network(loss: Tensor, network: Network, x: Tensor, target: Tensor) -> None:
    """A loss of `network` and its gradients, where `raw` is -16 all over. Raises Wrong.

    This finds what a layer by itself does not show: layers wired wrongly, a cost left out or weighed wrongly, all of
    which move the loss or a gradient by a third and more. sigma is then 1e-7, a millionth of the weights, so the
    output is that of the means, and the cost is its mean, the closed form, but for sum (1 - eps^2) / 2: some 1e3 of
    3e7 nats. Gradients may be off by 5 %: sigma is only 20 roundings of a weight in float32, so formulas that recover
    eps from the weights have it within 5 % or so, and one ReLU that rounding switches moves a gradient by 1 %.
    """
    gaussians = [layer.gaussians() for layer in network.layers]
    leaves = [leaf for layer in gaussians for gaussian in layer for leaf in gaussian]
    grads = torch.autograd.grad(loss, leaves)
    want_leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    parameters = iter(want_leaves)
    h, cost = x.double(), torch.zeros((), dtype=torch.float64, device=x.device)
    for index, layer in enumerate(network.layers):
        (weight, weight_raw), (bias, bias_raw) = ((next(parameters), next(parameters)) for _ in range(2))
        h = F.linear(h.relu() if index else h, weight, bias)
        for mu, raw in ((weight, weight_raw), (bias, bias_raw)):
            cost = cost + closed_form(mu, layer.sigma(raw), MU_PRIOR, STD_PRIOR).sum()
    want_loss = F.cross_entropy(h, target) + cost / NUM_DATA
    want_grads = torch.autograd.grad(want_loss, want_leaves)
    compare("loss", loss, want_loss, tolerance(x.dtype))
    allowed = max(0.05, tolerance(x.dtype))
    for index, (grad, want) in enumerate(zip(grads, want_grads)):
        parameter = ("weight.mu", "weight.raw", "bias.mu", "bias.raw")[index % 4]
        compare(f"gradient of layer {index // 4}'s {parameter}", grad, want, allowed)
