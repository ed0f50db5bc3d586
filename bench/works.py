"""What each case has to do: the works, from one tensor of weights to a whole training step."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from bench.cases import CASES, Case, formulas
from bench.check import check_layer, check_network, check_outputs
from bench.layers import BayesianLinear, CaseLinear, Network, PlainLinear
from bench.measure import Subject

__all__ = ["AXES", "Group", "Inputs", "Scale", "Setting", "minimum_bytes", "plan", "resnet50_numels"]

# The works, and what a point of each counts.
AXES = {
    "forward": "weights",
    "forward + backward": "weights",
    "samples": "samples",
    "tensors": "tensors",
    "training step": "batch",
}
PRIOR = (0.0, 0.1)
CLASSES = 10


@dataclass(frozen=True)
class Scale:
    """The points of every work."""

    sizes: list[int]  # weights of one tensor
    samples: list[int]  # of samples_numel weights
    samples_numel: int
    tensors: int  # the first so many of ResNet-50
    batches: list[int]  # of a training step


@dataclass(frozen=True)
class Group:
    """What is timed together."""

    title: str
    subjects: Callable[[], list[Subject]]


@dataclass(frozen=True)
class Setting:
    """What is compared, and where."""

    cases: list[str]
    peers: dict[str, type[BayesianLinear]]
    device: torch.device
    dtype: torch.dtype
    compile_once: bool = False  # for all sizes: it takes less time, and the code that comes of it may be slower

    def tensor_cases(self) -> list[tuple[str, Case]]:
        return [(name, CASES[name]) for name in self.cases if name in CASES]


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
        density_dtype = torch.float64 if setting.dtype == torch.float64 else torch.float32
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
            mu_prior=torch.full((1,), PRIOR[0], **to),
            std_prior=torch.full((1,), PRIOR[1], **to),
            grad_x=torch.randn([*samples, numel], **to),
            grad_log_prob=torch.full(samples, 1e-3, device=setting.device, dtype=density_dtype),
            num_samples=num_samples,
        )

    def draw(self, case: Case) -> tuple[Tensor, Tensor]:
        return case(self.mu, self.rho, self.mu_prior, self.std_prior, self.num_samples)

    def forward(self, case: Case) -> None:
        with torch.no_grad():
            self.draw(case)

    def backward(self, case: Case) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...]]:
        """Forward and backward: the draw, and the gradients to mu and rho."""
        outputs = self.draw(case)
        output_grads = (self.grad_x, self.grad_log_prob.to(outputs[1].dtype))
        return outputs, torch.autograd.grad(outputs, (self.mu, self.rho), output_grads)

    def check(self, case: Case) -> None:
        outputs, grads = self.backward(case)
        check_outputs(*outputs, (self.mu, self.rho), PRIOR, (self.grad_x, self.grad_log_prob), grads)

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
            own=(self.mu, self.rho),
        )


def minimum_bytes(numel: int, num_samples: int, itemsize: int, backward: bool) -> int:
    """Forward reads mu and rho and writes x; backward reads mu, rho and grad_x and writes grad_mu and grad_rho."""
    tensors = 2 + num_samples
    if backward:
        tensors += 2 + num_samples + 2
    return tensors * numel * itemsize


def _one_tensor(numel: int, setting: Setting) -> list[Subject]:
    inputs = Inputs.make(numel, setting)
    target = torch.empty_like(inputs.grad_x)
    copied = 2 * target.numel() * target.element_size()
    subjects = []
    for work in ("forward", "forward + backward"):
        subjects += [inputs.subject(work, numel, name, case) for name, case in setting.tensor_cases()]
        copy = partial(target.copy_, inputs.grad_x)
        subjects.append(Subject(work, numel, "copy", numel, copy, minimum_bytes=copied))
    randn = partial(torch.randn, numel, device=setting.device, dtype=setting.dtype)
    return [*subjects, Subject("forward", numel, "torch.randn", numel, randn)]


def _samples(num_samples: int, numel: int, setting: Setting) -> list[Subject]:
    inputs = Inputs.make(numel, setting, num_samples)
    return [inputs.subject("samples", num_samples, name, case) for name, case in setting.tensor_cases()]


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


def _tensors(count: int, setting: Setting) -> list[Subject]:
    """Forward of all tensors, then backward of all, as in a network."""
    setting = replace(setting, compile_once=True)  # not for each of the 161 tensors
    tensors = [Inputs.make(numel, setting) for numel in resnet50_numels(count)]
    leaves = [leaf for inputs in tensors for leaf in (inputs.mu, inputs.rho)]

    def draw(case: Case) -> list[Tensor]:
        return [output for inputs in tensors for output in inputs.draw(case)]

    def run(case: Case) -> None:
        outputs = draw(case)
        grads = [grad for inputs in tensors for grad in (inputs.grad_x, inputs.grad_log_prob)]
        torch.autograd.grad(outputs, leaves, [grad.to(out.dtype) for grad, out in zip(grads, outputs)])

    def check(case: Case) -> None:
        for inputs in tensors:
            inputs.check(case)

    numel = sum(inputs.mu.numel() for inputs in tensors)
    traffic = minimum_bytes(numel, 1, tensors[0].mu.element_size(), backward=True)
    return [
        Subject(
            "tensors",
            count,
            name,
            numel,
            partial(run, case),
            partial(check, case),
            traffic,
            partial(draw, case),
            tuple(leaves),
        )
        for name, case in setting.tensor_cases()
    ]


class Step:
    """One training step: draw weights, their cost, linear layers, cross entropy, backward, Adam."""

    def __init__(self, make_layer: Callable[..., BayesianLinear], batch: int, setting: Setting, compiled: bool) -> None:
        to = {"device": setting.device, "dtype": setting.dtype}
        torch.manual_seed(0)
        widths = Network.WIDTHS
        self.network = Network([make_layer(*pair, **to) for pair in pairwise(widths)])
        self.loss = torch.compile(self.network, fullgraph=True) if compiled else self.network
        self.x = torch.randn(batch, widths[0], **to)
        self.target = torch.randint(CLASSES, (batch,), device=setting.device)
        for data in (self.x, self.target):
            torch._dynamo.mark_dynamic(data, 0)  # one compilation for all batch sizes
        self.optimizer = torch.optim.Adam(self.network.parameters(), fused=True)

    def run(self) -> None:
        self.optimizer.zero_grad()
        self.loss(self.x, self.target).backward()
        self.optimizer.step()

    def check(self) -> None:
        raws = [gaussian.raw for layer in self.network.layers for gaussian in layer.gaussians()]
        for layer in self.network.layers:
            check_layer(layer)
        trained = [raw.detach().clone() for raw in raws]
        with torch.no_grad():
            for raw in raws:
                raw.fill_(-16)
        check_network(self.loss(self.x, self.target), self.network, self.x, self.target)
        with torch.no_grad():
            for raw, values in zip(raws, trained):
                raw.copy_(values)

    def subject(self, batch: int, name: str) -> Subject:
        gaussians = [gaussian for layer in self.network.layers for gaussian in layer.gaussians()]
        own = (*self.network.parameters(), self.x, self.target)
        return Subject(
            "training step",
            batch,
            name,
            sum(gaussian.mu.numel() for gaussian in gaussians),
            self.run,
            check=self.check if gaussians else lambda: None,
            graph=lambda: self.loss(self.x, self.target),
            own=own,
        )


def _steps(batches: list[int], setting: Setting) -> list[Subject]:
    makers: dict[str, Callable[..., BayesianLinear]] = {"not Bayesian": PlainLinear}
    makers |= {name: partial(CaseLinear, case) for name, case in setting.tensor_cases()}
    if "compile" in makers:  # the whole network is compiled, not each tensor's formulas by themselves
        makers["compile"] = partial(CaseLinear, formulas)
    makers |= setting.peers
    return [
        Step(make_layer, batch, setting, compiled=name == "compile").subject(batch, name)
        for batch in batches
        for name, make_layer in makers.items()
    ]


def plan(scale: Scale, setting: Setting) -> list[Group]:
    """All groups of a run, in their order."""
    groups = [Group(f"{numel:,} weights", partial(_one_tensor, numel, setting)) for numel in scale.sizes]
    groups += [
        Group(f"{count} samples", partial(_samples, count, scale.samples_numel, setting)) for count in scale.samples
    ]
    groups.append(Group(f"{scale.tensors} tensors", partial(_tensors, scale.tensors, setting)))
    groups.append(Group("training steps", partial(_steps, scale.batches, setting)))
    return groups
