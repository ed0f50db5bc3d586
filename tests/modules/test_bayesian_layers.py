"""BayesianModule of every layer type of torch.nn that has parameters, in float64."""

import contextlib
import copy
import inspect
from typing import Any

import pytest
import torch
from foreach_cases import move_keys
from helpers import DEVICE, make_key, noise
from module_cases import KEYS, assert_same, assert_single_samples, loss_of
from torch import Tensor, nn

from illia_ext import BayesianModule, functional

parametrize = pytest.mark.parametrize
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:An output with one or more")

PRIOR = (0.25, 0.75)
TRANSFORMER = {"d_model": 4, "nhead": 2, "dim_feedforward": 5, "dropout": 0.0, "dtype": torch.float64}
CONVOLUTIONS = {f"{kind}{n}d": ((2, 3, 2), [(3, 2, *[4] * n)]) for kind in ("Conv", "ConvTranspose") for n in (1, 2, 3)}
BATCH_NORMS = {f"BatchNorm{n}d": ((2,), [(3, 2, *[4] * n)]) for n in (2, 3)}
INSTANCE_NORMS = {f"InstanceNorm{n}d": ((2, 1e-5, 0.1, True, True), [(3, 2, *[4] * n)]) for n in (1, 2, 3)}

# the constructor's arguments (a function: the module itself), and shapes of floating inputs or integers below a number
LAYERS: dict[str, tuple[Any, list[Any]]] = {
    **CONVOLUTIONS,
    **BATCH_NORMS,
    **INSTANCE_NORMS,
    "Linear": ((3, 2), [(4, 3)]),
    "Bilinear": ((3, 4, 2), [(5, 3), (5, 4)]),
    "BatchNorm1d": ((3,), [(4, 3)]),
    "SyncBatchNorm": (lambda: nn.SyncBatchNorm(3).eval(), [(4, 3, 5)]),  # trains on GPUs alone
    "LayerNorm": ((3,), [(4, 3)]),
    "RMSNorm": ((3,), [(4, 3)]),
    "GroupNorm": ((2, 4), [(3, 4, 5)]),
    "PReLU": ((3,), [(4, 3)]),
    "Embedding": ((5, 3), [((4, 2), 5)]),
    "EmbeddingBag": ((5, 3), [((4, 2), 5)]),
    "RNN": ((3, 4, 2), [(5, 2, 3)]),
    "LSTM": (lambda: nn.LSTM(3, 4, 2, proj_size=2, bidirectional=True), [(5, 2, 3)]),
    "GRU": ((3, 4, 2), [(5, 2, 3)]),
    "RNNCell": ((3, 4), [(2, 3), (2, 4)]),
    "LSTMCell": ((3, 4), [(2, 3)]),
    "GRUCell": ((3, 4), [(2, 3), (2, 4)]),
    "MultiheadAttention": ((4, 2), [(3, 2, 4)] * 3),
    "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(**TRANSFORMER), [(3, 2, 4)]),
    "TransformerDecoderLayer": (lambda: nn.TransformerDecoderLayer(**TRANSFORMER), [(3, 2, 4)] * 2),
    "TransformerEncoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(**TRANSFORMER), 1, enable_nested_tensor=False),
        [(3, 2, 4)],
    ),
    "TransformerDecoder": (
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(**TRANSFORMER), 1),
        [(3, 2, 4)] * 2,
    ),
    "Transformer": (
        lambda: nn.Transformer(**TRANSFORMER, num_encoder_layers=1, num_decoder_layers=1, batch_first=True),
        [(2, 3, 4)] * 2,
    ),
    "AdaptiveLogSoftmaxWithLoss": ((4, 6, [2, 4], 1.0), [(5, 4), ((5,), 6)]),
    "LinearCrossEntropyLoss": ((4, 3), [(5, 4), ((5,), 3)]),
}
# they have the parameters that others put into them, or are no layers
CONTAINERS = {
    "Container", "DataParallel", "Module", "ModuleDict", "ModuleList", "ParameterDict", "ParameterList",
    "RNNBase", "RNNCellBase", "Sequential",
}  # fmt: skip
NAMES = sorted(name for name in LAYERS if hasattr(nn, name))  # an older torch lacks some


def make_layer(name: str) -> tuple[nn.Module, list[Tensor]]:
    """A layer of float64 on the device under test, and inputs."""
    torch.manual_seed(0)
    arguments, inputs = LAYERS[name]
    layer = arguments() if callable(arguments) else getattr(nn, name)(*arguments)
    tensors = [
        torch.randint(entry[1], entry[0]) if isinstance(entry[0], tuple) else torch.randn(entry, dtype=torch.float64)
        for entry in inputs
    ]
    tensors = [tensor.to(DEVICE) for tensor in tensors]
    layer.to(DEVICE, torch.float64)
    return layer, tensors


