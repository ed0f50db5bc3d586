"""What `illia_ext.BayesianModule` is compared with: the same network Bayesian in plain PyTorch, and with fixed weights.

Both are called as a BayesianModule is, and give its outputs and log_prob.
"""

import math
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus

__all__ = ["FixedWeights", "PlainBayesian"]


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
