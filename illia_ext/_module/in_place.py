"""The tensors of a module by their places, and samples that stand in the places of its parameters for a while."""

import copy
import inspect
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.utils import parametrize
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils import checkpoint

from illia_ext._module.contents import reach

__all__ = [
    "FLAT_WEIGHTS",
    "Places",
    "Targets",
    "Turns",
    "Watch",
    "are_taken",
    "deep_copy",
    "kept_tensors",
    "look_up",
    "parameters_replaced",
    "places",
    "put_in_place",
    "tree",
]

Places = list[tuple[tuple[str, ...], list[str]]]


def tree(members: Mapping[str, Tensor | nn.Module], root: nn.Module | None = None) -> nn.Module:
    """A module tree that mirrors another module's parameter names: a Parameter stays one, other tensors are buffers."""
    root = nn.Module() if root is None else root
    for name, member in members.items():
        *path, leaf = name.split(".")
        owner = root
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]  # type: ignore[assignment]
        if isinstance(member, nn.Module):
            owner.add_module(leaf, member)
        elif isinstance(member, nn.Parameter):
            owner.register_parameter(leaf, member)
        else:
            owner.register_buffer(leaf, member)
    return root


def places(names: Iterable[str]) -> Places:
    """Where tensors of these names are: the path of each module on the way, and what it holds of them."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        *path, leaf = name.split(".")
        found.setdefault(tuple(path), []).append(leaf)
    return list(found.items())


def _owner(root: nn.Module, path: tuple[str, ...]) -> Any:
    owner: Any = root
    for part in path:
        owner = owner._modules[part]
    return owner


def look_up(root: nn.Module, places: Places, parametrized: bool = False) -> list[Any]:
    """The tensors that are there now; by the tables, in a tenth of the time that nn.Module's own ways take.

    Args:
        parametrized: whether a tensor may have got a parametrization (torch.nn.utils.parametrize), which computes it.

    Raises:
        KeyError: a module or a tensor has gone.
    """
    tensors = []
    for path, leaves in places:
        owner = _owner(root, path)
        parameters = owner._parameters
        for leaf in leaves:
            if leaf in parameters:
                tensors.append(parameters[leaf])
            elif leaf in owner._buffers:
                tensors.append(owner._buffers[leaf])
            elif parametrized and leaf in owner._modules.get("parametrizations", ()):
                tensors.append(getattr(owner, leaf))
            else:
                raise KeyError(leaf)
    return tensors


class _Token:
    """Something to refer to weakly."""


class Turns:
    """`with turns():` a thread is alone with a module, in which its samples may stand; a copy has turns of its own."""

    instances: ClassVar["weakref.WeakSet[Turns]"] = weakref.WeakSet()

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.ended = threading.Condition(self.lock)  # notified when a block ends
        self.owners: list[_Owner] = []  # the modules in which samples stand, put there by this thread:
        self.thread = 0
        self.block: weakref.ref[Any] | None = None  # a token that lives as long as the block whose samples they are
        Turns.instances.add(self)

    @classmethod
    def of(cls, module: nn.Module) -> "Turns":
        """Those of a module that is not copied, which several BayesianModules may hold."""
        return _shared.setdefault(module, cls())

    @property
    def is_block(self) -> bool:
        return self.block is not None and self.block() is not None

    def begin_block(self) -> object:
        """Returns a token for the block to hold; should it end without its end, by an interruption, so does that."""
        token = _Token()
        self.thread, self.block = threading.get_ident(), weakref.ref(token)
        return token

    def __call__(self) -> AbstractContextManager[Any]:
        return nullcontext() if is_compiling() else self.lock  # a compiled program moves no parameter

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def wait(self, what: str) -> None:
        """With the lock held: until the block of another thread ends. In a block of this thread `what` is refused.

        It is also refused in a backward pass, where autograd computes a call again: the block may wait for that pass.
        """
        while self.is_block:
            if self.thread == threading.get_ident() or torch._C._current_graph_task_id() != -1:
                raise RuntimeError(
                    f"{what}: refused while `sampled()` holds a sample in bnn.module; use bnn.module there, or end the "
                    "block first"
                )
            self.ended.wait(timeout=0.1)

    def end_block(self) -> None:
        """By any thread: a generator may go on in another one."""
        with self.lock:
            try:
                self.take_away()
            finally:
                self.block = None
                self.ended.notify_all()

    def originals(self) -> dict[int, Any]:
        """In a block, by the identity of each sample, the parameter in whose place it stands."""
        if is_compiling() or not self.is_block:
            return {}
        standing = [
            (owner.module._parameters, leaf, mu) for owner in self.owners for leaf, mu in owner.originals.items()
        ]
        return {id(dict.__getitem__(table, leaf)): mu for table, leaf, mu in standing}

    def take_away(self) -> None:
        """Gives the parameters their places back, also when it is interrupted."""
        try:
            while self.owners:
                self.owners[-1].take_away()
                self.owners.pop()
        except BaseException:
            self.take_away()
            raise


_shared: "weakref.WeakKeyDictionary[nn.Module, Turns]" = weakref.WeakKeyDictionary()


def _after_fork() -> None:
    """A child has no thread that would end its turn: it ends here, and the samples that it has put in place go."""
    for turns in list(Turns.instances):
        if turns.thread != threading.get_ident():
            turns.take_away()
            turns.block = None
        if turns.lock.acquire(blocking=False):  # free, or of the thread that forks
            turns.lock.release()
        else:
            turns.lock = threading.RLock()
            turns.ended = threading.Condition(turns.lock)


os.register_at_fork(after_in_child=_after_fork)


class Watch:
    """Notices checkpointed parts that read a sample. Backward computes these again, when mu may stand there instead.

    After a call that is so, and the part is refused. In a block backward may come first: `owed` names what it left.
    """

    def __init__(self, is_block: bool = False) -> None:
        self.is_block = is_block
        self._parts: dict[int, tuple[weakref.ref[Any], str]] = {}
        self.is_recorded = torch.is_grad_enabled()
        self.outer_hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
        self.outer_nodes = [] if torch._C._is_fwd_grad_enabled() else _function_nodes()

    def look(self, path: tuple[str, ...], leaf: str) -> None:
        """The weight `leaf` of the module at `path` is read."""
        part = self._checkpoint()
        if part is None:
            return
        name = ".".join(["module", *path, leaf])
        if self.is_block:
            self._parts[id(part)] = weakref.ref(part), name
            return
        raise RuntimeError(
            f"{name}: a checkpointed part reads this Gaussian weight, and backward would compute the part again with "
            "mu in place of the sample. Differentiate it inside `with bnn.sampled():`, or switch the module's own "
            "checkpoints off and checkpoint the call of the BayesianModule (use_reentrant=False), or leave the weights "
            "of that part out by select. If it is no checkpoint but an autograd.Function that reads the weight in its "
            "forward, pass it the weight as an argument"
        )

    def _checkpoint(self) -> Any:
        """What stands for the checkpointed part that is being computed for the first time; None outside of one."""
        if not self.is_recorded or is_compiling():  # Dynamo looks here, also where it calls this while it traces
            return None
        # use_reentrant=True is an autograd.Function, whose forward switches forward mode off, whatever the grad mode
        if not torch._C._is_fwd_grad_enabled() and not torch.is_inference_mode_enabled():
            nodes = [node for node in _function_nodes() if not any(node is outer for outer in self.outer_nodes)]
            if nodes or not self.outer_nodes:
                return nodes[-1] if nodes else self  # a Function with setup_context shows no node
        # use_reentrant=False works by hooks on saved tensors, under which others may lie
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
        if hooks is None or hooks == self.outer_hooks:
            return None
        if hooks[0].__module__ == checkpoint.__name__:
            held = [cell.cell_contents for cell in hooks[0].__closure__ or ()]
            return next((value for value in held if isinstance(value, checkpoint._CheckpointFrame)), None)
        torch._C._autograd._pop_saved_tensors_default_hooks()
        try:
            return self._checkpoint()
        finally:
            torch._C._autograd._push_saved_tensors_default_hooks(*hooks)

    def owed(self) -> str:
        """A weight that a part has read which backward may still compute again; empty if there is none.

        A part of use_reentrant=False goes with the tensors of its graph; the node of the other kind only frees them,
        and has none without gradients.
        """
        for reference, name in self._parts.values():
            part = reference()
            if isinstance(part, _Node):
                try:
                    has_tensors = bool(part._raw_saved_tensors)
                except RuntimeError:  # freed
                    continue
                if not has_tensors and isinstance(part, checkpoint.CheckpointFunction._backward_cls):
                    continue
            if part is not None:
                return name
        return ""


_Node = torch.autograd.function.BackwardCFunction


def _function_nodes() -> list[Any]:
    """Those of the autograd.Functions whose forward this thread is in, the innermost first."""
    nodes = []
    frame: Any = inspect.currentframe()
    while frame := frame.f_back:
        if frame.f_code.co_name == "forward" and frame.f_code.co_argcount:
            first = frame.f_locals.get(frame.f_code.co_varnames[0])
            if isinstance(first, _Node):
                nodes.append(first)
    return nodes


class Standing(dict[str, Any]):
    """A module's parameters while samples stand among them; a plain dict in copies."""

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class _Parameters(Standing):
    """Of the module at `path`, where each read is looked at."""

    def __init__(
        self, parameters: Mapping[str, Any], samples: Mapping[str, Tensor], path: tuple[str, ...], watch: Watch
    ) -> None:
        super().__init__({**parameters, **samples})
        self._samples, self._path, self._watch = samples, path, watch

    def _look(self) -> None:
        self._watch.look(self._path, next(iter(self._samples)))

    def __getitem__(self, leaf: str) -> Any:
        if leaf in self._samples:
            self._watch.look(self._path, leaf)
        return dict.__getitem__(self, leaf)

    def get(self, leaf: str, default: Any = None) -> Any:
        return self[leaf] if leaf in self else default  # noqa: SIM401

    def items(self) -> Any:
        self._look()
        return super().items()

    def values(self) -> Any:
        self._look()
        return super().values()

    def copy(self) -> dict[str, Any]:
        self._look()
        return dict(self)


