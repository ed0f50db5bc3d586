"""What a BayesianModule is apart from its Gaussians: on guard while samples stand in it, and frozen to a key or not."""

import functools
import gc
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.compiler import is_compiling
from torch.nn.parallel import DistributedDataParallel

from illia_ext._checks import check_count, check_key, check_one_key, shown
from illia_ext._module.in_place import Turns, are_taken, kept_tensors
from illia_ext.random import draw_key

__all__ = ["GuardedModule", "refuse_trainer", "with_signature"]

_OPTIONS = ("num_samples", "key", "antithetic")
_BY_POSITION = "an argument of this name that is the module's own goes by position"


@functools.cache
def with_signature(base: type, module: type) -> Any:
    """A subclass of `base` whose forward shows the arguments of that of `module`, as trainers and editors read them.

    `base` itself where that is no Python function.
    """
    plain, wrapped = inspect.getattr_static(base, "forward"), inspect.getattr_static(module, "forward", None)
    if not isinstance(wrapped, FunctionType):
        return base
    own, shown = inspect.signature(plain).parameters, inspect.signature(wrapped).parameters
    options = [own[name] for name in _OPTIONS if name not in shown]
    rest = [p for p in shown.values() if p.kind is p.VAR_KEYWORD]
    arguments = [*(p for p in shown.values() if p not in rest), *options, *rest]
    forward = FunctionType(plain.__code__, plain.__globals__, plain.__name__, plain.__defaults__, plain.__closure__)
    forward.__kwdefaults__, forward.__doc__ = plain.__kwdefaults__, plain.__doc__
    forward.__qualname__, forward.__module__ = plain.__qualname__, plain.__module__
    forward.__signature__ = inspect.Signature(arguments, return_annotation=tuple[Any, Tensor])  # type: ignore
    members = {"forward": forward, "__module__": base.__module__, "__qualname__": base.__qualname__}
    if callable(getattr(module, "generate", None)) and not hasattr(base, "generate"):
        members["generate"] = _refuse_generate
    return type(base.__name__, (base,), {**members, "_made_for": (base, module), "__doc__": base.__doc__})


