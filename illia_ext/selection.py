"""Which parameters of a module become Gaussians, their priors, and what they start at."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from illia_ext import distributions
from illia_ext.functional import DTYPES, check_finite

__all__ = ["Initial", "Select", "initial_rho", "make_prior", "relative_rho", "reset", "selected_names"]

Initial = float | Tensor | Callable[[str, Tensor], float | Tensor]
Select = Callable[[str, nn.Parameter], bool] | Iterable[str] | None


def _takes(select: Select, known: set[str]) -> Callable[[str, nn.Parameter], bool]:
    if select is None:
        return lambda name, parameter: True
    if callable(select):
        return select
    if isinstance(select, str) or not isinstance(select, Iterable):
        raise TypeError(f"select: expected a function (name, parameter) or names, got {select!r}")
    names = list(select)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"select: expected names of parameters, got {name!r}")
        if name not in known:
            raise ValueError(f"select: expected names of parameters of module, got {name!r}")
        if names.count(name) > 1:
            raise ValueError(f"select: expected each name once, got {name!r} {names.count(name)} times")
    return lambda name, parameter: name in names


def _drawn_elsewhere(module: nn.Module, own_draws: tuple[type, ...]) -> dict[int, str]:
    """The modules that draw weights by themselves, by the identity of their parameters."""
    owners = {}
    for name, part in module.named_modules(remove_duplicate=False):
        # illia's own distributions are known by what they hold
        if isinstance(part, own_draws) or {"mu", "rho"} <= part._parameters.keys():
            where = f"{type(part).__name__} {name!r}" if name else type(part).__name__
            owners.update({id(parameter): where for parameter in part.parameters()})
    return owners


def _warn_of_other_places(module: nn.Module, names: Mapping[int, str]) -> None:
    """Where a module keeps a parameter beside its place as such, no sample comes."""
    for path, part in module.named_modules():
        for attribute, value in vars(part).items():
            if attribute in ("_parameters", "_flat_weights"):  # the latter follows the former: torch.nn.RNNBase
                continue
            for leaf in tree_leaves(value):
                if id(leaf) in names:
                    place = f"{path}.{attribute}".lstrip(".")
                    message = f"{place} holds it too; a forward pass that reads it there gets mu, not the sample"
                    warnings.warn(f"{names[id(leaf)]}: {message}", stacklevel=4)


def _check_parameter(name: str, parameter: nn.Parameter, owner: str | None, first: tuple[str, nn.Parameter]) -> None:
    if owner is not None:
        raise ValueError(f"{name}: {owner} draws it by itself; leave it out by select")
    if is_lazy(parameter):
        raise ValueError(f"{name}: expected a shape, got an uninitialized parameter; run the module on a batch first")
    if parameter.dtype not in DTYPES:
        message = f"expected float32, float64, float16 or bfloat16, got {parameter.dtype}"
        raise TypeError(f"{name}: {message}; leave it out by select")
    if hasattr(parameter, "device_mesh"):
        raise ValueError(f"{name}: expected a plain tensor, got a DTensor; shard the BayesianModule instead")
    for what in ("dtype", "device"):
        ours, expected = getattr(parameter, what), getattr(first[1], what)
        if ours != expected:
            message = f"expected the {what} of {first[0]}, {expected}, got {ours}"
            raise ValueError(f"{name}: {message}; leave one of them out by select")


def selected_names(module: nn.Module, select: Select, own_draws: tuple[type, ...]) -> dict[str, list[str]]:
    """All names of each selected parameter, by the first of them; a tied weight has several.

    Args:
        select: as of BayesianModule. A tied weight is taken if any of its names is.
        own_draws: classes whose parameters cannot be selected, because they draw by themselves.

    Raises:
        TypeError, ValueError: as BayesianModule says.
    """
    aliases: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
    takes = _takes(select, {name for names in aliases.values() for name in names})
    taken = [
        (name, parameter)
        for name, parameter in module.named_parameters()
        if any(takes(alias, parameter) for alias in aliases[id(parameter)])
    ]
    if not taken:
        there = [name for name, _ in module.named_parameters()]
        raise ValueError(f"select: expected at least one parameter, got none of {there} of {type(module).__name__}")
    _warn_of_other_places(module, {id(parameter): name for name, parameter in taken})
    owners = _drawn_elsewhere(module, own_draws)
    for name, parameter in taken:
        _check_parameter(name, parameter, owners.get(id(parameter)), taken[0])
    return {name: aliases[id(parameter)] for name, parameter in taken}


def reset(module: nn.Module, names: Sequence[str]) -> None:
    """New initial values for the submodules that hold these parameters; inner ones first, as outer ones may adjust."""
    owners = {name.rpartition(".")[0]: name for name in names}
    for path, part in reversed(list(module.named_modules())):
        if path in owners:
            # attention's is private
            draw = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
            if draw is None:
                message = f"{type(part).__name__} {path!r}, which holds {owners[path]}, has no reset_parameters"
                raise ValueError(f"fresh: {message}; leave it out by select")
            draw()


def make_prior(argument: str, value: Any, mus: Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
    """One prior for all weights, or one for each; a number as a tensor, which moves with the module."""

    def of(value: Any, name: str, mu: Tensor, shape: torch.Size) -> Tensor:
        try:
            return distributions.make_prior(argument, value, shape, mu.dtype, mu.device)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{error}, for {name}") from None

    if callable(value):
        return {name: of(value(name, mu.detach()), name, mu, mu.shape) for name, mu in mus.items()}
    return of(value, "all weights", next(iter(mus.values())), torch.Size())


def initial_rho(name: str, parameter: Tensor, rho_init: Initial) -> Tensor:
    """[*shape] of the parameter."""
    value: Any = rho_init(name, parameter) if callable(rho_init) else rho_init
    if not isinstance(value, Tensor):
        if abs(check_finite(f"rho_init of {name}", value)) > torch.finfo(parameter.dtype).max:
            raise ValueError(f"rho_init of {name}: expected a number in the range of {parameter.dtype}, got {value}")
        return torch.full_like(parameter, value)
    try:
        rho = torch.empty_like(parameter).copy_(value.detach())
    except RuntimeError:
        message = f"expected a shape that broadcasts to {list(parameter.shape)}, got {list(value.shape)}"
        raise ValueError(f"rho_init of {name}: {message}") from None
    if not rho.is_meta and not rho.isfinite().all():
        raise ValueError(f"rho_init of {name}: expected finite values, got {rho[~rho.isfinite()][0].item()}")
    return rho


def relative_rho(delta: float, smallest: float = 1e-4) -> Callable[[str, Tensor], Tensor]:
    """For `rho_init`: sigma = delta |weight| at first, but not less than `smallest`.

    Args:
        delta: positive. 0.1 lets every weight move by 10 %.
        smallest: positive; the sigma of weights at or near 0, such as new biases.

    Returns:
        A function (name, parameter) -> rho.

    Source: Krishnan, Subedar & Tickoo, "Specifying weight priors in Bayesian deep neural networks with empirical
    Bayes" (2020), MOPED; the prior's mean is the pretrained weight there: `mu_prior=lambda name, weight: weight`.
    """
    for argument, value in (("delta", delta), ("smallest", smallest)):
        if not check_finite(argument, value) > 0:
            raise ValueError(f"{argument}: expected a positive number, got {value}")

    def rho(name: str, parameter: Tensor) -> Tensor:
        # of half types in float32, where `smallest` does not vanish
        weight = parameter.detach() if parameter.dtype == torch.float64 else parameter.detach().float()
        sigma = (delta * weight.abs()).clamp(min=smallest)
        # softplus's inverse, log(exp(sigma) - 1), for a sigma near 0 and for a large one
        return sigma + torch.log(-torch.expm1(-sigma))

    return rho
