"""Samples in the places of a module's parameters: for the call alone, whatever happens in it; checkpoints; forks."""

import copy
import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers import end, interrupted_at, make_keys, same_bits
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential, create_selective_checkpoint_contexts

from illia_ext import BayesianModule

parametrize = pytest.mark.parametrize
KEYS = make_keys((1, 2), (3, 4), device="cpu")
pytestmark = pytest.mark.usefixtures("cpu")


class Checkpointed(nn.Module):
    """A body that is checkpointed, and a head that is not."""

    def __init__(self, body: nn.Module, use_reentrant: bool) -> None:
        super().__init__()
        self.body, self.head, self.use_reentrant = body, nn.Linear(4, 2), use_reentrant
        self.run: Callable[..., Any] = partial(checkpoint, use_reentrant=use_reentrant)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.run(self.body, inputs))


class Inside(nn.Linear):
    """Checkpoints its own product, when its forward pass has begun."""

    def forward(self, inputs: Tensor) -> Tensor:
        return checkpoint(super().forward, inputs, use_reentrant=False)


class Listing(nn.Linear):
    """Reads its weights as a list."""

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.linear(inputs, *self.parameters())


class Noisy(nn.Module):
    """Without weights; its noise must be the same when backward computes it again."""

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.dropout(inputs.tanh(), 0.5)


def is_of_the_head(name: str, parameter: Tensor) -> bool:
    return name.startswith("head")


def make(make_body: Callable[[], nn.Module], use_reentrant: bool, **arguments: Any) -> BayesianModule:
    torch.manual_seed(0)
    return BayesianModule(Checkpointed(make_body(), use_reentrant), rho_init=-1.0, **arguments)


BODIES: dict[str, Callable[[], nn.Module]] = {
    "layers": lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)),
    "recurrent": lambda: nn.RNN(4, 4),
    "its own": lambda: nn.Linear(4, 4),
    "listed": lambda: Listing(4, 4),
    "scripted": lambda: torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Tanh())),
}


def inputs() -> Tensor:
    return torch.linspace(-1, 1, 12).reshape(3, 4).requires_grad_()


@pytest.mark.filterwarnings("ignore:`torch.jit")
@parametrize("num_samples", [None, 2])
@parametrize(
    ("body", "use_reentrant"),  # torch itself cannot checkpoint a scripted part by use_reentrant=False
    [("layers", False), ("layers", True), ("its own", False), ("its own", True), ("scripted", True)],
)
def test_a_checkpointed_part_without_gaussian_weights(body: str, use_reentrant: bool, num_samples: int | None) -> None:
    """Has the gradients of no checkpoint, in its plain weights too."""
    keys = KEYS[0] if num_samples is None else KEYS
    gradients = []
    for run in (None, lambda body, inputs: body(inputs)):
        bayesian = make(BODIES[body], use_reentrant, select=is_of_the_head)
        bayesian.module.run = run or bayesian.module.run
        at = inputs()
        output, log_prob = bayesian(at, key=keys)
        (output.square().sum() + log_prob.sum()).backward()
        gradients.append([at.grad, *(parameter.grad for parameter in bayesian.parameters())])
    torch.testing.assert_close(*gradients)


@parametrize("use_reentrant", [False, True])
def test_a_checkpointed_part_without_weights(use_reentrant: bool) -> None:
    bayesian = make(Noisy, use_reentrant)
    grads = []
    for run in (bayesian.module.run, lambda body, inputs: body(inputs)):
        bayesian.module.run = run
        bayesian.zero_grad()
        torch.manual_seed(1)
        bayesian(inputs(), key=KEYS)[0].sum().backward()
        grads.append([parameter.grad.clone() for parameter in bayesian.parameters()])
    torch.testing.assert_close(*grads)


