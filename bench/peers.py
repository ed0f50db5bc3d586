"""Other libraries' Bayesian linear layers, run as their packages have them, behind the interface of `bench.layers`.

None takes a device or a dtype: each is built with its dtype as torch's default one and then moved, as its users have
to do. All start from mu ~ N(0, 0.1^2) and sigma near softplus(-5).
"""

import importlib
import math
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bench.layers import MU_PRIOR, RHO_INIT, STD_PRIOR, BayesianLinear, Gaussians

__all__ = ["PEERS", "BayesianTorch", "Blitz", "Peer", "TorchBNN", "load_peers"]


class Peer(BayesianLinear):
    """A layer of another library, with a bias. `imports` are the modules that it takes, at its construction only."""

    imports: ClassVar[tuple[str, ...]]
    layer: Any

    def __init__(
        self,
        in_features: int,
        out_features: int,
        mu_prior: float = MU_PRIOR,
        std_prior: float = STD_PRIOR,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype or before)
        try:
            self.layer = self._make(in_features, out_features, mu_prior, std_prior).to(device)
        finally:
            torch.set_default_dtype(before)

    @abstractmethod
    def _make(self, in_features: int, out_features: int, mu_prior: float, std_prior: float) -> nn.Module:
        """The other library's layer."""


class TorchBNN(Peer):
    """torchbnn's BayesLinear: sigma = exp(raw), computed once for the weights and again for the cost.

    The cost is its BKLLoss of this layer, summed: KL(q || p) in closed form. It is added up in torch's default dtype,
    whatever the layer's is. Initial values have no arguments and are set afterwards.
    """

    imports = ("torchbnn",)
    density = "closed form"

    def _make(self, in_features: int, out_features: int, mu_prior: float, std_prior: float) -> nn.Module:
        from torchbnn import BayesLinear, BKLLoss

        self.cost = BKLLoss(reduction="sum")
        layer = BayesLinear(mu_prior, std_prior, in_features, out_features)
        for mu, log_sigma in (layer.weight_mu, layer.weight_log_sigma), (layer.bias_mu, layer.bias_log_sigma):
            nn.init.normal_(mu, 0.0, 0.1)
            nn.init.normal_(log_sigma, math.log(math.log1p(math.exp(RHO_INIT))), 0.1)
        return layer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), self.cost(self.layer).squeeze(0)

    def gaussians(self) -> list[Gaussians]:
        of = self.layer
        return [Gaussians(of.weight_mu, of.weight_log_sigma), Gaussians(of.bias_mu, of.bias_log_sigma)]

    @staticmethod
    def sigma(raw: Tensor) -> Tensor:
        return raw.exp()


class BayesianTorch(Peer):
    """bayesian-torch's LinearReparameterization: sigma = log1p(exp(raw)), noise and priors in buffers of full size.

    Its prior_variance is used as a standard deviation, so it gets one. Its cost is the mean of KL(q || p), in closed
    form, over the weight plus the mean over the bias; each is multiplied by its count here, where the layer computes
    it, so that all layers minimise the same sum. This is bookkeeping: the numbers are the layer's.
    """

    imports = ("bayesian_torch.layers",)
    density = "closed form"

    def _make(self, in_features: int, out_features: int, mu_prior: float, std_prior: float) -> nn.Module:
        from bayesian_torch.layers import BaseVariationalLayer_, LinearReparameterization

        mean_kl = BaseVariationalLayer_().kl_div  # of an object of its own: the layer's would keep the layer alive
        layer = LinearReparameterization(in_features, out_features, mu_prior, std_prior, 0.0, RHO_INIT)
        layer.kl_div = lambda mu, *others: mean_kl(mu, *others) * mu.numel()
        return layer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x)

    def gaussians(self) -> list[Gaussians]:
        of = self.layer
        return [Gaussians(of.mu_weight, of.rho_weight), Gaussians(of.mu_bias, of.rho_bias)]


class Blitz(Peer):
    """blitz's BayesianLinear: sigma = log1p(exp(raw)), noise in a buffer of full size, one Gaussian as the prior.

    The cost is its kl_divergence_from_nn of this layer: log q(w) - log p(w) of the drawn w, summed. To the prior's
    density p(w) it adds 1e-6: with a std_prior of 0.1 half of the prior's pull is lost at 5.5 of them, all beyond 7.
    """

    imports = ("blitz.modules", "blitz.losses")
    density = "sampled"

    def _make(self, in_features: int, out_features: int, mu_prior: float, std_prior: float) -> nn.Module:
        from blitz.losses import kl_divergence_from_nn
        from blitz.modules import BayesianLinear as Layer

        self.cost = kl_divergence_from_nn
        prior = torch.distributions.Normal(mu_prior, std_prior)  # its default prior computes two densities, not one
        return Layer(in_features, out_features, posterior_rho_init=RHO_INIT, prior_dist=prior)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), self.cost(self.layer)

    def gaussians(self) -> list[Gaussians]:
        """The samplers' parameters: the layer's own of these names get no gradient."""
        return [Gaussians(drawn.mu, drawn.rho) for drawn in (self.layer.weight_sampler, self.layer.bias_sampler)]


PEERS: dict[str, type[Peer]] = {"torchbnn": TorchBNN, "bayesian-torch": BayesianTorch, "blitz": Blitz}


def load_peers() -> tuple[dict[str, type[BayesianLinear]], dict[str, str]]:
    """Peers whose packages import here, and for the others the reason in a line, both by their names in PEERS."""
    loaded: dict[str, type[BayesianLinear]] = {}
    skipped: dict[str, str] = {}
    for name, peer in PEERS.items():
        try:
            for module in peer.imports:
                importlib.import_module(module)
            loaded[name] = peer
        except Exception as error:
            skipped[name] = " ".join(f"{type(error).__name__}: {error}".split())
    return loaded, skipped
