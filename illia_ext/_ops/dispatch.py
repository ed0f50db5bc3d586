"""Puts a Python `torch.autograd.Function` on an op's own Autograd key.

So eager code, torch.func, torch.compile, torch.export and TorchScript all reach the same derivatives by calling the op.
What PyTorch offers to the public was tried, on torch 2.11 to 2.15:

- `Function.apply` around the op: TorchScript and strict export cannot have it; with a `jvp` torch.compile refuses it;
  torch.compile(torch.func.grad(f)) and a nested jacfwd gave wrong derivatives without an error.
- `torch.library.register_autograd`: forward mode gives zero tangents without an error, and torch.func.grad fails.

Nearly all private names of torch that we use are here; tests/transforms/test_private_names.py lists them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._functorch.autograd_function import enable_single_level_autograd_function  # type: ignore[attr-defined]
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.compiler import is_compiling

__all__ = [
    "EagerFunction",
    "OpFunction",
    "below_autograd",
    "composite",
    "dense",
    "dispatch_modes",
    "is_plain",
    "is_traced",
]

_library = torch.library.Library("illia_ext", "IMPL")
below_autograd = torch._C._AutoDispatchBelowAutograd
_transforms_active = torch._C._are_functorch_transforms_active
_tracing = torch._C._get_tracing_state
dispatch_modes = torch._C._len_torch_dispatch_stack
_PLAIN_TYPES = {Tensor, torch.nn.Parameter}  # without __torch_function__ or __torch_dispatch__ of their own


def _needs_gradients(args: Sequence[Any]) -> bool:
    if torch.is_grad_enabled():
        for argument in args:  # a loop, which takes half the time of any()
            if isinstance(argument, Tensor) and argument.requires_grad:
                return True
    return False


def _is_recorded(args: tuple[Any, ...]) -> bool:
    """Whether autograd, forward mode or a transform of torch.func watches a call with these arguments."""
    return _transforms_active() or forward_ad._current_level >= 0 or _needs_gradients(args)


def is_plain(tensors: Sequence[Any]) -> bool:
    """Whether an autograd.Function that is no op may have these: no type with a __torch_function__ of its own, and
    nothing but reverse mode. A mode for torch's functions does not see such a Function."""
    return _PLAIN_TYPES.issuperset(map(type, tensors)) and not is_traced()


def is_traced() -> bool:
    """Whether a compiler, a trace, a transform of torch.func or forward mode takes this thread's calls of ops."""
    return is_compiling() or _transforms_active() or forward_ad._current_level >= 0 or _tracing() is not None


def dense(grad: Tensor | None) -> Tensor | None:
    """A gradient whose memory holds its values.

    An embedding with sparse=True gives its weight a sparse gradient. torch resolves a lazily negated tensor for an op,
    but not in a list of optional tensors.
    """
    if grad is None:
        return None
    return grad.to_dense() if grad.is_sparse else grad.resolve_neg()


