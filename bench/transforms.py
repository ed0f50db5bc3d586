"""What PyTorch's transforms add to the fused call: each beside the call that it transforms, in turn in one run."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.functional import softplus
from torch.utils.checkpoint import checkpoint

from bench.check import compare, sampled, tolerance
from bench.layers import MU_PRIOR, STD_PRIOR
from bench.measure import Subject
from bench.setting import Setting
from bench.works import Inputs
from illia_ext import GaussianDistribution, functional, random

__all__ = ["Ways", "transforms"]

NUM_KEYS = 8
Tensors = tuple[Tensor, ...]
Way = Callable[[], Tensors]


class Layer(nn.Module):
    """What holds a distribution: `functional_call` swaps its parameters."""

    def __init__(self, weights: GaussianDistribution, weigh: Callable[..., Tensor]) -> None:
        super().__init__()
        self.weights, self.weigh = weights, weigh

    def forward(self, key: Tensor) -> Tensor:
        return self.weigh(*self.weights.sample_and_log_prob(key=key))


class Ways:
    """Ways to call at one number of weights, the keys given.

    The loss is sum(x grad_x) + log_prob / 10, over all samples. In float64 the same comes from formulas, at the very
    noise of the keys.
    """

    def __init__(self, numel: int, setting: Setting) -> None:
        self.inputs = inputs = Inputs.make(numel, setting)
        self.leaves = (inputs.mu, inputs.rho)
        self.plain = (inputs.mu.detach(), inputs.rho.detach())
        self.members = tuple(leaf.repeat(NUM_KEYS, 1).requires_grad_() for leaf in self.plain)
        self.keys = random.split(random.key(1, device=setting.device), NUM_KEYS)
        self.key = self.keys[0]
        weights = GaussianDistribution(numel, MU_PRIOR, STD_PRIOR, device=setting.device, dtype=setting.dtype)
        weights.load_state_dict(dict(zip(("mu", "rho"), self.plain)), strict=False)
        self.layer = Layer(weights, self.weigh)
        self.compiled = torch.compile(self.loss, fullgraph=True)

    def draw(self, mu: Tensor, rho: Tensor, key: Tensor) -> Tensors:
        return functional.gaussian_sample_and_log_prob(mu, rho, self.inputs.mu_prior, self.inputs.std_prior, key)

    def weigh(self, x: Tensor, log_prob: Tensor) -> Tensor:
        return (x * self.inputs.grad_x).sum() + 0.1 * log_prob.sum()

    def loss(self, mu: Tensor, rho: Tensor, key: Tensor) -> Tensor:
        return self.weigh(*self.draw(mu, rho, key))

    def by_module(self) -> Tensors:
        return self.layer.weights.sample_and_log_prob(key=self.key)

    def swapped(self) -> Tensor:
        return functional_call(self.layer, dict(zip(("weights.mu", "weights.rho"), self.leaves)), (self.key,))

    def narrow(self) -> Tensor:
        with torch.autocast(self.key.device.type, torch.bfloat16):
            return self.loss(*self.leaves, self.key)

    def tangent(self) -> Tensors:
        """Of the loss, along grad_x."""
        direction = (self.inputs.grad_x, self.inputs.grad_x)
        return jvp(partial(self.loss, key=self.key), self.plain, direction)[1:]

    def backward(self, draw: Way, leaves: Tensors) -> Way:
        """The gradients of the loss, given as those that arrive at a draw."""
        output_grads = (self.inputs.grad_x, self.inputs.grad_log_prob.to(draw()[1].dtype))
        return lambda: torch.autograd.grad(draw(), leaves, output_grads)

    def ways(self) -> dict[str, tuple[Way, Way]]:
        """What is timed, and what it should return."""
        leaves, key, keys, weights = self.leaves, self.key, self.keys, self.layer.weights

        def of(loss: Callable[[], Tensor]) -> Way:
            return lambda: torch.autograd.grad(loss(), leaves)

        def over(in_dims: tuple[int | None, ...], *inputs: Tensor) -> Tensor:
            return vmap(self.loss, in_dims)(*inputs, keys).sum()

        call = partial(self.draw, *leaves, key)
        drawn = partial(self.want_draw, *self.doubles(), key)
        one, all_keys = partial(self.want_grads, keys[:1]), partial(self.want_grads, keys)
        again = partial(checkpoint, self.loss, *leaves, key, use_reentrant=False)
        return {
            "no gradients": (partial(self.draw, *self.plain, key), drawn),
            "forward": (call, drawn),
            "module, forward": (self.by_module, drawn),
            "forward + backward": (self.backward(call, leaves), one),
            "module, forward + backward": (self.backward(self.by_module, (weights.mu, weights.rho)), one),
            "a loss": (of(partial(self.loss, *leaves, key)), one),
            "functional_call": (of(self.swapped), one),
            "torch.func.grad": (partial(grad(self.loss, (0, 1)), *self.plain, key), one),
            "jvp": (self.tangent, self.want_tangent),
            "double backward": (partial(self.second, self.loss, leaves), self.want_second),
            "checkpoint": (of(again), one),
            "autocast": (of(self.narrow), one),
            "torch.compile": (of(lambda: self.compiled(*leaves, key)), one),
            "8 calls": (of(lambda: sum(self.loss(*leaves, k) for k in keys)), all_keys),
            "8 samples": (of(partial(self.loss, *leaves, keys)), all_keys),
            "vmap over 8 keys": (of(partial(over, (None, None, 0), *leaves)), all_keys),
            "vmap over 8 parameters": (
                lambda: torch.autograd.grad(over((0, 0, 0), *self.members), self.members),
                self.want_members,
            ),
        }

    def second(self, loss: Callable[..., Tensor], leaves: Tensors) -> Tensors:
        """The gradient of the gradient's product with grad_x."""
        direction = [self.inputs.grad_x.to(leaf.dtype) for leaf in leaves]
        grads = torch.autograd.grad(loss(*leaves, self.key), leaves, create_graph=True)
        return torch.autograd.grad(grads, leaves, direction)

    def doubles(self) -> Tensors:
        return tuple(leaf.double().requires_grad_() for leaf in self.plain)

    def want_draw(self, mu: Tensor, rho: Tensor, key: Tensor) -> Tensors:
        eps_dtype = torch.promote_types(self.inputs.mu.dtype, torch.float32)
        eps = torch.ops.illia_ext.standard_normal(key, mu.shape, dtype=eps_dtype).double()
        sigma = softplus(rho, threshold=60)
        x = mu + sigma * eps
        priors = (self.inputs.mu_prior.double(), self.inputs.std_prior.double())
        return x, sampled(x, mu, sigma, *priors).sum()

    def want_loss(self, mu: Tensor, rho: Tensor, key: Tensor) -> Tensor:
        return self.weigh(*self.want_draw(mu, rho, key))

    def want_grads(self, keys: Tensor) -> Tensors:
        leaves = self.doubles()
        return torch.autograd.grad(sum(self.want_loss(*leaves, key) for key in keys), leaves)

    def want_members(self) -> Tensors:
        return tuple(map(torch.stack, zip(*(self.want_grads(key[None]) for key in self.keys))))

    def want_tangent(self) -> Tensors:
        return (sum((gradient * self.inputs.grad_x).sum() for gradient in self.want_grads(self.keys[:1])),)

    def want_second(self) -> Tensors:
        return self.second(self.want_loss, self.doubles())

    def check(self, name: str) -> None:
        """Raises Wrong."""
        way, want = self.ways()[name]
        allowed = tolerance(torch.bfloat16 if name == "autocast" else self.inputs.mu.dtype)
        for index, (got, wanted) in enumerate(zip(way(), want(), strict=True)):
            compare(f"output {index}", got, wanted, allowed)


def transforms(numel: int, setting: Setting) -> list[Subject]:
    """A quick run leaves the compiled one out."""
    ways = Ways(numel, setting)
    return [
        Subject("transforms", numel, name, numel, run=way, check=partial(ways.check, name))
        for name, (way, _) in ways.ways().items()
        if not (setting.compile_once and name == "torch.compile")
    ]
