"""How a module holds a prior that is a distribution: as buffers, or as a module that returns it at each call."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.distributions import Distribution, Independent, Laplace, Normal, Transform, constraints

from illia_ext._checks import broadcasts, shown
from illia_ext._ops.dispatch import is_plain
from illia_ext.priors import Fused, ScaleMixture, arithmetic, base_of, fused, fused_mixture

__all__ = ["EachPrior", "FixedPrior", "as_prior", "fixed_gaussian", "fused_or_made", "is_constant"]


class _Buffer(NamedTuple):
    name: str


class _Parts(NamedTuple):
    """Of a distribution, a transform, a list or a tuple; in a list attributes have no name."""

    kind: type
    attributes: list[tuple[str, Any]]


def _take_apart(thing: Any, register: Callable[[str, Tensor], str], name: str = "") -> Any:
    """A recipe for `_make`, in plain data that torch.compile traces; register(name, tensor) gives each tensor's name.

    Names tell the classes on the way, so that a state of another distribution does not fit.
    """
    if isinstance(thing, Tensor):
        return _Buffer(register(name, thing))
    if type(thing) in (list, tuple):
        each = [("", _take_apart(part, register, f"{name}_{i}")) for i, part in enumerate(thing)]
        return _Parts(type(thing), each)
    if not isinstance(thing, (Distribution, Transform)):
        return thing
    prefix = f"{name}_{type(thing).__name__}".lstrip("_")
    # a transform's inverse and what it computed last, which torch's own copies lack too; validation, which was done at
    # first, and makes a GPU wait
    others: dict[str, Any] = {"_validate_args": False}
    if isinstance(thing, Transform):
        others = {"_inv": None, "_cached_x_y": (None, None)}
    if isinstance(thing, ScaleMixture):
        others["numbers"] = None  # not those of the buffers
    parts = [
        (attribute, _take_apart(value, register, f"{prefix}_{attribute.lstrip('_')}"))
        for attribute, value in vars(thing).items()
        if attribute not in others
    ]
    return _Parts(type(thing), [*parts, *others.items()])


def _make(recipe: Any, buffer: Callable[[str], Tensor]) -> Any:
    if isinstance(recipe, _Buffer):
        return buffer(recipe.name)
    if not isinstance(recipe, _Parts):
        return recipe
    if recipe.kind in (list, tuple):
        return recipe.kind([_make(part, buffer) for _, part in recipe.attributes])
    new: Any = object.__new__(recipe.kind)
    for attribute, part in recipe.attributes:
        setattr(new, attribute, _make(part, buffer))
    return new


class FixedPrior(nn.Module):
    """A distribution whose tensors are buffers: it moves with its module, and is in the state_dict.

    Beside weights of half types the buffers are float32.
    """

    def __init__(self, distribution: Distribution, like: Tensor) -> None:
        super().__init__()

        def register(name: str, tensor: Tensor) -> str:
            if tensor.requires_grad:
                raise ValueError(
                    f"prior: expected constants, got {name}, which requires a gradient; a prior that learns is an "
                    "nn.Module that has the parameters and whose forward() returns the distribution"
                )
            while name in self._buffers:  # of `scale` and `_scale`
                name += "_"
            dtype = arithmetic(like.dtype) if tensor.is_floating_point() else tensor.dtype
            values = tensor.to(like.device, dtype)  # perhaps expanded from one number
            self.register_buffer(name, values.clone(memory_format=torch.contiguous_format))
            return name

        self._recipe = base = _take_apart(distribution, register)
        while base.kind is Independent:
            base = dict(base.attributes)["base_dist"]
        self._kind = base.kind
        self._names = {attribute: part.name for attribute, part in base.attributes if isinstance(part, _Buffer)}
        self._numbers = self._read_numbers()
        self._last: tuple[list[tuple[Tensor, int]], tuple[float, ...] | None] | None = None  # read of a GPU

    def forward(self) -> Distribution:
        """The distribution of what the buffers are now."""
        distribution: Distribution = _make(self._recipe, lambda name: getattr(self, name))
        return distribution

    def extra_repr(self) -> str:
        return repr(self())

    def fused(self) -> Fused | None:
        """As the kernels take it, without making the distribution."""
        if self._kind in (Normal, Laplace):
            loc, scale = (getattr(self, self._names[attribute]) for attribute in ("loc", "scale"))
            return Fused(loc, scale, "laplace" if self._kind is Laplace else None)
        return fused_mixture(self._numbers_now()) if self._kind is ScaleMixture else None

    def _read_numbers(self) -> tuple[float, ...] | None:
        """Those of a scale mixture."""
        buffers = [getattr(self, name) for name in self._names.values()]
        if self._kind is not ScaleMixture or any(each.numel() != 1 or each.is_meta for each in buffers):
            return None
        return tuple(getattr(self, self._names[attribute]).item() for attribute in ScaleMixture.arg_constraints)

    def _numbers_now(self) -> tuple[float, ...] | None:
        """A compiled program has those of the last load or move. A GPU has to be waited for: there they are read again
        where a buffer is another tensor or has been changed."""
        if is_compiling():
            return self._numbers
        buffers = [getattr(self, name) for name in self._names.values()]
        if not is_plain(buffers):
            return None
        if buffers[0].is_cpu:
            return self._read_numbers()
        read = [(each, 0 if each.is_inference() else each._version) for each in buffers]
        if self._last is None or any(a is not b or m != n for (a, m), (b, n) in zip(read, self._last[0])):
            self._last = read, self._read_numbers()
        return self._last[1]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FixedPrior":
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new: Any = self._buffers[name]
            if old is not None and new.is_floating_point() and arithmetic(new.dtype) != new.dtype:
                self._buffers[name] = old.to(new.device, arithmetic(new.dtype))
        self._numbers = self._read_numbers()
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._numbers = self._read_numbers()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_last": None}


class EachPrior(nn.Module):
    """The root of a tree of priors, each a module under its weight's name."""


