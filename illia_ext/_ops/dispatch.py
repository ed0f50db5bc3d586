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
from torch.compiler import is_compiling

__all__ = ["OpFunction", "below_autograd", "composite", "dense", "expose", "is_traced", "is_watched"]

_library = torch.library.Library("illia_ext", "IMPL")
below_autograd = torch._C._AutoDispatchBelowAutograd
_transforms_active = torch._C._are_functorch_transforms_active
_is_excluded = torch._C._dispatch_tls_is_dispatch_key_excluded
_autograd_key = torch._C.DispatchKey.AutogradFunctionality
_tracing = torch._C._get_tracing_state
_function_modes = torch._C._len_torch_function_stack
dispatch_modes = torch._C._len_torch_dispatch_stack
# of arguments that have no code of their own to run at a call
_PLAIN_TYPES = {Tensor, torch.nn.Parameter, torch.dtype, type(None), bool, list, tuple}


def _needs_gradients(args: Sequence[Any]) -> bool:
    if torch.is_grad_enabled():
        for argument in args:  # a loop, which takes half the time of any()
            if isinstance(argument, Tensor) and argument.requires_grad:
                return True
    return False


def _is_recorded(args: tuple[Any, ...]) -> bool:
    """Whether autograd, forward mode or a transform of torch.func watches a call with these arguments."""
    return _transforms_active() or forward_ad._current_level >= 0 or _needs_gradients(args)


def is_watched(tensors: Sequence[Any]) -> bool:
    """Whether something must see what this thread calls now with these before reverse mode does, or in its place.

    Autocast and dispatch modes need not: they see the call that `forward` makes.
    """
    return (
        not _PLAIN_TYPES.issuperset(map(type, tensors))
        or _function_modes() > 0
        or is_traced()
        or _is_excluded(_autograd_key)  # inside another op's kernel nothing is recorded
    )


def is_traced() -> bool:
    """Whether a compiler, a trace, a transform of torch.func or forward mode takes this thread's calls of ops."""
    return is_compiling() or _transforms_active() or forward_ad._current_level >= 0 or _tracing() is not None


def dense(grad: Tensor | None) -> Tensor | None:
    """An embedding with sparse=True hands its weight a sparse gradient."""
    return grad.to_dense() if grad is not None and grad.is_sparse else grad


