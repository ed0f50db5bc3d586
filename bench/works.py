"""Works on one tensor: draw weights with their log density, forward and backward."""

from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor

from bench.cases import Case
from bench.check import check_noise, check_outputs
from bench.layers import MU_PRIOR, STD_PRIOR
from bench.measure import Subject
from bench.setting import Setting

__all__ = ["Inputs", "minimum_bytes", "one_tensor", "samples"]


@dataclass
class Inputs:
    """mu, rho [numel] and the gradients that arrive at x ([numel] or [S, numel]) and log_prob ([] or [S])."""

    mu: Tensor
    rho: Tensor
    mu_prior: Tensor
    std_prior: Tensor
    grad_x: Tensor
    grad_log_prob: Tensor
    num_samples: int | None = None

    @classmethod
    def make(cls, numel: int, setting: Setting, num_samples: int | None = None) -> "Inputs":
        to = {"device": setting.device, "dtype": setting.dtype}
        samples = [] if num_samples is None else [num_samples]
        torch.manual_seed(0)
        mu = (torch.randn(numel, **to) * 0.1).requires_grad_()
        rho = (torch.randn(numel, **to) * 0.1 - 3).requires_grad_()
        if setting.compile_once:
            for leaf in (mu, rho):
                torch._dynamo.mark_dynamic(leaf, 0)
        return cls(
            mu=mu,
            rho=rho,
            mu_prior=torch.full((1,), MU_PRIOR, **to),
            std_prior=torch.full((1,), STD_PRIOR, **to),
            grad_x=torch.randn([*samples, numel], **to),
            grad_log_prob=torch.full(samples, 0.1, device=setting.device),
            num_samples=num_samples,
        )

    @property
    def given(self) -> tuple[Tensor, ...]:
        """What lives with or without a draw."""
        return self.mu, self.rho, self.mu_prior, self.std_prior

    def draw(self, case: Case) -> tuple[Tensor, Tensor]:
        several = {} if self.num_samples is None else {"num_samples": self.num_samples}
        return case(*self.given, **several)

    def one_of(self, sample: int) -> "Inputs":
        """The same weights, drawn for one of the samples."""
        one = {"grad_x": self.grad_x[sample], "grad_log_prob": self.grad_log_prob[sample]}
        return replace(self, **one, num_samples=None)

    def forward(self, case: Case) -> None:
        with torch.no_grad():
            self.draw(case)

    def backward(self, case: Case) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...]]:
        """Forward and backward: the draw, and the gradients to mu and rho."""
        outputs = self.draw(case)
        output_grads = (self.grad_x, self.grad_log_prob.to(outputs[1].dtype))
        return outputs, torch.autograd.grad(outputs, (self.mu, self.rho), output_grads)

    def check_result(self, outputs: tuple[Tensor, Tensor], grads: tuple[Tensor, ...]) -> list[Tensor]:
        x, log_prob = outputs
        return check_outputs([x], log_prob, [(self.mu, self.rho)], ([self.grad_x], self.grad_log_prob), grads)

    def check(self, case: Case) -> None:
        draws = [eps for _ in range(2) for eps in self.check_result(*self.backward(case))]
        check_noise(draws, self.mu.dtype)

    def subject(self, work: str, point: int, name: str, case: Case) -> Subject:
        backward = work != "forward"
        numel = self.mu.numel()
        return Subject(
            work,
            point,
            name,
            numel,
            run=partial(self.backward if backward else self.forward, case),
            check=partial(self.check, case),
            minimum_bytes=minimum_bytes(numel, self.num_samples or 1, self.mu.element_size(), backward),
            graph=partial(self.draw, case) if backward else None,
            own=self.given,
        )


def minimum_bytes(numel: int, num_samples: int, itemsize: int, backward: bool) -> int:
    """Forward reads mu and rho and writes x; backward reads mu, rho and grad_x and writes grad_mu and grad_rho."""
    tensors = 2 + num_samples
    if backward:
        tensors += 2 + num_samples + 2
    return tensors * numel * itemsize


def one_tensor(numel: int, setting: Setting) -> list[Subject]:
    inputs = Inputs.make(numel, setting)
    copied_to = torch.empty_like(inputs.grad_x)
    copied = 2 * numel * copied_to.element_size()
    checks = {name: cache(partial(inputs.check, case)) for name, case in setting.tensor_cases()}  # one for both works
    subjects = []
    for work in ("forward", "forward + backward"):
        for name, case in setting.tensor_cases():
            subjects.append(replace(inputs.subject(work, numel, name, case), check=checks[name]))
        copy = partial(copied_to.copy_, inputs.grad_x)
        subjects.append(Subject(work, numel, "copy", numel, copy, minimum_bytes=copied))
    randn = partial(torch.randn, numel, device=setting.device, dtype=setting.dtype)
    return [*subjects, Subject("forward", numel, "torch.randn", numel, randn)]


def samples(points: list[int], numel: int, setting: Setting) -> list[Subject]:
    subjects = []
    for num_samples in points:
        inputs = Inputs.make(numel, setting, num_samples)
        for name, case in setting.tensor_cases():
            at_once = name == "illia_ext"
            subject = inputs.subject("samples", num_samples, name, case)
            subjects.append(subject if at_once else _in_a_loop(inputs, subject, case))
    return subjects


def _in_a_loop(inputs: Inputs, at_once: Subject, case: Case) -> Subject:
    """One draw and one backward for each sample, as users of plain PyTorch do: faster than broadcasting."""
    parts = [inputs.one_of(sample) for sample in range(len(inputs.grad_x))]
    totals = [torch.zeros_like(leaf) for leaf in (inputs.mu, inputs.rho)]

    def run() -> None:
        for part in parts:
            _, grads = part.backward(case)
            torch._foreach_add_(totals, list(grads))

    def check() -> None:
        for part in parts:
            part.check(case)

    return replace(at_once, run=run, check=check, graph=partial(parts[0].draw, case))
