"""Work that has to wait until somebody imports another module, and costs nothing if nobody does."""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

__all__ = ["import_after"]


class _Watch(MetaPathFinder):
    """Leaves the finding to others, and the loading too, but for what follows it."""

    def __init__(self, awaited: str, follower: str) -> None:
        self.awaited = awaited
        self.follower = follower

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.awaited:
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
                importlib.import_module(self.follower)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def import_after(awaited: str, follower: str) -> None:
    """Imports the module `follower` as soon as `awaited` has been imported, which may be now."""
    if awaited in sys.modules:
        importlib.import_module(follower)
    else:
        sys.meta_path.insert(0, _Watch(awaited, follower))
