"""How targets are distributed around a network's outputs: negative log likelihoods, in nats, the mean over the batch.

Outputs of S samples of the weights have a dimension in front, over which the mean is taken as well.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

__all__ = ["Categorical", "Gaussian"]


class Categorical(nn.Module):
    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of logits [batch, classes] or [S, batch, classes] and labels [batch]."""
        return cross_entropy(logits.flatten(0, -2), labels.expand(logits.shape[:-1]).flatten())


class Gaussian(nn.Module):
    """Noise of one standard deviation for all targets, which is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.log_noise = nn.Parameter(torch.zeros(()))

    @property
    def noise(self) -> Tensor:
        return self.log_noise.detach().exp()

    def forward(self, means: Tensor, targets: Tensor) -> Tensor:
        """Of means [batch] or [S, batch] and targets [batch]."""
        errors = (targets - means) / self.log_noise.exp()
        return errors.square().mean() / 2 + self.log_noise + math.log(2 * math.pi) / 2
