"""Priors that are distributions of torch.distributions: which of them the kernels know, and how a module holds one."""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import (
    Distribution,
    Independent,
    Laplace,
    Normal,
    Transform,
    constraints,
    kl_divergence,
)
from torch.distributions.utils import broadcast_all

from illia_ext._checks import broadcasts, shown

__all__ = [
    "EachPrior",
    "FixedPrior",
    "Fused",
    "ScaleMixture",
    "arithmetic",
    "as_prior",
    "closed_form_kl",
    "fixed_gaussian",
    "fused",
    "is_constant",
    "log_density",
]

_SMALLEST_RATIO = 1e-9  # of a scale mixture's standard deviations, in the kernels


class ScaleMixture(Distribution):
    """The mixture of two Gaussians about 0, p = weight N(0, std1^2) + (1 - weight) N(0, std2^2).

    The usual prior of "Weight uncertainty in neural networks": a wide component, and a narrow one that draws most
    weights to 0.

        bnn = BayesianModule(network, prior=ScaleMixture(0.5, 1.0, 0.0025))

    As the fixed prior of one number for each argument it is part of our kernels, and costs little more than a Gaussian.

    Args:
        weight: of the first component, in (0, 1).
        std1, std2: standard deviations, in any order. All three are numbers or tensors that broadcast.

    Source: Blundell et al., "Weight uncertainty in neural networks" (2015), section 3.3.
    """

    arg_constraints = {  # noqa: RUF012  (torch's own name)
        "weight": constraints.unit_interval,
        "std1": constraints.positive,
        "std2": constraints.positive,
    }
    support = constraints.real

    def __init__(
        self, weight: float | Tensor, std1: float | Tensor, std2: float | Tensor, validate_args: bool | None = None
    ) -> None:
        given = (weight, std1, std2)
        self.numbers = None if any(isinstance(each, Tensor) for each in given) else tuple(map(float, given))
        self.weight, self.std1, self.std2 = broadcast_all(*given)
        super().__init__(self.weight.shape, validate_args=validate_args)
        if self._validate_args and not ((self.weight > 0) & (self.weight < 1)).all():
            raise ValueError(
                f"weight: expected values between 0 and 1, both excluded, got {weight}; a Normal has one std"
            )

    def expand(self, batch_shape: Any, _instance: Any = None) -> "ScaleMixture":
        new: Any = self._get_checked_instance(ScaleMixture, _instance)  # type: ignore[no-untyped-call]
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        new.numbers = self.numbers
        super(ScaleMixture, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        mixture: ScaleMixture = new
        return mixture

    @property
    def mean(self) -> Tensor:
        return torch.zeros_like(self.std1)

    @property
    def variance(self) -> Tensor:
        return self.weight * self.std1**2 + (1 - self.weight) * self.std2**2

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        is_first = torch.rand(shape, dtype=self.std1.dtype, device=self.std1.device) < self.weight
        return torch.where(is_first, self.std1, self.std2) * torch.randn_like(self.std1.expand(shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """log p, finite in both tails: that of the wide component, and softplus of the narrow one's log odds."""
        if self._validate_args:
            self._validate_sample(value)
        is_first_wide = self.std1 >= self.std2
        wide, narrow = torch.maximum(self.std1, self.std2), torch.minimum(self.std1, self.std2)
        weight = torch.where(is_first_wide, self.weight, 1 - self.weight)
        squares = value**2 / 2
        log_odds = torch.log1p(-weight) - weight.log() + wide.log() - narrow.log()
        # below -80 the narrow component adds nothing, and subnormal numbers would take ten times as long
        odds = (log_odds - squares * (narrow**-2 - wide**-2)).clamp(min=-80.0)
        constant = weight.log() - wide.log() - math.log(2 * math.pi) / 2
        return constant - squares / wide**2 + nn.functional.softplus(odds, threshold=60.0)


class Fused(NamedTuple):
    """A prior as the kernels take it."""

    mu_prior: Tensor
    std_prior: Tensor
    family: str | None = None
    family_parameters: tuple[float, float] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The keywords of the functions in `illia_ext.functional`."""
        options = {"family": self.family, "family_parameters": self.family_parameters}
        return {name: value for name, value in options.items() if value is not None}


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """In which we compute for parameters of a type."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _base(distribution: Distribution) -> Distribution:
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution


def fused(distribution: Distribution) -> Fused | None:
    """None where the kernels do not know the distribution."""
    distribution = _base(distribution)
    if type(distribution) is Normal:
        return Fused(distribution.loc, distribution.scale)
    if type(distribution) is Laplace:
        return Fused(distribution.loc, distribution.scale, "laplace")
    if type(distribution) is ScaleMixture and distribution.numbers is not None:
        weight, std1, std2 = distribution.numbers
        if std1 < std2:
            weight, std1, std2 = 1 - weight, std2, std1
        if 0 < weight < 1 and std2 / std1 >= _SMALLEST_RATIO:
            # on the CPU, of which a number is read without waiting for a GPU
            zero, wide = (torch.tensor(value, dtype=torch.float64, device="cpu") for value in (0.0, std1))
            return Fused(zero, wide, "scale_mixture", (weight, std2 / std1))
    return None


def _inner(thing: Any) -> Iterator[tuple[str, Any]]:
    """(attribute, value) of the tensors, distributions and transforms of a distribution."""
    for attribute, value in vars(thing).items():
        if isinstance(value, (Tensor, Distribution, Transform)):
            yield attribute, value


def _tensors(thing: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """(name, owner, attribute) of all its tensors."""
    for attribute, value in _inner(thing):
        name = prefix + attribute.lstrip("_")
        if isinstance(value, Tensor):
            yield name, thing, attribute
        else:
            yield from _tensors(value, f"{name}_")


class FixedPrior(nn.Module):
    """A distribution whose tensors are buffers: it moves with its module, and is in the state_dict."""

    def __init__(self, distribution: Distribution, like: Tensor) -> None:
        super().__init__()
        self._distribution = copy.deepcopy(distribution)
        for name, owner, attribute in list(_tensors(self._distribution)):
            tensor = getattr(owner, attribute)
            dtype = arithmetic(like.dtype) if tensor.is_floating_point() else tensor.dtype
            values = tensor.to(like.device, dtype)  # perhaps expanded from one number
            self.register_buffer(name, values.clone(memory_format=torch.contiguous_format))
            setattr(owner, attribute, tensor.new_empty(0))  # says where the buffer belongs
        self._read_numbers()

    def forward(self) -> Distribution:
        """The distribution of what the buffers are now."""
        distribution: Distribution = self._rebuilt(self._distribution)
        return distribution

    def extra_repr(self) -> str:
        return repr(self())

    def _rebuilt(self, thing: Any, prefix: str = "") -> Any:
        new = copy.copy(thing)
        for attribute, value in _inner(thing):
            name = prefix + attribute.lstrip("_")
            setattr(
                new, attribute, getattr(self, name) if isinstance(value, Tensor) else self._rebuilt(value, f"{name}_")
            )
        if isinstance(new, Distribution):
            new._validate_args = False  # it was checked at first, and a check makes a GPU wait
        return new

    def _read_numbers(self) -> None:
        """Those of a scale mixture, which the kernels take as numbers."""
        mixture = _base(self._distribution)
        if isinstance(mixture, ScaleMixture):
            values = [getattr(_base(self()), name) for name in mixture.arg_constraints]
            is_number = all(value.numel() == 1 and not value.is_meta for value in values)
            mixture.numbers = tuple(value.item() for value in values) if is_number else None

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._read_numbers()


class EachPrior(nn.Module):
    """The priors of weights, each a module under its weight's name."""

    def __init__(self, priors: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, prior in priors.items():
            *path, leaf = name.split(".")
            owner: nn.Module = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            owner.add_module(leaf, prior)


def is_constant(prior: nn.Module) -> bool:
    """Whether it learns and changes nothing: a FixedPrior, or a tree of these."""
    return all(type(part) in (nn.Module, EachPrior, FixedPrior) for part in prior.modules())


def fixed_gaussian(prior: Any, shape: torch.Size) -> tuple[Tensor, Tensor] | None:
    """mu_prior and std_prior of weights of this shape, where `prior` is a Gaussian of constants."""
    if not isinstance(prior, Distribution):
        return None
    _check_constants(prior)
    try:
        _check_shape(prior, shape)
    except ValueError as error:
        raise ValueError(f"prior: {error}") from None
    normal = _base(prior)
    return (normal.loc, normal.scale) if type(normal) is Normal else None


def _check_constants(distribution: Distribution) -> None:
    for name, owner, attribute in _tensors(distribution):
        if getattr(owner, attribute).requires_grad:
            raise ValueError(
                f"prior: expected constants, got {type(distribution).__name__} with a {name} that requires a gradient; "
                "a prior that learns is an nn.Module that has the parameters and whose forward() returns the "
                "distribution"
            )


def as_prior(prior: Any, mus: Mapping[str, Tensor]) -> nn.Module:
    """A module whose forward gives the prior of these weights.

    Raises:
        TypeError: neither a distribution nor a module that returns one.
        ValueError: a shape or a support that does not fit, or a tensor that requires a gradient.
    """
    if isinstance(prior, Distribution):
        _check_constants(prior)
        module: nn.Module = FixedPrior(prior, next(iter(mus.values())))
    elif isinstance(prior, nn.Module):
        module = prior
    else:
        raise TypeError(
            f"prior: expected a torch.distributions.Distribution, or an nn.Module that returns one, got {shown(prior)}"
        )
    with torch.no_grad():
        distribution = module()
        if not isinstance(distribution, Distribution):
            raise TypeError(f"prior: expected a module that returns a Distribution, got {shown(distribution)}")
        for name, mu in mus.items():
            try:
                _check_fits(distribution, mu)
            except ValueError as error:
                raise ValueError(f"prior: {error}, for {name}") from None
    return module


def _check_shape(distribution: Distribution, expected: torch.Size) -> torch.Size:
    """That of log_prob."""
    event = distribution.event_shape
    shape, outer = distribution.batch_shape + event, expected[: len(expected) - len(event)]
    if not broadcasts(shape, expected) or outer + event != expected:
        kind = type(distribution).__name__
        raise ValueError(f"expected a shape that broadcasts to {list(expected)}, got {kind} of shape {list(shape)}")
    return outer


def _check_fits(distribution: Distribution, mu: Tensor) -> None:
    kind, outer = type(distribution).__name__, _check_shape(distribution, mu.shape)
    try:
        support: Any = distribution.support
    except NotImplementedError:  # a class need not tell
        support = constraints.real
    if support.is_discrete:
        raise ValueError(f"expected a density, got {kind}, whose samples are integers")
    if mu.is_meta:
        return
    if not all(support.check(mu.new_tensor(value).expand(mu.shape)).all() for value in (-1e3, 0.0, 1e3)):
        raise ValueError(f"expected a density on all real numbers, got {kind}, whose support is {support}")
    try:
        terms = distribution.log_prob(mu.detach().to(arithmetic(mu.dtype)))
    except NotImplementedError:
        raise ValueError(f"expected a distribution with log_prob, got {kind}, which has none") from None
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"expected {kind}.log_prob to take {mu.dtype} on {mu.device}, got an error: {error}. Tensors that are no "
            "attributes of the distribution do not move with the module: put them into an nn.Module whose forward() "
            "returns it"
        ) from error
    if not isinstance(terms, Tensor) or terms.shape != outer:
        raise ValueError(f"expected {kind}.log_prob of shape {list(outer)}, got {shown(terms)}")


def _sum(terms: Tensor, row: int | None, batch: bool) -> Tensor:
    """Over all but the samples, without the padding row, to whose weights the gradient is exactly 0."""
    if row is not None:
        before, _, after = terms.split([row, 1, terms.shape[batch] - row - 1], int(batch))
        return _sum(before, None, batch) + _sum(after, None, batch)
    return terms.reshape(len(terms), -1).sum(1) if batch else terms.sum()


def _refuse_shards(distribution: Distribution, tensor: Tensor) -> None:
    if hasattr(tensor, "device_mesh"):
        raise RuntimeError(
            f"prior: a {type(distribution).__name__} does not take DTensors; under FSDP2 call this where parameters "
            "are whole, in forward or in a method given to register_fsdp_forward_method"
        )


def log_density(distribution: Distribution, x: Tensor, mu: Tensor, row: int | None = None) -> Tensor:
    """log p(x), summed: [], or [S] for samples [S, *shape] of mu's shape. row: of padding, left out."""
    _refuse_shards(distribution, x)
    terms: Tensor = distribution.log_prob(x.to(arithmetic(x.dtype)))
    return _sum(terms, row, x.dim() > mu.dim())


def closed_form_kl(distribution: Distribution, mu: Tensor, rho: Tensor, row: int | None = None) -> Tensor:
    """KL(q || p), summed, by torch.distributions.kl_divergence."""
    _refuse_shards(distribution, mu)
    dtype, prior = arithmetic(mu.dtype), _base(distribution)
    q = Normal(mu.to(dtype), nn.functional.softplus(rho.to(dtype), threshold=60.0), validate_args=False)
    try:
        terms = kl_divergence(q, prior)
    except NotImplementedError:
        raise NotImplementedError(
            f"kl_divergence: there is no closed form between a Gaussian and a {type(prior).__name__}; average log_prob "
            "over several samples instead"
        ) from None
    return _sum(terms, row, False)
