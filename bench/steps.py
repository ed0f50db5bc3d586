"""The training step: what a user of a Bayesian network waits for."""

import copy
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from bench.cases import COMPILE_OPTIONS, formulas
from bench.check import Wrong, check_layer, check_network, check_noise
from bench.layers import CaseLinear, Layer, Network, PlainLinear, WholeNetwork
from bench.measure import Subject
from bench.setting import OURS, Setting
from illia_ext import random

__all__ = ["Contender", "by_layer", "steps"]

EIGHT_SAMPLES = f"{OURS}, 8 samples"


class Contender:
    """A network to train, with its optimizer; one for all batch sizes."""

    def __init__(self, name: str, make_network: Callable[..., nn.Module], setting: Setting) -> None:
        self.name, self.to = name, {"device": setting.device, "dtype": setting.dtype}
        torch.manual_seed(0)
        self.network = self.loss = make_network(**self.to)
        if name in COMPILE_OPTIONS:  # the whole network, not each tensor
            self.loss = torch.compile(self.network, fullgraph=True, options=COMPILE_OPTIONS[name])
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
        """Layers in the dtype that is timed, then the network in float32 at least. Raises Wrong."""
        if not self.network.pairs():
            return  # torch's own layers
        by_layer = isinstance(self.network, Network)
        if by_layer:
            check_layer(*self.network.layers)
        trained = copy.deepcopy(self.network.state_dict())
        self.network.to(torch.promote_types(self.to["dtype"], torch.float32))
        try:
            x, labels = self.data(32, self.network.pairs()[0][0].dtype)
            (self._check_wiring if by_layer else self._check_draws)(x, labels)
        finally:  # the next batch size meets the same network, right or wrong
            self.network.to(self.to["dtype"])
            self.network.load_state_dict(trained)

    def _check_wiring(self, x: Tensor, labels: Tensor) -> None:
        """Layers, whose noise has been checked: whether two calls draw anew; then, at a very small sigma, one call."""
        if torch.equal(self.loss(x, labels), self.loss(x, labels)):
            raise Wrong("noise: two calls have the same loss")
        for _, raw in self.network.pairs():
            nn.init.constant_(raw, -16)
        check_network(self.loss(x, labels), self.network, x, labels)

    def _check_draws(self, x: Tensor, labels: Tensor) -> None:
        """Two draws of a whole network, each beside the plain ones that the same seed of torch gives."""
        noise = []
        for seed in range(2 if self.network.num_samples is None else 1):
            torch.manual_seed(seed)
            loss = self.loss(x, labels)
            torch.manual_seed(seed)
            keys = random.draw_key(self.network.num_samples, device=x.device).reshape(-1, 2)
            samples = [self.network.bnn.sample_module(key).parameters() for key in keys]
            draws = [torch.stack(weights).detach() for weights in zip(*samples)]
            noise += check_network(loss, self.network, x, labels, draws)
        check_noise(noise, x.dtype)

    def subject(self, batch: int) -> Subject:
        x, labels = self.data(batch, self.to["dtype"])
        weights = sum(inputs * outputs + outputs for inputs, outputs in pairwise(Network.WIDTHS))
        run, graph = partial(self.step, x, labels), partial(self.loss, x, labels)
        own = (*self.network.parameters(), *self.network.buffers(), x, labels)
        return Subject("training step", batch, self.name, weights, run, self.check_once, graph=graph, own=own)


def by_layer(make_layer: Callable[..., Layer], **to: torch.device | torch.dtype) -> Network:
    return Network([make_layer(*widths, **to) for widths in pairwise(Network.WIDTHS)])


def steps(batches: list[int], setting: Setting) -> list[Subject]:
    """Eight samples at the first batch size alone."""
    makers: dict[str, Callable[..., nn.Module]] = {"not Bayesian": partial(by_layer, PlainLinear)}
    for name, case in setting.tensor_cases():
        layers = partial(by_layer, partial(CaseLinear, formulas if name in COMPILE_OPTIONS else case))
        ours = {OURS: WholeNetwork, EIGHT_SAMPLES: partial(WholeNetwork, 8), f"{OURS}, by layer": layers}
        makers |= ours if name == OURS else {name: layers}
    makers |= {name: partial(by_layer, make_layer) for name, make_layer in setting.peers.items()}
    contenders = [Contender(name, make_network, setting) for name, make_network in makers.items()]
    return [
        contender.subject(batch)
        for batch in batches
        for contender in contenders
        if contender.name != EIGHT_SAMPLES or batch == batches[0]
    ]