FLAT_WEIGHTS = ("_flat_weights", "_flat_weight_refs")  # nn.RNNBase's own list of its parameters
Targets = Sequence[tuple[tuple[str, ...], Sequence[tuple[str, int]]]]


class _Owner:
    """A module some of whose parameters make place for samples. Each step may be repeated, or undone half way."""

    def __init__(self, root: nn.Module, path: tuple[str, ...], leaves: Sequence[tuple[str, int]]) -> None:
        self.module, self.path, self.leaves = _owner(root, path), path, leaves
        self.parameters = self.module._parameters
        self.originals = {leaf: self.parameters[leaf] for leaf, _ in leaves}
        self.kept = {name: vars(self.module)[name] for name in FLAT_WEIGHTS if name in vars(self.module)}
        self.scripted = None  # the module that Python calls, where this one's parameters are TorchScript's, in C++
        if isinstance(self.module, torch.jit.ScriptModule):
            along = [_owner(root, path[:length]) for length in range(len(path) + 1)]
            self.scripted = next(part for part in along if isinstance(part, torch.jit.ScriptModule))

    def put(self, samples: Sequence[Tensor], watch: Watch) -> None:
        here = {leaf: samples[i] for leaf, i in self.leaves}
        if self.scripted is None:
            parameters = self.parameters
            if watch.is_recorded:
                vars(self.module)["_parameters"] = _Parameters(parameters, here, self.path, watch)
            else:
                vars(self.module)["_parameters"] = Standing({**parameters, **here})
            return
        leaf = self.leaves[0][0]
        self.scripted._forward_pre_hooks[id(self)] = lambda *_: watch.look(self.path, leaf)
        for leaf, sample in here.items():
            self.parameters[leaf] = sample

    def take_away(self) -> None:
        if self.scripted is None:
            now, vars(self.module)["_parameters"] = self.module._parameters, self.parameters
            for name in self.parameters.keys() - now.keys():  # what the module has deleted by itself, and set:
                del self.parameters[name]
            self.parameters.update(dict.items(now))
        else:
            self.scripted._forward_pre_hooks.pop(id(self), None)
        for leaf, original in self.originals.items():
            self.parameters[leaf] = original
        vars(self.module).update(self.kept)


