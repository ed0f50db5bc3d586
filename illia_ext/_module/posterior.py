"""What one reads from a posterior, and what one does with it: groups for an optimizer, weights that matter, a prior."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.utils import parametrize

from illia_ext._module.guard import GuardedModule
from illia_ext._module.in_place import Places, look_up, places, tree
from illia_ext._module.prior import EachPrior, fused_or_made, is_constant
from illia_ext.priors import Fused, arithmetic

__all__ = ["Posterior"]


class Posterior(GuardedModule):
    """Gaussians by name: mu in `module`, rho in a tree of the same names.

    The prior is Gaussian, with mu_prior and std_prior, each one tensor or such a tree; or `prior`, a module that
    returns a distribution, or such a tree of them.
    """

    rho: nn.Module
    mu_prior: Tensor | nn.Module | None
    std_prior: Tensor | nn.Module | None
    prior: nn.Module | None
    _names: list[str]
    _weights: Places
    _padding: dict[int, int]
    _ties: list[tuple[str, Places, int]]

    def _gaussians(self, what: str) -> tuple[list[Tensor], list[Tensor]]:
        """mu and rho as they are now: FSDP, torch.func or a user may have put other tensors in their places."""
        try:
            with self._turns():
                self._check_turn(what)
                mus = look_up(self.module, self._weights)
                tied = [look_up(self.module, place)[0] for _, place, _ in self._ties]
        except KeyError:
            self._explain()
            raise
        for tensor, (alias, _, i) in zip(tied, self._ties):
            if tensor is not mus[i]:
                message = f"expected to be tied to module.{self._names[i]}, got another parameter"
                raise RuntimeError(
                    f"module.{alias}: {message}; tie them again, also after load_state_dict(assign=True)"
                )
        return mus, look_up(self.rho, self._weights, parametrized=True)

    def _explain(self) -> None:
        """After a failure: which weight has been changed since it became a Gaussian, if one has."""
        for i, (name, rho) in enumerate(zip(self._names, look_up(self.rho, self._weights, parametrized=True))):
            try:
                (mu,) = look_up(self.module, places([name]))
            except KeyError:
                mu = None
            if mu is None:
                message = "expected the parameter that became a Gaussian, found none: its layer has been replaced or "
                message += "changed; change the plain module, and convert it then"
                raise RuntimeError(f"module.{name}: {message}") from None
            if i in self._padding and hasattr(mu, "device_mesh"):
                message = "its padding row cannot be left out of a DTensor; leave the weight out by select, or call "
                message += "this where FSDP2 holds it whole: in forward, or by register_fsdp_forward_method"
                raise RuntimeError(f"module.{name}: {message}")
            for what in ("shape", "dtype", "device", "device_mesh"):  # the last: one is sharded, the other is not
                ours, expected = (getattr(tensor, what, None) for tensor in (mu, rho))
                if ours != expected:
                    raise RuntimeError(f"module.{name}: expected the {what} of rho.{name}, {expected}, got {ours}")

    def _prior_modules(self) -> list[nn.Module]:
        """One for all weights, or one for each."""
        prior: Any = self.prior
        return [prior.get_submodule(name) for name in self._names] if isinstance(prior, EachPrior) else [prior]

    def _distributions(self) -> list[Distribution]:
        """What they return now."""
        return [module() for module in self._prior_modules()]

    def _fused(self) -> tuple[list[Fused], list[Distribution]]:
        """The priors as the kernels take them; or, where they do not know one of them, the distributions."""
        modules = self._prior_modules()
        known, made = zip(*map(fused_or_made, modules))
        if all(each is not None for each in known):
            return list(known), []
        return [], [each or module() for each, module in zip(made, modules)]

    def _prior_terms(self) -> tuple[tuple[Any, Any], dict[str, Any], list[Distribution]]:
        """mu_prior and std_prior as the functions `foreach_*` take them, their other keywords, and the distributions
        that they do not know, whose log density is to be subtracted."""
        if (self.prior is None) == (self.mu_prior is None or self.std_prior is None):
            raise RuntimeError(
                "prior: expected either prior, or mu_prior and std_prior, as the module was made, got both or neither"
            )
        if self.prior is None:
            mu_prior, std_prior = (
                look_up(p, self._weights, parametrized=True) if isinstance(p, nn.Module) else p
                for p in (self.mu_prior, self.std_prior)
            )
            return (mu_prior, std_prior), {}, []
        known, distributions = self._fused()
        if distributions:
            return (None, None), {}, distributions
        options = known[0].options
        if any(each.options != options for each in known):
            parts = [each for i, each in enumerate(known) for _ in range(1 + (i in self._padding))]  # see leave_out
            parameters = [number for each in parts for number in each.family_parameters or ()]
            options = {"family": [each.family for each in parts], "family_parameters": parameters}
        mu_prior, std_prior = ([getattr(each, name) for each in known] for name in ("mu_prior", "std_prior"))
        if len(known) == 1 and len(self._names) > 1:
            if mu_prior[0].numel() == std_prior[0].numel() == 1:
                return (mu_prior[0], std_prior[0]), options, []
            mu_prior, std_prior = mu_prior * len(self._names), std_prior * len(self._names)
        return (mu_prior, std_prior), options, []

    def _sum_over(
        self,
        function: Callable[..., Tensor],
        distributions: Sequence[Distribution],
        first: Sequence[Tensor],
        second: Sequence[Tensor],
    ) -> Tensor:
        """The sum in double of function(distribution, first, second, padding row) over all weights."""
        if len(distributions) == 1:
            distributions = list(distributions) * len(first)
        each = enumerate(zip(distributions, first, second))
        return torch.stack([function(*one, self._padding.get(i)).double() for i, one in each]).sum(0)

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
            mu, rho, rest: options of each group, such as {"lr": 1e-3}. Use no weight decay for mu and rho: the
                prior is in the loss, and decay pulls rho to 0, that is sigma to 0.69.

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
            weights = torch.cat([ratio[ratio.isfinite()] for ratio in ratios.values()])
            least = weights.kthvalue(int(0.75 * len(weights))).values
            for name, mu, _ in bnn.named_gaussians():
                mu.data[ratios[name] <= least] = 0.0  # three of four weights of bnn.module, the network of the means

        Returns:
            By the plain module's names, tensors of the weights' shapes without a graph; float32 for half types. inf in
            a padding row, which is no weight, and where sigma is too small for the type; 0 where mu is 0.

        Source: Graves, "Practical variational inference for neural networks" (2011); Blundell et al., "Weight
        uncertainty in neural networks" (2015).
        """
        mus, rhos = self._gaussians("signal_to_noise")
        ratios = [(mu.abs() / _sigma(rho)).masked_fill(mu == 0, 0.0) for mu, rho in zip(mus, rhos)]
        for i, row in self._padding.items():
            ratios[i][row] = torch.inf
        return dict(zip(self._names, ratios))

    @torch.inference_mode(False)
    @torch.no_grad()
    def posterior_to_prior(self) -> None:
        """The prior becomes what the posterior is now: the next task starts where this one ended.

            for task in tasks:
                train(bnn, task)
                bnn.posterior_to_prior()

        mu and rho stay as they are, so that `kl_divergence()` is 0, but for roundings, until they are trained. From
        then on each weight has a prior of its own: two more tensors of the weights' size, float32 for half types (`to`
        narrows them with the rest), which the state_dict holds. `load_state_dict` takes states with one prior for all
        weights or one for each. The first call replaces the prior's tensors: make averages of the model (EMA) and
        captured CUDA graphs after it. Later calls write into them.

        Raises:
            RuntimeError: a prior that is learned or parametrized; a sigma of 0, or one that is not finite; parameters
                that are sharded: gather them, call this, and shard again.

        Source: Nguyen et al., "Variational continual learning" (2018).
        """
        mus, rhos = self._gaussians("posterior_to_prior")
        if self.prior is not None and not is_constant(self.prior):
            raise RuntimeError(
                "prior: expected a fixed one, whose place the posterior can take, got a module that may learn; convert "
                "bnn.mean_module() anew, with the posterior as its prior"
            )
        for name, prior in self._priors():
            if prior is not None and not _is_fixed(prior):
                raise RuntimeError(
                    f"{name}: expected a fixed prior, whose place the posterior can take, got a learned one"
                )
        if any(hasattr(tensor, "device_mesh") for tensor in [*mus, *rhos]):
            raise RuntimeError("posterior_to_prior: the parameters are sharded; gather them, call this and shard again")
        means = [mu.to(arithmetic(mu.dtype), copy=True) for mu in mus]
        stds = [_sigma(rho) for rho in rhos]
        for name, std in zip(self._names, stds):
            if not std.is_meta and not (std.isfinite() & (std >= torch.finfo(std.dtype).tiny)).all():
                message = f"expected a sigma from {torch.finfo(std.dtype).tiny:.1e} on, for a std_prior"
                raise RuntimeError(f"rho.{name}: {message}, got {std.min().item():.1e} to {std.max().item():.1e}")
        del self.prior
        self.prior = None
        self._put_priors({"mu_prior": means, "std_prior": stds})

    def _priors(self) -> list[tuple[str, Any]]:
        return [("mu_prior", self.mu_prior), ("std_prior", self.std_prior)]

    def _each(self, prior: Tensor | nn.Module) -> list[Tensor]:
        """The prior of each weight."""
        return look_up(prior, self._weights) if isinstance(prior, nn.Module) else [prior] * len(self._names)

    def _put_priors(self, priors: Mapping[str, Tensor | list[Tensor]]) -> None:
        """One for all weights or one for each; into the tensors that are there where these have that shape and type."""
        for name, new in priors.items():
            old = getattr(self, name)
            if isinstance(new, list) and isinstance(old, nn.Module):
                pairs = list(zip(self._each(old), new))
                if all((mine.shape, mine.dtype) == (tensor.shape, tensor.dtype) for mine, tensor in pairs):
                    for mine, tensor in pairs:
                        mine.copy_(tensor)
                    continue
            delattr(self, name)
            if isinstance(new, list):
                self.add_module(name, tree(dict(zip(self._names, new))))
            else:
                self.register_buffer(name, new)

    @torch.no_grad()
    def _take_form_of(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Fixed priors take the form that the state has: one for all weights, one for each, or the Gaussians that
        `posterior_to_prior` put in the place of a distribution."""
        mus = look_up(self.module, self._weights)
        for name, mu in zip(self._names, mus):
            given = state_dict.get(f"{prefix}module.{name}")
            if isinstance(given, Tensor) and given.shape != mu.shape:
                return  # another network's, which will be refused
        if self.prior is not None:
            for part in ("module", "rho", "mu_prior", "std_prior"):
                parts = [state_dict.get(f"{prefix}{part}.{name}") for name in self._names]
                if any(not isinstance(one, Tensor) or one.shape != mu.shape for one, mu in zip(parts, mus)):
                    return
            if not is_constant(self.prior):
                return
            rho = look_up(self.rho, self._weights, parametrized=True)[0]
            del self.prior
            self.prior = None
            self._put_priors({"mu_prior": rho.new_zeros(1), "std_prior": rho.new_ones(1)})
        self._put_priors(self._priors_of_form(state_dict, prefix))

    def _priors_of_form(self, state_dict: Mapping[str, Any], prefix: str) -> dict[str, Tensor | list[Tensor]]:
        """Our priors' values, in the shapes of the state's; those alone that must change for it to be copied into.

        Empty for a prior that is learned here: the state will be refused.
        """
        shapes = [mu.shape for mu in look_up(self.module, self._weights)]
        if not all(_is_fixed(prior) for _, prior in self._priors()):
            return {}
        found: dict[str, Tensor | list[Tensor]] = {}
        for argument, prior in self._priors():
            own, one = self._each(prior), state_dict.get(prefix + argument)
            given: list[Any] = [state_dict.get(f"{prefix}{argument}.{name}") for name in self._names]
            if isinstance(one, Tensor) and isinstance(prior, nn.Module):
                found[argument] = _in_shape(torch.cat([mine.flatten() for mine in own]), one.shape).to(own[0].dtype)
            elif any(map(_is_plain, given)) and all(map(_fits, given, shapes)):
                shaped_as = [like if _is_plain(like) else mine for like, mine in zip(given, own)]
                each = [_in_shape(mine, like.shape) for mine, like in zip(own, shaped_as)]
                is_same = all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in zip(own, each))
                if not isinstance(prior, nn.Module) or not is_same:
                    found[argument] = each
        return found


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and not hasattr(value, "device_mesh")


def _fits(given: Any, shape: torch.Size) -> bool:
    """Whether it may be the prior of a weight, or is absent."""
    return not _is_plain(given) or given.numel() == 1 or given.shape == shape


def _in_shape(prior: Tensor, shape: torch.Size) -> Tensor:
    """Its values in that shape; its mean, where it has others."""
    values = prior.to(arithmetic(prior.dtype))
    return values.clone() if values.shape == shape else values.mean().expand(shape).clone()


def _is_fixed(prior: Tensor | nn.Module) -> bool:
    if isinstance(prior, nn.Module):
        is_computed = any(map(parametrize.is_parametrized, prior.modules()))
        return next(prior.parameters(), None) is None and not is_computed
    return not isinstance(prior, nn.Parameter)


def _sigma(rho: Tensor) -> Tensor:
    return nn.functional.softplus(rho.to(arithmetic(rho.dtype)))
