"""What `illia_ext.BayesianModule` is compared with: the same network Bayesian by other means, and with fixed weights.

All are called as a BayesianModule is, and give its outputs and log_prob.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus

__all__ = ["BayesianTorch", "Dropout", "FixedWeights", "PlainBayesian"]


class PlainBayesian(nn.Module):
    """A network that draws its weights anew in each forward pass, as one writes it by hand.

    Its defaults are those of BayesianModule.
    """

    def __init__(self, network: nn.Module, std_prior: float = 1.0, rho_init: float = -5.0) -> None:
        super().__init__()
        self.network = deepcopy(network)  # its parameters are the means
        self.rho = nn.ParameterList(torch.full_like(mu, rho_init) for mu in self.network.parameters())
        self.std_prior = std_prior

    def forward(self, inputs: Tensor, num_samples: int | None = None) -> tuple[Tensor, Tensor]:
        if num_samples is not None:
            outputs, log_probs = zip(*(self(inputs) for _ in range(num_samples)))
            return torch.stack(outputs), torch.stack(log_probs)
        weights, log_probs = {}, []
        for (name, mu), rho in zip(self.network.named_parameters(), self.rho):
            sigma = softplus(rho)
            eps = torch.randn_like(mu)
            weights[name] = mu + sigma * eps
            log_q = -torch.log(sigma) - eps**2 / 2  # both without -log(2 pi) / 2, which cancels
            log_p = -math.log(self.std_prior) - (weights[name] / self.std_prior) ** 2 / 2
            log_probs.append((log_q - log_p).sum())
        return functional_call(self.network, weights, (inputs,)), torch.stack(log_probs).sum()


class FixedWeights(nn.Module):
    """A network as it is: the same weights in every sample, and nothing to add to the loss."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = deepcopy(network)

    def forward(self, inputs: Tensor, num_samples: int | None = None) -> tuple[Tensor, Tensor]:
        outputs: Tensor = self.network(inputs)
        return outputs if num_samples is None else outputs[None], outputs.new_zeros(())


class Dropout(FixedWeights):
    """A dropout after the first ReLU that stays on, with other masks for each sample (Gal & Ghahramani, 2016)."""

    def __init__(self, network: nn.Sequential, rate: float) -> None:
        super().__init__(nn.Sequential(*network[:2], nn.Dropout(rate), *network[2:]))

    def forward(self, inputs: Tensor, num_samples: int | None = None) -> tuple[Tensor, Tensor]:
        return super().forward(inputs if num_samples is None else inputs.expand(num_samples, *inputs.shape))


class BayesianTorch(nn.Module):
    """A network converted by bayesian-torch, with the settings of its README.

    Args:
        mean_weight: of its own KL divergence, in which each tensor counts by the mean over its elements. None: the
            divergence is the sum over all elements, as in the evidence lower bound.
    """

    def __init__(self, network: nn.Module, mean_weight: float | None = None) -> None:
        from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn, get_kl_loss

        super().__init__()
        self.network, self.get_kl, self.weight = deepcopy(network), get_kl_loss, mean_weight or 1.0
        settings = {"prior_mu": 0.0, "prior_sigma": 1.0, "posterior_mu_init": 0.0, "posterior_rho_init": -3.0}
        dnn_to_bnn(self.network, {**settings, "type": "Reparameterization", "moped_enable": False})
        for part in self.network.modules():
            if mean_weight is None and hasattr(part, "kl_div"):
                part.kl_div = partial(self.summed, part.kl_div)

    @staticmethod
    def summed(kl_div: Callable[..., Tensor], mu: Tensor, *others: Tensor) -> Tensor:
        return mu.numel() * kl_div(mu, *others)

    def forward(self, inputs: Tensor, num_samples: int | None = None) -> tuple[Tensor, Tensor]:
        outputs = [self.network(inputs) for _ in range(num_samples or 1)]
        log_prob = self.weight * self.get_kl(self.network)
        return outputs[0] if num_samples is None else torch.stack(outputs), log_prob
