"""What vmap would do in another way than single calls is refused, and leaves the module as it was."""

import copy
import types
from collections.abc import Callable

import pytest
import torch
from helpers import same_bits
from module_cases import INPUTS, KEYS, Custom, convert, make
from torch import Tensor, nn

parametrize = pytest.mark.parametrize


def doing(action: Callable[[Custom, Tensor], object]) -> Callable[[Custom, Tensor], Tensor]:
    """A module's own function that does something besides, and returns its hidden units."""

    def function(module: Custom, hidden: Tensor) -> Tensor:
        action(module, hidden)
        return hidden

    return function


def count_and_fail(module: Custom, hidden: Tensor) -> Tensor:
    module.seen.add_(1)
    return hidden * float(hidden.detach().sum())


ONCE = "under vmap once instead of once per sample"


@parametrize(
    ("function", "message"),
    [
        (count_and_fail, "module: fails under vmap: .*item"),
        (doing(lambda module, _: module.seen.add_(1)), f"module.seen: is changed in place, {ONCE}"),
        (doing(lambda module, _: module.seen.data.add_(1)), f"module.seen: is changed in place, {ONCE}"),  # no version
        (doing(lambda module, _: setattr(module, "seen", module.seen + 1)), f"module.seen: is set, {ONCE}"),
        (doing(lambda module, _: setattr(module, "kept", torch.ones(2))), f"module.kept: is set, {ONCE}"),
        (
            doing(lambda module, hidden: setattr(module, "seen", hidden.detach().sum())),
            "module.seen: keeps a tensor of the call, which under vmap belongs to no single sample",
        ),
        (doing(lambda module, hidden: setattr(module, "kept", hidden.detach())), "module.kept: keeps a tensor of the"),
        (doing(lambda module, hidden: module.state.history.append(hidden.detach())), "module.state: keeps a tensor of"),
        (doing(lambda _, hidden: hidden.register_hook(lambda grad: 2 * grad)), "module: fails .* register a hook"),
        (lambda module, hidden: hidden if hidden.sum() > 0 else -hidden, "module: fails under vmap: .*data-dependent"),
        (lambda module, hidden: hidden.grad_fn and hidden, "module: reads grad_fn of a tensor, which vmap hides"),
        (lambda module, hidden: hidden if hidden.is_leaf else -hidden, "module: reads is_leaf of a tensor"),
    ],
)
def test_what_vmap_cannot_do_is_refused(function: Callable[[Custom, Tensor], Tensor], message: str) -> None:
    """And leaves the module as it was: it can be copied, and called one sample after the other."""
    bayesian = make(function, chunk_size=3)
    bayesian.module.state = types.SimpleNamespace(history=[])
    before = {name: tensor.clone() for name, tensor in bayesian.state_dict().items()}
    with pytest.raises(RuntimeError, match=f"{message}.*; chunk_size=1 runs one sample after the other"):
        bayesian(INPUTS, key=KEYS)
    assert bayesian.module.calls == 0 and not hasattr(bayesian.module, "kept")
    assert bayesian.module.state.history == []
    assert all(same_bits(tensor, before[name]) for name, tensor in bayesian.state_dict().items())
    copy.deepcopy(bayesian)
    bayesian.chunk_size = 1
    bayesian(INPUTS, key=KEYS)
    assert bayesian.module.calls == 5
    assert bayesian.module.seen in (0, 5, bayesian.sample_module(KEYS[4]).linear(INPUTS).sum())


class Doubling(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.mul_(2))


def hooked(kind: str) -> nn.Module:
    network = nn.Sequential(nn.Linear(3, 2))
    getattr(network[0], f"register_{kind}")(lambda *_: None)
    return network


@pytest.mark.filterwarnings("ignore:`torch.jit")
@parametrize(
    ("make_module", "message"),
    [
        (lambda: Doubling(3, 2), f"input: is changed in place, {ONCE}"),
        (lambda: nn.LSTM(3, 2), "module: LSTM cannot run under vmap"),
        (lambda: nn.Sequential(torch.jit.script(nn.Linear(3, 2))), "module.0: RecursiveScriptModule cannot run under"),
        (lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), "module.1: BatchNorm1d in training updates"),
        (lambda: hooked("full_backward_hook"), "module.0: has hooks, "),
        (lambda: hooked("full_backward_pre_hook"), "module.0: has hooks, "),
        (lambda: hooked("forward_hook"), "module.0: has hooks, "),
        (lambda: hooked("forward_pre_hook"), "module.0: has hooks, "),
    ],
)
def test_modules_that_vmap_cannot_run(make_module: Callable[[], nn.Module], message: str) -> None:
    bayesian = convert(make_module(), chunk_size=2)
    before = [buffer.clone() for buffer in bayesian.buffers()]
    with pytest.raises(RuntimeError, match=f"{message}.*; chunk_size=1 runs one sample after the other"):
        bayesian(INPUTS.clone(), key=KEYS)
    assert all(map(same_bits, bayesian.buffers(), before))