@parametrize("name", NAMES)
def test_the_mean_and_a_sample(name: str) -> None:
    """The mean is the plain layer, bit for bit, and so is a sample the layer with weights drawn by single calls."""
    layer, inputs = make_layer(name)
    bayesian = BayesianModule(layer, *PRIOR, rho_init=-1.0)
    ours, mean = copy.deepcopy(bayesian), copy.deepcopy(bayesian)
    drawn = {}
    log_prob = torch.zeros((), dtype=torch.float64, device=DEVICE)
    key = make_key(3, 5)
    names, mus, rhos = zip(*bayesian.named_gaussians())
    for weight, mu, rho, one in zip(names, mus, rhos, move_keys(mus, key)):
        drawn[weight], its_log_prob = functional.gaussian_sample_and_log_prob(mu, rho, *PRIOR, one)
        log_prob = log_prob + its_log_prob
    assert list(drawn) == [weight for weight, _ in layer.named_parameters()]
    output, our_log_prob = ours(*inputs, key=key)
    assert_same(output, torch.func.functional_call(bayesian.module, drawn, tuple(inputs)))
    torch.testing.assert_close(our_log_prob, log_prob, rtol=1e-14, atol=0)  # one rounding a tensor
    assert_same(list(ours.module.buffers()), list(bayesian.module.buffers()))
    assert_same(mean.mean_forward(*inputs), layer(*inputs))
    assert_same(list(mean.module.buffers()), list(layer.buffers()))


@parametrize("name", NAMES)
def test_gradients(name: str) -> None:
    """Where sigma is 1e-13, mu's gradients are the plain layer's, and rho's are eps sigmoid(rho) times those: they
    differ by second derivatives times sigma, which 1e-10 bounds amply."""
    layer, inputs = make_layer(name)
    bayesian = BayesianModule(layer, rho_init=-30.0)
    key = make_key(7)
    nothing = torch.zeros(())
    loss_of(bayesian(*inputs, key=key)[0], nothing).backward()
    loss_of(layer(*inputs), nothing).backward()
    _, mus, rhos = zip(*bayesian.named_gaussians())
    for (weight, parameter), mu, rho, one in zip(layer.named_parameters(), mus, rhos, move_keys(mus, key)):
        if (name, weight) != ("LSTMCell", "weight_hh"):  # its state is zero here; all others would compare zeros
            assert parameter.grad.abs().max() > 1e-3, weight
        torch.testing.assert_close(mu.grad, parameter.grad, rtol=1e-10, atol=1e-10, msg=weight)
        expected = mu.grad * noise(one, mu) * rho.sigmoid()
        torch.testing.assert_close(rho.grad, expected, rtol=1e-10, atol=0, msg=weight)


@parametrize("name", NAMES)
def test_samples_are_single_samples(name: str) -> None:
    """Statistics, too, are those of single calls in the order of the keys."""
    layer, inputs = make_layer(name)
    assert_single_samples(BayesianModule(layer, *PRIOR, rho_init=-1.0), *inputs, keys=KEYS[:3])


@parametrize("name", [name for name in LAYERS if f"Lazy{name}" in vars(nn)])
def test_lazy_layers(name: str) -> None:
    """Refused until they know their shapes."""
    arguments, (shape,) = LAYERS[name]
    lazy = getattr(nn, f"Lazy{name}")(*arguments[1:], device=DEVICE)
    with pytest.raises(ValueError, match=r"weight: .* got an uninitialized parameter; run the module on a batch first"):
        BayesianModule(lazy)
    inputs = torch.ones(shape, device=DEVICE)
    lazy(inputs)
    assert_same(BayesianModule(lazy).mean_forward(inputs), lazy(inputs))


def make_blindly(layer: type[nn.Module]) -> nn.Module:
    """With a 2 for every argument that has no default, another one at the end, or a pair there."""
    parameters = inspect.signature(layer).parameters.values()
    required = [2 for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    for arguments in (required, [*required, 2], [*required[:-1], (2, 2)]):
        with contextlib.suppress(TypeError, ValueError):
            return layer(*arguments)
    raise AssertionError(f"{layer.__name__}: has it parameters? LAYERS is to say how it is made")


def test_every_layer_type_is_there(cpu: object) -> None:
    """A layer of a newer torch that has parameters belongs into LAYERS."""
    for name, layer in vars(nn).items():
        if isinstance(layer, type) and issubclass(layer, nn.Module) and name not in CONTAINERS | LAYERS.keys():
            assert (name.startswith("Lazy") and name[4:] in LAYERS) or not list(make_blindly(layer).parameters()), name
