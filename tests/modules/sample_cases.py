"""A module, keys and inputs for the tests of several samples."""

from collections.abc import Callable
from typing import Any

import torch
from helpers import make_keys
from torch import Tensor, nn

from illia_ext import BayesianModule

__all__ = ["INPUTS", "KEYS", "Custom", "make"]

KEYS = make_keys((1, 2), (3, 4), (5, 6), (7, 8), (9, 10))  # four are drawn by one op


class Custom(nn.Module):
    """A linear layer whose output goes through a function of the module's own; it counts its calls."""

    def __init__(self, function: Callable[["Custom", Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.function = function
        self.calls = 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Any:
        self.calls += 1
        return self.function(self, self.linear(inputs))


def make(function: Callable[[Custom, Tensor], Any], **arguments: Any) -> BayesianModule:
    torch.manual_seed(0)
    return BayesianModule(Custom(function).to(KEYS.device).double(), rho_init=-1.0, **arguments)


INPUTS = torch.linspace(-1, 1, 12, dtype=torch.float64, device=KEYS.device).reshape(4, 3)
