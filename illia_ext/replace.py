"""Turns the distributions of a network that was built with illia into ours."""

from abc import ABC
from collections import Counter
from typing import Any

import torch
from torch import nn

from illia_ext._checks import DTYPES
from illia_ext.distributions import DistributionModule, GaussianDistribution, make_prior
from illia_ext.functional import gaussian_log_prob

__all__ = ["replace_distributions"]

_TENSORS = {"mu", "rho", "mu_prior", "std_prior"}
_METHODS = {"sample", "log_prob", "num_params"}
_ATTRIBUTES = {"shape", "mu_init", "rho_init"}
# what every class has, and a constructor, whose work is done
_NO_BEHAVIOUR = {name for name in vars(GaussianDistribution) if name.startswith("__")} | {"_abc_impl"}


def _is_candidate(module: nn.Module) -> bool:
    """Whether it offers what illia's distribution does, and is not ours."""
    if isinstance(module, DistributionModule) or not _TENSORS.issubset(dir(module)):
        return False
    is_ours_scripted = isinstance(module, torch.jit.ScriptModule) and hasattr(module, "kl_divergence")
    return all(hasattr(module, name) for name in _METHODS) and not is_ours_scripted


def _check_state(module: nn.Module) -> None:
    tensors = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    names = {*tensors, *dict(module.named_children())}
    if names != _TENSORS:
        raise ValueError(f"expected to hold {sorted(_TENSORS)}, unparametrized, and nothing else, got {sorted(names)}")
    if missing := _ATTRIBUTES - vars(module).keys():
        raise ValueError(f"expected the attributes {sorted(_ATTRIBUTES)}, got none of {sorted(missing)}")
    mu, rho = tensors["mu"], tensors["rho"]
    if mu.dtype not in DTYPES or (mu.shape, mu.dtype, mu.device) != (rho.shape, rho.dtype, rho.device):
        kinds = [f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}" for tensor in (mu, rho)]
        raise ValueError(f"expected mu and rho of one floating dtype, shape and device, got {' and '.join(kinds)}")
    for name in ("mu_prior", "std_prior"):
        make_prior(name, tensors[name], mu.shape, mu.dtype, mu.device)


def _check_behaviour(module: nn.Module) -> None:
    """That its classes define illia's methods, once each, and nothing else; no attribute of its own may hide ours."""
    defined = Counter(
        name
        for owner in type(module).__mro__
        if owner not in (*nn.Module.__mro__, ABC)
        for name, value in vars(owner).items()
        if name not in _NO_BEHAVIOUR and not getattr(value, "__isabstractmethod__", False)
    )
    own = {*(defined - Counter(_METHODS)), *(vars(module).keys() & set(dir(GaussianDistribution)))}
    if own:
        raise ValueError(f"expected no methods but illia's {sorted(_METHODS)}, got its own {sorted(own)}")


def _check_values(module: nn.Module) -> None:
    """That its methods give what ours do, asked of a stand-in with three weights: names tell no softplus from exp."""
    values = ([-1.5, 0.0, 2.0], [-1.0, 0.5, 2.5], [-1.0, 0.0, 1.5], [0.25], [0.75])
    with torch.no_grad(), torch.device("cpu"), torch.random.fork_rng(devices=[]):
        x, mu, rho, mu_prior, std_prior = (torch.tensor(value, dtype=torch.float64) for value in values)
        stand_in: Any = object.__new__(type(module))
        nn.Module.__init__(stand_in)
        for name, tensor in (("mu", mu), ("rho", rho), ("mu_prior", mu_prior), ("std_prior", std_prior)):
            stand_in.register_buffer(name, tensor)
        vars(stand_in).update({**vars(module), **vars(stand_in)})
        log_prob, expected = stand_in.log_prob(x), gaussian_log_prob(x, mu, rho, mu_prior, std_prior)
        num_params = stand_in.num_params()
        eps = []
        for stand_in.rho, training in ((rho, True), (rho + 1, False)):  # of one seed
            torch.manual_seed(0)
            eps.append((stand_in.train(training).sample() - mu) / nn.functional.softplus(stand_in.rho))
    # 1e-4 is far above the rounding of a dozen terms below 10, in float32 too
    if not torch.allclose(log_prob.double(), expected, rtol=0, atol=1e-4):
        raise ValueError(f"expected illia's log_prob, {expected} for a given x, got {log_prob}")
    if num_params != 3:
        raise ValueError(f"expected illia's num_params, 3 for mu of shape [3], got {num_params}")
    if not (torch.allclose(eps[0], eps[1], rtol=0, atol=1e-4) and eps[0].all()):
        raise ValueError("expected illia's sample, mu + softplus(rho) * eps in train and in eval mode, got another")


def _check(module: nn.Module) -> None:
    """That our class changes nothing about the module but how it computes and which noise it draws."""
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError("expected a module that is not scripted: replace first, then script")
    _check_state(module)
    _check_behaviour(module)
    _check_values(module)


def replace_distributions(model: nn.Module) -> int:
    """Makes every `illia.distributions.torch.GaussianDistribution` in `model` one of ours, in place.

    The modules stay the objects that they are and get our class: their parameters, buffers, state_dict keys, modes and
    hooks, the optimizers, and whoever else holds them go on; one that is held in two places stays one. If any cannot
    be replaced, none is. For one seed the samples are others than illia's, because ours are drawn from keys.

    illia is not imported. A module with the names mu, rho, mu_prior, std_prior, sample, log_prob and num_params is
    taken for its distribution, and refused unless it holds these four tensors and nothing else, its classes define
    these three methods and no others, and they give illia's values. Ours, and whatever else derives from
    `illia_ext.DistributionModule`, are left alone.

    Args:
        model: a module with all its submodules, or a distribution itself.

    Returns:
        How many were replaced.

    Raises:
        TypeError: model is no module.
        ValueError: a distribution that is scripted or parametrized, has methods or submodules of its own, or tensors
            that ours does not accept, such as a std_prior <= 0; the message names it.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {model!r}")
    found = {name: module for name, module in model.named_modules() if _is_candidate(module)}
    for name, module in found.items():
        try:
            _check(module)
        except Exception as error:  # of its own methods too, which are called
            where = f"{name or 'itself'} of class {type(module).__name__}"
            raise ValueError(f"model: cannot replace {where}: {error}") from None
    for module in found.values():
        module.__class__ = GaussianDistribution
        module.shape = module.mu.shape  # of torch.Size, as ours have it
        module.prior = None
    return len(found)