@pytest.mark.filterwarnings("ignore:`torch.jit")
@parametrize("num_samples", [None, 2])
@parametrize("use_reentrant", [False, True])
@parametrize("body", BODIES)
def test_a_checkpointed_part_with_gaussian_weights(body: str, use_reentrant: bool, num_samples: int | None) -> None:
    """Is refused, for its weights' names; the module then has its own weights again. Without gradients it may be."""
    bayesian = make(BODIES[body], use_reentrant)

    def run(part: nn.Module, inputs: Tensor) -> Tensor:
        return part(inputs)[0] if body == "recurrent" else part(inputs)

    bayesian.module.run = partial(checkpoint, run, use_reentrant=use_reentrant)
    mean = bayesian.mean_forward(inputs())
    with pytest.raises(RuntimeError, match=r"module\.body\.[\w.]+: a checkpointed part reads .* checkpoint the call"):
        bayesian(inputs(), num_samples=num_samples)
    assert same_bits(bayesian.mean_forward(inputs()), mean)
    bayesian.predict(inputs())
    bayesian.module.run = run
    with torch.autograd.graph.save_on_cpu():  # other hooks, set around the call, go on
        bayesian(inputs(), num_samples=num_samples)[0].sum().backward()


@parametrize("use_reentrant", [False, True])
def test_other_ways_to_checkpoint(use_reentrant: bool) -> None:
    """A checkpoint within the forward pass of the weight's owner, one of many parts, and one inside another."""
    with pytest.raises(RuntimeError, match=r"module\.0\.weight: a checkpointed part reads"):
        BayesianModule(nn.Sequential(Inside(4, 4)))(inputs())
    sequence = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    bayesian = BayesianModule(sequence)
    bayesian.module.forward = lambda hidden: checkpoint_sequential(
        list(bayesian.module), 2, hidden, use_reentrant=use_reentrant
    )
    with pytest.raises(RuntimeError, match=r"module\.0\.weight: a checkpointed part reads"):
        bayesian(inputs())
    inner = make(BODIES["its own"], use_reentrant)
    with pytest.raises(RuntimeError, match=r"module\.body\.weight: a checkpointed part reads"):
        checkpoint(inner, inputs(), use_reentrant=use_reentrant)[0].sum().backward()


