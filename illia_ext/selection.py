"""Which parameters of a module become Gaussians, their priors, and what they start at."""

import inspect
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice, pairwise
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.parameter import is_lazy

from illia_ext import distributions
from illia_ext._checks import check_dtype, check_finite, check_positive, shown
from illia_ext._module.contents import reach
from illia_ext._module.in_place import FLAT_WEIGHTS, Targets, tree
from illia_ext._module.prior import EachPrior, as_prior, fixed_gaussian
from illia_ext._ops.dispatch import dense, is_plain

__all__ = [
    "Initial",
    "Rows",
    "Select",
    "initial_rho",
    "leave_out",
    "make_distributions",
    "make_prior",
    "mean_of_norms",
    "padding_rows",
    "put_back",
    "relative_rho",
    "reset",
    "selected_names",
    "shard_like",
]

Initial = float | Tensor | Callable[[str, Tensor], float | Tensor]
Select = Callable[[str, nn.Parameter], bool] | Iterable[str] | None
Rows = dict[int, Tensor]


def _is_function(argument: str, value: Any) -> bool:
    """Whether `value` is to be called; it must take (name, parameter)."""
    if not callable(value) or isinstance(value, nn.Module):
        return False
    try:
        inspect.signature(value).bind("", None)
    except TypeError:
        raise TypeError(f"{argument}: expected a function (name, parameter), got {shown(value)}") from None
    except ValueError:  # a built-in that does not tell
        pass
    return True


def _takes(select: Select, known: set[str]) -> Callable[[str, nn.Parameter], bool]:
    if select is None:
        return lambda name, parameter: parameter.requires_grad
    if _is_function("select", select):
        return select  # type: ignore[return-value]
    if isinstance(select, str) or not isinstance(select, Iterable):
        raise TypeError(f"select: expected a function (name, parameter) or names, got {select!r}")
    names = list(select)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"select: expected names of parameters, got {name!r}")
        if name not in known:
            near = get_close_matches(name, known, 5) or sorted(known)[:5]
            raise ValueError(
                f"select: expected names of parameters of module, got {name!r}; of its {len(known)} some are {near}"
            )
        if names.count(name) > 1:
            raise ValueError(f"select: expected each name once, got {name!r} {names.count(name)} times")
    return lambda name, parameter: name in names


def _means_and_spreads(part: nn.Module) -> list[str]:
    """Names of its parameters that look like the mean of a weight and its spread, as of other libraries' layers.

    illia and blitz call them mu and rho, torchbnn weight_mu and weight_log_sigma, bayesian-torch mu_weight and
    rho_weight, torch-uncertainty weight_mu and weight_sigma.
    """
    parameters = dict(part._parameters.items())
    pairs: set[str] = set()
    for name, mu in parameters.items():
        words = name.split("_")
        if mu is not None and "mu" in words:
            at = words.index("mu")
            # a lone pair of mu and sigma is a layer's own affair: radial basis functions have one
            for spread in ["rho", "log_sigma", *(["sigma"] if len(words) > 1 else [])]:
                partner = "_".join([*words[:at], spread, *words[at + 1 :]])
                other = parameters.get(partner)
                if other is not None and other.shape == mu.shape:
                    pairs |= {name, partner}
    return [name for name in parameters if name in pairs]


def _refuse_own_draws(
    module: nn.Module, names: Mapping[int, str], are_named: bool, own_draws: tuple[type, ...]
) -> None:
    """Weights that a module draws by itself; whether a mean and a spread are such, those who name them may know."""
    for path, part in module.named_modules(remove_duplicate=False):
        where = f"{type(part).__name__} {path!r}" if path else type(part).__name__
        if issubclass(type(part), own_draws):
            raise ValueError(
                f"module: expected plain layers, got {where}, which draws by itself, so that its log_prob would be "
                "missing from the sum; put a plain layer in its place"
            )
        alike = () if are_named else (part._parameters[leaf] for leaf in _means_and_spreads(part))
        for name in (names[id(parameter)] for parameter in alike if id(parameter) in names):
            raise ValueError(
                f"{name}: {where} draws it by itself, as it seems by a mean and a spread of these names; leave both "
                "out by select and add that layer's own KL divergence to the loss, or give select a list of names that "
                "has them"
            )


