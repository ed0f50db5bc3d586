"""Works on all tensors of a network: draw them with their common log density, forward and backward."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor, nn

from bench.cases import Case, fused
from bench.check import check_outputs, check_tensors_noise
from bench.counts import OURS
from bench.layers import MU_PRIOR, STD_PRIOR
from bench.measure import Subject
from bench.setting import FLAT, FORWARD, ONE_BY_ONE, WHOLE_MODEL, Setting
from bench.works import Inputs, minimum_bytes
from illia_ext import BayesianModule, functional, random

__all__ = ["resnet50_numels", "tensors"]

Draw = Callable[[], tuple[list[Tensor], Tensor]]  # x of every tensor, and their common log_prob


def resnet50_numels(count: int) -> list[int]:
    """Sizes of the first `count` of ResNet-50's 161 parameters (He et al., 2015), in the order of its layers."""

    def convolution(inputs: int, outputs: int, kernel: int) -> list[int]:
        return [inputs * outputs * kernel**2, outputs, outputs]  # and its batch norm's weight and bias

    numels, inputs = convolution(3, 64, 7), 64
    for blocks, width in zip((3, 4, 6, 3), (64, 128, 256, 512)):
        for block in range(blocks):
            numels += convolution(inputs, width, 1) + convolution(width, width, 3) + convolution(width, 4 * width, 1)
            if block == 0:
                numels += convolution(inputs, 4 * width, 1)
            inputs = 4 * width
    return [*numels, inputs * 1000, 1000][:count]


class Model(nn.Module):
    """Without layers: forward gives the parameters."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        self.tensors = nn.ParameterList(tensors)

    def forward(self) -> list[Tensor]:
        return list(self.tensors)


class Tensors:
    """The first `count` tensors of ResNet-50, in several ways to draw them."""

    def __init__(self, count: int, setting: Setting) -> None:
        setting = replace(setting, compile_once=True)  # not for each of the 161 tensors
        self.count, self.setting = count, setting
        self.parts = [Inputs.make(numel, setting) for numel in resnet50_numels(count)]
        self.numel = sum(part.mu.numel() for part in self.parts)
        self.pairs = [(part.mu, part.rho) for part in self.parts]
        self.output_grads = [part.grad_x for part in self.parts], self.parts[0].grad_log_prob

    def one_by_one(self, case: Case) -> tuple[list[Tensor], Tensor]:
        xs, log_probs = zip(*(part.draw(case) for part in self.parts))
        return list(xs), torch.stack(log_probs).sum()

    def at_once(self) -> tuple[list[Tensor], Tensor]:
        mu, rho = zip(*self.pairs)
        first, key = self.parts[0], random.draw_key(device=self.setting.device)
        return functional.foreach_gaussian_sample_and_log_prob(mu, rho, first.mu_prior, first.std_prior, key)

    def backward(self, draw: Draw, leaves: list[Tensor]) -> tuple[list[Tensor], Tensor, tuple[Tensor, ...]]:
        xs, log_prob = draw()
        grad_xs, grad_log_prob = self.output_grads
        grads = torch.autograd.grad([*xs, log_prob], leaves, [*grad_xs, grad_log_prob.to(log_prob.dtype)])
        return xs, log_prob, grads

    def check(self, draw: Draw, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Two draws, whose larger tensors all have noise of their own."""
        noise = []
        for _ in range(2):
            xs, log_prob, grads = self.backward(draw, [leaf for pair in pairs for leaf in pair])
            noise += check_outputs(xs, log_prob, pairs, self.output_grads, grads)
        check_tensors_noise(noise, self.setting.dtype)

    def subject(
        self, name: str, draw: Draw, pairs: list[tuple[Tensor, Tensor]] | None = None, own: tuple[Tensor, ...] = ()
    ) -> Subject:
        """Forward of all tensors, then backward of all, as in a network."""
        pairs = pairs or self.pairs
        leaves = [leaf for pair in pairs for leaf in pair]
        given = [tensor for part in self.parts for tensor in part.given]
        return Subject(
            "tensors",
            self.count,
            name,
            self.numel,
            run=partial(self.backward, draw, leaves),
            check=partial(self.check, draw, pairs),
            minimum_bytes=minimum_bytes(self.numel, 1, leaves[0].element_size(), backward=True),
            graph=draw,
            own=(*given, *leaves, *own),
        )

    def ours(self) -> list[Subject]:
        """illia_ext, and as many weights in one tensor."""
        bnn = BayesianModule(Model([part.mu for part in self.parts]), MU_PRIOR, STD_PRIOR, rho_init=-3.0)
        pairs = [(mu, rho) for _, mu, rho in bnn.named_gaussians()]
        at_once = self.subject(OURS, self.at_once)
        at_once = replace(at_once, check=cache(at_once.check))  # one for both
        forward = replace(at_once, case=FORWARD, run=torch.no_grad()(self.at_once), graph=None)
        flat = Inputs.make(self.numel, self.setting).subject("tensors", self.count, FLAT, fused)
        return [at_once, forward, self.subject(WHOLE_MODEL, bnn, pairs, tuple(bnn.buffers())), flat]


def tensors(count: int, setting: Setting) -> list[Subject]:
    of = Tensors(count, setting)
    subjects = []
    for name, case in setting.tensor_cases():
        if name == OURS:
            subjects += of.ours()
        subjects.append(of.subject(ONE_BY_ONE if name == OURS else name, partial(of.one_by_one, case)))
    return subjects
