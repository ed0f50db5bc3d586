"""What a Python object holds: the tensors, modules and containers that it can reach."""

from collections import deque
from collections.abc import Iterator
from functools import partial
from types import CellType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any
from weakref import ProxyTypes, ReferenceType

import torch
from torch import Tensor, nn

__all__ = ["reach"]

_EMPTY = (type, ModuleType, str, bytes, int, float, complex, type(None), torch.dtype, torch.device)


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        inside = [*value.keys(), *value.values()]
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        inside = list(value)
    elif isinstance(value, partial):
        inside = [value.func, value.args, value.keywords]
    elif isinstance(value, MethodType):
        inside = [value.__self__, value.__func__]
    elif isinstance(value, FunctionType):
        inside = [value.__closure__, value.__defaults__, value.__kwdefaults__]
    elif isinstance(value, GeneratorType):
        inside = [value.gi_frame.f_locals] if value.gi_frame else []
    elif isinstance(value, ReferenceType):
        inside = [value()]
    elif isinstance(value, CellType):
        try:
            inside = [value.cell_contents]
        except ValueError:  # empty
            inside = []
    else:
        slots = [name for kind in type(value).__mro__ for name in vars(kind).get("__slots__", ())]
        inside = [getattr(value, name) for name in slots if name != "__dict__" and hasattr(value, name)]
    return [*inside, getattr(value, "__dict__", None)]


def reach(value: Any) -> Iterator[Any]:
    """Each object that `value` is or holds, once, but for plain values.

    Looked through are containers, attributes and slots, partials, closures, bound methods, generators and weak
    references other than proxies, at any depth; tensors and modules are not.
    """
    seen: dict[int, Any] = {}  # with the objects, so that none goes and leaves its identity to another
    todo = [value]
    while todo:
        item = todo.pop()
        # isinstance of a weak proxy asks its object, which may be gone; type does not
        if type(item) in ProxyTypes or isinstance(item, _EMPTY) or id(item) in seen:
            continue
        seen[id(item)] = item
        yield item
        if not isinstance(item, (Tensor, nn.Module)):
            todo += _inside(item)
