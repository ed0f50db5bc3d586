"""Installs a Python `torch.autograd.Function` on an op's own Autograd key.

So eager, torch.func, torch.compile, export and TorchScript all reach the same derivatives by calling the op. Nearly
all private names of torch that we use stand here; tests/transforms/test_private_names.py lists them, and fails
helpfully.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.autograd_function import enable_single_level_autograd_function  # type: ignore[attr-defined]
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.compiler import is_compiling

__all__ = ["below_autograd", "composite", "dense", "differentiable", "is_traced", "is_watched"]

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


def differentiable(overload: Any) -> Callable[[type], type]:
    """Class decorator: `overload` gets the derivatives of a class with the static methods

    setup_context(ctx, inputs, output)  saves what the others need
    backward(ctx, *grad_outputs)        gradients, one an input; at least one grad_output is given
    tangent(ctx, *grad_inputs)          forward mode (not named `jvp`: Dynamo refuses a class that has one)

    Inputs stand in schema order, keyword-only ones included. The methods call ops, or another class's `apply`. The
    class's own `apply` becomes the op, without the dispatcher's round trip through Python where plain eager code calls.
    """
    arguments = overload._schema.arguments
    num_positional = sum(not argument.kwarg_only for argument in arguments)
    defaults = tuple(argument.default_value for argument in arguments)
    names = [argument.name for argument in arguments[num_positional:]]
    keyword_defaults = defaults[num_positional:]
    builtin = overload._op  # what `overload.__call__` calls

    def call(*inputs: Any) -> Any:
        given = zip(names, inputs[num_positional:], keyword_defaults)
        keywords = {name: v for name, v, default in given if v is not default}
        return overload(*inputs[:num_positional], *inputs[len(arguments) :], **keywords)  # which refuses too many

    def call_below_autograd(inputs: tuple[Any, ...]) -> Any:
        with below_autograd():
            if inputs[num_positional:] == keyword_defaults[: len(inputs) - num_positional]:
                return builtin(*inputs[:num_positional])
            return call(*inputs)

    def decorate(cls: Any) -> type:
        def forward(ctx: Any, *inputs_and_modes: Any) -> Any:
            inputs, modes = inputs_and_modes[:-1], inputs_and_modes[-1]
            if modes is None:
                output = call_below_autograd(inputs)
            else:
                # `apply` switches recording off for this level of torch.func; the levels below it go on
                with torch.set_grad_enabled(modes[0]), forward_ad._set_fwd_grad_enabled(modes[1]):
                    output = call_below_autograd(inputs)
            cls.setup_context(ctx, inputs, output)
            return output

        def backward(ctx: Any, *grad_outputs: Any) -> Any:
            if all(grad is None for grad in grad_outputs):
                return (None,) * (len(arguments) + 1)
            return *cls.backward(ctx, *map(dense, grad_outputs)), None

        def tangent(ctx: Any, *grad_inputs_and_modes: Any) -> Any:
            grad_inputs = grad_inputs_and_modes[:-1]
            if not _transforms_active():
                return cls.tangent(ctx, *grad_inputs)
            with forward_ad._set_fwd_grad_enabled(True):  # off here too, and needed by the levels below
                return cls.tangent(ctx, *grad_inputs)

        members = {
            "forward": staticmethod(forward),
            "backward": staticmethod(backward),
            "jvp": staticmethod(tangent),
            "_compiled_autograd_key": staticmethod(torch.autograd.Function._compiled_autograd_key),
        }
        function: Any = type(cls.__name__, (_SingleLevelFunction,), members)

        def kernel(*args: Any, **kwargs: Any) -> Any:
            if not _is_recorded(args):
                with below_autograd():
                    return overload(*args, **kwargs)
            # the dispatcher leaves out arguments that equal their defaults
            inputs = (*args, *defaults[len(args) :])
            if kwargs:
                given = [kwargs.get(name, default) for name, default in zip(names, keyword_defaults)]
                inputs = (*inputs[:num_positional], *given)
            if _transforms_active():
                modes = (torch.is_grad_enabled(), torch._C._is_fwd_grad_enabled())
                with enable_single_level_autograd_function():
                    return function.apply(*inputs, modes)
            return function.apply(*inputs, None)

        def apply(*inputs: Any) -> Any:
            fits = num_positional <= len(inputs) <= len(arguments)
            if not fits or is_watched(inputs):
                return call(*inputs)
            if _needs_gradients(inputs):
                return function.apply(*inputs, *defaults[len(inputs) :], None)
            return call_below_autograd(inputs)

        _library.impl(overload._schema.name.split("::")[1], kernel, "Autograd")
        cls.forward = staticmethod(call)
        cls.apply = staticmethod(apply)
        return cls

    return decorate


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
        return call(args, kwargs, decomposed)

    def apply(*args: Any, **kwargs: Any) -> Any:
        if is_watched(_flatten(args)):
            return overload(*args, **kwargs)
        return call(args, kwargs, overload)  # which looks at the arguments' types before it decomposes

    name = overload._schema.name.split("::")[1]
    _library.impl(name, kernel, "Autograd")
    _library.impl(name, decomposed, "Batched")  # torch.autograd.grad's is_grads_batched, which cannot loop over lists
    return apply
