"""Checkpoints around the call of a BayesianModule, inside it and inside `sampled()`: right gradients, or an error."""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers import same_bits
from module_cases import (
    KEY,
    KEYS,
    Network,
    assert_close,
    assert_mu_stands,
    assert_same,
    call_part,
    convert,
    grads,
    inputs,
    loss_of,
    results_of,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential, create_selective_checkpoint_contexts

from illia_ext import BayesianModule, elbo_loss
from illia_ext._ops import foreach

parametrize = pytest.mark.parametrize
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")
each_kind = parametrize("use_reentrant", [False, True])


class Checkpointed(nn.Module):
    """A body that is checkpointed, and a head that is not."""

    def __init__(self, body: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self.body, self.head, self.run = body, nn.Linear(4, 2), run

    def forward(self, inputs: Tensor) -> Tensor:
        output = self.run(self.body, inputs)
        return self.head(output[0] if isinstance(output, tuple) else output)


class Inside(nn.Linear):
    """Checkpoints its own product, when its forward pass has begun."""

    def __init__(self, kind: Callable[..., Any]) -> None:
        super().__init__(4, 4)
        self.run = kind

    def forward(self, inputs: Tensor) -> Tensor:
        return self.run(super().forward, inputs)


class Listing(nn.Linear):
    """Reads its weights as a list."""

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.linear(inputs, *self.parameters())


class Noisy(nn.Module):
    """Without weights; its noise must be the same when backward computes it again."""

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.dropout(inputs.tanh(), 0.5)


BODIES: dict[str, Callable[[], nn.Module]] = {
    "layers": lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)),
    "recurrent": lambda: nn.RNN(4, 4),
    "its own": lambda: nn.Linear(4, 4),
    "listed": lambda: Listing(4, 4),
    "scripted": lambda: torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Tanh()).double()),
}


def make(body: str, run: Callable[..., Any] = call_part, **arguments: Any) -> BayesianModule:
    torch.manual_seed(0)
    return convert(Checkpointed(BODIES[body]() if body in BODIES else Noisy(), run), **arguments)


@parametrize("num_samples", [None, 5])
@parametrize("kind", ["use_reentrant=False", "selective"])
def test_a_checkpointed_call(kind: str, num_samples: int | None) -> None:
    """Backward draws forward's weights again, by the keys that torch's generator gave; under a dispatch mode, which
    selective checkpoints are, one after the other, so that gradients add up in another order."""
    contexts = partial(create_selective_checkpoint_contexts, [torch.ops.aten.addmm.default])
    options = {"context_fn": contexts} if kind == "selective" else {}
    bayesian = convert(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)))
    results = []
    for run in (bayesian, partial(checkpoint, bayesian, use_reentrant=False, **options)):
        torch.manual_seed(1)
        results.append(results_of(bayesian, run, inputs(), num_samples=num_samples))
    (assert_close if kind == "selective" else assert_same)(*results)


def test_reentrant_checkpoints_around_a_call_and_before_it() -> None:
    bayesian, at = convert(nn.Linear(4, 2)), inputs()
    before = checkpoint(torch.sin, at, use_reentrant=True)
    output, _ = checkpoint(bayesian, before, use_reentrant=True)
    output.sum().backward()
    assert at.grad.all() and [grad.any().item() for grad in grads(bayesian)] == [True] * 4