class Inputs:
    """How an op is called with its inputs in the schema's order, keyword-only ones included."""

    def __init__(self, overload: Any) -> None:
        arguments = overload._schema.arguments
        self.overload = overload
        self.names = [argument.name for argument in arguments if argument.kwarg_only]
        self.num_positional = len(arguments) - len(self.names)
        self.defaults = tuple(argument.default_value for argument in arguments)

    def call(self, *inputs: Any) -> Any:
        given = zip(self.names, inputs[self.num_positional :], self.defaults[self.num_positional :])
        keywords = {name: value for name, value, default in given if value is not default}
        # the op refuses too many
        return self.overload(*inputs[: self.num_positional], *inputs[len(self.defaults) :], **keywords)

    def call_below_autograd(self, inputs: tuple[Any, ...]) -> Any:
        with below_autograd():
            if inputs[self.num_positional :] == self.defaults[self.num_positional : len(inputs)]:
                return self.overload._op(*inputs[: self.num_positional])  # what overload.__call__ calls
            return self.call(*inputs)

    def complete(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """From a call by the dispatcher, which leaves out arguments that equal their defaults."""
        inputs = (*args, *self.defaults[len(args) :])
        if not kwargs:
            return inputs
        given = zip(self.names, self.defaults[self.num_positional :])
        return *inputs[: self.num_positional], *(kwargs.get(name, default) for name, default in given)


class OpFunction(torch.autograd.Function):
    """The derivatives of one op; `expose` puts them on it.

    A subclass names the op by `overload`, and has the static methods

        save_inputs(ctx, inputs, output)     what the others need (`setup_context` would cost 10 us a call)
        gradients(ctx, *grad_outputs)        one an input; at least one grad_output is given
        tangents(ctx, *grad_inputs)          forward mode: one an output

    with inputs as `Inputs` has them. The methods call ops, or what `expose` returns.

    `forward`, `backward` and `jvp` have one input more, `modes`: None, or within a transform of torch.func whether
    gradients and tangents are recorded. torch.autograd switches both off for the call, for the levels of torch.func
    below as well, which would make derivatives of derivatives zero.
    """

    overload: ClassVar[Any]
    inputs: ClassVar[Inputs]
    save_inputs: ClassVar[Callable[..., None]]
    gradients: ClassVar[Callable[..., tuple[Tensor | None, ...]]]
    tangents: ClassVar[Callable[..., Any]]

    def __init_subclass__(cls) -> None:
        cls.inputs = Inputs(cls.overload)

    @classmethod
    def forward(cls, ctx: Any, *inputs_and_modes: Any) -> Any:
        inputs, modes = inputs_and_modes[:-1], inputs_and_modes[-1]
        if modes is None:
            output = cls.inputs.call_below_autograd(inputs)
        else:
            with torch.set_grad_enabled(modes[0]), forward_ad._set_fwd_grad_enabled(modes[1]):
                output = cls.inputs.call_below_autograd(inputs)
        cls.save_inputs(ctx, inputs, output)
        return output

    @classmethod
    def backward(cls, ctx: Any, *grad_outputs: Any) -> Any:
        if all(grad is None for grad in grad_outputs):
            return (None,) * (len(cls.inputs.defaults) + 1)
        return *cls.gradients(ctx, *map(dense, grad_outputs)), None

    @classmethod
    def jvp(cls, ctx: Any, *grad_inputs_and_modes: Any) -> Any:
        grad_inputs = grad_inputs_and_modes[:-1]
        if not _transforms_active():
            return cls.tangents(ctx, *grad_inputs)
        with forward_ad._set_fwd_grad_enabled(True):  # off here too, and needed by the levels below
            return cls.tangents(ctx, *grad_inputs)


def expose(function: type[OpFunction]) -> Callable[..., Any]:
    """Puts `function` on its op's Autograd key.

    Returns:
        What calls the op, without the dispatcher's round trip through Python where plain eager code calls. It is no
        method of the class, because Dynamo would trace a Function in place of the op.
    """
    inputs_of, overload = function.inputs, function.overload
    least, most = inputs_of.num_positional, len(inputs_of.defaults)
    # past Function's own `apply`, which does not know levels of torch.func
    record = super(torch.autograd.Function, function).apply  # type: ignore[misc]

    def kernel(*args: Any, **kwargs: Any) -> Any:
        if not _is_recorded(args):
            with below_autograd():
                return overload(*args, **kwargs)
        inputs = inputs_of.complete(args, kwargs)
        if not _transforms_active():
            return record(*inputs, None)
        modes = (torch.is_grad_enabled(), torch._C._is_fwd_grad_enabled())
        with enable_single_level_autograd_function():
            return record(*inputs, modes)

    def apply(*inputs: Any) -> Any:
        if not least <= len(inputs) <= most or is_watched(inputs):
            return inputs_of.call(*inputs)
        if _needs_gradients(inputs):
            return record(*inputs, *inputs_of.defaults[len(inputs) :], None)
        return inputs_of.call_below_autograd(inputs)

    _library.impl(overload._schema.name.split("::")[1], kernel, "Autograd")
    return apply


def _flatten(args: Sequence[Any]) -> list[Any]:
    return [value for arg in args for value in (arg if isinstance(arg, (list, tuple)) else (arg,))]


def composite(
    overload: Any, decomposed: Callable[..., Any], record: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """Gives `overload`, an op of lists of tensors, the derivatives of `decomposed`, which computes the same by others.

    With `record`, its inputs are (mu, rho, mu_prior, std_prior, ...): reverse mode to mu and rho alone takes that.

    Returns:
        What calls the op, without the dispatcher's round trip through Python where plain eager code calls.
    """

    def in_its_words(*args: Any, **kwargs: Any) -> Any:
        """`decomposed`, but what that cannot do the op refuses."""
        try:
            return decomposed(*args, **kwargs)
        except (RuntimeError, ValueError, IndexError):
            if not is_watched(_flatten(args)):
                with torch.no_grad():
                    overload(*args, **kwargs)
            raise

    def call(args: Sequence[Any], kwargs: Mapping[str, Any], decompose: Callable[..., Any]) -> Any:
        if not _needs_gradients(_flatten(args)):
            with below_autograd():
                return overload(*args, **kwargs)
        if record is None or _needs_gradients(_flatten(args[2:4])):
            return decompose(*args, **kwargs)
        return record(*args, **kwargs)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        if forward_ad._current_level >= 0 or (_transforms_active() and _needs_gradients(_flatten(args))):
            return decomposed(*args, **kwargs)
        return call(args, kwargs, in_its_words)

    def apply(*args: Any, **kwargs: Any) -> Any:
        if is_watched(_flatten(args)):
            return overload(*args, **kwargs)
        return call(args, kwargs, overload)  # which looks at the arguments' types before it decomposes

    name = overload._schema.name.split("::")[1]
    _library.impl(name, kernel, "Autograd")
    _library.impl(name, decomposed, "Batched")  # torch.autograd.grad's is_grads_batched, which cannot loop over lists
    return apply
