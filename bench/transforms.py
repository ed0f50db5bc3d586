"""What PyTorch's transforms add to the fused call: ways to call it, in turn in one run."""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

from bench.check import compare, sampled, tolerance
from bench.layers import MU_PRIOR, STD_PRIOR
from bench.measure import Subject
from bench.setting import Setting
from illia_ext import GaussianDistribution, functional, random, reference

__all__ = ["transforms"]

NUM_KEYS = 8
Tensors = tuple[Tensor, ...]
Draw = Callable[[Tensor, Tensor, Tensor], Tensors]  # mu, rho and a key, or keys -> x, log_prob


class Draws(NamedTuple):
    """The same draw, made by a function, by a module that holds mu and rho, ..."""

    function: Draw
    module: Draw
    functional_call: Draw
    compiled: Draw


class Values(NamedTuple):
    """What the ways are called with."""

    leaves: Tensors  # mu and rho [n], with gradients
    direction: Tensor  # [n]: weighs x in the loss; tangents and second gradients are taken along it
    keys: Tensor


def ways(draws: Draws, given: Values) -> dict[str, Callable[[], Tensors]]:
    """Each way to call one of the draws; most give the gradients of `loss`."""
    (mu, rho), direction, keys = given
    key = keys[0]
    plain = mu.detach(), rho.detach()
    members = tuple(leaf.repeat(NUM_KEYS, 1).requires_grad_() for leaf in plain)  # the parameters of eight models
    function, module, swapped, compiled = draws

    def loss(mu: Tensor, rho: Tensor, key: Tensor, draw: Draw = function) -> Tensor:
        x, log_prob = draw(mu, rho, key)
        return (x * direction).sum() + 0.1 * log_prob.sum()

    def gradients(total: Tensor, leaves: Tensors = given.leaves) -> Tensors:
        return torch.autograd.grad(total, leaves)

    def backward(draw: Draw) -> Tensors:
        x, log_prob = draw(mu, rho, key)
        return torch.autograd.grad((x, log_prob), given.leaves, (direction, torch.full_like(log_prob, 0.1)))

    def double_backward() -> Tensors:
        grads = torch.autograd.grad(loss(mu, rho, key), given.leaves, create_graph=True)
        return torch.autograd.grad(grads, given.leaves, (direction, direction))

    def autocast() -> Tensors:
        with torch.autocast(key.device.type, torch.bfloat16):
            return gradients(loss(mu, rho, key))

    return {
        "no gradients": lambda: function(*plain, key),
        "forward": lambda: function(mu, rho, key),
        "module, forward": lambda: module(mu, rho, key),
        "forward + backward": lambda: backward(function),
        "module, forward + backward": lambda: backward(module),
        "a loss": lambda: gradients(loss(mu, rho, key)),
        "functional_call": lambda: gradients(loss(mu, rho, key, swapped)),
        "torch.func.grad": lambda: grad(loss, (0, 1))(*plain, key),
        "jvp": lambda: jvp(partial(loss, key=key), plain, (direction, direction)),
        "double backward": double_backward,
        "checkpoint": lambda: gradients(checkpoint(loss, mu, rho, key, use_reentrant=False)),
        "autocast": autocast,
        "torch.compile": lambda: gradients(loss(mu, rho, key, compiled)),
        "8 calls": lambda: gradients(sum(loss(mu, rho, key) for key in keys)),
        "8 samples": lambda: gradients(loss(mu, rho, keys)),
        "vmap over 8 keys": lambda: gradients(vmap(loss, (None, None, 0))(mu, rho, keys).sum()),
        "vmap over 8 parameters": lambda: gradients(vmap(loss)(*members, keys).sum(), members),
    }


def wanted(given: Values) -> dict[str, Callable[[], Tensors]]:
    """What the ways should return, from float64 formulas at the very noise of the keys; by default the gradients."""
    mu, rho = leaves = tuple(leaf.detach().double().requires_grad_() for leaf in given.leaves)
    direction, keys = given.direction.double(), given.keys
    eps_dtype = torch.promote_types(given.direction.dtype, torch.float32)  # float64 has another stream

    def draw(key: Tensor) -> Tensors:
        sigma = nn.functional.softplus(rho)
        x = mu + sigma * reference.standard_normal(key, mu.shape, eps_dtype).double()
        return x, sampled(x, mu, sigma, MU_PRIOR, STD_PRIOR).sum()

    def loss(key: Tensor) -> Tensor:
        x, log_prob = draw(key)
        return x @ direction + 0.1 * log_prob

    def gradients(keys: Tensor, create_graph: bool = False) -> Tensors:
        return torch.autograd.grad(sum(map(loss, keys)), leaves, create_graph=create_graph)

    def along(grads: Tensors) -> Tensor:
        return sum(grad @ direction for grad in grads)

    values = {
        "jvp": lambda: (loss(keys[0]), along(gradients(keys[:1]))),
        "double backward": lambda: torch.autograd.grad(along(gradients(keys[:1], create_graph=True)), leaves),
        "vmap over 8 parameters": lambda: tuple(map(torch.stack, zip(*(gradients(key[None]) for key in keys)))),
    }
    values |= dict.fromkeys(("no gradients", "forward", "module, forward"), partial(draw, keys[0]))
    values |= dict.fromkeys(("8 calls", "8 samples", "vmap over 8 keys"), partial(gradients, keys))
    return defaultdict(lambda: partial(gradients, keys[:1]), values)


class Holder(nn.Module):
    """A module with a distribution, whose parameters `functional_call` swaps."""

    def __init__(self, numel: int, **to: torch.device | torch.dtype) -> None:
        super().__init__()
        self.weights = GaussianDistribution(numel, MU_PRIOR, STD_PRIOR, rho_init=-3.0, **to)

    def forward(self, key: Tensor) -> Tensors:
        return self.weights.sample_and_log_prob(key=key)


def transforms(numel: int, setting: Setting) -> list[Subject]:
    """A quick run leaves the compiled one out."""
    to = {"device": setting.device, "dtype": setting.dtype}
    torch.manual_seed(0)
    holder = Holder(numel, **to)
    prior = torch.full((1,), MU_PRIOR, **to), torch.full((1,), STD_PRIOR, **to)
    leaves = (holder.weights.mu, holder.weights.rho)
    keys = random.split(random.key(1, device=setting.device), NUM_KEYS)
    given = Values(leaves, torch.randn(numel, **to), keys)

    def fused(mu: Tensor, rho: Tensor, key: Tensor) -> Tensors:
        return functional.gaussian_sample_and_log_prob(mu, rho, *prior, key)

    def by_module(mu: Tensor, rho: Tensor, key: Tensor) -> Tensors:
        return holder.weights.sample_and_log_prob(key=key)

    def swapped(mu: Tensor, rho: Tensor, key: Tensor) -> Tensors:
        return functional_call(holder, {"weights.mu": mu, "weights.rho": rho}, (key,))

    ours = ways(Draws(fused, by_module, swapped, torch.compile(fused, fullgraph=True)), given)
    want = wanted(given)

    def check(name: str) -> None:
        allowed = tolerance(torch.bfloat16 if name == "autocast" else setting.dtype)
        for index, (got, right) in enumerate(zip(ours[name](), want[name](), strict=True)):
            compare(f"output {index}", got, right, allowed)

    names = [name for name in ours if not (setting.compile_once and name == "torch.compile")]
    return [Subject("transforms", numel, name, numel, ours[name], partial(check, name)) for name in names]
