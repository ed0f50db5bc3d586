"""Bayesian neural networks as cheap to train as ordinary ones: fused Gaussian weights for PyTorch."""

from illia_ext import functional, random, reference
from illia_ext._after_import import import_after
from illia_ext.bayesian_module import BayesianModule, Prediction
from illia_ext.distributions import DistributionModule, GaussianDistribution
from illia_ext.objectives import elbo_loss, mutual_information, predictive_entropy
from illia_ext.replace import replace_distributions
from illia_ext.selection import relative_rho

__all__ = [
    "BayesianModule",
    "DistributionModule",
    "GaussianDistribution",
    "Prediction",
    "elbo_loss",
    "functional",
    "mutual_information",
    "predictive_entropy",
    "random",
    "reference",
    "relative_rho",
    "replace_distributions",
]
__version__ = "0.1.0"

import_after("torch.distributed.tensor", "illia_ext._dtensor")  # half a second that few need