def _check_attributes(module: nn.Module, names: Mapping[int, str]) -> None:
    """What a module keeps beside its places for parameters, where no sample comes."""
    parts = set(module.modules())

    def warn(name: str, message: str) -> None:
        warnings.warn(f"{name}: {message}", stacklevel=5)

    for path, part in module.named_modules():
        for attribute, value in vars(part).items():
            place = f"{path}.{attribute}".lstrip(".")
            if issubclass(type(value), Tensor) and value.grad_fn is not None:  # isinstance asks a weak proxy's object
                raise ValueError(
                    f"{place}: expected no tensor with a graph. If pruning computes it, make that permanent by "
                    "torch.nn.utils.prune.remove; if weight_norm or spectral_norm do, take those of "
                    "torch.nn.utils.parametrizations; else detach it, or convert the module before its first call"
                )
            # _flat_weights follows the parameters: torch.nn.RNNBase
            if attribute in ("_parameters", "_buffers", "_modules", *FLAT_WEIGHTS):
                continue
            held = []
            for item in islice(reach(value), 100_000):  # a data set may be among it
                if id(item) in names:
                    held.append(names[id(item)])
                others: list[Any] = [item] if isinstance(item, nn.Module) and item not in parts else []
                if isinstance(item, FunctionType):  # a copy of the module shares it
                    others += reach([item.__closure__, item.__defaults__])
                for other in others:
                    found = [id(each) for each in other.parameters()] if isinstance(other, nn.Module) else []
                    if taken := [names[parameter] for parameter in found if parameter in names]:
                        kind = type(other).__name__
                        warn(
                            taken[0],
                            f"{place} refers to {kind}, which holds it and gets no sample there: a function "
                            "refers to the original module, and a module that is no part of this one keeps its weights",
                        )
            if held:
                first, *more = [name for name in names.values() if name in held]
                what = f"it and {len(more)} other Gaussian weights" if more else "it"
                warn(first, f"{place} holds {what} too; a forward pass that reads it there gets mu, not the sample")


def _check_memory(parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
    """Each weight is one Gaussian, so no two may be the same memory."""
    blocks = []
    for name, parameter in parameters:
        if parameter.numel() and not parameter.is_meta and type(parameter.data) is Tensor:
            begin = parameter.data_ptr()
            size = parameter.nbytes if parameter.is_contiguous() else parameter.element_size()
            blocks.append((str(parameter.device), begin, begin + size, name))
    blocks.sort()
    for (device, _, end, first), (other_device, begin, _, second) in pairwise(blocks):
        if device == other_device and begin < end:
            raise ValueError(
                f"{second}: expected memory of its own, got that of {first}; make them one parameter, as in "
                "`b.weight = a.weight`, or leave one of them out by select"
            )


def _check_parameter(name: str, parameter: nn.Parameter, first: tuple[str, nn.Parameter]) -> None:
    if is_lazy(parameter):
        raise ValueError(f"{name}: expected a shape, got an uninitialized parameter; run the module on a batch first")
    check_dtype(name, parameter.dtype, "; leave it out by select")
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
        own_draws: classes of modules that draw by themselves, which are refused.

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
        which = " that requires a gradient" if select is None else ""
        raise ValueError(
            f"select: expected at least one parameter{which}, got none of {there} of {type(module).__name__}"
        )
    names = {id(parameter): name for name, parameter in taken}
    _refuse_own_draws(module, names, select is not None and not callable(select), own_draws)
    _check_attributes(module, names)
    for name, parameter in taken:
        _check_parameter(name, parameter, taken[0])
    _check_memory(taken)
    return {name: aliases[id(parameter)] for name, parameter in taken}


def padding_rows(module: nn.Module, targets: Targets) -> dict[int, int]:
    """Of each weight i that an embedding holds: the row of its padding_idx, which is no weight."""
    rows = {}
    for path, leaves in targets:
        owner = module.get_submodule(".".join(path))
        if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)) and owner.padding_idx is not None:
            rows.update({i: owner.padding_idx for leaf, i in leaves if leaf == "weight"})
    return rows


def leave_out(
    tensors: Sequence[Tensor], padding: Mapping[int, int], weights: Sequence[Tensor]
) -> tuple[list[Tensor], Rows]:
    """Each tensor with a padding row as the two before and after it; and these rows, by the tensor's number.

    All are views of one split, so that the gradient of a row that is not used is exactly 0.
    """
    parts, rows = [], {}
    for i, tensor in enumerate(tensors):
        if i not in padding:
            parts.append(tensor)
        elif hasattr(tensor, "device_mesh"):
            raise RuntimeError("padding_idx: expected a plain tensor, got a DTensor")
        elif tensor.dim() == 2 and len(tensor) == len(weights[i]):
            before, rows[i], after = tensor.split([padding[i], 1, len(tensor) - padding[i] - 1])
            parts += [before, after]
        else:  # a prior with one value, or one row, for all
            parts += [tensor, tensor]
    return parts, rows


class _Rows(torch.autograd.Function):
    """torch.cat, which takes a sparse gradient, of embedding(..., sparse=True)."""

    @staticmethod
    def forward(ctx: Any, dim: int, *pieces: Tensor) -> Tensor:
        ctx.dim, ctx.sizes = dim, [piece.shape[dim] for piece in pieces]
        return torch.cat(pieces, dim)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> tuple[Tensor | None, ...]:
        return None, *dense(grad).split(ctx.sizes, ctx.dim)  # type: ignore[union-attr]


