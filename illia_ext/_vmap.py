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

from illia_ext._contents import reach
from illia_ext._outputs import PLAIN_VALUES

__all__ = ["at_once"]

_HOOKS = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
_is_batched = torch._C._functorch.is_batchedtensor


def _error(where: str, what: str) -> RuntimeError:
    return RuntimeError(f"{where}: {what}; chunk_size=1 runs one sample after the other")


def _check(module: nn.Module) -> None:
    """Refuses what is known in advance."""
    if is_compiling():
        raise _error("module", "several samples at once cannot be compiled")
    if any(getattr(global_hooks, f"_global_{kind}") for kind in _HOOKS):
        raise _error("module", "hooks for all modules are set, which vmap would call once for all samples, or never")
    for path, part in module.named_modules():
        where = f"module.{path}".rstrip(".")
        if any(getattr(part, f"_{kind}") for kind in _HOOKS):
            raise _error(where, "has hooks, which vmap would call once for all samples, or never")
        if part.training and part._buffers.get("running_mean") is not None:
            raise _error(where, f"{type(part).__name__} in training updates statistics, which vmap cannot")
        if part._compiled_call_impl is not None:
            raise _error(where, "is compiled, and vmap cannot call it")
        if isinstance(part, nn.RNNBase):
            raise _error(where, f"{type(part).__name__} cannot run under vmap")


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
    rows = input.reshape(-1, input.shape[-1])
    output = (weight @ rows.mT).mT.contiguous() if len(rows) < len(weight) else rows @ weight.mT
    output = output.reshape(*input.shape[:-1], len(weight))
    return output if bias is None else output + bias.to(output.dtype)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """By the formula, because the fused kernels would run one sample after the other, in torch's slowest way."""
    return torch.ops.aten._scaled_dot_product_attention_math(query, key, value, attn_mask, *args, **kwargs)[0]


class _Mode(TorchFunctionMode):
    """Answers in the way of single calls what vmap hides, and takes the ways that are fast under vmap."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            return _linear(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func in (torch.embedding, torch.embedding_bag) and _is_batched(args[0]):
            sparse = 4 if func is torch.embedding else 5  # the place of that argument: mu's gradient is dense
            return func(*args[:sparse], False, *args[sparse + 1 :])
        if isinstance(func, FunctionType) and func.__module__ == F.__name__:
            with self:
                return _without_modes(func)(*args, **kwargs)
        if getattr(func, "__name__", "") == "__get__" and _is_batched(args[0]):
            attribute = getattr(func.__self__, "__name__", "")
            if attribute == "requires_grad":
                return torch._C._functorch.get_unwrapped(args[0]).requires_grad
            if attribute in ("grad_fn", "is_leaf"):
                raise _error("module", f"reads {attribute} of a tensor, which vmap hides")
        return func(*args, **kwargs)


class _State:
    """What a module holds, and the tensors of a call: to be found as they were."""

    def __init__(self, module: nn.Module, inputs: Any) -> None:
        self.module = module
        self.buffers = [dict(part._buffers) for part in module.modules()]
        tables = [table for part in module.modules() for table in (vars(part), part._parameters, part._buffers)]
        self.containers: list[tuple[Any, Any]] = [(table, dict(table)) for table in tables]
        self.tensors: list[tuple[str, Tensor, int, Tensor | None]] = []
        for where, value in self._places():
            for item in reach(value):
                if isinstance(item, (dict, list, set, deque)):
                    self.containers.append((item, item.copy()))
                elif isinstance(item, Tensor):
                    content = None if isinstance(item, nn.Parameter) else item.detach().clone()
                    self.tensors.append((where, item, _version(item), content))
        self.tensors += [("input", item, _version(item), None) for item in reach(inputs) if isinstance(item, Tensor)]

    def _places(self) -> Iterator[tuple[str, Any]]:
        for path, part in self.module.named_modules():
            own = {name: value for name, value in vars(part).items() if name not in ("_parameters", "_buffers")}
            for name, value in {**own, **dict(part._parameters.items()), **part._buffers}.items():
                yield f"module.{path}.{name}".replace("..", "."), value

    def check(self, inputs: Any) -> None:
        for where, value in [*self._places(), ("input", inputs)]:
            if any(isinstance(item, Tensor) and _is_batched(item) for item in reach(value)):
                raise _error(where, "keeps a tensor of the call, which under vmap is none of a single sample")
        for where, tensor, version, _ in self.tensors:
            if _version(tensor) != version:
                raise _error(where, "is changed in place, under vmap once in place of once a sample")
        for (path, part), before in zip(self.module.named_modules(), self.buffers):
            for name, buffer in before.items():
                if part._buffers.get(name) is not buffer:
                    where = f"module.{path}.{name}".replace("..", ".")
                    raise _error(where, "is set, under vmap once in place of once a sample")

    def restore(self) -> None:
        for container, items in self.containers:
            container.clear()
            (container.update if isinstance(container, (dict, set)) else container.extend)(items)
        for _, tensor, version, content in self.tensors:
            if content is not None and _version(tensor) != version:
                tensor.detach().copy_(content)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


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

    state = _State(module, inputs)
    try:
        with _Mode():
            tensors = iter(torch.vmap(tensors_of, randomness="different")(samples))
        state.check(inputs)
    except BaseException as error:
        state.restore()
        if type(error) is RuntimeError and "chunk_size" not in str(error):  # an operation without a batching rule, ...
            raise _error("module", f"fails under vmap: {error}") from error
        raise
    spec, values = rest
    return tree_unflatten([next(tensors) if value is None else value[0] for value in values], spec)
