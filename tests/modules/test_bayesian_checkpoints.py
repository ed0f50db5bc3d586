"""Checkpoints of any kind inside `sampled()`, within one another, in any gradient mode, and of other libraries."""

from functools import partial
from typing import Any

import pytest
import torch
from test_bayesian_sampled import KEY, Network, assert_close, grads, inputs
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from illia_ext import BayesianModule

parametrize = pytest.mark.parametrize


class Forces(nn.Module):
    """Switches gradients on inside, as a network of energies does, or off, as one that stops a gradient does."""

    def __init__(self, grad_mode: bool, use_reentrant: bool) -> None:
        super().__init__()
        self.linear, self.grad_mode = nn.Linear(4, 4), grad_mode
        self.run = partial(checkpoint, use_reentrant=use_reentrant)

    def part(self, inputs: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.grad_mode):
            weight = self.linear.weight.clone()
        return (inputs @ weight).tanh()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.run(self.part, inputs)


@parametrize("outer", [None, False, True], ids=["alone", "in the same kind", "in the other kind"])
@parametrize("grad_mode", [False, True])
@parametrize("use_reentrant", [False, True])
def test_checkpoints_in_any_mode(use_reentrant: bool, grad_mode: bool, outer: bool | None, cpu: object) -> None:
    """Within one another too: inside the block gradients are those without, after it and of a call it is an error."""
    torch.manual_seed(0)
    bayesian = BayesianModule(Forces(grad_mode, use_reentrant).double(), rho_init=-1.0)

    def call(at: Tensor) -> Tensor:
        if outer is None:
            return bayesian.module(at)
        return checkpoint(lambda x: bayesian.module(x), at, use_reentrant=use_reentrant is not outer)

    results = []
    for is_checkpointed in (True, False):
        bayesian.module.run = partial(checkpoint, use_reentrant=use_reentrant) if is_checkpointed else Network().run
        at = inputs()
        with bayesian.sampled(KEY) as log_prob:
            ((call(at) if is_checkpointed else bayesian.module(at)).square().sum() + log_prob / 10).backward()
        results.append([at.grad, *grads(bayesian)[1:]][:2])
    assert_close(*results)
    bayesian.module.run = partial(checkpoint, use_reentrant=use_reentrant)
    with pytest.raises(RuntimeError, match="has not been differentiated"), bayesian.sampled(KEY):
        kept = call(inputs())
    assert kept is not None
    if outer is None:
        with pytest.raises(RuntimeError, match=r"module\.linear\.weight: a checkpointed part reads"):
            bayesian(inputs())


class Recomputing(torch.autograd.Function):
    """A checkpoint of somebody else's."""

    @staticmethod
    def forward(ctx: Any, part: nn.Module, at: Tensor) -> Tensor:
        ctx.part = part
        ctx.save_for_backward(at)
        return part(at)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        (at,) = ctx.saved_tensors
        with torch.enable_grad():
            at = at.detach().requires_grad_()
            ctx.part(at).backward(grad)
        return None, at.grad


def test_a_checkpoint_of_another_library(cpu: object) -> None:
    """Paid by a backward pass inside, though its loss is kept; owed otherwise."""
    bayesian = BayesianModule(Network().double(), rho_init=-1.0)
    block, losses = bayesian.module.blocks[0], []
    with bayesian.sampled():
        losses.append(Recomputing.apply(block, inputs()).sum())
        losses[0].backward()
    with pytest.raises(RuntimeError, match="has not been differentiated"), bayesian.sampled():
        losses.append(Recomputing.apply(block, inputs()).sum())
