"""Other priors beside the Gaussian: one tensor or many, drawn with their log density, and backward."""

import math
from functools import partial

import torch
from torch import Tensor
from torch.distributions import Categorical, Laplace, MixtureSameFamily, Normal, StudentT
from torch.nn import functional as F

from bench.layers import MU_PRIOR, STD_PRIOR, Pair
from bench.measure import Subject
from bench.setting import OURS, Setting
from bench.tensors import Draw, Tensors
from illia_ext import ScaleMixture

__all__ = ["log_sum_exp", "priors"]

WEIGHT, STD1, STD2 = 0.25, 1.0, 0.0025  # of the scale mixture
DEGREES_OF_FREEDOM = 4.0
MOST_ON_A_CPU = 2**20  # weights
MIXTURE = "scale mixture"


def log_sum_exp(mu: Tensor, rho: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    """The scale mixture in plain PyTorch, without the checks of torch.distributions, which only take time."""
    q, first, second = (
        Normal(loc, scale, validate_args=False) for loc, scale in ((mu, F.softplus(rho)), (0.0, STD1), (0.0, STD2))
    )
    x = q.rsample()
    parts = math.log(WEIGHT) + first.log_prob(x), math.log1p(-WEIGHT) + second.log_prob(x)
    return x, (q.log_prob(x) - torch.logaddexp(*parts)).sum()


def blitz(of: Tensors) -> tuple[Draw, list[Pair], list[Tensor]]:
    """Its sampler of each tensor, and its prior, which adds two densities and 1e-6; with mu and rho, and buffers."""
    from blitz.modules.weight_sampler import PriorWeightDistribution, TrainableRandomDistribution

    prior = PriorWeightDistribution(WEIGHT, STD1, STD2)
    samplers = [TrainableRandomDistribution(mu.detach(), rho.detach()).to(mu) for mu, rho in of.pairs]

    def draw() -> tuple[Tensor, ...]:
        xs = [sampler.sample() for sampler in samplers]
        log_probs = [sampler.log_posterior() - prior.log_prior(x) for sampler, x in zip(samplers, xs)]
        return (*xs, torch.stack(log_probs).sum())

    return draw, [(sampler.mu, sampler.rho) for sampler in samplers], [sampler.eps_w for sampler in samplers]


def priors(numels: list[int], setting: Setting) -> list[Subject]:
    """illia_ext as a BayesianModule of all tensors, the others one by one; a point is the sum of their weights.

    On a CPU the others would take minutes for all of ResNet-50, mostly for their checks, and are left out there.
    """
    of = Tensors(numels, setting)
    weights, stds = torch.tensor([[WEIGHT, 1 - WEIGHT], [STD1, STD2]], dtype=torch.float64, device=setting.device)
    mixture = MixtureSameFamily(Categorical(weights), Normal(torch.zeros_like(stds), stds))
    gaussian, laplace, student_t = (
        make(MU_PRIOR, STD_PRIOR) for make in (Normal, Laplace, partial(StudentT, DEGREES_OF_FREEDOM))
    )
    ours = {  # the prior, and what it is checked against
        "Gaussian": (gaussian, gaussian),
        "Laplace": (laplace, laplace),
        MIXTURE: (ScaleMixture(WEIGHT, STD1, STD2), mixture),
        "Student-t": (student_t, student_t),
    }
    subjects = [
        of.module_subject("priors", of.numel, f"{OURS}, {name}", given, prior=prior)
        for name, (given, prior) in ours.items()
    ]
    if setting.device.type == "cpu" and of.numel > MOST_ON_A_CPU:
        return subjects
    if "eager" in setting.cases:
        draw = of.draw(log_sum_exp)
        subjects.append(of.subject("priors", of.numel, f"eager, {MIXTURE}", draw, prior=mixture))
    if "blitz" in setting.peers:
        draw, pairs, buffers = blitz(of)
        subjects.append(of.subject("priors", of.numel, f"blitz, {MIXTURE}", draw, pairs, buffers, prior=mixture))
    return subjects