def put_back(parts: Sequence[Tensor], rows: Rows, num_tensors: int) -> list[Tensor]:
    """The samples of whole tensors, [*shape] or [S, *shape]; their padding rows are those of mu."""
    remaining = iter(parts)
    tensors = []
    for i in range(num_tensors):
        tensor = next(remaining)
        if i in rows:
            dim = tensor.dim() - 2
            row = rows[i].expand(*tensor.shape[:dim], 1, -1)
            pieces = [tensor, row, next(remaining)]
            tensor = _Rows.apply(dim, *pieces) if is_plain(pieces) else torch.cat(pieces, dim)  # type: ignore[no-untyped-call]
        tensors.append(tensor)
    return tensors


def reset(module: nn.Module, names: Sequence[str]) -> None:
    """New initial values for the submodules that hold these parameters; inner ones first, as outer ones may adjust."""
    owners = {name.rpartition(".")[0]: name for name in names}
    for path, part in reversed(list(module.named_modules())):
        if path in owners:
            # attention's is private
            draw = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
            if draw is None:
                message = f"{type(part).__name__} {path!r}, which holds {owners[path]}, has no reset_parameters"
                raise ValueError(f"reset_parameters: {message}; leave it out by select")
            draw()


def mean_of_norms(module: nn.Module, targets: Targets, names: Sequence[str]) -> Initial:
    """The default of mu_prior: 0 for all weights but those of normalisation layers, for which it is their own value."""
    own: set[str] = set()
    for path, leaves in targets:
        owner = path[: path.index("parametrizations")] if "parametrizations" in path else path
        if re.search("Norm(?!al(?!i[sz]ation))", type(module.get_submodule(".".join(owner))).__name__):
            own.update(names[i] for _, i in leaves)
    return (lambda name, weight: weight if name in own else 0.0) if own else 0.0


def make_prior(argument: str, value: Any, mus: Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
    """One prior for all weights, or one for each; a number as a tensor, which moves with the module."""

    def of(value: Any, name: str, mu: Tensor, shape: torch.Size) -> Tensor:
        try:
            return distributions.make_prior(argument, value, shape, mu.dtype, mu.device)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{error}, for {name}") from None

    if _is_function(argument, value):
        return {name: of(value(name, mu.detach()), name, mu, mu.shape) for name, mu in mus.items()}
    return of(value, "all weights", next(iter(mus.values())), torch.Size())


def make_distributions(
    prior: Any, mus: Mapping[str, Tensor], padded: Collection[str]
) -> nn.Module | tuple[Initial, Initial]:
    """A module that gives the priors; or mu_prior and std_prior, where all are Gaussians of constants."""
    if isinstance(prior, (Distribution, nn.Module, type)) or not _is_function("prior", prior):
        module = as_prior(prior, mus, padded)
        gaussian = fixed_gaussian(prior)
        return gaussian if gaussian and all(each.numel() == 1 for each in gaussian) else module
    given = {name: prior(name, mu.detach()) for name, mu in mus.items()}
    modules = {name: as_prior(each, {name: mus[name]}, padded) for name, each in given.items()}
    gaussians = {name: fixed_gaussian(each) for name, each in given.items()}
    if all(gaussians.values()):
        return tuple(lambda name, weight, i=i: gaussians[name][i] for i in range(2))  # type: ignore
    return tree(modules, EachPrior())


def shard_like(mus: Sequence[Any], priors: Sequence[Tensor]) -> list[Tensor]:
    """The priors of DTensors: FSDP2 leaves buffers whole, of which each rank takes its part."""
    if not any(hasattr(mu, "device_mesh") for mu in mus):
        return list(priors)
    from torch.distributed.tensor import distribute_tensor

    return [
        distribute_tensor(prior, mu.device_mesh, mu.placements, src_data_rank=None)
        if hasattr(mu, "device_mesh") and not hasattr(prior, "device_mesh") and prior.shape == mu.shape
        else prior
        for mu, prior in zip(mus, priors)
    ]


def initial_rho(name: str, parameter: Tensor, rho_init: Initial) -> Tensor:
    """[*shape] of the parameter."""
    if rho_init is relative_rho:  # type: ignore[comparison-overlap]
        raise TypeError("rho_init: expected relative_rho(delta), such as relative_rho(0.1), got relative_rho itself")
    value: Any = rho_init(name, parameter) if _is_function("rho_init", rho_init) else rho_init  # type: ignore[operator]
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
    Bayes" (2020), MOPED; the prior's mean is the pretrained weight there: `mu_prior=lambda name, weight: weight`. A
    narrow std_prior keeps the posterior near it (docs/uci_regression.md).
    """
    for argument, value in (("delta", delta), ("smallest", smallest)):
        check_positive(argument, value)

    def rho(name: str, parameter: Tensor) -> Tensor:
        # of half types in float32, where `smallest` does not vanish
        weight = parameter.detach() if parameter.dtype == torch.float64 else parameter.detach().float()
        return distributions.inverse_softplus((delta * weight.abs()).clamp(min=smallest))

    return rho
