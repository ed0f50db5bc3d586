"""Bayesian neural networks as cheap to train as ordinary ones: fused Gaussian weights for PyTorch.

    BayesianModule(network)       any network with Gaussian weights; bnn(inputs) gives its output and log_prob
    elbo_loss(nll, log_prob, n)   what to minimise: minus the evidence lower bound per data point
    bnn.predict(inputs)           outputs for many samples of the weights, and their mean
    predictive_entropy, mutual_information    how unsure these are, and how much of that is due to the weights
    relative_rho(0.1)             an initial rho for networks that are trained already
    ScaleMixture(0.5, 1.0, 0.0025)    a prior, as others of torch.distributions are: BayesianModule(network, prior=...)
    GaussianDistribution(shape)   the weights of a layer of your own; replaces illia's class

Training differs from a deterministic network's in two lines, the conversion and the loss:

    import torch
    from torch import nn
    from illia_ext import BayesianModule, elbo_loss

    inputs, labels = torch.randn(512, 20), torch.randint(3, (512,))
    bnn = BayesianModule(nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 3)))
    optimizer = torch.optim.Adam(bnn.parameters(), lr=1e-2)  # bnn's parameters: mu and rho
    for step in range(100):
        batch = torch.randint(len(inputs), (64,))
        logits, log_prob = bnn(inputs[batch])
        nll = nn.functional.cross_entropy(logits, labels[batch])
        loss = elbo_loss(nll, log_prob, num_data=len(inputs))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    bnn.eval()
    probabilities = bnn.predict(inputs, transform=lambda logits: logits.softmax(-1)).mean

`help(illia_ext.elbo_loss)` tells how to see whether it has learned, and what to change if it has not.
"""

from illia_ext import functional, random, reference
from illia_ext.bayesian_module import BayesianModule, Prediction
from illia_ext.distributions import DistributionModule, GaussianDistribution, Positive
from illia_ext.objectives import elbo_loss, mutual_information, predictive_entropy
from illia_ext.priors import ScaleMixture
from illia_ext.replace import replace_distributions
from illia_ext.selection import relative_rho

__all__ = [
    "BayesianModule",
    "DistributionModule",
    "GaussianDistribution",
    "Positive",
    "Prediction",
    "ScaleMixture",
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