def offload(body: nn.Module, hidden: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return body(hidden)


REENTRANT, OTHER = partial(checkpoint, use_reentrant=True), partial(checkpoint, use_reentrant=False)


@parametrize("keys", [KEY, KEYS[:2]], ids=["one sample", "two samples"])
@parametrize(
    ("body", "run", "select"),  # torch itself cannot checkpoint a scripted part by use_reentrant=False
    [
        *[(body, run, "head") for body in ("layers", "its own", "noisy") for run in (OTHER, REENTRANT)],
        ("scripted", REENTRANT, "head"),
        ("its own", offload, ""),
    ],
)
def test_a_part_without_gaussian_weights(body: str, run: Callable[..., Any], select: str, keys: Tensor) -> None:
    """Has the gradients of no checkpoint, in its plain weights too; and tensors may be saved elsewhere."""
    bayesian = make(body, select=lambda name, _: name.startswith(select))
    results = []
    for bayesian.module.run in (run, call_part):
        torch.manual_seed(1)
        at = inputs()
        results.append([*results_of(bayesian, bayesian, at, key=keys), at.grad])
    assert_close(*results)


class Forces(nn.Module):
    """Switches gradients on inside, as a network of energies does, or off, as one that stops a gradient does."""

    def __init__(self, grad_mode: bool, run: Callable[..., Any] = call_part) -> None:
        super().__init__()
        self.linear, self.grad_mode, self.run = nn.Linear(4, 4), grad_mode, run

    def part(self, inputs: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.grad_mode):
            weight = self.linear.weight.clone()
        return (inputs @ weight).tanh()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.run(self.part, inputs)


class Sequence(nn.Sequential):
    """Checkpointed in two parts."""

    def __init__(self, kind: Any) -> None:
        super().__init__(*(nn.Linear(4, 4) for _ in range(4)))
        self.options = kind.keywords

    def forward(self, inputs: Tensor) -> Tensor:
        return checkpoint_sequential(list(self), 2, inputs, **self.options)


def make_reader(read: Callable[[nn.Module], Tensor], kind: Callable[..., Any]) -> BayesianModule:
    return make("its own", lambda body, hidden: kind(lambda x: x @ read(body), hidden))


READERS: dict[str, Callable[[nn.Module], Any]] = {
    "get": lambda layer: layer._parameters.get("weight"),
    "values": lambda layer: next(iter(layer._parameters.values())),
    "copy": lambda layer: layer._parameters.copy()["weight"],
    "parameters()": lambda layer: next(layer.parameters()),
}
PARTS: dict[str, Callable[[Callable[..., Any]], BayesianModule]] = {
    **{body: partial(make, body) for body in BODIES},
    **{f"read by {name}": partial(make_reader, read) for name, read in READERS.items()},
    "inside a forward pass": lambda kind: convert(nn.Sequential(Inside(kind))),
    "of a sequence": lambda kind: convert(Sequence(kind)),
    "beneath other hooks": lambda kind: make("its own", partial(kind, offload)),
    "with gradients": lambda kind: convert(Forces(True, kind)),
    "with a stopped gradient": lambda kind: convert(Forces(False, kind)),
}


@parametrize("kind", [OTHER, REENTRANT], ids=["use_reentrant=False", "use_reentrant=True"])
@parametrize("part", PARTS)
def test_a_part_with_gaussian_weights(part: str, kind: Callable[..., Any]) -> None:
    """Is refused, for its weights' names; the module then has its own weights again. Without gradients it may be."""
    bayesian = PARTS[part](kind)
    parameters, mean = list(bayesian.parameters()), bayesian.mean_forward(inputs())
    names = [f"module.{name}" for name, _, _ in bayesian.named_gaussians()]
    for call in (bayesian, partial(bayesian, num_samples=2), partial(kind, bayesian)):
        with pytest.raises(RuntimeError, match=r"a checkpointed part reads .* checkpoint the call") as refused:
            call(inputs())[0].sum().backward()
        assert str(refused.value).split(": a checkpointed part")[0] in names
        assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None  # all hooks are as before
        assert same_bits(bayesian.mean_forward(inputs()), mean)
        assert all(map(operator.is_, bayesian.parameters(), parameters))
    prediction = bayesian.eval().predict(inputs(), key=KEYS[:1])
    assert_same(prediction.mean, bayesian.sample_module(KEYS[0])(inputs()))


@parametrize("read", READERS.values(), ids=READERS)
def test_a_weight_is_the_sample_however_it_is_read(read: Callable[[nn.Module], Tensor]) -> None:
    bayesian = make_reader(read, call_part)
    assert same_bits(bayesian(inputs(), key=KEY)[0], bayesian.sample_module(KEY)(inputs()))


def test_hooks_around_a_call_go_on() -> None:
    bayesian = make("layers")
    with torch.autograd.graph.save_on_cpu():
        for num_samples in (None, 2):
            bayesian(inputs(), num_samples=num_samples)[0].sum().backward()


def differentiated_and_again(bayesian: BayesianModule, log_prob: Tensor) -> Tensor:
    bayesian.module.loss(inputs()).backward()
    return bayesian.module.loss(inputs())


def two_micro_batches(bayesian: BayesianModule, log_prob: Tensor) -> Tensor:
    first, second = bayesian.module.loss(inputs()), bayesian.module.loss(inputs())
    first.backward()
    return second


def only_log_prob(bayesian: BayesianModule, log_prob: Tensor) -> Tensor:
    loss = bayesian.module.loss(inputs())
    log_prob.backward()
    return loss


def retained(bayesian: BayesianModule, log_prob: Tensor) -> Tensor:
    loss = bayesian.module.loss(inputs())
    loss.backward(retain_graph=True)
    return loss


UNPAID: dict[str, Callable[[BayesianModule, Tensor], Tensor]] = {
    "no backward": lambda bayesian, _: bayesian.module.loss(inputs()),
    "differentiated and again": differentiated_and_again,
    "two micro-batches": two_micro_batches,
    "log_prob alone": only_log_prob,
    "retained": retained,
}


@each_kind
def test_parts_in_a_block(use_reentrant: bool) -> None:
    """May be differentiated there, and there alone."""
    bayesian = convert(Network())
    parameters = list(bayesian.parameters())
    loss_of(*bayesian(inputs(), key=KEY)).backward()
    expected = grads(bayesian)
    bayesian.module.run = partial(checkpoint, use_reentrant=use_reentrant)
    with bayesian.sampled(KEY) as log_prob:
        loss_of(bayesian.module(inputs()), log_prob).backward()
    assert_close(grads(bayesian), expected)
    message = r"module\.blocks\.\d\.0\.\w+: a checkpointed part has read this .*, and has not been differentiated"
    for leave in UNPAID.values():
        with pytest.raises(RuntimeError, match=message), bayesian.sampled(KEY) as log_prob:
            kept = leave(bayesian, log_prob)
        assert kept is not None
    bayesian.module.run = call_part
    assert_mu_stands(bayesian, parameters)


@each_kind
def test_what_is_owed_by_no_checkpoint(use_reentrant: bool) -> None:
    """A part without gradients, one whose graph has gone, and one that autograd.grad has differentiated."""
    bayesian, run = convert(Network()), partial(checkpoint, use_reentrant=use_reentrant)
    block = bayesian.module.blocks[0]
    with bayesian.sampled():
        with torch.no_grad():
            kept = [run(block, inputs())]
        at = inputs()
        if use_reentrant:
            kept.append(run(block, at))
            kept[-1].sum().backward()
        else:
            kept.append(torch.autograd.grad(run(block, at).sum(), at)[0])
            run(block, at)  # dropped
    assert len(kept) == 2


@parametrize("learned", [False, True])
def test_reentrant_parts_cost_one_backward(learned: bool, monkeypatch: pytest.MonkeyPatch, cpu: object) -> None:
    """Each is a backward pass of its own, which gives a gradient to its weights alone: of each weight, once."""
    prior = nn.Parameter(torch.full((1,), 0.5, dtype=torch.float64)) if learned else 0.5
    bayesian = convert(nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))), mu_prior=0.0, std_prior=prior)
    sizes: list[int] = []
    backward = foreach._sample_and_log_prob_backward
    monkeypatch.setattr(
        foreach,
        "_sample_and_log_prob_backward",
        lambda grad_x, *args, **options: sizes.append(len(grad_x)) or backward(grad_x, *args, **options),
    )
    results = []
    for run in (call_part, REENTRANT):
        with bayesian.sampled(KEY) as log_prob:
            hidden = inputs()
            for part in bayesian.module:
                hidden = run(part, hidden)
            hidden.square().sum().backward()
        if not learned:
            assert sum(sizes) == 8
            sizes.clear()
        log_prob.backward()
        sizes.clear()
        results.append(grads(bayesian))
    assert_close(*results)


