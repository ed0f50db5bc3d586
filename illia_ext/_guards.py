"""What guards a module while samples stand in the places of its parameters."""

import threading
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.compiler import is_compiling
from torch.utils._pytree import tree_leaves

__all__ = ["Turns", "refuse_checkpoints", "refuse_reentrant_checkpoints"]

_MESSAGE = (
    "module: a part that is checkpointed would be computed again with mu in place of the sample; checkpoint the call "
    "of the BayesianModule instead"
)


class Turns:
    """`with turns():` a thread is alone with the module; a copy has a lock of its own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __call__(self) -> AbstractContextManager[Any]:
        return nullcontext() if is_compiling() else self._lock  # a compiled program moves no parameter

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


def refuse_checkpoints() -> AbstractContextManager[Any]:
    """No hooks on saved tensors inside, which are what checkpointing of a part (use_reentrant=False) works by."""
    if is_compiling() or not torch.is_grad_enabled():
        return nullcontext()
    stack = ExitStack()
    with suppress(RuntimeError):  # where hooks are set outside, none can be refused
        stack.enter_context(disable_saved_tensors_hooks(_MESSAGE))
    return stack


def refuse_reentrant_checkpoints(output: Any, inputs: Any) -> None:
    """The other kind, use_reentrant=True, which the graph from `output` back to `inputs` shows."""
    if is_compiling() or not torch.is_grad_enabled():
        return
    seen = {None, *(leaf.grad_fn for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))}
    nodes = [leaf.grad_fn for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "CheckpointFunctionBackward":
            raise RuntimeError(_MESSAGE)
        nodes += [before for before, _ in node.next_functions]