def _refuse_generate(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Stands in for the wrapped module's method of that name."""
    raise RuntimeError(
        "generate: calls the module several times, all of which need one sample of the weights: write `with "
        "bnn.sampled(): bnn.module.generate(...)`, as docs/recipes/generate.md shows"
    )


def refuse_trainer(bnn: nn.Module) -> None:
    """Raises where Hugging Face's Trainer itself would take `(output, log_prob)` for the loss and the logits."""
    module: Any = sys.modules.get("transformers.trainer")
    frame: Any = inspect.currentframe() if module and not bnn._forward_hooks else None
    while frame and frame.f_globals.get("__name__", "").partition(".")[0] in ("illia_ext", "torch", "accelerate"):
        frame = frame.f_back
    if frame is None or frame.f_globals is not vars(module):
        return
    name, arguments = frame.f_code.co_name, frame.f_locals
    if name not in ("compute_loss", "prediction_step") or arguments["self"].model is not bnn:
        return  # a recomputation in backward, or a module around this one
    if name == "compute_loss":
        trainer, caller = arguments["self"], frame.f_back.f_locals
        takes_loss_alone = not arguments["return_outputs"] or caller.get("prediction_loss_only")
        is_own = type(trainer).compute_loss is not module.Trainer.compute_loss
        if is_own or (takes_loss_alone and getattr(trainer, "compute_loss_func", None)):
            return
    raise TypeError(
        f"Trainer.{name}: expected a model that gives a loss and logits, got a BayesianModule, which gives "
        "(output, log_prob); put it into a module that gives both, as docs/recipes/trainer.md shows"
    )


def _new(base: type, module: type) -> Any:
    kind = with_signature(base, module)
    return kind.__new__(kind)


class GuardedModule(nn.Module):
    """Draws by `frozen_key` while `frozen`; both are kept in the state_dict, as extra state.

    `_call` is the method in the course of which samples stand in the places of parameters; see `Turns`.
    """

    module: nn.Module
    frozen_key: Tensor

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._turns = Turns()
        self._targets: list[tuple[tuple[str, ...], list[tuple[str, int]]]] = []
        self._looked_in: set[bool] = set()
        self._knows_processes = False
        # of a fixed size, and written in place, as DDP and AveragedModel expect of buffers
        device = torch.device("cpu") if device.type == "meta" else device
        self.register_buffer("frozen_key", torch.zeros(2, dtype=torch.int64, device=device), persistent=False)
        self.frozen = False

    def _check_turn(self, what: str) -> None:
        """Before mu is read, in whose places a sample stands within a call or block, or since an interrupted one."""
        if is_compiling():
            return
        if self._turns.owners:
            self._turns.wait(what)
        if self._turns.owners:
            frame: Any = inspect.currentframe()
            while frame := frame.f_back:
                if frame.f_code is self._call.__func__.__code__ and frame.f_locals["self"] is self:  # type: ignore
                    raise RuntimeError("module: calls its own BayesianModule, while a sample stands in its weights")
            self._turns.take_away()
        with suppress(KeyError):  # a part that has gone, which others name
            if are_taken(self.module, self._targets):
                raise RuntimeError(
                    f"{what}: refused while another BayesianModule over the same weights holds a sample in them; "
                    "convert a module once, or copy it"
                )

    @contextmanager
    def mu_in_place(self, what: str) -> Iterator[None]:
        """For methods of nn.Module that read or write the parameters where they are."""
        with self._turns():
            self._check_turn(what)
            yield

    def _look_for_caches(self) -> AbstractContextManager[None]:
        """Once in training and once in evaluation: tensors that the modules with Gaussian weights keep."""
        return nullcontext() if self.module.training in self._looked_in else self._looking_for_caches()

    @contextmanager
    def _looking_for_caches(self) -> Iterator[None]:
        before = dict(kept_tensors(self.module, self._targets))
        yield
        self._looked_in.add(self.module.training)
        for place in {place for tensor, place in kept_tensors(self.module, self._targets) if tensor not in before}:
            warnings.warn(
                f"{place}: the module keeps a tensor of this call. If it is made of a weight and used again, later "
                "samples and mean_forward get this sample's: clear it before each call",
                stacklevel=2,
            )

    def _check_processes(self, rho: Tensor) -> None:
        """A block belongs where parameters are whole and gradients are reduced: warns once."""
        if hasattr(rho, "device_mesh"):
            raise RuntimeError(
                "sampled: the parameters are sharded; open the block where FSDP2 holds them whole, in a method given "
                "to register_fsdp_forward_method"
            )
        if is_compiling() or self._knows_processes:
            return
        if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
            return
        self._knows_processes = True
        fsdp: Any = sys.modules.get("torch.distributed.fsdp")
        sharded = [each for each in gc.get_objects() if issubclass(type(each), fsdp.FSDPModule)] if fsdp else []
        if any(self in module.modules() for module in sharded) or DistributedDataParallel._get_active_ddp_module():
            return
        warnings.warn(
            "sampled: no forward pass of DistributedDataParallel is active, so gradients stay on this rank; open the "
            "block in the forward of the module that it wraps",
            stacklevel=4,
        )

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """As of every nn.Module; inside `sampled()` too, they are mu and rho."""
        mus = self._turns.originals()
        for name, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            yield name, mus.get(id(parameter), parameter)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As of every nn.Module; refused inside `sampled()`."""
        with self.mu_in_place("state_dict"):
            return super().state_dict(*args, **kwargs)

    def _take_form_of(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Before a state is copied into this module."""

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        with self.mu_in_place("load_state_dict"):
            self._take_form_of(state_dict, prefix)
            super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)
        parts = (self.named_parameters, self.named_buffers)
        own = {name for part in parts for name, _ in part(remove_duplicate=False)}
        names = [name for name, _ in self.module.named_parameters(remove_duplicate=False) if name not in own]
        if plain := [name for name in names if f"{prefix}{name}" in state_dict]:
            lists[-1].append(
                f"{prefix}{plain[0]}: a weight of the plain network; load its state_dict by bnn.module.load_state_dict"
            )

        held = [name for name in state_dict if name.startswith(f"{prefix}prior.")]
        if strict and held and not any(name.startswith("prior.") for name in own):
            lists[-1].append(f"{held[0]}: the state of a module with a prior=...; make this one with the same prior")

    def __reduce_ex__(self, protocol: Any) -> Any:
        with self.mu_in_place("deepcopy and pickle"):
            reduced = super().__reduce_ex__(protocol)
        # a class that is made for a module is made again
        return (_new, vars(type(self))["_made_for"], *reduced[2:]) if "_made_for" in vars(type(self)) else reduced

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GuardedModule":
        """The key keeps its value, which the meta device has no place for and to_empty leaves unset."""
        key = self.frozen_key
        with self.mu_in_place("to"):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.frozen_key.is_meta:
            self.frozen_key = key
        else:
            self.frozen_key.copy_(key)
        return self

    def _choose_key(self, num_samples: int | None, key: Tensor | None, rho: Tensor, antithetic: bool = False) -> Tensor:
        """[2] or [S, 2]; of antithetic samples [S / 2, 2]."""
        if not isinstance(antithetic, bool):
            raise TypeError(f"antithetic: expected True or False, got {shown(antithetic)}; {_BY_POSITION}")
        if self.frozen:
            for argument, value in (("num_samples", num_samples), ("key", key), ("antithetic", antithetic or None)):
                if value is not None:
                    raise ValueError(f"{argument}: the weights are frozen; unfreeze() them first, got {value}")
            if self.training and rho.requires_grad and torch.is_grad_enabled() and not is_compiling():
                warnings.warn(
                    "the weights are frozen, so that every training step draws the same noise; unfreeze() them",
                    stacklevel=5,  # the caller of bnn(x), unless another module calls it
                )
            return self.frozen_key.to(rho.device)  # elsewhere after load_state_dict(assign=True)
        if key is None:
            num_keys = None if num_samples is None else check_count("num_samples", num_samples, least=1)
            if antithetic:
                if num_keys is None or num_keys % 2:
                    raise ValueError(f"num_samples: expected an even number with antithetic=True, got {num_samples}")
                num_keys //= 2
            key = draw_key(num_keys, device=rho.device, mesh=getattr(rho, "device_mesh", None))
        elif num_samples is not None:
            message = f"a key says how many samples to draw, got num_samples={num_samples} too"
            raise ValueError(f"num_samples: {message}; {_BY_POSITION}")
        else:
            dims, shape = ((2,), "[k, 2] with antithetic=True") if antithetic else ((1, 2), "[2] or [num_samples, 2]")
            check_key(key, f"; {_BY_POSITION}", dims, shape)
        if key.dim() == 2 and len(key) == 0:
            raise ValueError(f"key: expected at least one, got shape {list(key.shape)}")
        return key

    def _choose_one_key(self, key: Tensor | None, rho: Tensor) -> Tensor:
        return check_one_key(self._choose_key(None, key, rho))

    def freeze(self, key: Tensor | None = None) -> None:
        """Every call gives the sample of one key from now on, until `unfreeze`; kept in the state_dict.

        Args:
            key: [2]; None draws one from torch's generator.
        """
        if key is None:
            key = draw_key(device=self.frozen_key.device)
        check_one_key(key)
        with self.mu_in_place("freeze"):
            self.frozen_key.copy_(key)
            self.frozen = True

    def unfreeze(self) -> None:
        """Every call draws again."""
        self.frozen = False

    def get_extra_state(self) -> Tensor:
        """[3], int64: whether the weights are frozen, and the key's two words; of one shape, frozen or not."""
        return torch.cat([self.frozen_key.new_full([1], self.frozen), self.frozen_key])

    def set_extra_state(self, state: Tensor) -> None:
        if not state.is_meta:  # which has no values
            if state[0] and not self.frozen:
                warnings.warn(
                    "load_state_dict: these weights were saved frozen, so that every call gives one sample; "
                    "unfreeze() them to train or to predict",
                    stacklevel=6,  # the caller of load_state_dict, if it is this module's
                )
            self.frozen_key.copy_(state[1:])
            self.frozen = bool(state[0])