@parametrize("outer", [None, False, True], ids=["alone", "in the same kind", "in the other kind"])
@parametrize("grad_mode", [False, True])
@each_kind
def test_checkpoints_in_any_mode(use_reentrant: bool, grad_mode: bool, outer: bool | None) -> None:
    """Within one another too: inside the block gradients are those without, after it and of a call it is an error."""
    bayesian = convert(Forces(grad_mode))

    def call(at: Tensor) -> Tensor:
        if outer is None:
            return bayesian.module(at)
        return checkpoint(lambda x: bayesian.module(x), at, use_reentrant=use_reentrant is not outer)

    results = []
    for part, run in ((call_part, bayesian.module), (partial(checkpoint, use_reentrant=use_reentrant), call)):
        bayesian.module.run, at = part, inputs()
        with bayesian.sampled(KEY) as log_prob:
            (run(at).square().sum() + log_prob / 10).backward()
        results.append([at.grad, *grads(bayesian)])
    assert_close(*results)
    with pytest.raises(RuntimeError, match="has not been differentiated"), bayesian.sampled(KEY):
        kept = call(inputs())
    assert kept is not None


class Recomputing(torch.autograd.Function):
    """A checkpoint of somebody else's."""

    @staticmethod
    def forward(ctx: Any, part: nn.Module, at: Tensor) -> Tensor:
        ctx.part = part
        ctx.save_for_backward(at)
        return part(at)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        (at,) = ctx.saved_tensors
        with torch.enable_grad():
            at = at.detach().requires_grad_()
            ctx.part(at).backward(grad)
        return None, at.grad


