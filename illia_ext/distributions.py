"""The distributions that layers hold: a drop-in for `illia.distributions.torch`."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Optional, Tuple

import torch
from torch import Tensor, nn

from illia_ext.functional import check_mu_prior, check_std_prior

__all__ = ["DistributionModule", "GaussianDistribution"]


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
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"dtype: expected a floating dtype, got {dtype!r}")
        if isinstance(shape, bool):
            raise TypeError(f"shape: expected an integer or a sequence of integers, got {shape}")
        self.shape = torch.Size([shape] if isinstance(shape, int) else shape)
        if any(size < 0 for size in self.shape):
            raise ValueError(f"shape: expected no negative size, got {shape}")
        if not 0 < torch.tensor(check_std_prior(std_prior), dtype=dtype, device="cpu") < math.inf:
            raise ValueError(f"std_prior: expected a number in the range of {dtype}, got {std_prior}")
        self.mu_init = mu_init
        self.rho_init = rho_init
        self.register_buffer("mu_prior", torch.tensor([check_mu_prior(mu_prior)], **factory))
        self.register_buffer("std_prior", torch.tensor([std_prior], **factory))
        # illia draws a standard normal that it then overwrites; so do we, or later draws would differ
        self.mu = nn.Parameter(torch.randn(self.shape, **factory).normal_(mu_init, 0.1))
        self.rho = nn.Parameter(torch.randn(self.shape, **factory).normal_(rho_init, 0.1))

    def _choose_key(self, num_samples: Optional[int], key: Optional[Tensor]) -> Tensor:
        if key is not None:
            if num_samples is not None:
                raise ValueError(f"num_samples: a key says how many samples to draw, got num_samples={num_samples} too")
            return key
        if num_samples is None:
            return torch.randint(9223372036854775807, [2], generator=None, device=self.mu.device)
        if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 0:
            raise ValueError(f"num_samples: expected a non-negative integer or None, got {num_samples}")
        return torch.randint(9223372036854775807, [num_samples, 2], generator=None, device=self.mu.device)

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
