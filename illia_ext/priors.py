"""Priors of torch.distributions: a scale mixture, which of them the kernels know, log p and KL divergences."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Laplace, Normal, constraints, kl_divergence
from torch.distributions.utils import broadcast_all

from illia_ext.reference import log_sigma

__all__ = ["Fused", "ScaleMixture", "arithmetic", "base_of", "closed_form_kl", "fused", "fused_mixture", "log_density"]

_SMALLEST_RATIO = 1e-9  # of a scale mixture's standard deviations, in the kernels


class ScaleMixture(Distribution):
    """The mixture of two Gaussians about 0, p = weight N(0, std1^2) + (1 - weight) N(0, std2^2).

    The usual prior of "Weight uncertainty in neural networks": a wide component, and a narrow one that draws most
    weights to 0.

        bnn = BayesianModule(network, prior=ScaleMixture(0.5, 1.0, 0.0025))

    Where its arguments are constants with one element each, the kernels compute it: on a CPU a draw with its gradients
    takes a quarter to a third longer than with a Gaussian prior.

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
                f"weight: expected values between 0 and 1, both excluded, got {weight} in {self.weight.dtype}; a "
                "Normal is one Gaussian alone"
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
        given = torch.promote_types(value.dtype, self.weight.dtype)
        dtype = arithmetic(given)
        value, weight, std1, std2 = (each.to(dtype) for each in (value, self.weight, self.std1, self.std2))
        wide, narrow = torch.maximum(std1, std2), torch.minimum(std1, std2)
        weight = torch.where(std1 >= std2, weight, 1 - weight)
        # limits beyond which the narrow component adds nothing: squares stay finite, and subnormal numbers are slow
        z_wide, z_narrow = value / wide, (value / narrow).clamp(-1e9, 1e9)
        log_odds = torch.log1p(-weight) - weight.log() + wide.log() - narrow.log()
        odds = (log_odds - z_narrow**2 * (1 - (narrow / wide) ** 2) / 2).clamp(min=-80.0)
        constant = weight.log() - wide.log() - math.log(2 * math.pi) / 2
        return (constant - z_wide**2 / 2 + nn.functional.softplus(odds, threshold=60.0)).to(given)


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


def base_of(distribution: Distribution) -> Distribution:
    """Without Independent, which only adds what is added anyway."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution


def fused_mixture(numbers: tuple[float, ...] | None) -> Fused | None:
    """A scale mixture of these numbers; None where the kernels do not take them."""
    if numbers is None:
        return None
    weight, std1, std2 = numbers
    if std1 < std2:
        weight, std1, std2 = 1 - weight, std2, std1
    if not (0 < weight < 1 and std2 / std1 >= _SMALLEST_RATIO):
        return None
    # on the CPU, of which a number is read without waiting for a GPU
    zero, wide = (torch.tensor(value, dtype=torch.float64, device="cpu") for value in (0.0, std1))
    return Fused(zero, wide, "scale_mixture", (weight, std2 / std1))


def fused(distribution: Distribution) -> Fused | None:
    """None where the kernels do not know the distribution."""
    distribution = base_of(distribution)
    if type(distribution) is Normal:
        return Fused(distribution.loc, distribution.scale)
    if type(distribution) is Laplace:
        return Fused(distribution.loc, distribution.scale, "laplace")
    return fused_mixture(distribution.numbers) if type(distribution) is ScaleMixture else None


def _sum(terms: Tensor, row: int | None, batch: bool) -> Tensor:
    """Over all but the samples, without the padding row."""
    if row is not None:
        before, _, after = terms.split([row, 1, terms.shape[batch] - row - 1], int(batch))
        return _sum(before, None, batch) + _sum(after, None, batch)
    if not batch:
        return terms.sum()
    return terms.flatten(1).sum(1) if terms.dim() > 1 else terms


def _hold_row(values: Tensor, row: int | None, batch: bool = False) -> Tensor:
    """A padding row without a gradient: that of a density with a pole at 0 would be 0 times infinity."""
    if row is None:
        return values
    before, padding, after = values.split([row, 1, values.shape[batch] - row - 1], int(batch))
    return torch.cat([before, padding.detach(), after], int(batch))


def _refuse_shards(distribution: Distribution, tensor: Tensor) -> None:
    if hasattr(tensor, "device_mesh"):
        raise RuntimeError(
            f"prior: a {type(distribution).__name__} does not take DTensors; under FSDP2 call this where parameters "
            "are whole, in forward or in a method given to register_fsdp_forward_method"
        )


def log_density(distribution: Distribution, x: Tensor, mu: Tensor, row: int | None = None) -> Tensor:
    """log p(x), summed: [], or [S] for samples [S, *shape] of mu's shape. row: of padding, left out."""
    _refuse_shards(distribution, x)
    batch = x.dim() > mu.dim()
    terms: Tensor = base_of(distribution).log_prob(_hold_row(x.to(arithmetic(x.dtype)), row, batch))
    return _sum(terms, row, batch)


def closed_form_kl(distribution: Distribution, mu: Tensor, rho: Tensor, row: int | None = None) -> Tensor:
    """KL(q || p), summed: for a Normal and a Laplace by formulas that small sigma leave finite, else torch's."""
    _refuse_shards(distribution, mu)
    dtype, prior = arithmetic(mu.dtype), base_of(distribution)
    mu, rho = (_hold_row(values.to(dtype), row) for values in (mu, rho))
    sigma = nn.functional.softplus(rho, threshold=60.0)
    if type(prior) is Laplace:
        terms = _mean_distance(mu - prior.loc, sigma) / prior.scale + torch.log(2 * prior.scale) - log_sigma(rho)
        return _sum(terms - (1 + math.log(2 * math.pi)) / 2, row, False)
    if type(prior) is Normal:
        squares = (sigma / prior.scale) ** 2 + ((mu - prior.loc) / prior.scale) ** 2
        return _sum(torch.log(prior.scale) - log_sigma(rho) + (squares - 1) / 2, row, False)
    kind: Any = type(prior)
    of_torch: Any = next(each for each in kind.__mro__ if each.__module__.startswith("torch.distributions"))
    try:
        if of_torch is not Distribution and kind.log_prob is not of_torch.log_prob:
            raise NotImplementedError  # torch would take it for the class that it derives from
        terms = kl_divergence(Normal(mu, sigma, validate_args=False), prior)
    except NotImplementedError:
        raise NotImplementedError(
            f"kl_divergence: there is no closed form between a Gaussian and a {kind.__name__}; average log_prob "
            "over several samples instead"
        ) from None
    return _sum(terms, row, False)


def _mean_distance(d: Tensor, sigma: Tensor) -> Tensor:
    """E |d + sigma eps|. From 40 sigma on it is |d| to the last bit, and quotients by sigma are not formed."""
    sigma_or_more = sigma.clamp(min=torch.finfo(sigma.dtype).tiny)
    is_far = d.abs() > 40 * sigma_or_more
    z = torch.where(is_far, 40 * d.sign(), d / torch.where(is_far, 1.0, sigma_or_more))
    return d * torch.erf(z / math.sqrt(2)) + sigma * torch.exp(-(z**2) / 2) * math.sqrt(2 / math.pi)
