"""How PyTorch sees the ops of torch.ops.illia_ext.

In reading order: `fake` (shapes and batching), `autograd` (first derivatives), `second_order`, `formulas` (of both),
`foreach` (many tensors), `dispatch` (how derivatives get onto an op), `autocast`, `dtensor`.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

__all__: list[str] = []  # importing it has `dtensor` registered in time

AWAITED, FOLLOWER = "torch.distributed.tensor", "illia_ext._ops.dtensor"


class _ImportAfter(MetaPathFinder):
    """Imports FOLLOWER as soon as AWAITED is imported, which takes half a second that few need.

    Leaves the finding to others, and the loading too, but for what follows it.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != AWAITED:
            return None
        sys.meta_path.remove(self)
        try:
            spec = find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)  # because whoever looks for it need not load it
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                sys.meta_path.remove(self)
                importlib.import_module(FOLLOWER)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if AWAITED in sys.modules:
    importlib.import_module(FOLLOWER)
else:
    sys.meta_path.insert(0, _ImportAfter())
