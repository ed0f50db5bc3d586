"""Other libraries' Bayesian linear layers, run as their packages have them, behind the interface of `bench.layers`.

All start from mu ~ N(0, 0.1^2) and sigma near softplus(-5).
"""

import importlib
import math
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench.layers import MU_PRIOR, RHO_INIT, STD_PRIOR, Layer, Pair, Sigma

__all__ = ["PEERS", "BayesianTorch", "Blitz", "Peer", "TorchBNN", "load_peers", "make"]


class Peer(Layer):
    """A layer of another library, `layer`, with a bias."""

    modules: ClassVar[tuple[str, ...]]  # what it imports, when it is made
    mu_and_raw: ClassVar[tuple[str, str]]  # names of the parameters, the tensor's in place of *

    def pairs(self) -> list[Pair]:
        names = [[name.replace("*", tensor) for name in self.mu_and_raw] for tensor in ("weight", "bias")]
        return [(self.layer.get_parameter(mu), self.layer.get_parameter(raw)) for mu, raw in names]


class TorchBNN(Peer):
    """torchbnn's BayesLinear: sigma = exp(raw), computed once for the weights and again for the cost.

    The cost is its BKLLoss of this layer, summed: KL(q || p) in closed form. It is added up in torch's default dtype,
    whatever the layer's is. Initial values have no arguments and are set afterwards.
    """

    modules = ("torchbnn",)
    mu_and_raw = ("*_mu", "*_log_sigma")
    closed = True
    sigma: Sigma = staticmethod(torch.exp)

    def __init__(self, in_features: int, out_features: int) -> None:
        from torchbnn import BayesLinear, BKLLoss

        super().__init__()
        self.cost = BKLLoss(reduction="sum")
        self.layer = BayesLinear(MU_PRIOR, STD_PRIOR, in_features, out_features)
        for mu, log_sigma in self.pairs():
            nn.init.normal_(mu, 0.0, 0.1)
            nn.init.normal_(log_sigma, math.log(math.log1p(math.exp(RHO_INIT))), 0.1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), self.cost(self.layer).squeeze(0)


class BayesianTorch(Peer):
    """bayesian-torch's LinearReparameterization: sigma = log1p(exp(raw)), noise and priors in buffers of full size.

    Its prior_variance is used as a standard deviation, so it gets one. Its cost is the mean of KL(q || p), in closed
    form, over the weight plus the mean over the bias; each is multiplied by its count here, where the layer computes
    it, so that all layers minimise the same sum. This is bookkeeping: the numbers are the layer's.
    """

    modules = ("bayesian_torch.layers",)
    mu_and_raw = ("mu_*", "rho_*")
    closed = True

    def __init__(self, in_features: int, out_features: int) -> None:
        from bayesian_torch.layers import BaseVariationalLayer_, LinearReparameterization

        super().__init__()
        mean_kl = BaseVariationalLayer_().kl_div  # of an object of its own: the layer's would keep the layer alive
        self.layer = LinearReparameterization(in_features, out_features, MU_PRIOR, STD_PRIOR, 0.0, RHO_INIT)
        self.layer.kl_div = lambda mu, *others: mean_kl(mu, *others) * mu.numel()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x)


class Blitz(Peer):
    """blitz's BayesianLinear: sigma = log1p(exp(raw)), noise in a buffer of full size, one Gaussian as the prior.

    The cost is its kl_divergence_from_nn of this layer: log q(w) - log p(w) of the drawn w, summed. To the prior's
    density p(w) it adds 1e-6: with a std_prior of 0.1 half of the prior's pull is lost at 5.5 of them, all beyond 7.
    """

    gradient_error = 0.01  # of that 1e-6: up to 5e-3 at the weights used here
    modules = ("blitz.modules", "blitz.losses")
    mu_and_raw = ("*_sampler.mu", "*_sampler.rho")  # the layer's own of these names get no gradient

    def __init__(self, in_features: int, out_features: int) -> None:
        from blitz.losses import kl_divergence_from_nn
        from blitz.modules import BayesianLinear

        super().__init__()
        self.cost = kl_divergence_from_nn
        prior = torch.distributions.Normal(MU_PRIOR, STD_PRIOR)  # its default prior computes two densities, not one
        self.layer = BayesianLinear(in_features, out_features, posterior_rho_init=RHO_INIT, prior_dist=prior)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), self.cost(self.layer)


PEERS: dict[str, type[Peer]] = {"torchbnn": TorchBNN, "bayesian-torch": BayesianTorch, "blitz": Blitz}


def make(peer: type[Peer], in_features: int, out_features: int, device: torch.device, dtype: torch.dtype) -> Peer:
    """A layer with its dtype as torch's default one, then moved: none of the packages takes a device or a dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return peer(in_features, out_features).to(device)
    finally:
        torch.set_default_dtype(before)


def load_peers() -> tuple[dict[str, partial], dict[str, str]]:
    """How to make the peers whose packages import here, and for the others the reason in a line, by their names."""
    loaded, skipped = {}, {}
    for name, peer in PEERS.items():
        try:
            for module in peer.modules:
                importlib.import_module(module)
            loaded[name] = partial(make, peer)
        except Exception as error:
            skipped[name] = " ".join(f"{type(error).__name__}: {error}".split())
    return loaded, skipped
