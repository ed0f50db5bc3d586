"""The distributions that layers hold: a drop-in for `illia.distributions.torch`."""

import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]

from illia_ext.functional import DTYPES, check_finite, check_std_prior
from illia_ext.random import count, draw_key

__all__ = ["DistributionModule", "GaussianDistribution"]


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
        shape: int or sequence of ints; () for a scalar.
        mu_prior, std_prior: of the prior.
        mu_init, rho_init: means of the initial values.
        device, dtype: as in every module of torch.nn; the dtype is a floating one.

    Raises:
        TypeError: an unknown argument, a dtype that is not floating, or a prior that is no number.
        ValueError: a negative size, or a std_prior that is not positive and finite in this dtype.
    """

    mu_prior: Tensor
    std_prior: Tensor

    def __init__(
        self,
        shape: int | Sequence[int],
        mu_prior: float = 0.0,
        std_prior: float = 0.1,
        mu_init: float = 0.0,
        rho_init: float = -7.0,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        factory = {name: kwargs.pop(name, None) for name in ("device", "dtype")}
        if kwargs:
            raise TypeError(f"GaussianDistribution: unknown arguments {sorted(kwargs)}; device and dtype are known")
        dtype = torch.get_default_dtype() if factory["dtype"] is None else factory["dtype"]
        if dtype not in DTYPES:
            raise TypeError(f"dtype: expected float32, float64, float16 or bfloat16, got {dtype!r}")
        self.shape = _shape(shape)
        self.mu_init = check_finite("mu_init", mu_init)
        self.rho_init = check_finite("rho_init", rho_init)
        for name, value in {
            "mu_prior": check_finite("mu_prior", mu_prior),
            "std_prior": check_std_prior(std_prior),
        }.items():
            prior = torch.tensor([float(value)], dtype=dtype, device="cpu")
            if not prior.isfinite() or (name == "std_prior" and prior == 0):
                raise ValueError(f"{name}: expected a number in the range of {dtype}, got {value}")
            self.register_buffer(name, prior.to(factory["device"] or torch.get_default_device()))
        # illia draws a standard normal that it then overwrites; so do we, or later draws would differ
        self.mu = nn.Parameter(torch.randn(self.shape, **factory).normal_(mu_init, 0.1))
        self.rho = nn.Parameter(torch.randn(self.shape, **factory).normal_(rho_init, 0.1))

    def _choose_key(self, num_samples: Optional[int], key: Optional[Tensor]) -> Tensor:
        if key is not None:
            if not isinstance(key, Tensor):
                raise TypeError(f"key: expected a tensor, got {key}")
            if num_samples is not None:
                raise ValueError(f"num_samples: a key says how many samples to draw, got num_samples={num_samples} too")
            return key
        if is_scripting():  # TorchScript has no place for the generator that draw_key takes
            if num_samples is None:
                return torch.randint(9223372036854775807, [2], generator=None, device=self.mu.device)
            if num_samples < 0:
                raise ValueError(f"num_samples: expected a non-negative integer, got {num_samples}")
            return torch.randint(9223372036854775807, [num_samples, 2], generator=None, device=self.mu.device)
        else:
            num_keys = None if num_samples is None else count(num_samples, "num_samples")
            return draw_key(num_keys, device=self.mu.device, mesh=getattr(self.mu, "device_mesh", None))

    @torch.jit.export
    def sample(self, num_samples: Optional[int] = None, key: Optional[Tensor] = None) -> Tensor:
        """A reparameterised sample x = mu + softplus(rho) * eps.

        Args:
            num_samples: how many; None for one without a dimension of its own.
            key: [2] or [S, 2] (see `illia_ext.random`), in place of num_samples; None draws from torch's generator.

        Returns:
            [*shape], or [num_samples, *shape].
        """
        return torch.ops.illia_ext.gaussian_sample(self.mu, self.rho, self._choose_key(num_samples, key))

    @torch.jit.export
    def log_prob(self, x: Optional[Tensor] = None) -> Tensor:
        """Sum of log q(x) - log p(x), in nats.

        Args:
            x: [*shape] or [S, *shape]; None draws a new sample, in the same pass.

        Returns:
            Scalar, or [S].
        """
        if x is None:
            return self.sample_and_log_prob(None, None)[1]  # TorchScript fills in no defaults here
        return torch.ops.illia_ext.gaussian_log_prob(x, self.mu, self.rho, self.mu_prior, self.std_prior)

    @torch.jit.export
    def sample_and_log_prob(
        self, num_samples: Optional[int] = None, key: Optional[Tensor] = None
    ) -> Tuple[Tensor, Tensor]:
        """`sample` and the `log_prob` of that sample, in one pass.

        Returns:
            x: [*shape], or [num_samples, *shape].
            log_prob: scalar, or [num_samples]; in nats.
        """
        key = self._choose_key(num_samples, key)
        return torch.ops.illia_ext.gaussian_sample_and_log_prob(self.mu, self.rho, self.mu_prior, self.std_prior, key)

    @torch.jit.export
    def kl_divergence(self) -> Tensor:
        """KL(q || p) in closed form: scalar, in nats."""
        return torch.ops.illia_ext.gaussian_kl_divergence(self.mu, self.rho, self.mu_prior, self.std_prior)

    @torch.jit.export
    def num_params(self) -> int:
        """Number of weights, mu.numel()."""
        return self.mu.numel()

    def extra_repr(self) -> str:
        known = {} if self.mu_prior.is_meta else {"mu_prior": self.mu_prior.item(), "std_prior": self.std_prior.item()}
        numbers = {**known, "mu_init": self.mu_init, "rho_init": self.rho_init}
        return ", ".join([str(tuple(self.shape)), *(f"{name}={value:g}" for name, value in numbers.items())])
