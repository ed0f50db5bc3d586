"""The training step: what a user of a Bayesian network waits for."""

from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise

import torch
from torch import Tensor

from bench.cases import COMPILE_OPTIONS, formulas
from bench.check import check_layer, check_network
from bench.layers import BayesianLinear, CaseLinear, Network, PlainLinear
from bench.measure import Subject
from bench.setting import Setting

__all__ = ["Contender", "steps"]


class Contender:
    """A network to train, with its optimizer; one for all batch sizes."""

    def __init__(self, name: str, make_layer: Callable[..., BayesianLinear], setting: Setting) -> None:
        self.name, self.to = name, {"device": setting.device, "dtype": setting.dtype}
        torch.manual_seed(0)
        self.network = Network([make_layer(*pair, **self.to) for pair in pairwise(Network.WIDTHS)])
        options = COMPILE_OPTIONS.get(name)
        self.loss = self.network
        if options is not None:
            self.loss = torch.compile(self.network, fullgraph=True, options=options)
        self.optimizer = torch.optim.Adam(self.network.parameters(), fused=True)
        self.check_once = cache(self.check)

    def data(self, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x = torch.randn(batch, Network.WIDTHS[0], device=self.to["device"], dtype=dtype)
        labels = torch.randint(Network.WIDTHS[-1], (batch,), device=x.device)
        for tensor in (x, labels):
            torch._dynamo.mark_dynamic(tensor, 0)  # one compilation for all batch sizes
        return x, labels

    def step(self, x: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad()
        self.loss(x, labels).backward()
        self.optimizer.step()

    def check(self) -> None:
        """Layers in the dtype that is timed; how they are wired in float32 at least, at a very small sigma."""
        gaussians = [gaussian for layer in self.network.layers for gaussian in layer.gaussians()]
        if not gaussians:
            return  # torch's own layers
        for layer in self.network.layers:
            check_layer(layer)
        trained = [raw.detach().clone() for _, raw in gaussians]
        self.network.to(torch.promote_types(self.to["dtype"], torch.float32))
        try:
            self._fill([torch.full_like(raw, -16) for _, raw in gaussians])
            x, labels = self.data(32, gaussians[0].raw.dtype)
            check_network(self.loss(x, labels), self.network, x, labels)
        finally:  # the next batch size meets the same network, right or wrong
            self.network.to(self.to["dtype"])
            self._fill(trained)

    def _fill(self, values: list[Tensor]) -> None:
        raws = [gaussian.raw for layer in self.network.layers for gaussian in layer.gaussians()]
        with torch.no_grad():
            for raw, value in zip(raws, values):
                raw.copy_(value)

    def subject(self, batch: int) -> Subject:
        x, labels = self.data(batch, self.to["dtype"])
        weights = sum(gaussian.mu.numel() for layer in self.network.layers for gaussian in layer.gaussians())
        return Subject(
            "training step",
            batch,
            self.name,
            weights,
            run=partial(self.step, x, labels),
            check=self.check_once,
            graph=lambda: self.loss(x, labels),
            own=(*self.network.parameters(), *self.network.buffers(), x, labels),
        )


def steps(batches: list[int], setting: Setting) -> list[Subject]:
    makers: dict[str, Callable[..., BayesianLinear]] = {"not Bayesian": PlainLinear}
    for name, case in setting.tensor_cases():  # of a compiled case the whole network is compiled, not each tensor
        makers[name] = partial(CaseLinear, formulas if name in COMPILE_OPTIONS else case)
    makers |= setting.peers
    contenders = [Contender(name, make_layer, setting) for name, make_layer in makers.items()]
    return [contender.subject(batch) for batch in batches for contender in contenders]