def fused_or_made(module: nn.Module) -> tuple[Fused | None, Distribution | None]:
    """The prior as the kernels take it, or None; and the distribution, where it had to be made to know."""
    if isinstance(module, FixedPrior):
        return module.fused(), None
    distribution = module()
    if not isinstance(distribution, Distribution):
        raise TypeError(f"prior: expected a module that returns a Distribution, got {shown(distribution)}")
    return fused(distribution), distribution


def is_constant(prior: nn.Module) -> bool:
    """Whether it learns and changes nothing: a FixedPrior, or a tree of these."""
    return all(type(part) in (nn.Module, EachPrior, FixedPrior) for part in prior.modules())


def fixed_gaussian(prior: Any) -> tuple[Tensor, Tensor] | None:
    """mu_prior and std_prior, where `prior` is a Gaussian of constants, which `as_prior` has accepted."""
    normal = base_of(prior) if isinstance(prior, Distribution) else None
    if type(normal) is not Normal:
        return None
    return tuple(each if each.is_floating_point() else each.float() for each in (normal.loc, normal.scale))  # type: ignore


@torch.inference_mode(False)
def as_prior(prior: Any, mus: Mapping[str, Tensor], padded: Collection[str] = ()) -> nn.Module:
    """A module whose forward gives the prior of these weights; `padded`: names of those that have a padding row.

    Raises:
        TypeError: neither a distribution nor a module that returns one.
        ValueError: a shape or a support that does not fit, or a tensor that requires a gradient.
    """
    if isinstance(prior, type) and issubclass(prior, (Distribution, nn.Module)):
        raise TypeError(f"prior: expected an instance, got the class {prior.__name__}")
    if not isinstance(prior, (Distribution, nn.Module)):
        raise TypeError(
            "prior: expected a torch.distributions.Distribution, or an nn.Module that returns one, got "
            f"{shown(prior)}, for {next(iter(mus))}"
        )
    if isinstance(prior, Distribution):
        _check_values(prior)
        module: nn.Module = FixedPrior(prior, next(iter(mus.values())))
    else:
        module = prior
    try:
        distribution, again = module(), module()
    except Exception as error:  # of a user's class
        raise ValueError(f"prior: {type(prior).__name__} fails: {error}") from error
    if not isinstance(distribution, Distribution):
        raise TypeError(f"prior: expected a module that returns a Distribution, got {shown(distribution)}")
    if distribution is again:
        raise ValueError("prior: expected a module whose forward() makes the distribution anew, got the same one twice")
    for name, mu in mus.items():
        try:
            _check_fits(distribution, mu, name in padded, module)
        except ValueError as error:
            raise ValueError(f"prior: {error}, for {name}") from None
    return module