def test_a_checkpoint_of_another_library() -> None:
    """Paid by a backward pass inside, though its loss is kept; owed otherwise."""
    bayesian, losses = convert(Network()), []
    block = bayesian.module.blocks[0]
    with bayesian.sampled():
        losses.append(Recomputing.apply(block, inputs()).sum())
        losses[0].backward()
    with pytest.raises(RuntimeError, match="has not been differentiated"), bayesian.sampled():
        losses.append(Recomputing.apply(block, inputs()).sum())


class Adapted(nn.Linear):
    """A frozen layer with a low-rank adapter."""

    def __init__(self) -> None:
        super().__init__(32, 32)
        self.requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.randn(2, 32) / 6), nn.Parameter(torch.zeros(32, 2))

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) + inputs @ self.a.T @ self.b.T


@each_kind
def test_twenty_steps_of_adapters(use_reentrant: bool, cpu: object) -> None:
    """In place, without a copy of the base: the steps are those without checkpoints."""
    results = []
    data = torch.randn(16, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for run in (call_part, partial(checkpoint, use_reentrant=use_reentrant)):
        torch.manual_seed(0)
        network = nn.ModuleList(Adapted() for _ in range(3)).double()
        base = [layer.weight for layer in network]
        bayesian = BayesianModule(network, copy=False, std_prior=0.3)
        assert len(list(bayesian.rho.parameters())) == 6
        optimizer = torch.optim.Adam(bayesian.param_groups(), lr=1e-2)
        for _ in range(20):
            with bayesian.sampled() as log_prob:
                hidden = data.clone().requires_grad_()
                for layer in bayesian.module:
                    hidden = run(layer, hidden).tanh()
                elbo_loss((hidden - data).square().mean(), log_prob, 1000).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert all(layer.weight is weight for layer, weight in zip(network, base))
        results.append([parameter.detach() for parameter in bayesian.parameters()])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)  # Adam divides by the root of small squares
