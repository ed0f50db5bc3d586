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


def count_in_place(module: Custom, hidden: Tensor) -> Tensor:
    module.seen.add_(1)
    return hidden


def count_and_fail(module: Custom, hidden: Tensor) -> Tensor:
    module.seen.add_(1)
    return hidden * float(hidden.detach().sum())


def count_anew(module: Custom, hidden: Tensor) -> Tensor:
    module.seen = module.seen + 1
    return hidden


def keep_in_a_buffer(module: Custom, hidden: Tensor) -> Tensor:
    module.seen = hidden.detach().sum()
    return hidden


def count_in_data(module: Custom, hidden: Tensor) -> Tensor:
    module.seen.data.add_(1)  # which changes no version
    return hidden


def renew(module: Custom, hidden: Tensor) -> Tensor:
    module.kept = torch.ones(2)
    return hidden


def keep(module: Custom, hidden: Tensor) -> Tensor:
    module.kept = hidden.detach()
    return hidden


def keep_in_a_list(module: Custom, hidden: Tensor) -> Tensor:
    module.state.history.append(hidden.detach())
    return hidden


def hook(module: Custom, hidden: Tensor) -> Tensor:
    hidden.register_hook(lambda grad: 2 * grad)
    return hidden


@parametrize(
    ("function", "message"),
    [
        (count_in_place, "module.seen: is changed in place, under vmap once instead of once per sample"),
        (count_and_fail, "module: fails under vmap: .*item"),
        (count_anew, "module.seen: is set, under vmap once instead of once per sample"),
        (keep_in_a_buffer, "module.seen: keeps a tensor of the call, which under vmap belongs to no single sample"),
        (keep, "module.kept: keeps a tensor of the call"),
        (keep_in_a_list, "module.state: keeps a tensor of the call"),
        (count_in_data, "module.seen: is changed in place, under vmap once instead of once per sample"),
        (renew, "module.kept: is set, under vmap once instead of once per sample"),
        (hook, "module: fails under vmap: cannot register a hook"),
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
        (lambda: Doubling(3, 2), "input: is changed in place, under vmap once instead of once per sample"),
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
