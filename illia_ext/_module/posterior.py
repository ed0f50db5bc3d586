"""What one reads from a posterior, and what one does with it: groups for an optimizer, weights that matter, a prior."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from illia_ext._module.guard import GuardedModule
from illia_ext._module.in_place import Places, look_up, tree

__all__ = ["Posterior"]


class Posterior(GuardedModule):
    """Gaussians by name: mu in `module`, rho beside it, and priors as one tensor for all or a tree of one for each."""

    rho: nn.Module
    mu_prior: Tensor | nn.Module
    std_prior: Tensor | nn.Module
    _names: list[str]
    _weights: Places
    _padding: dict[int, int]

    def _gaussians(self, what: str) -> tuple[list[Tensor], list[Tensor]]:
        raise NotImplementedError

    def named_gaussians(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, mu, rho) of each weight; the name is the plain module's."""
        mus, rhos = self._gaussians("named_gaussians")
        return zip(self._names, mus, rhos)

    def num_params(self) -> int:
        """Number of Gaussian weights, without padding rows."""
        mus, _ = self._gaussians("num_params")
        return sum(mu.numel() - (mu[0].numel() if i in self._padding else 0) for i, mu in enumerate(mus))

    def param_groups(
        self,
        mu: Mapping[str, Any] | None = None,
        rho: Mapping[str, Any] | None = None,
        rest: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """For an optimizer: mus, rhos, and the rest (parameters that are not Gaussian, learned priors).

        Args:
            mu, rho, rest: options of each group, such as {"lr": 1e-3}.

        Returns:
            The groups that have parameters.
        """
        mus, _ = self._gaussians("param_groups")
        rhos = list(self.rho.parameters())  # of a parametrized rho, what it is computed from
        known = {id(parameter) for parameter in [*mus, *rhos]}
        others = [each for each in self.parameters() if id(each) not in known and each.requires_grad]
        groups = ((mus, mu), (rhos, rho), (others, rest))
        return [dict(params=parameters, **(options or {})) for parameters, options in groups if parameters]

    @torch.no_grad()
    def signal_to_noise(self) -> dict[str, Tensor]:
        """|mu| / sigma of each weight: by how many of its standard deviations it lies away from 0.

            ratios = bnn.signal_to_noise()
            least = torch.cat([ratio.flatten() for ratio in ratios.values()]).quantile(0.75)
            for name, mu, _ in bnn.named_gaussians():
                mu.data[ratios[name] < least] = 0.0  # of bnn.module, the network of the means, 75 % are gone

        Returns:
            By the plain module's names, tensors of the weights' shapes without a graph; float32 for half types. A
            padding row, which is no weight, has inf: it is not to be pruned.

        Source: Graves, "Practical variational inference for neural networks" (2011); Blundell et al., "Weight
        uncertainty in neural networks" (2015).
        """
        mus, rhos = self._gaussians("signal_to_noise")
        ratios = [mu.abs() / _sigma(rho) for mu, rho in zip(mus, rhos)]
        for i, row in self._padding.items():
            ratios[i][row] = torch.inf
        return dict(zip(self._names, ratios))

    @torch.no_grad()
    def posterior_to_prior(self) -> None:
        """The prior becomes what the posterior is now, in place: the next task starts where this one ended.

            for task in tasks:
                train(bnn, task)
                bnn.posterior_to_prior()

        mu and rho stay as they are, so that `kl_divergence()` is 0, but for roundings, until they are trained. From
        then on each weight has a prior of its own: two more tensors of the weights' size, float32 for half types, which
        the state_dict holds; `load_state_dict` takes states of both kinds.

        Raises:
            RuntimeError: a prior that is learned; parameters that are sharded: gather them, call this, and shard again.

        Source: Nguyen et al., "Variational continual learning" (2018).
        """
        mus, rhos = self._gaussians("posterior_to_prior")
        for name, prior in self._priors():
            if _is_learned(prior):
                raise RuntimeError(f"{name}: expected a fixed prior, which can become the posterior, got a learned one")
        if any(hasattr(tensor, "device_mesh") for tensor in [*mus, *rhos]):
            raise RuntimeError("posterior_to_prior: the parameters are sharded; gather them, call this and shard again")
        means = [mu.to(_arithmetic(mu.dtype), copy=True) for mu in mus]
        stds = [_sigma(rho) for rho in rhos]
        for name, tensors in (("mu_prior", means), ("std_prior", stds)):
            self._put_prior(name, tree(dict(zip(self._names, tensors))))

    def _priors(self) -> list[tuple[str, Tensor | nn.Module]]:
        return [("mu_prior", self.mu_prior), ("std_prior", self.std_prior)]

    def _put_prior(self, name: str, prior: Tensor | nn.Module) -> None:
        delattr(self, name)
        if isinstance(prior, nn.Module):
            self.add_module(name, prior)
        else:
            self.register_buffer(name, prior)

    def _fit_prior(self, name: str, prior: Tensor | nn.Module, state_dict: Mapping[str, Any], key: str) -> None:
        """Places of the shapes that the state has, for it to be copied into."""
        own = look_up(prior, self._weights) if isinstance(prior, nn.Module) else [prior] * len(self._names)
        given: list[Any] = [state_dict.get(f"{key}.{weight}") for weight in self._names]
        if isinstance(prior, nn.Module) and key in state_dict:
            self._put_prior(name, torch.empty_like(state_dict[key], dtype=own[0].dtype, device=own[0].device))
        elif all(type(tensor) is Tensor for tensor in given):
            if isinstance(prior, nn.Module) and all(mine.shape == tensor.shape for mine, tensor in zip(own, given)):
                return
            new = [
                torch.empty_like(tensor, dtype=_arithmetic(mine.dtype), device=mine.device)
                for tensor, mine in zip(given, own)
            ]
            self._put_prior(name, tree(dict(zip(self._names, new))))

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        """Fixed priors take the form that the state has: one for all weights or one for each, with their values."""
        for name, prior in self._priors():
            if not _is_learned(prior):
                self._fit_prior(name, prior, state_dict, prefix + name)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)


def _is_learned(prior: Tensor | nn.Module) -> bool:
    if isinstance(prior, nn.Module):
        return next(prior.parameters(), None) is not None
    return isinstance(prior, nn.Parameter)


def _arithmetic(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _sigma(rho: Tensor) -> Tensor:
    return nn.functional.softplus(rho.to(_arithmetic(rho.dtype)))
