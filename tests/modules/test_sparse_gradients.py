"""An embedding with sparse=True hands its weights a sparse gradient; mu and rho get the dense one's."""

from collections.abc import Callable

import pytest
import torch
from helpers import make_key, same_bits
from torch import Tensor, nn

from illia_ext import GaussianDistribution, functional

Draw = Callable[[GaussianDistribution], tuple[Tensor, Tensor]]


def by_foreach(distribution: GaussianDistribution) -> tuple[Tensor, Tensor]:
    mu, rho = [distribution.mu], [distribution.rho]
    x, log_prob = functional.foreach_gaussian_sample_and_log_prob(mu, rho, 0.0, 0.5, make_key(1))
    return x[0], log_prob


DRAWS: dict[str, Draw] = {
    "sample": lambda distribution: (distribution.sample(key=make_key(1)), distribution.mu.sum()),
    "sample_and_log_prob": lambda distribution: distribution.sample_and_log_prob(key=make_key(1)),
    "foreach": by_foreach,
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_of_an_embedding(draw: Draw, device: torch.device) -> None:
    distribution = GaussianDistribution((5, 3), device=device)
    indices = torch.tensor([1, 3, 3], device=device)
    gradients = []
    for sparse in (False, True):
        x, log_prob = draw(distribution)
        loss = nn.functional.embedding(indices, x, sparse=sparse).square().sum() + log_prob
        gradients.append(torch.autograd.grad(loss, [distribution.mu, distribution.rho]))
    assert all(map(same_bits, *gradients))
