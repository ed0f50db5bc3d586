"""Samples in the places of a module's parameters, by a call or in a block: for that time alone, whatever happens."""

import copy
import operator
import os
import pickle
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import end, interrupted_at, same_bits
from module_cases import KEY, KEYS, Network, assert_mu_stands, assert_same, convert, inputs
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from illia_ext import BayesianModule

parametrize = pytest.mark.parametrize
pytestmark = pytest.mark.usefixtures("cpu")


def by_call(bayesian: BayesianModule, key: Tensor = KEY) -> Any:
    return bayesian(inputs(), key=key)[0]


def by_samples(bayesian: BayesianModule) -> Any:
    return bayesian(inputs(), key=KEYS[:2])[0]


def by_block(bayesian: BayesianModule, key: Tensor = KEY) -> Any:
    with bayesian.sampled(key):
        return bayesian.module(inputs())


each_way = parametrize("run", [by_call, by_block])


class Held(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) * self.held


def test_the_graph_is_not_walked() -> None:
    """A call runs as many lines of Python when its module holds an old graph of 3 nodes or of 3000."""
    bayesian = convert(Held(4, 4), select=["weight"])
    lines: list[str] = []

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
            by_call(bayesian)
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


@parametrize("run", [by_call, by_samples, by_block])
def test_after_an_exception_the_module_has_its_parameters(run: Callable[[BayesianModule], Any]) -> None:
    """Also in the list that torch's recurrent layers keep of theirs; and the turn is given back."""
    bayesian = convert(Failing())
    before = [dict(vars(part)) for part in bayesian.module.modules()]
    parameters = list(bayesian.parameters())
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(bayesian)
        for part, attributes in zip(bayesian.module.modules(), before):
            assert vars(part)["_parameters"] is attributes["_parameters"]
        assert_same(bayesian.module.recurrent._flat_weights, list(bayesian.module.recurrent.parameters()))
    bayesian.module.fails = False
    assert_mu_stands(bayesian, parameters)
    assert_same(bayesian.mean_forward(inputs()), copy.deepcopy(bayesian).mean_forward(inputs()))
    thread = threading.Thread(target=run, args=(bayesian,), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


@each_way
def test_an_interruption_leaves_no_sample(run: Callable[[BayesianModule], Any]) -> None:
    """At any line: the next use of the module has mu, and the parameters are the module's own."""
    bayesian = convert(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    mean, parameters = bayesian.mean_forward(inputs()), list(bayesian.parameters())
    for place in range(1, 5000):
        try:
            with interrupted_at(place, "in_place.py", "bayesian_module.py"):
                run(bayesian)
            break
        except KeyboardInterrupt:
            pass
        assert same_bits(bayesian.mean_forward(inputs()), mean), place
        assert all(map(operator.is_, bayesian.parameters(), parameters)), place
    assert 30 < place < 4999


@each_way
def test_other_threads_wait(run: Callable[..., Any]) -> None:
    """A second thread uses the module while the first is inside it, where a sample stands then."""
    bayesian = convert(nn.Linear(4, 4))
    parameters, waited = list(bayesian.parameters()), []

    def use() -> list[Tensor]:
        mean, kl_divergence = bayesian.mean_forward(inputs()), bayesian.kl_divergence()
        return [by_call(bayesian, KEYS[0]), by_block(bayesian, KEYS[1]), mean, kl_divergence]

    def start(*_: Any) -> None:
        if not thread.ident:
            thread.start()
            thread.join(0.2)  # in vain
            waited.append(thread.is_alive())

    expected, seen = [run(bayesian), *use()], []
    thread = threading.Thread(target=lambda: seen.extend(use()))
    bayesian.module.register_forward_pre_hook(start)
    first = run(bayesian)
    thread.join(20)
    assert waited == [True]
    assert_same([first, *seen], expected)
    assert_mu_stands(bayesian, parameters)


def test_a_suspended_generator_holds_the_block() -> None:
    """It may end in another thread; whoever waits goes on then."""
    bayesian = convert(Network())
    parameters = list(bayesian.parameters())

    def stream() -> Iterator[Tensor]:
        with bayesian.sampled(KEY):
            for _ in range(2):
                yield bayesian.module(inputs())

    tokens = stream()
    first = next(tokens)
    waiting = threading.Thread(target=by_call, args=(bayesian,), daemon=True)
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    others: list[Tensor] = []
    ending = threading.Thread(target=lambda: others.extend(tokens))
    ending.start()
    ending.join(20)
    waiting.join(20)
    assert not waiting.is_alive() and same_bits(others[0], first)
    assert_mu_stands(bayesian, parameters)


def test_a_call_that_autograd_computes_again_does_not_wait() -> None:
    """By a thread of the engine: the block's own thread waits for that backward pass."""
    bayesian = convert(Network())
    output = checkpoint(lambda x: bayesian(x)[0], inputs(), use_reentrant=False)
    errors: list[str] = []

    def backward() -> None:
        try:
            output.sum().backward()
        except RuntimeError as error:
            errors.append(str(error))

    with bayesian.sampled():
        thread = threading.Thread(target=backward, daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
    assert "bnn(x): refused while `sampled()` holds a sample" in errors[0]


@each_way
def test_a_child_forked_while_another_thread_is_inside(run: Callable[[BayesianModule], Any]) -> None:
    """It has mu in its places, and its calls wait for nobody: it has no such thread."""
    bayesian = convert(nn.Linear(4, 4))
    parameters, expected = list(bayesian.parameters()), [parameter.clone() for parameter in bayesian.parameters()]
    inside, go_on = threading.Event(), threading.Event()

    def wait(*_: Any) -> None:
        if threading.current_thread() is thread:
            inside.set()
            go_on.wait(20)

    bayesian.module.register_forward_pre_hook(wait)
    thread = threading.Thread(target=run, args=(bayesian,))
    thread.start()
    assert inside.wait(20)
    child = os.fork()  # waits for nobody: the thread goes on after it
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            assert_mu_stands(bayesian, parameters)
            code = 0 if all(map(same_bits, bayesian.parameters(), expected)) else 2
        finally:
            os._exit(code)
    assert end(child) == 0
    go_on.set()
    thread.join()
    assert_mu_stands(bayesian, parameters)


@each_way
def test_a_fork_inside(run: Callable[[BayesianModule], Any]) -> None:
    """The child goes on with its sample, as its parent does, and has mu in its places at the end."""
    bayesian = convert(nn.Linear(4, 4))
    mean, expected = bayesian.mean_forward(inputs()), bayesian.sample_module(KEY)(inputs())
    children: list[int] = []
    bayesian.module.register_forward_pre_hook(lambda *_: children.append(os.fork()))
    is_right = same_bits(run(bayesian), expected)
    if children == [0]:
        bayesian.module._forward_pre_hooks.clear()
        os._exit(0 if is_right and same_bits(bayesian.mean_forward(inputs()), mean) else 1)
    assert end(children[0]) == 0 and is_right


USES: dict[str, Callable[[BayesianModule], object]] = {
    r"bnn\(x\)": lambda bayesian: bayesian(inputs()),
    "mean_forward": lambda bayesian: bayesian.mean_forward(inputs()),
    "mean_module": lambda bayesian: bayesian.mean_module(),
    "sample_module": lambda bayesian: bayesian.sample_module(),
    "kl_divergence": lambda bayesian: bayesian.kl_divergence(),
    "named_gaussians": lambda bayesian: list(bayesian.named_gaussians()),
    "param_groups": lambda bayesian: bayesian.param_groups(),
    "state_dict": lambda bayesian: bayesian.state_dict(),
    "load_state_dict": lambda bayesian: bayesian.load_state_dict({}, strict=False),
    "to": lambda bayesian: bayesian.double(),
    "deepcopy and pickle": copy.deepcopy,
    "deepcopy and .*": pickle.dumps,
    "freeze": lambda bayesian: bayesian.freeze(),
    "sampled": lambda bayesian: bayesian.sampled().__enter__(),
}


@parametrize("inside", ["a call", "a block"])
@parametrize("what", USES)
def test_what_is_refused_inside(what: str, inside: str) -> None:
    """And is possible again after it."""
    bayesian = convert(Network())
    parameters = list(bayesian.parameters())
    if inside == "a block":
        message = rf"{what}: refused while `sampled\(\)` holds a sample in bnn.module; use bnn.module there, or end"
        with pytest.raises(RuntimeError, match=message), bayesian.sampled():
            USES[what](bayesian)
    else:
        message = "module: calls its own BayesianModule, while a sample stands in its weights"
        hook = bayesian.module.register_forward_pre_hook(lambda *_: USES[what](bayesian) and None)
        with pytest.raises(RuntimeError, match=message):
            bayesian(inputs())
        hook.remove()
    assert_mu_stands(bayesian, parameters)
    USES[what](bayesian)


@parametrize("run", [by_call, by_samples, by_block])
def test_cached_parametrizations_are_refused(run: Callable[[BayesianModule], Any]) -> None:
    bayesian = convert(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    with nn.utils.parametrize.cached(), pytest.raises(RuntimeError, match=r"cached\(\) would keep what the first"):
        run(bayesian)
    thread = threading.Thread(target=run, args=(bayesian,), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    with nn.utils.parametrize.cached():
        run(convert(nn.Linear(4, 4)))


class Keeping(nn.Linear):
    """Keeps a tensor with a graph, and one in a buffer."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.register_buffer("seen", torch.zeros(6, 4))

    def forward(self, inputs: Tensor) -> Tensor:
        self.aux_loss = {"loss": self.weight.sum()}
        self.seen = super().forward(inputs)
        return self.seen


@pytest.mark.filterwarnings("ignore:module.*the module keeps a tensor")
def test_copies_of_a_module_that_keeps_a_graph() -> None:
    """They keep its values, and can be made after a call as before."""
    bayesian = convert(Keeping())
    by_call(bayesian)
    for module in (bayesian.mean_module(), bayesian.sample_module()):
        assert same_bits(module.aux_loss["loss"], bayesian.module.aux_loss["loss"])
        assert module.seen.grad_fn is None and same_bits(module.seen, bayesian.module.seen)
    by_call(BayesianModule(bayesian.module))


class Changing(nn.Linear):
    """Deletes a parameter of its own, sets one, and copies itself while a sample stands in it."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.extra = nn.Parameter(torch.ones(1))

    def forward(self, inputs: Tensor) -> Tensor:
        if hasattr(self, "extra"):
            del self.extra
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.kept = copy.deepcopy(self) if not torch.is_grad_enabled() else None
        return super().forward(inputs) * self.scale


def test_what_a_module_does_to_its_parameters_stays() -> None:
    bayesian = convert(Changing(), select=["weight"])
    by_call(bayesian)
    assert [name for name, _ in bayesian.module.named_parameters()] == ["weight", "bias", "scale"]
    bayesian.eval().predict(inputs(), key=KEYS)
    assert type(bayesian.module.kept._parameters) is dict
    assert same_bits(bayesian.module.kept.weight, bayesian.sample_module(KEYS[-1]).weight)


class Caching(nn.Linear):
    """Keeps what it makes of its weight for later calls in evaluation, as LeViT keeps its attention biases."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.cache: dict[str, Tensor] = {}
        self.mask = torch.ones(4)  # there before the call, so none of its tensors

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + (self.weight if self.training else self.cache.setdefault("bias", self.weight))[:1]


class Remembering(nn.Module):
    """Without weights of its own: it keeps what it makes of those inside, in an attribute or a buffer."""

    def __init__(self, in_buffer: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        if in_buffer:
            self.register_buffer("kept", None)

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training:
            self.kept = self.linear.weight.T
        return self.linear(inputs)


CACHES: dict[str, Callable[[], nn.Module]] = {
    r"module\.0\.cache": lambda: nn.Sequential(Caching(), nn.Linear(4, 2)),
    r"module\.kept": lambda: Remembering(False),
    r"module\.0\.kept": lambda: nn.Sequential(Remembering(True)),
}


@each_way
@parametrize("place", CACHES)
def test_caches_are_named_once(place: str, run: Callable[[BayesianModule], Any]) -> None:
    bayesian = convert(CACHES[place]())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(bayesian)
    bayesian.eval()
    with pytest.warns(UserWarning, match=f"{place}: the module keeps a tensor of this call.* clear it before"):
        run(bayesian)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(bayesian)


def test_two_distributions_over_one_module() -> None:
    """Without copies they share the module's turns: none takes the other's sample for mu."""
    network = nn.Linear(4, 4).double()
    first, second = (BayesianModule(network, copy=False) for _ in range(2))
    with pytest.raises(RuntimeError, match=r"bnn\(x\): refused while `sampled\(\)`"), first.sampled():
        second(inputs())
    second(inputs())
    part = BayesianModule(nn.Sequential(network), copy=False)  # has turns of its own
    for use in (part.kl_divergence, part.state_dict, lambda: part(inputs())):
        with pytest.raises(RuntimeError, match="another BayesianModule over the same weights"), first.sampled():
            use()
        with torch.no_grad(), pytest.raises(RuntimeError, match="another BayesianModule over"), first.sampled():
            use()
        use()