class Signature:
    """Calls an op with its inputs in the schema's order, keyword-only ones included."""

    def __init__(self, overload: Any) -> None:
        arguments = overload._schema.arguments
        self.overload = overload
        self.names = [argument.name for argument in arguments if argument.kwarg_only]
        self.num_positional = len(arguments) - len(self.names)
        self.defaults = tuple(argument.default_value for argument in arguments)

    def call_below_autograd(self, inputs: tuple[Any, ...]) -> Any:
        given = zip(self.names, inputs[self.num_positional :], self.defaults[self.num_positional :])
        keywords = {name: value for name, value, default in given if value is not default}
        with below_autograd():
            return self.overload(*inputs[: self.num_positional], **keywords)

    def complete(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """From a call by the dispatcher, which leaves out arguments that equal their defaults."""
        inputs = (*args, *self.defaults[len(args) :])
        if not kwargs:
            return inputs
        given = zip(self.names, self.defaults[self.num_positional :])
        return *inputs[: self.num_positional], *(kwargs.get(name, default) for name, default in given)


class EagerFunction(_SingleLevelFunction):
    """A torch.autograd.Function whose `apply` leaves out what torch.func needs around it."""

    apply: ClassVar[Callable[..., Any]]
    _compiled_autograd_key = staticmethod(torch.autograd.Function._compiled_autograd_key)


class OpFunction(EagerFunction):
    """The derivatives of one op. A subclass is put on the op's Autograd key.

    It names the op by `overload`, and has the static methods

        save_inputs(ctx, inputs, output)     saves what the others need (torch calls `setup_context` more slowly)
        gradients(ctx, *grad_outputs)        one per input; at least one grad_output is given
        tangents(ctx, *grad_inputs)          forward mode: one per output

    Inputs are in the schema's order, keyword-only ones included. The methods call ops.
    """

    overload: ClassVar[Any]
    signature: ClassVar[Signature]
    save_inputs: ClassVar[Callable[..., None]]
    gradients: ClassVar[Callable[..., tuple[Tensor | None, ...]]]
    tangents: ClassVar[Callable[..., Any]]

    def __init_subclass__(cls) -> None:
        """Plain functions, because compiled autograd takes no class methods.

        `forward` has one input more, `modes`, for which `backward` returns None: None, or within a transform of
        torch.func whether gradients and tangents are recorded. torch.autograd switches both off for the call, for the
        levels of torch.func below as well, which would make derivatives of derivatives zero.
        """
        signature = cls.signature = Signature(cls.overload)

        def forward(ctx: Any, *inputs_and_modes: Any) -> Any:
            inputs, modes = inputs_and_modes[:-1], inputs_and_modes[-1]
            if modes is None:
                output = signature.call_below_autograd(inputs)
            else:
                with torch.set_grad_enabled(modes[0]), forward_ad._set_fwd_grad_enabled(modes[1]):
                    output = signature.call_below_autograd(inputs)
            cls.save_inputs(ctx, inputs, output)
            return output

        def backward(ctx: Any, *grad_outputs: Any) -> Any:
            if all(grad is None for grad in grad_outputs):
                return (None,) * (len(signature.defaults) + 1)
            return *cls.gradients(ctx, *map(dense, grad_outputs)), None

        def jvp(ctx: Any, *grad_inputs_and_modes: Any) -> Any:
            grad_inputs = grad_inputs_and_modes[:-1]
            if not _transforms_active():
                return cls.tangents(ctx, *grad_inputs)
            with forward_ad._set_fwd_grad_enabled(True):  # off here too, and needed by the levels below
                return cls.tangents(ctx, *grad_inputs)

        cls.forward, cls.backward, cls.jvp = map(staticmethod, (forward, backward, jvp))  # type: ignore[method-assign]
        record = cls.apply

        def kernel(*args: Any, **kwargs: Any) -> Any:
            if not _is_recorded(args):
                with below_autograd():
                    return cls.overload(*args, **kwargs)
            inputs = signature.complete(args, kwargs)
            if not _transforms_active():
                return record(*inputs, None)
            modes = (torch.is_grad_enabled(), torch._C._is_fwd_grad_enabled())
            with enable_single_level_autograd_function():
                return record(*inputs, modes)

        _library.impl(_name(cls.overload), kernel, "Autograd")


def _name(overload: Any) -> str:
    return str(overload._schema.name.split("::")[1])


def _flatten(args: Sequence[Any]) -> list[Any]:
    return [value for arg in args for value in (arg if isinstance(arg, (list, tuple)) else (arg,))]


def composite(overload: Any, decomposed: Callable[..., Any], record: Callable[..., Any] | None = None) -> None:
    """Gives `overload`, an op of lists, the derivatives of `decomposed`, which computes the same by other ops.

    With `record`, its inputs are (mu, rho, mu_prior, std_prior, ...); `record` is called where mu and rho alone need
    reverse mode.
    """

    def kernel(*args: Any, **kwargs: Any) -> Any:
        if forward_ad._current_level >= 0 or (_transforms_active() and _needs_gradients(_flatten(args))):
            return decomposed(*args, **kwargs)
        if not _needs_gradients(_flatten(args)):
            with below_autograd():
                return overload(*args, **kwargs)
        if record is None or _needs_gradients(_flatten(args[2:4])):
            return decomposed(*args, **kwargs)
        return record(*args, **kwargs)

    _library.impl(_name(overload), kernel, "Autograd")
    # torch.autograd.grad's is_grads_batched, which cannot loop over lists
    _library.impl(_name(overload), decomposed, "Batched")
