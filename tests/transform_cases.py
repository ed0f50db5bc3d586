"""What the tests of transforms share: functions of mu and rho, their transforms, a layer that draws, comparisons."""

from collections.abc import Callable
from typing import Any

import torch
from helpers import same_bits
from torch import Tensor, nn
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from illia_ext import GaussianDistribution, functional
from illia_ext.random import draw_key

BOTH = (0, 1)
PRIOR = (0.25, 0.75)


def product(x: Tensor | list[Tensor], log_prob: Tensor) -> Tensor:
    """log_prob times a sum over all elements of the samples: [] or [S]."""
    return log_prob * sum(sample.sin().reshape(*log_prob.shape, -1).sum(-1) for sample in tree_leaves(x))


def lists(mu: Tensor, rho: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """mu and rho of the multi-tensor functions: a matrix of at least two rows, a tensor without dimensions, an empty
    tensor, a row."""
    return [mu, mu[0, 0], mu[1, :0], rho[1]], [rho, rho[1, 1], rho[0, :0], mu[0]]


# Functions of a key, a point x and the parameters, from illia_ext.functional or illia_ext.reference.
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "sample": lambda library, key, x, mu, rho: library.gaussian_sample(mu, rho, key),
    "log_prob": lambda library, key, x, mu, rho: library.gaussian_log_prob(x, mu, rho, *PRIOR),
    "sample_and_log_prob": lambda library, key, x, mu, rho: product(
        *library.gaussian_sample_and_log_prob(mu, rho, *PRIOR, key)
    ),
    "log_prob of the sample": lambda library, key, x, mu, rho: library.gaussian_sample_and_log_prob(
        mu, rho, *PRIOR, key
    )[1],
    "kl_divergence": lambda library, key, x, mu, rho: library.gaussian_kl_divergence(mu, rho, *PRIOR),
    "log_prob, scale mixture": lambda library, key, x, mu, rho: library.gaussian_log_prob(
        x, mu, rho, *PRIOR, family="scale_mixture", family_parameters=(0.3, 0.5)
    ),
    "antithetic sample_and_log_prob, laplace": lambda library, key, x, mu, rho: product(
        *library.gaussian_sample_and_log_prob(mu, rho, *PRIOR, key.reshape(-1, 2), family="laplace", antithetic=True)
    ).sum(),
    "log_prob of the sample, flat": lambda library, key, x, mu, rho: library.gaussian_sample_and_log_prob(
        mu, rho, None, None, key
    )[1],
}
FOREACH_FUNCTIONS: dict[str, Callable[..., Tensor]] = {  # of matrices alone
    "foreach sample_and_log_prob": lambda library, key, x, mu, rho: product(
        *library.foreach_gaussian_sample_and_log_prob(*lists(mu, rho), *PRIOR, key)
    ),
    "foreach kl_divergence": lambda library, key, x, mu, rho: library.foreach_gaussian_kl_divergence(
        *lists(mu, rho), *PRIOR
    ),
}


def total(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda mu, rho: (function(mu, rho) ** 2).sum()


TRANSFORMS: dict[str, Callable[[Callable[..., Tensor]], Callable[..., Any]]] = {
    "grad": lambda f: grad(total(f), BOTH),
    "vjp": lambda f: lambda mu, rho: vjp(f, mu, rho)[1](torch.ones_like(f(mu, rho))),
    "jvp": lambda f: lambda mu, rho: jvp(f, (mu, rho), (rho, mu)),
    "jacrev": lambda f: jacrev(f, BOTH),
    "jacfwd": lambda f: jacfwd(f, BOTH),
    "hessian": lambda f: hessian(f, BOTH),
    "grad of grad": lambda f: grad(lambda mu, rho: total(grad(total(f), BOTH[1]))(mu, rho), BOTH),
    "jacrev of jacrev": lambda f: jacrev(jacrev(f, BOTH), BOTH),
    "jacrev of jacfwd": lambda f: jacrev(jacfwd(f, BOTH), BOTH),
    "jacfwd of jacfwd": lambda f: jacfwd(jacfwd(f, BOTH), BOTH),
    "grad of jvp": lambda f: grad(lambda mu, rho: jvp(total(f), (mu, rho), (rho, mu))[1], BOTH),
    "vmap of grad": lambda f: (
        lambda mu, rho: vmap(grad(total(f), BOTH))(torch.stack([mu, rho]), torch.stack([rho, mu]))
    ),
    "vmap of hessian to rho": lambda f: lambda mu, rho: vmap(hessian(f, 1), (None, 0))(mu, torch.stack([rho, mu])),
}
SECOND = [name for name in TRANSFORMS if (" of " in name and name != "vmap of grad") or name == "hessian"]


class Count(TorchDispatchMode):
    """The names of our ops that are called below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "illia_ext":
            self.calls.append(func.__name__)
        return func(*args, **(kwargs or {}))


class Layer(nn.Module):
    """A Bayesian layer that draws in every way, the keys too."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = GaussianDistribution((4, 4), rho_init=-1.0)
        self.bias = GaussianDistribution(4, rho_init=-1.0)

    def draw(self) -> tuple[Tensor, ...]:
        """Weights [4, 4], three biases [3, 4], one [4], both once more; log_probs and KL divergences."""
        weights, log_prob = self.weights.sample_and_log_prob()
        biases, log_probs = self.bias.sample_and_log_prob(3)
        x = self.bias.sample()
        parameters = [self.weights.mu, self.bias.mu], [self.weights.rho, self.bias.rho]
        both, log_prob_of_both = functional.foreach_gaussian_sample_and_log_prob(
            *parameters, *PRIOR, draw_key(device=x.device)
        )
        kl_divergence = functional.foreach_gaussian_kl_divergence(*parameters, *PRIOR) + self.bias.kl_divergence()
        given = self.bias.log_prob(biases * 1.5)
        return (
            weights,
            biases,
            x,
            *both,
            log_prob,
            log_probs,
            log_prob_of_both,
            given,
            self.weights.log_prob(),
            kl_divergence,
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """One tensor carries all outputs: the sums are added to each element."""
        weights, biases, x, more_weights, bias, *sums = self.draw()
        hidden = nn.functional.linear(hidden, weights @ more_weights, biases.mean(0) * x + bias).tanh()
        return hidden + sum(sums_of_samples.sum() for sums_of_samples in sums) / 100


def make_hidden(rows: int, device: torch.device) -> Tensor:
    return torch.linspace(-1, 1, rows * 4, device=device).reshape(rows, 4)


def with_gradients(outputs: Any, leaves: Any) -> list[Tensor]:
    """The outputs, and gradients of their sum, in which each has another weight."""
    outputs = tree_leaves(outputs)
    weights = [torch.full_like(output, 1.0 + k) for k, output in enumerate(outputs)]
    return [*outputs, *torch.autograd.grad(outputs, tree_leaves(leaves), weights)]


def assert_same_bits(ours: Any, expected: Any) -> None:
    """Of each tensor in two structures."""
    for a, b in zip(tree_leaves(ours), tree_leaves(expected), strict=True):
        assert same_bits(a, b)
