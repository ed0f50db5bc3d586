"""Several samples of the weights at once, by torch.vmap; what it would do in another way than single calls is refused.

`BayesianModule(chunk_size=...)` asks for it. It pays for small layers on a GPU, whose launches it saves.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn import functional as F
from torch.nn.modules import module as global_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from illia_ext._module.contents import reach
from illia_ext._module.outputs import PLAIN_VALUES

__all__ = ["at_once"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)
_is_batched = torch._C._functorch.is_batchedtensor


def _error(where: str, what: str) -> RuntimeError:
    return RuntimeError(f"{where}: {what}; chunk_size=1 runs one sample after the other")


def _check(module: nn.Module) -> None:
    """Refuses what is known in advance."""
    if is_compiling():
        raise _error("module", "several samples at once cannot be compiled")
    if any(getattr(global_hooks, kind) for kind in _GLOBAL_HOOKS):
        raise _error("module", "hooks for all modules are set, which vmap would call once for all samples, or never")
    for path, part in module.named_modules():
        where = f"module.{path}".rstrip(".")
        if isinstance(part, (nn.RNNBase, torch.jit.ScriptModule)):
            raise _error(where, f"{type(part).__name__} cannot run under vmap")
        if any(getattr(part, kind) for kind in _HOOKS):
            raise _error(where, "has hooks, which vmap would call once for all samples, or never")
        if part.training and part._buffers.get("running_mean") is not None:
            raise _error(where, f"{type(part).__name__} in training updates statistics, which vmap cannot")
        if part._compiled_call_impl is not None:
            raise _error(where, "is compiled, and vmap cannot call it")


@cache
def _without_modes(function: Any) -> Any:
    """A function of torch.nn.functional that does not hand its call to a mode, so that the mode sees what it calls."""
    never = {f"has_torch_function{kind}": lambda *_: False for kind in ("", "_unary", "_variadic")}
    copy = FunctionType(
        function.__code__, {**function.__globals__, **never}, None, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear by one product of matrices a sample: of more dimensions, vmap would copy the weight for each of them.

    As (W x^T)^T where the weight is larger than the output. The gradient of each weight then comes in the weight's own
    layout; otherwise it comes transposed, and a copy of it costs more than the product.
    """
    if weight.dim() < 2:
        return F.linear(input, weight, bias)
    rows = input.flatten(0, -2) if input.dim() > 1 else input[None]
    output = (weight @ rows.mT).mT.contiguous() if len(rows) < len(weight) else rows @ weight.mT
    output = output.reshape(*input.shape[:-1], len(weight))
    return output if bias is None else output + bias.to(output.dtype)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """By the formula, because the fused kernels would run one sample after the other, in torch's slowest way."""
    math = torch.ops.aten._scaled_dot_product_attention_math
    output: Tensor = math(query, key, value, attn_mask, *args, **kwargs)[0]
    return output


