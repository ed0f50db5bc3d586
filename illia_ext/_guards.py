"""What guards a module while samples stand in the places of its parameters."""

import threading
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from typing import Any

import torch
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.compiler import is_compiling

__all__ = ["Turns", "refuse_checkpoints"]


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
    message = (
        "module: a part that is checkpointed would be computed again with mu in place of the sample; checkpoint the "
        "call of the BayesianModule instead"
    )
    stack = ExitStack()
    with suppress(RuntimeError):  # where hooks are set outside, none can be refused
        stack.enter_context(disable_saved_tensors_hooks(message))
    return stack