def put_in_place(turns: Turns, root: nn.Module, targets: Targets, samples: Sequence[Tensor], watch: Watch) -> None:
    """samples[i] for each parameter (leaf, i) of the module at each path, until turns.take_away()."""
    if parametrize._cache_enabled and any(map(parametrize.is_parametrized, root.modules())):
        raise RuntimeError("module: torch.nn.utils.parametrize.cached() would keep what the first sample gives")
    turns.owners, turns.thread = [_Owner(root, path, leaves) for path, leaves in targets], threading.get_ident()
    for owner in turns.owners:
        owner.put(samples, watch)


def are_taken(root: nn.Module, targets: Targets) -> bool:
    """Whether samples stand in any of these places."""
    return any(isinstance(_owner(root, path)._parameters, Standing) for path, _ in targets)


def kept_tensors(root: nn.Module, targets: Targets) -> Iterator[tuple[Tensor, str]]:
    """Tensors in attributes and buffers that may be made of Gaussian weights, and where they are.

    Of the modules that have such weights all tensors, of others those that require a gradient.
    """
    owners = {path for path, _ in targets}
    for path, part in root.named_modules():
        own = {name: value for name, value in vars(part).items() if name not in ("_parameters", "_buffers", "_modules")}
        is_owner = (tuple(path.split(".")) if path else ()) in owners
        for name, value in {**own, **part._buffers}.items():
            if name not in FLAT_WEIGHTS:
                tensors = [
                    item for item in reach(value) if isinstance(item, Tensor) and (is_owner or item.requires_grad)
                ]
                yield from ((tensor, f"module.{path}.{name}".replace("..", ".")) for tensor in tensors)


@contextmanager
def parameters_replaced(root: nn.Module, targets: Targets, samples: Sequence[Tensor]) -> Iterator[None]:
    """As put_in_place, for a compiled program, which knows no threads, forks and checkpoints."""
    tensors = {".".join([*path, leaf]): samples[i] for path, leaves in targets for leaf, i in leaves}
    with _reparametrize_module(root, tensors):  # as torch.func.functional_call does
        yield


def deep_copy(module: nn.Module) -> nn.Module:
    """A copy whose parameters can be trained: torch's copy of a scripted part has none."""
    held = [item for part in module.modules() for value in vars(part).values() for item in reach(value)]
    # torch copies no tensor with a graph, such as an attention map that a layer keeps
    memo = {id(item): item.detach().clone() for item in held if isinstance(item, Tensor) and item.grad_fn is not None}
    with torch.no_grad():
        other = copy.deepcopy(module, memo)
    for part, original in zip(other.modules(), module.modules()):
        if isinstance(part, torch.jit.ScriptModule):
            parameters: Any = part._parameters
            for name, parameter in original._parameters.items():
                parameters[name] = nn.Parameter(parameters[name].detach(), parameter.requires_grad)  # type: ignore
    return other
