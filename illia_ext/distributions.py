"""The distributions that layers hold: a drop-in for `illia.distributions.torch`."""

import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.jit import is_scripting  # type: ignore[attr-defined]

from illia_ext import functional
from illia_ext._checks import broadcasts, check_count, check_dtype, check_finite, check_one_prior, check_prior
from illia_ext._module.prior import as_prior, fixed_gaussian, fused_or_made
from illia_ext.priors import closed_form_kl, log_density
from illia_ext.random import draw_key

__all__ = ["DistributionModule", "GaussianDistribution", "Positive"]


def _shape(shape: Any) -> torch.Size:
    """torch.Size of an integer or a sequence of integers."""
    try:
        if isinstance(shape, (bool, str)):
            raise TypeError
        sizes = [operator.index(size) for size in (shape if hasattr(shape, "__iter__") else [shape])]
    except TypeError:
        raise TypeError(f"shape: expected an integer or a sequence of integers, got {shape!r}") from None
    if any(size < 0 for size in sizes):
        raise ValueError(f"shape: expected no negative size, got {shape}")
    return torch.Size(sizes)


def make_prior(name: str, value: Any, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number as [1], a tensor as a copy, both of this dtype on this device; an nn.Parameter as it is."""
    if isinstance(value, nn.Module):
        raise TypeError(f"{name}: expected a number, a tensor or a function (name, parameter), got a module")
    if isinstance(value, Distribution):
        raise TypeError(f"{name}: expected a number or a tensor, got a {type(value).__name__}; pass it as prior=")
    if not isinstance(value, Tensor):
        prior = torch.tensor([float(check_prior(name, value))], dtype=dtype, device="cpu")
        if not prior.isfinite() or (name == "std_prior" and prior == 0):
            raise ValueError(f"{name}: expected a number in the range of {dtype}, got {value}")
        return prior.to(device)
    check_dtype(name, value.dtype)
    if value.numel() != 1 and not broadcasts(value.shape, shape):
        message = f"expected one element, or a shape that broadcasts to {list(shape)}"
        raise ValueError(f"{name}: {message}, got {list(value.shape)}")
    if isinstance(value, nn.Parameter):
        prior = value
        if value.device != device:
            raise ValueError(f"{name}: expected a parameter on {device}, where mu is, got {value.device}")
    elif value.requires_grad:
        raise ValueError(f"{name}: expected an nn.Parameter or a tensor without gradient, got requires_grad=True")
    else:
        prior = value.clone().to(device, dtype).reshape(value.shape or [1])
    if not prior.is_meta:
        valid = prior.isfinite() & (prior > 0) if name == "std_prior" else prior.isfinite()
        if not valid.all():
            kind = "positive finite" if name == "std_prior" else "finite"
            raise ValueError(f"{name}: expected {kind} values in {prior.dtype}, got {prior[~valid][0].item()}")
    return prior


def _broadcast(x: Tensor, mu: Tensor) -> Tensor:
    """x with the sizes of mu, or with one more in front, if it broadcasts to them; the op refuses what does not."""
    extra = x.dim() - mu.dim()
    if extra > 1:
        return x
    sizes = list(x.shape[: max(extra, 0)]) + list(mu.shape)
    for i in range(x.dim()):
        if x.shape[-1 - i] != 1 and x.shape[-1 - i] != sizes[-1 - i]:
            return x
    return x.expand(sizes)


def inverse_softplus(values: Tensor) -> Tensor:
    """log(exp(values) - 1), for values near 0 and for large ones."""
    return values + torch.log(-torch.expm1(-values))


class Positive(nn.Module):
    """Keeps a learned std_prior positive: the optimizer moves a number whose softplus it is.

        bnn = BayesianModule(network, std_prior=nn.Parameter(torch.tensor(0.3)))
        torch.nn.utils.parametrize.register_parametrization(bnn, "std_prior", Positive())  # 0.3, as before

    Register it before the optimizer is made, and once for each parameter. Where each weight has a std_prior of its own:

        for part in list(bnn.std_prior.modules()):
            for name in list(part._parameters):
                torch.nn.utils.parametrize.register_parametrization(part, name, Positive())
    """

    def forward(self, values: Tensor) -> Tensor:
        return nn.functional.softplus(values)

    def right_inverse(self, values: Tensor) -> Tensor:
        return inverse_softplus(values)


class DistributionModule(nn.Module, ABC):
    """What a layer may ask of a distribution of its weights."""

    @abstractmethod
    def sample(self) -> Tensor:
        """A reparameterised sample."""

    @abstractmethod
    def log_prob(self, x: Optional[Tensor] = None) -> Tensor:
        """Sum of log q(x) - log p(x); x=None draws a new sample."""

    @abstractmethod
    def num_params(self) -> int:
        """Number of weights."""


class GaussianDistribution(DistributionModule):
    """A Gaussian over weights, q = N(mu, softplus(rho)^2), with the prior p = N(mu_prior, std_prior^2).

    Parameters `mu` and `rho` of shape [*shape], buffers `mu_prior` and `std_prior` of shape [1]: the state_dict
    of illia's class of this name, whose initial values this one also draws, bit for bit, for one
    `torch.manual_seed` (mu ~ N(mu_init, 0.1^2), rho ~ N(rho_init, 0.1^2)).

    Args:
        shape: int or sequence of ints; () for a scalar. `(4, 3)`, in parentheses: in `GaussianDistribution(4, 3)` the
            second number is mu_prior.
        mu_prior, std_prior: of the prior. Numbers; tensors with one element or broadcastable to shape, which become
            buffers; or nn.Parameters, which are learned with the weights (empirical Bayes) and may be shared by
            modules. An optimizer may make a learned std_prior negative, and all that depends on it NaN: see `Positive`.
        mu_init, rho_init: means of the initial values.
        prior: in place of mu_prior and std_prior: a distribution, or a module that returns one, as of `BayesianModule`.
        device, dtype: as in every module of torch.nn; the dtype is a floating one.

    Raises:
        TypeError: an unknown argument, a dtype that is not floating, or a prior that is no number and no tensor.
        ValueError: a negative size, a prior whose shape does not fit, one with a graph of its own, a std_prior that is
            not positive and finite in this dtype, or what `BayesianModule` says of `prior`.
    """

    mu_prior: Tensor
    std_prior: Tensor

    def __init__(
        self,
        shape: int | Sequence[int],
        mu_prior: float | Tensor = 0.0,
        std_prior: float | Tensor = 0.1,
        mu_init: float = 0.0,
        rho_init: float = -7.0,
        *,
        prior: "Distribution | nn.Module | None" = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        factory = {name: kwargs.pop(name, None) for name in ("device", "dtype")}
        if kwargs:
            raise TypeError(f"GaussianDistribution: unknown arguments {sorted(kwargs)}; device and dtype are known")
        dtype = torch.get_default_dtype() if factory["dtype"] is None else factory["dtype"]
        check_dtype("dtype", dtype)
        self.shape = _shape(shape)
        self.mu_init = check_finite("mu_init", mu_init)
        self.rho_init = check_finite("rho_init", rho_init)
        device = torch.empty(0, device=factory["device"]).device
        if prior is not None:
            check_one_prior(mu_prior=(mu_prior, 0.0), std_prior=(std_prior, 0.1))
            held = as_prior(prior, {"mu": torch.empty(self.shape, dtype=dtype, device=device).zero_()})
            mu_prior, std_prior = fixed_gaussian(prior) or (mu_prior, std_prior)
        priors = {
            name: make_prior(name, value, self.shape, dtype, device)
            for name, value in (("mu_prior", mu_prior), ("std_prior", std_prior))
        }
        # illia draws a standard normal that it then overwrites; so do we, or later draws would differ
        self.mu = nn.Parameter(torch.randn(self.shape, **factory).normal_(mu_init, 0.1))
        self.rho = nn.Parameter(torch.randn(self.shape, **factory).normal_(rho_init, 0.1))
        self.prior = None if prior is None or fixed_gaussian(prior) else held
        for name, value in priors.items():
            if self.prior is not None:
                self.register_buffer(name, None)
            elif isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, value)

    def __prepare_scriptable__(self) -> "GaussianDistribution":
        if self.prior is not None:
            raise RuntimeError("prior: TorchScript takes a Gaussian prior alone; use torch.compile or torch.export")
        return self

    def _choose_key(self, num_samples: Optional[int], key: Optional[Tensor], antithetic: bool) -> Tensor:
        """[2], or [S, 2]; of antithetic samples [S / 2, 2]."""
        if key is not None:
            if not isinstance(key, Tensor):
                raise TypeError(f"key: expected a tensor, got {key}")
            if num_samples is not None:
                raise ValueError(f"num_samples: a key says how many samples to draw, got num_samples={num_samples} too")
            return key
        if antithetic:
            if not is_scripting() and num_samples is not None:
                num_samples = check_count("num_samples", num_samples)
            if num_samples is None or num_samples % 2 != 0:
                raise ValueError(f"num_samples: expected an even number with antithetic=True, got {num_samples}")
            num_samples = num_samples // 2
        if is_scripting():  # TorchScript has no place for the generator that draw_key takes
            if num_samples is None:
                return torch.randint(9223372036854775807, [2], generator=None, device=self.mu.device)
            if num_samples < 0:
                raise ValueError(f"num_samples: must be at least 0, got {num_samples}")
            return torch.randint(9223372036854775807, [num_samples, 2], generator=None, device=self.mu.device)
        else:
            num_keys = None if num_samples is None else check_count("num_samples", num_samples)
            return draw_key(num_keys, device=self.mu.device, mesh=getattr(self.mu, "device_mesh", None))

    @torch.jit.export
    def sample(
        self, num_samples: Optional[int] = None, key: Optional[Tensor] = None, antithetic: bool = False
    ) -> Tensor:
        """A reparameterised sample x = mu + softplus(rho) * eps.

        Args:
            num_samples: how many; None for one without a dimension of its own.
            key: [2] or [S, 2] (see `illia_ext.random`), in place of num_samples; None draws from torch's generator.
            antithetic: draw pairs, mu + sigma eps and then mu - sigma eps: an even num_samples, or two samples for each
                key of [k, 2].

        Returns:
            [*shape], or [num_samples, *shape].
        """
        key = self._choose_key(num_samples, key, antithetic)
        if is_scripting():
            if antithetic:
                key = torch.stack([key, key], 1).flatten(0, 1)
            x: Tensor = torch.ops.illia_ext.gaussian_sample(self.mu, self.rho, key, antithetic=antithetic)
            return x
        else:
            return functional.gaussian_sample(self.mu, self.rho, key, antithetic=antithetic)

    @torch.jit.export
    def log_prob(self, x: Optional[Tensor] = None) -> Tensor:
        """Sum of log q(x) - log p(x), in nats.

        Args:
            x: [*shape] or [S, *shape], or of sizes that broadcast to one of these: a scalar stands for all weights, but
                [S, *shape] is S samples. Of another dtype than mu's, all is computed in the dtype to which torch
                promotes both. None draws a new sample, in the same pass.

        Returns:
            Scalar, or [S].
        """
        if x is None:
            return self.sample_and_log_prob(None, None, False, False)[1]  # TorchScript fills in no defaults here
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a tensor, got {x}")
        mu: Tensor = self.mu
        rho: Tensor = self.rho
        if x.dtype != mu.dtype and not x.is_complex():
            dtype = torch.promote_types(x.dtype, mu.dtype)
            mu, rho = mu.to(dtype), rho.to(dtype)
            if dtype != torch.float32 or not x.is_floating_point():  # which the op takes half types beside
                x = x.to(dtype)
        x = _broadcast(x, mu)
        if is_scripting():
            log_prob: Tensor = torch.ops.illia_ext.gaussian_log_prob(x, mu, rho, self.mu_prior, self.std_prior)
            return log_prob
        else:
            return self._log_prob(x, mu, rho)

    @torch.jit.export
    def sample_and_log_prob(
        self,
        num_samples: Optional[int] = None,
        key: Optional[Tensor] = None,
        stick_the_landing: bool = False,
        antithetic: bool = False,
    ) -> Tuple[Tensor, Tensor]:
        """`sample` and the `log_prob` of that sample, in one pass.

        Args:
            num_samples, key, antithetic: as of `sample`.
            stick_the_landing: as of `illia_ext.functional.gaussian_sample_and_log_prob`.

        Returns:
            x: [*shape], or [num_samples, *shape].
            log_prob: scalar, or [num_samples]; in nats.
        """
        key = self._choose_key(num_samples, key, antithetic)
        if is_scripting():
            if antithetic:
                key = torch.stack([key, key], 1).flatten(0, 1)
            both: Tuple[Tensor, Tensor] = torch.ops.illia_ext.gaussian_sample_and_log_prob(
                self.mu,
                self.rho,
                self.mu_prior,
                self.std_prior,
                key,
                stick_the_landing=stick_the_landing,
                antithetic=antithetic,
            )
            return both
        else:
            return self._sample_and_log_prob(key, stick_the_landing, antithetic)

    # What TorchScript does not read.

    def _log_prob(self, x: Tensor, mu: Tensor, rho: Tensor) -> Tensor:
        distribution, priors, family = self._prior()
        log_q = functional.gaussian_log_prob(x, mu, rho, *priors, **family)
        return log_q if distribution is None else log_q - log_density(distribution, x, mu)

    def _sample_and_log_prob(self, key: Tensor, stick_the_landing: bool, antithetic: bool) -> Tuple[Tensor, Tensor]:
        distribution, priors, family = self._prior()
        x, log_q = functional.gaussian_sample_and_log_prob(
            self.mu, self.rho, *priors, key, None, stick_the_landing, **family, antithetic=antithetic
        )
        return x, log_q if distribution is None else log_q - log_density(distribution, x, self.mu)

    def _prior(self) -> Tuple[Any, Tuple[Any, Any], dict[str, Any]]:
        """A distribution that the kernels do not know, or None; mu_prior and std_prior; and options for the kernels."""
        if self.prior is None:
            return None, (self.mu_prior, self.std_prior), {}
        prior: Any = self.prior
        known, distribution = fused_or_made(prior)
        if known is None:
            return distribution or prior(), (None, None), {}
        return None, (known.mu_prior, known.std_prior), known.options

    @torch.jit.export
    def kl_divergence(self) -> Tensor:
        """KL(q || p) in closed form: scalar, in nats.

        Raises:
            NotImplementedError: torch.distributions has no closed form for the prior.
        """
        if is_scripting():
            kl: Tensor = torch.ops.illia_ext.gaussian_kl_divergence(self.mu, self.rho, self.mu_prior, self.std_prior)
            return kl
        else:
            return self._kl_divergence()

    def _kl_divergence(self) -> Tensor:  # which TorchScript does not read
        distribution, priors, family = self._prior()
        if distribution is not None or family:
            prior: Any = self.prior
            return closed_form_kl(distribution or prior(), self.mu, self.rho)
        return functional.gaussian_kl_divergence(self.mu, self.rho, *priors)

    def to_distribution(self) -> "Independent[Normal]":
        """q as one of torch.distributions, with a graph to mu and rho: event_shape is shape, batch_shape empty.

        Its samples come from torch's generator, not from keys. Its formulas need softplus(rho) > 0, which in float32
        ends at rho = -104, where ours go on.
        """
        # threshold: torch's own, 20, rounds in float64
        return Independent(Normal(self.mu, nn.functional.softplus(self.rho, threshold=60)), self.mu.dim())

    @torch.jit.export
    def num_params(self) -> int:
        """Number of weights, mu.numel()."""
        return self.mu.numel()

    def extra_repr(self) -> str:
        parts = [str(tuple(self.shape))]
        gaussian = (("mu_prior", self.mu_prior), ("std_prior", self.std_prior)) if self.prior is None else ()
        for name, prior in gaussian:
            if prior.numel() != 1:
                parts.append(f"{name}={type(prior).__name__}{list(prior.shape)}")
            elif not prior.is_meta:
                parts.append(f"{name}={prior.item():g}")
        return ", ".join([*parts, f"mu_init={self.mu_init:g}", f"rho_init={self.rho_init:g}"])