def _check_values(distribution: Distribution) -> None:
    """Those of a fixed distribution, which validate_args=False may have let in."""
    known = getattr(type(distribution), "arg_constraints", None)  # a class of one's own need not have it
    for name, constraint in known.items() if isinstance(known, dict) else ():
        value = vars(distribution).get(name)
        if not isinstance(value, Tensor) or value.is_meta or constraints.is_dependent(constraint):
            continue
        if not constraint.check(value).all():
            kind = type(distribution).__name__
            raise ValueError(f"prior: {kind}: expected {name} to satisfy {constraint}, got {shown(value)}")


def _check_shape(distribution: Distribution, expected: torch.Size) -> torch.Size:
    """That of log_prob."""
    event = distribution.event_shape
    shape, outer = distribution.batch_shape + event, expected[: len(expected) - len(event)]
    if not broadcasts(shape, expected) or outer + event != expected:
        kind = type(distribution).__name__
        raise ValueError(
            f"expected a shape that broadcasts to {list(expected)}, got {kind} of shape {list(shape)}; "
            "prior=lambda name, weight: ... gives each weight its own"
        )
    return outer


def _check_fits(distribution: Distribution, mu: Tensor, is_padded: bool, module: nn.Module) -> None:
    kind, dtype = type(distribution).__name__, arithmetic(mu.dtype)
    try:
        _check_shape(distribution, mu.shape)
        values = mu.detach().clone().to(dtype)
        if distribution.batch_shape.numel() == 1 and not distribution.event_shape and mu.numel():
            values = values[(slice(1),) * mu.dim()]  # all elements are alike
        # not at 0, where a density may have a pole; weights may be unset yet
        x = (torch.where(values.isfinite(), values, 0.0) + 0.01).requires_grad_()
        outer = x.shape[: mu.dim() - len(distribution.event_shape)]
        support = _support(distribution)
        if mu.is_meta:  # which has no values
            return
        reals = [support.check(x.new_tensor(value).expand(x.shape)).all() for value in (-1e3, 0.0, 1e3)]
        with torch.enable_grad():
            point = x * 1
            terms = None if support.is_discrete or not all(reals) else distribution.log_prob(point)
    except NotImplementedError:
        raise ValueError(f"expected a distribution with log_prob, got {kind}, which has none") from None
    except ValueError:
        raise
    except Exception as error:  # of a user's class
        raise ValueError(
            f"expected {kind}.log_prob to take {dtype} on {mu.device}, got an error: {error}. Does its __init__ call "
            "that of Distribution? Tensors in other places than attributes and lists do not move with the module, and "
            "inverted transforms (`.inv`) cannot be copied: make the distribution in the forward() of an nn.Module"
        ) from error
    if support.is_discrete:
        raise ValueError(f"expected a density, got {kind}, whose samples are integers")
    if terms is None:
        raise ValueError(
            f"expected a density on all real numbers, got {kind}, whose support is {support}; the prior of a positive "
            "scale belongs into a module that learns that scale"
        )
    if is_padded and not _check_shape(base_of(distribution), mu.shape):
        raise ValueError(
            f"expected no joint density of rows, one of which is padding, got {kind}; leave the weight out"
        )
    if not isinstance(terms, Tensor) or terms.shape != outer:
        raise ValueError(f"expected {kind}.log_prob of shape {list(outer)}, got {shown(terms)}")
    if not terms.isfinite().all():
        raise ValueError(f"expected {kind}.log_prob to be finite near the weights, got {terms[~terms.isfinite()][0]}")
    if point._version:
        raise ValueError(f"expected {kind}.log_prob to leave its argument as it is, got one that changes it in place")
    known = {id(parameter) for parameter in [x, *module.parameters()]}
    if any(id(leaf) not in known for leaf in _leaves(terms)):
        raise ValueError(
            f"expected constants, or parameters of an nn.Module whose forward() returns the distribution, got {kind} "
            "that reads another tensor that requires a gradient, which no optimizer would get from the BayesianModule"
        )


def _support(distribution: Distribution) -> Any:
    try:
        return distribution.support
    except NotImplementedError:  # a class need not tell
        return constraints.real


def _leaves(output: Tensor) -> Iterator[Tensor]:
    """The tensors that require a gradient and are no results."""
    seen, todo = set(), [output.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        todo.extend(function for function, _ in node.next_functions)
