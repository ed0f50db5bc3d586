"""Works on tensors: draw one, samples of one, or all tensors of a network with their log density, and go backward."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal

from bench.cases import Case, fused
from bench.check import check_draw, check_noise, check_pairs
from bench.layers import MU_PRIOR, STD_PRIOR, Pair
from bench.measure import Subject
from bench.setting import OURS, Setting
from illia_ext import BayesianModule, functional, random

__all__ = ["Draw", "Tensors", "minimum_bytes", "one_tensor", "resnet50", "resnet50_numels", "samples"]

Draw = Callable[[], tuple[Tensor, ...]]  # x of every tensor, then their common log_prob
Outputs = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]  # a draw, and the gradients to mu and rho of each tensor


class Tensors:
    """mu, rho [numel] of tensors, and the gradients that arrive at each x ([numel] or [S, numel]) and at log_prob."""

    def __init__(
        self, numels: list[int], setting: Setting, num_samples: int | None = None, dynamic: bool = False
    ) -> None:
        to = {"device": setting.device, "dtype": setting.dtype}
        self.num_samples, self.pairs, grads = num_samples, [], []
        samples = [] if num_samples is None else [num_samples]
        torch.manual_seed(0)
        for numel in numels:
            mu = (torch.randn(numel, **to) * 0.1).requires_grad_()
            rho = (torch.randn(numel, **to) * 0.1 - 3).requires_grad_()
            if dynamic or setting.compile_once:
                torch._dynamo.mark_dynamic(mu, 0)
                torch._dynamo.mark_dynamic(rho, 0)
            self.pairs.append((mu, rho))
            grads.append(torch.randn([*samples, numel], **to))
        self.prior = torch.full((1,), MU_PRIOR, **to), torch.full((1,), STD_PRIOR, **to)
        self.output_grads = (*grads, torch.full(samples, 0.1, device=setting.device))
        self.numel = sum(numels)

    def draw(self, case: Case) -> Draw:
        """Each tensor by itself."""
        several = {} if self.num_samples is None else {"num_samples": self.num_samples}
        if len(self.pairs) == 1:
            return partial(case, *self.pairs[0], *self.prior, **several)

        def one_by_one() -> tuple[Tensor, ...]:
            xs, log_probs = zip(*(case(*pair, *self.prior) for pair in self.pairs))
            return (*xs, torch.stack(log_probs).sum())

        return one_by_one

    def draw_at_once(self) -> tuple[Tensor, ...]:
        mu, rho = zip(*self.pairs)
        key = random.draw_key(device=mu[0].device)
        xs, log_prob = functional.foreach_gaussian_sample_and_log_prob(mu, rho, *self.prior, key)
        return (*xs, log_prob)

    def backward(
        self, draw: Draw, pairs: list[Pair] | None = None, output_grads: tuple[Tensor, ...] | None = None
    ) -> Outputs:
        """Forward of all tensors, then backward of all, as in a network."""
        outputs = draw()
        *grad_xs, grad_log_prob = output_grads or self.output_grads
        leaves = [leaf for pair in pairs or self.pairs for leaf in pair]
        return outputs, torch.autograd.grad(outputs, leaves, [*grad_xs, grad_log_prob.to(outputs[-1].dtype)])

    def check(
        self,
        run: Callable[[], Outputs],
        pairs: list[Pair] | None = None,
        prior: Distribution | None = None,
        antithetic: bool = False,
    ) -> None:
        """Two calls of `run`, of the draw alone where it gives no gradients. Raises Wrong."""
        pairs = pairs or self.pairs
        noise = []
        for _ in range(2):
            outputs, grads = run()
            drawn = check_draw(outputs, pairs, grads, self.output_grads, prior=prior)
            noise += check_pairs(drawn, pairs[0][0].dtype) if antithetic else drawn
        check_noise(noise, pairs[0][0].dtype)

    def subject(
        self,
        work: str,
        point: int,
        name: str,
        draw: Draw,
        pairs: list[Pair] | None = None,
        own: Sequence[Tensor] = (),
        **expected: Any,
    ) -> Subject:
        """Forward and backward of `draw`, checked once as `expected`, by default of these mu and rho."""
        num_samples = self.num_samples or 1
        run = partial(self.backward, draw, pairs)
        check = cache(partial(self.check, run, pairs, **expected))
        fewest = minimum_bytes(self.numel, num_samples, self.prior[0].element_size(), backward=True)
        own = (*self.prior, *(leaf for pair in pairs or self.pairs for leaf in pair), *own)
        return Subject(work, point, name, self.numel * num_samples, run, check, fewest, graph=draw, own=own)

    def module_subject(self, work: str, point: int, name: str, given: Distribution, **expected: Any) -> Subject:
        """All tensors as the weights of a BayesianModule, with rhos of its own, and the prior `given`."""
        bnn = BayesianModule(Model([mu for mu, _ in self.pairs]), prior=given, rho_init=-3.0)

        def whole() -> tuple[Tensor, ...]:
            xs, log_prob = bnn()
            return (*xs, log_prob)

        pairs = [(mu, rho) for _, mu, rho in bnn.named_gaussians()]
        return self.subject(work, point, name, whole, pairs, tuple(bnn.buffers()), **expected)

    def forward(self, subject: Subject, work: str, case: str) -> Subject:
        """The draw of `subject` without gradients."""
        run = torch.no_grad()(subject.graph)
        fewest = minimum_bytes(self.numel, 1, self.prior[0].element_size(), backward=False)
        check = partial(self.check, lambda: (run(), ()))
        return replace(subject, work=work, case=case, run=run, check=check, graph=None, minimum_bytes=fewest)


def minimum_bytes(numel: int, num_samples: int, itemsize: int, backward: bool) -> int:
    """Forward reads mu and rho and writes x; backward reads mu, rho and grad_x and writes grad_mu and grad_rho."""
    tensors = 2 + num_samples
    if backward:
        tensors += 2 + num_samples + 2
    return tensors * numel * itemsize


def one_tensor(numel: int, setting: Setting) -> list[Subject]:
    """Beside each work a copy of as many elements, and beside the forward pass its noise alone."""
    of = Tensors([numel], setting)
    both = [of.subject("forward + backward", numel, name, of.draw(case)) for name, case in setting.tensor_cases()]
    forward = [of.forward(subject, "forward", subject.case) for subject in both]
    copied_to = torch.empty_like(of.output_grads[0])
    run = partial(copied_to.copy_, of.output_grads[0])
    copy = Subject("forward", numel, "copy", numel, run, minimum_bytes=2 * numel * setting.dtype.itemsize)
    randn = partial(torch.randn, numel, device=setting.device, dtype=setting.dtype)
    noise = Subject("forward", numel, "torch.randn", numel, run=randn)
    return [*forward, copy, noise, *both, replace(copy, work="forward + backward")]


def samples(points: list[int], numel: int, setting: Setting) -> list[Subject]:
    """illia_ext draws them at once, the others one after the other, as their users do: faster than broadcasting."""
    subjects = []
    for num_samples in points:
        several, one = Tensors([numel], setting, num_samples), Tensors([numel], setting)
        for name, case in setting.tensor_cases():
            if name == OURS:
                subjects.append(several.subject("samples", num_samples, name, several.draw(case)))
                if num_samples % 2 == 0:
                    draw = several.draw(partial(case, antithetic=True))
                    pairs = several.subject("samples", num_samples, f"{name}, antithetic", draw, antithetic=True)
                    subjects.append(pairs)
                continue
            subject = one.subject("samples", num_samples, name, one.draw(case))
            loop = partial(_in_a_loop, one, list(zip(*several.output_grads)))
            fewest = minimum_bytes(numel, num_samples, setting.dtype.itemsize, backward=True)
            check = partial(several.check, partial(_kept, loop, subject.graph), one.pairs)
            run = partial(loop, subject.graph)
            weights = numel * num_samples
            subjects.append(replace(subject, weights=weights, run=run, check=check, minimum_bytes=fewest))
    return subjects


def _in_a_loop(one: Tensors, output_grads: list[tuple[Tensor, ...]], draw: Draw) -> list[Tensor]:
    totals = [torch.zeros_like(leaf) for leaf in one.pairs[0]]
    for grads in output_grads:
        torch._foreach_add_(totals, list(one.backward(draw, output_grads=grads)[1]))
    return totals


def _kept(loop: Callable[[Draw], list[Tensor]], draw: Draw) -> Outputs:
    """All draws of a loop, as samples, and the sums of their gradients."""
    draws = []

    def keep() -> tuple[Tensor, ...]:
        draws.append(draw())
        return draws[-1]

    totals = loop(keep)
    return tuple(map(torch.stack, zip(*draws))), tuple(totals)


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


def resnet50(count: int, setting: Setting) -> list[Subject]:
    """illia_ext in one call, as a module, as one tensor of as many weights, and one by one; others one by one.

    Compiled cases are compiled once for all sizes.
    """
    of = Tensors(resnet50_numels(count), setting, dynamic=True)
    subjects = []
    for name, case in setting.tensor_cases():
        if name != OURS:
            subjects.append(of.subject("tensors", count, name, of.draw(case)))
            continue
        at_once = of.subject("tensors", count, name, of.draw_at_once)
        flat = Tensors([of.numel], setting)
        subjects += [
            at_once,
            of.forward(at_once, "tensors", f"{name}, forward"),
            of.module_subject("tensors", count, f"{name}, BayesianModule", Normal(MU_PRIOR, STD_PRIOR)),
            flat.subject("tensors", count, f"{name}, one flat tensor", flat.draw(fused)),
            of.subject("tensors", count, f"{name}, one by one", of.draw(case)),
        ]
    return subjects
