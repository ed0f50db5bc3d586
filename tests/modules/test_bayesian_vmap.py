"""Several samples of a BayesianModule at once, under vmap: as single calls, or refused, with the module as it was."""

import copy
import types
from collections.abc import Callable

import pytest
import torch
from helpers import same_bits
from sample_cases import INPUTS, KEYS, Custom, make
from torch import Tensor, nn

from illia_ext import BayesianModule

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


def test_an_input_changed_in_place_is_refused_under_vmap() -> None:
    bayesian = make(lambda module, hidden: hidden, chunk_size=3)
    bayesian.module.forward = lambda inputs: bayesian.module.linear(inputs.mul_(2))
    with pytest.raises(RuntimeError, match="input: is changed in place, under vmap once instead of once per sample"):
        bayesian(INPUTS.clone(), key=KEYS)


@pytest.mark.filterwarnings("ignore:`torch.jit")
@parametrize(
    ("make_module", "message"),
    [
        (lambda: nn.LSTM(3, 2), "module: LSTM cannot run under vmap"),
        (lambda: nn.Sequential(torch.jit.script(nn.Linear(3, 2))), "module.0: RecursiveScriptModule cannot run under"),
        (lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), "module.1: BatchNorm1d in training updates"),
    ],
)
def test_layers_that_vmap_cannot_run(make_module: Callable[[], nn.Module], message: str) -> None:
    bayesian = BayesianModule(make_module().to(KEYS.device).double(), chunk_size=2)
    before = [buffer.clone() for buffer in bayesian.buffers()]
    with pytest.raises(RuntimeError, match=f"{message}.*; chunk_size=1 runs one sample after the other"):
        bayesian(INPUTS, key=KEYS)
    assert all(map(same_bits, bayesian.buffers(), before))


@parametrize("kind", ["full_backward_hook", "full_backward_pre_hook", "forward_hook", "forward_pre_hook"])
def test_hooks_are_refused_under_vmap(kind: str) -> None:
    bayesian = make(lambda module, hidden: hidden, chunk_size=2)
    getattr(bayesian.module.linear, f"register_{kind}")(lambda *_: None)
    with pytest.raises(RuntimeError, match=r"module.linear: has hooks, .*; chunk_size=1 runs one sample after the"):
        bayesian(INPUTS, key=KEYS)


@parametrize("with_gradients", [False, True])
def test_requires_grad_is_known_under_vmap(with_gradients: bool) -> None:
    function = lambda module, hidden: 2 * hidden if hidden.requires_grad else hidden  # noqa: E731
    results = []
    for chunk_size in (1, 5):
        with torch.set_grad_enabled(with_gradients):
            results.append(make(function, chunk_size=chunk_size)(INPUTS, key=KEYS)[0])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_bad_outputs_under_vmap() -> None:
    with pytest.raises(TypeError, match=r"output: under vmap expected tensors, .* got .*set.*; chunk_size=1 runs"):
        make(lambda module, hidden: {hidden.shape}, chunk_size=5)(INPUTS, key=KEYS)
    with pytest.raises(RuntimeError, match=r"fails under vmap: .*shapes|fails under vmap: .*size"):
        make(lambda module, hidden: hidden @ hidden, chunk_size=5)(INPUTS, key=KEYS)


@parametrize("batch", [(2,), (9,), (2, 3), (5, 4), ()])  # smaller and larger than the outputs are many
@parametrize("bias", [True, False])
def test_linear_layers_have_the_gradients_of_single_calls(batch: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8, bias=bias), nn.Tanh(), nn.Linear(8, 8, bias=bias)).to(KEYS.device).double()
    inputs = torch.randn(*batch, 4, dtype=torch.float64, device=KEYS.device)
    results = []
    inputs = inputs.transpose(0, -2) if len(batch) == 2 else inputs
    for chunk_size in (5, 1):
        bayesian = BayesianModule(network, rho_init=-1.0, chunk_size=chunk_size)
        output, log_prob = bayesian(inputs, key=KEYS)
        (output.square().sum() + log_prob.sum()).backward()
        results.append([output, *(parameter.grad for parameter in bayesian.parameters())])
    for at_once, in_a_loop in zip(*results):  # 1e-12: another order of sums of float64
        torch.testing.assert_close(at_once, in_a_loop, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("error")
def test_attention_has_the_gradients_of_single_calls() -> None:
    """Its projections are one product a sample, and nothing falls back to a loop of torch's, which would warn."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True, device=KEYS.device, dtype=torch.float64)
    inputs = torch.randn(2, 3, 8, dtype=torch.float64, device=KEYS.device)
    mask = torch.ones(3, 3, dtype=torch.bool, device=KEYS.device).triu(1)
    results = []
    for chunk_size in (5, 1):
        bayesian = BayesianModule(attention, rho_init=-1.0, chunk_size=chunk_size)
        for need_weights in (True, False):
            (output, _), _ = bayesian(inputs, inputs, inputs, need_weights=need_weights, attn_mask=mask, key=KEYS)
            output.square().sum().backward()
        results.append([output, *(parameter.grad for parameter in bayesian.parameters())])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


POOLS = [nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(1), nn.AvgPool2d(2), nn.MaxPool2d(2, return_indices=True)]


@parametrize("pool", POOLS, ids=repr)
def test_convolutions_and_pools_under_vmap(pool: nn.Module) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), pool).to(KEYS.device).double()
    inputs = torch.randn(2, 1, 6, 6, dtype=torch.float64, device=KEYS.device)
    results = []
    for chunk_size in (5, 1):
        bayesian = BayesianModule(network, rho_init=-1.0, chunk_size=chunk_size)
        output = bayesian(inputs, key=KEYS)[0]
        (output[0] if isinstance(output, tuple) else output).square().sum().backward()
        results.append([output, *(parameter.grad for parameter in bayesian.parameters())])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_vmap_over_inputs_of_samples_at_once() -> None:
    """The tensors that the caller's own vmap has made are none of this call's."""
    bayesian = make(lambda module, hidden: hidden.tanh(), chunk_size=3)
    inputs = torch.stack([INPUTS, 2 * INPUTS])
    mapped = torch.vmap(lambda inputs: bayesian(inputs, key=KEYS)[0])(inputs)
    expected = torch.stack([bayesian(each, key=KEYS)[0] for each in inputs])
    torch.testing.assert_close(mapped, expected, rtol=1e-12, atol=1e-12)


def test_odd_calls_under_vmap() -> None:
    def function(module: Custom, hidden: Tensor) -> Tensor:
        rows = torch.embedding(module.linear.weight, torch.tensor([1, 0], device=KEYS.device))
        nothing = nn.functional.linear(hidden[:, :0], module.linear.weight[:, :0])
        return hidden + rows.sum() + nothing + nn.functional.linear(hidden[0], module.linear.weight[:, :2])

    results = [make(function, chunk_size=chunk_size)(INPUTS, key=KEYS)[0] for chunk_size in (1, 5)]
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