def test_saved_tensors_may_go_elsewhere_inside() -> None:
    bayesian = make(BODIES["its own"], False)

    def offload(body: nn.Module, inputs: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            return body(inputs)

    grads = []
    for run in (offload, lambda body, inputs: body(inputs)):
        bayesian.module.run = run
        bayesian.zero_grad()
        bayesian(inputs(), key=KEYS)[0].sum().backward()
        grads.append([parameter.grad.clone() for parameter in bayesian.parameters()])
    torch.testing.assert_close(*grads)


class Held(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) * self.held


def test_the_graph_is_not_walked() -> None:
    """A call runs as many lines of Python when its module holds an old graph of 3 nodes or of 3000."""
    bayesian = BayesianModule(Held(4, 4), select=["weight"])
    at, lines = inputs(), []

    def count(frame: Any, event: str, argument: Any) -> Any:
        lines.append(event)
        return count

    counts = []
    for length in (3, 3, 3000):  # the first call is no measure: it may import
        bayesian.module.held = torch.ones(4, requires_grad=True)
        for _ in range(length):
            bayesian.module.held = bayesian.module.held + 1
        before = sys.gettrace()
        lines.clear()
        sys.settrace(count)
        try:
            bayesian(at, key=KEYS[0])
        finally:
            sys.settrace(before)
        counts.append(len(lines))
    assert counts[1] == counts[2] > 50


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.recurrent = nn.Linear(4, 4), nn.LSTM(4, 4)
        self.fails = True

    def forward(self, inputs: Tensor) -> Tensor:
        output, _ = self.recurrent(self.first(inputs))
        if self.fails:
            raise KeyboardInterrupt
        return output


@parametrize("num_samples", [None, 2])
def test_after_an_exception_the_module_has_its_parameters(num_samples: int | None) -> None:
    """Also in the list that torch's recurrent layers keep of theirs; and the turn is given back."""
    bayesian = BayesianModule(Failing(), rho_init=-1.0)
    before = [dict(vars(part)) for part in bayesian.module.modules()]
    parameters = list(bayesian.parameters())
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            bayesian(inputs(), num_samples=num_samples)
        for part, attributes in zip(bayesian.module.modules(), before):
            assert vars(part)["_parameters"] is attributes["_parameters"]
        assert all(map(same_bits, bayesian.module.recurrent._flat_weights, bayesian.module.recurrent.parameters()))
    assert list(map(id, bayesian.parameters())) == list(map(id, parameters))
    bayesian.module.fails = False
    assert same_bits(bayesian.mean_forward(inputs()), copy.deepcopy(bayesian).mean_forward(inputs()))
    thread = threading.Thread(target=bayesian, args=(inputs(),), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


def test_a_parameter_that_the_module_sets_stays() -> None:
    class Growing(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            self.scale = nn.Parameter(torch.ones(1))
            return super().forward(inputs) * self.scale

    bayesian = BayesianModule(Growing(4, 4))
    bayesian(inputs())
    assert [name for name, _ in bayesian.module.named_parameters()] == ["weight", "bias", "scale"]


@parametrize("use_reentrant", [False, True])
def test_a_checkpoint_is_seen_beneath_other_hooks(use_reentrant: bool) -> None:
    bayesian = make(BODIES["its own"], use_reentrant)

    def run(body: nn.Module, inputs: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            return body(inputs)

    bayesian.module.run = partial(checkpoint, run, use_reentrant=use_reentrant)
    with pytest.raises(RuntimeError, match=r"module\.body\.weight: a checkpointed part reads"):
        bayesian(inputs())
    with torch.autograd.graph.saved_tensors_hooks(lambda x: 2 * x, lambda x: x / 2):  # all hooks are as before
        output = bayesian.module.head(inputs())
    assert same_bits(output, bayesian.module.head(inputs()))


READERS: dict[str, Callable[[nn.Module], Any]] = {
    "get": lambda layer: layer._parameters.get("weight"),
    "values": lambda layer: next(iter(layer._parameters.values())),
    "copy": lambda layer: layer._parameters.copy()["weight"],
    "parameters()": lambda layer: next(layer.parameters()),
}


@parametrize("read", READERS.values(), ids=READERS)
def test_every_way_to_read_a_weight_is_looked_at(read: Callable[[nn.Module], Tensor]) -> None:
    bayesian = make(BODIES["its own"], False)
    bayesian.module.run = lambda body, inputs: checkpoint(lambda x: x @ read(body), inputs, use_reentrant=False)
    with pytest.raises(RuntimeError, match=r"module\.body\.weight: a checkpointed part reads"):
        bayesian(inputs())
    bayesian.module.run = lambda body, inputs: inputs @ read(body)
    assert same_bits(bayesian(inputs(), key=KEYS[0])[0], bayesian.sample_module(KEYS[0])(inputs()))


def test_an_interruption_leaves_no_sample() -> None:
    """At any line of the call: the next use of the module has mu, and the parameters are the module's own."""
    bayesian = BayesianModule(nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), rho_init=-1.0)
    mean, parameters = bayesian.mean_forward(inputs()), list(map(id, bayesian.parameters()))
    for place in range(1, 2000):
        try:
            with interrupted_at(place, "in_place.py"):
                bayesian(inputs(), key=KEYS[0])
            break
        except KeyboardInterrupt:
            pass
        assert same_bits(bayesian.mean_forward(inputs()), mean), place
        assert list(map(id, bayesian.parameters())) == parameters, place
    assert 30 < place < 1999


def test_a_child_forked_during_a_call() -> None:
    """While another thread is inside a call: the child has mu in its places, and its calls wait for nobody."""
    bayesian = BayesianModule(nn.Linear(4, 4), rho_init=-1.0)
    expected = [parameter.clone() for parameter in bayesian.parameters()]
    inside, go_on = threading.Event(), threading.Event()

    def wait(*_: Any) -> None:
        if threading.current_thread() is thread:
            inside.set()
            go_on.wait(20)

    bayesian.module.register_forward_pre_hook(wait)
    thread = threading.Thread(target=bayesian, args=(inputs().detach(),), kwargs={"key": KEYS[0]})
    thread.start()
    assert inside.wait(20)
    child = os.fork()  # waits for nobody: the thread ends its call after it
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            alike = all(map(same_bits, bayesian.parameters(), expected))
            alike &= all(type(parameter) is nn.Parameter for parameter in bayesian.parameters())
            bayesian(inputs().detach())
            code = 0 if alike else 2
        finally:
            os._exit(code)
    assert end(child) == 0
    go_on.set()
    thread.join()
    assert all(map(same_bits, bayesian.parameters(), expected))


def test_a_fork_inside_a_call() -> None:
    """The child goes on with its sample, as its parent does, and ends the call with mu in its places."""
    bayesian = BayesianModule(nn.Linear(4, 4), rho_init=-1.0)
    mean = bayesian.mean_forward(inputs())
    children: list[int] = []
    bayesian.module.register_forward_pre_hook(lambda *_: children.append(os.fork()))
    expected = nn.functional.linear(inputs(), *bayesian.sample_module(KEYS[0]).parameters())
    output, _ = bayesian(inputs(), key=KEYS[0])
    is_right = same_bits(output, expected)
    if children == [0]:
        bayesian.module._forward_pre_hooks.clear()
        os._exit(0 if is_right and same_bits(bayesian.mean_forward(inputs()), mean) else 1)
    assert end(children[0]) == 0 and is_right


CALLS: dict[str, Callable[[BayesianModule], object]] = {
    "call": lambda bayesian: bayesian(inputs()),
    "mean_forward": lambda bayesian: bayesian.mean_forward(inputs()),
    "kl_divergence": lambda bayesian: bayesian.kl_divergence(),
    "sample_module": lambda bayesian: bayesian.sample_module(),
}


@parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_inside_the_own_call_is_refused(call: Callable[[BayesianModule], object]) -> None:
    bayesian = BayesianModule(nn.Linear(4, 4))
    hook = bayesian.module.register_forward_pre_hook(lambda *_: call(bayesian) and None)
    with pytest.raises(
        RuntimeError, match="module: calls its own BayesianModule, while a sample stands in its weights"
    ):
        bayesian(inputs())
    hook.remove()
    call(bayesian)


class Keeping(nn.Linear):
    """Keeps a tensor with a graph, and one in a buffer."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.register_buffer("seen", torch.zeros(3, 4))

    def forward(self, inputs: Tensor) -> Tensor:
        self.aux_loss = {"loss": self.weight.sum()}
        self.seen = super().forward(inputs)
        return self.seen


def test_copies_of_a_module_that_keeps_a_graph() -> None:
    """They keep its values, and can be made after a call as before."""
    bayesian = BayesianModule(Keeping())
    bayesian(inputs())
    for module in (bayesian.mean_module(), bayesian.sample_module()):
        assert same_bits(module.aux_loss["loss"], bayesian.module.aux_loss["loss"])
        assert module.seen.grad_fn is None and same_bits(module.seen, bayesian.module.seen)
    BayesianModule(bayesian.module)(inputs())


def test_what_a_module_does_to_its_parameters() -> None:
    """It deletes one, and copies the layer that has a sample: a plain copy."""

    class Changing(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            if hasattr(self, "extra"):
                del self.extra
            self.kept = copy.deepcopy(self) if not torch.is_grad_enabled() else None
            return super().forward(inputs)

    layer = Changing(4, 4)
    layer.extra = nn.Parameter(torch.ones(1))
    bayesian = BayesianModule(layer, select=["weight"])
    bayesian(inputs())
    assert [name for name, _ in bayesian.module.named_parameters()] == ["weight", "bias"]
    bayesian.predict(inputs(), key=KEYS)
    assert type(bayesian.module.kept._parameters) is dict
    assert same_bits(bayesian.module.kept.weight, bayesian.sample_module(KEYS[1]).weight)


def test_cached_parametrizations_are_refused() -> None:
    bayesian = BayesianModule(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    with (
        nn.utils.parametrize.cached(),
        pytest.raises(RuntimeError, match=r"cached\(\) would keep what the first sample"),
    ):
        bayesian(inputs(), num_samples=2)
    BayesianModule(nn.Linear(4, 4))(inputs(), num_samples=2)


def test_selective_checkpointing_of_several_samples() -> None:
    bayesian = BayesianModule(nn.Linear(4, 4), rho_init=-1.0)
    keys = make_keys(*((i, 0) for i in range(5)), device="cpu")
    contexts = partial(create_selective_checkpoint_contexts, [torch.ops.aten.addmm.default])
    grads = []
    for call in (bayesian, partial(checkpoint, bayesian, use_reentrant=False, context_fn=contexts)):
        bayesian.zero_grad()
        call(inputs(), key=keys)[0].square().sum().backward()
        grads.append([parameter.grad.clone() for parameter in bayesian.parameters()])
    torch.testing.assert_close(*grads)