class _VmapMode(TorchFunctionMode):
    """Answers in the way of single calls what vmap hides, and takes the ways that are fast under vmap."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            return _linear(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func in (torch.embedding, torch.embedding_bag) and _is_batched(args[0]):
            place = 4 if func is torch.embedding else 5  # of the argument `sparse`: mu's gradient is dense
            args = tuple(False if i == place else argument for i, argument in enumerate(args))
            return func(*args, **{name: value for name, value in kwargs.items() if name != "sparse"})
        # closures are torch's choices between two functions, as of max_pool2d, which hand no call to a mode
        if isinstance(func, FunctionType) and func.__module__ == F.__name__ and func.__closure__ is None:
            with self:
                return _without_modes(func)(*args, **kwargs)
        if getattr(func, "__name__", "") == "__get__" and _is_batched(args[0]):
            attribute = getattr(func.__self__, "__name__", "")
            if attribute == "requires_grad":
                return torch._C._functorch.get_unwrapped(args[0]).requires_grad
            if attribute in ("grad_fn", "is_leaf"):
                raise _error("module", f"reads {attribute} of a tensor, which vmap hides")
        return func(*args, **kwargs)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _entries(container: Any) -> dict[Any, Any]:
    if isinstance(container, dict):
        return container
    return {id(item): item for item in container} if isinstance(container, set) else dict(enumerate(container))


def _changes(now: Any, before: Any) -> dict[Any, Any]:
    """The entries of a container that it had not before, or not so; None for one that is gone.

    Numbers and strings are left out: a module may count its calls.
    """
    now, before = _entries(now), _entries(before)

    def is_same(a: Any, b: Any) -> bool:
        return a is b or (isinstance(a, PLAIN_VALUES) and isinstance(b, PLAIN_VALUES))

    return {name: now.get(name) for name in now.keys() | before.keys() if not is_same(now.get(name), before.get(name))}


def _differs(tensor: Tensor, before: Tensor) -> Tensor:
    """Whether any value has changed, NaN being no change of NaN."""
    return ((tensor != before) & ~((tensor != tensor) & (before != before))).any()


class _Snapshot:
    """What a module holds, and the tensors of a call, to be found as they were."""

    def __init__(self, module: nn.Module, inputs: Any) -> None:
        self.containers: list[tuple[str, Any, Any]] = []
        self.tensors: list[tuple[str, Tensor, int]] = []
        self.contents: list[tuple[str, Tensor, Tensor]] = []
        for where, value in [*self._values(module), ("input", inputs)]:
            for item in reach(value):
                if isinstance(item, (dict, list, set, deque)):
                    self.containers.append((where, item, item.copy()))
                elif isinstance(item, Tensor):
                    self.tensors.append((where, item, _version(item)))
                    # parameters may be large, and inputs are the caller's
                    if where != "input" and not isinstance(item, nn.Parameter) and not item.is_meta:
                        self.contents.append((where, item.detach(), item.detach().clone()))
        self.batched = {id(tensor) for _, tensor, _ in self.tensors if _is_batched(tensor)}  # by the caller's own vmap

    def _values(self, module: nn.Module) -> Iterator[tuple[str, Any]]:
        for path, part in module.named_modules():
            where = f"module.{path}".rstrip(".")
            tables = (vars(part), part._parameters, part._buffers)
            self.containers += [(where, table, table.copy()) for table in tables]
            values = {name: value for table in tables for name, value in table.items()}
            for name in values.keys() - {"_parameters", "_buffers", "_modules"}:
                yield f"{where}.{name}", values[name]

    def check(self) -> None:
        for where, container, before in self.containers:
            for name, value in _changes(container, before).items():
                at = f"{where}.{name}" if isinstance(name, str) else where
                for item in reach(value):
                    if isinstance(item, Tensor) and _is_batched(item) and id(item) not in self.batched:
                        raise _error(at, "keeps a tensor of the call, which under vmap belongs to no single sample")
                raise _error(at, "is set, under vmap once instead of once per sample")
        changed = [where for where, tensor, version in self.tensors if _version(tensor) != version]
        if not changed and self.contents:
            flags = [_differs(tensor, before) for _, tensor, before in self.contents]
            if torch.stack([flag.to(flags[0].device) for flag in flags]).any():  # a GPU waits once
                changed = [where for (where, _, _), flag in zip(self.contents, flags) if flag]
        if changed:
            raise _error(changed[0], "is changed in place, under vmap once instead of once per sample")

    def restore(self) -> None:
        for _, container, before in self.containers:
            container.clear()
            (container.update if isinstance(container, (dict, set)) else container.extend)(before)
        for _, tensor, before in self.contents:
            if _differs(tensor, before):
                tensor.copy_(before)


def at_once(call: Callable[[Sequence[Tensor]], Any], samples: Sequence[Tensor], module: nn.Module, inputs: Any) -> Any:
    """What call(weights) gives for each of S samples of all weights, by one call.

    Args:
        samples: for each weight, [S, *shape]; S >= 1.
        module, inputs: the module that `call` runs, and what it is given.

    Returns:
        The output, its tensors with a dimension [S] in front.

    Raises:
        RuntimeError: what vmap cannot do, or would do differently; the module is then as it was.
        TypeError: an output that holds another thing than tensors and plain values.
    """
    _check(module)
    rest: list[Any] = []

    def tensors_of(weights: Sequence[Tensor]) -> list[Tensor]:
        leaves, spec = tree_flatten(call(weights))
        for leaf in leaves:
            if not isinstance(leaf, (Tensor, *PLAIN_VALUES)):
                message = f"under vmap expected tensors, in containers that torch.utils._pytree knows, got {type(leaf)}"
                raise TypeError(f"output: {message}; chunk_size=1 runs one sample after the other")
        rest.extend([spec, [None if isinstance(leaf, Tensor) else [leaf] for leaf in leaves]])
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    snapshot = _Snapshot(module, inputs)
    try:
        with _VmapMode():
            tensors = iter(torch.vmap(tensors_of, randomness="different")(samples))
        snapshot.check()
    except BaseException as error:
        snapshot.restore()
        if type(error) is RuntimeError and "chunk_size" not in str(error):  # an operation without a batching rule, ...
            raise _error("module", f"fails under vmap: {error}") from error
        raise
    spec, values = rest
    return tree_unflatten([next(tensors) if value is None else value[0] for value in values], spec)
