"""Bayesian neural networks as cheap to train as ordinary ones: fused Gaussian weights for PyTorch."""

from illia_ext import functional, random, reference
from illia_ext._after_import import import_after
from illia_ext.distributions import DistributionModule, GaussianDistribution
from illia_ext.replace import replace_distributions

__all__ = ["DistributionModule", "GaussianDistribution", "functional", "random", "reference", "replace_distributions"]
__version__ = "0.1.0"

import_after("torch.distributed.tensor", "illia_ext._dtensor")  # half a second that few need
