"""torch.func and checkpointing: the transforms give what they give for plain PyTorch, and vmap its promised noise."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import DEVICE, make_key, make_keys, same_bits
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from transform_cases import TRANSFORMS, Count

from illia_ext import GaussianDistribution, functional, reference

PRIOR = (0.25, 0.75)
KEY, KEYS = make_key(3), make_keys((1, 2), (3, 4))
parametrize = pytest.mark.parametrize

# Functions of mu and rho, from illia_ext.functional or illia_ext.reference.
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "sample": lambda library, mu, rho: library.gaussian_sample(mu, rho, KEY),
    "samples": lambda library, mu, rho: library.gaussian_sample(mu, rho, KEYS),
    "log_prob": lambda library, mu, rho: library.gaussian_log_prob(mu.sin(), mu, rho, *PRIOR),
    "log_prob of samples": lambda library, mu, rho: library.gaussian_log_prob(
        torch.stack([mu.sin(), rho]), mu, rho, *PRIOR
    ),
    "log_prob of the sample": lambda library, mu, rho: library.gaussian_sample_and_log_prob(mu, rho, *PRIOR, KEY)[1],
    "sample_and_log_prob": lambda library, mu, rho: torch.mul(
        *library.gaussian_sample_and_log_prob(mu, rho, *PRIOR, KEY)
    ),
    "kl_divergence": lambda library, mu, rho: library.gaussian_kl_divergence(mu, rho, *PRIOR),
}


@parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_transforms_as_in_plain_pytorch(function: Callable[..., Tensor], transform: Callable[..., Any]) -> None:
    mu, rho = torch.tensor([[0.5, -1.0, 0.25], [-2.0, 0.5, 1.0]], dtype=torch.float64, device=DEVICE)
    ours, expected = (transform(lambda mu, rho, o=o: function(o, mu, rho))(mu, rho) for o in (functional, reference))
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)


def test_no_grad_inside_a_transform(device: torch.device) -> None:
    """As in plain PyTorch nothing inside is recorded, at no level."""

    def function(mu: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            x = functional.gaussian_sample(mu, mu, KEY)
        return (mu * x).sum(), x

    gradient, x = grad(function, has_aux=True)(torch.ones(3, device=device, requires_grad=True))
    assert torch.equal(gradient, x)
    assert not gradient.requires_grad and not x.requires_grad


def all_outputs(mu: Tensor, rho: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    """Of every op that takes a key, and of one that does not."""
    eps = torch.ops.illia_ext.standard_normal(key, [3], dtype=torch.float32)
    x = functional.gaussian_sample(mu, rho, key, dtype=torch.bfloat16)
    return eps, x, *functional.gaussian_sample_and_log_prob(mu, rho, *PRIOR, key)


@parametrize("in_dim", [0, 1, -1])
@parametrize("dtype", [torch.int64, torch.uint64])
def test_vmap_over_keys_is_one_call(dtype: torch.dtype, in_dim: int, device: torch.device) -> None:
    mu, rho = torch.linspace(-1, 1, 6).to(device).unflatten(0, (2, 3))
    keys = make_keys((1, 2), (3, 4), (2**64 - 1, 5), device=device).to(dtype)
    batched = keys.T.contiguous() if in_dim else keys
    with Count() as count:
        outputs = vmap(lambda key: all_outputs(mu, rho, key), in_dim)(batched)
    assert len(count.calls) == 3
    for ours, expected in zip(outputs, all_outputs(mu, rho, keys)):
        assert same_bits(ours, expected)


def test_vmap_over_batches_of_keys_is_one_call(device: torch.device) -> None:
    mu, rho = torch.linspace(-1, 1, 6).to(device).unflatten(0, (2, 3))
    keys = make_keys(*itertools.product(range(3), range(2)), device=device)
    for function in (vmap(lambda key: all_outputs(mu, rho, key)), vmap(vmap(lambda key: all_outputs(mu, rho, key)))):
        with Count() as count:
            outputs = function(keys.unflatten(0, (3, 2)))
        assert len(count.calls) == 3
        for ours, expected in zip(outputs, all_outputs(mu, rho, keys)):
            assert same_bits(ours, expected.unflatten(0, (3, 2)))


def test_vmap_over_keys_of_a_block_is_one_call(device: torch.device) -> None:
    """With a prior for each weight, which broadcasts to the weights and not to as many keys."""
    mu, rho = torch.linspace(-1, 1, 8).to(device).reshape(2, 2, 2)
    keys, block = make_keys((1, 2), (3, 4), device=device), {"full_size": [5, 3], "origin": [2, 0]}
    illia, priors = torch.ops.illia_ext, (mu[:, :1], rho[0].exp())

    def drawn(key: Tensor) -> tuple[Tensor, ...]:
        eps = illia.standard_normal(key, [2, 2], dtype=torch.float32, **block)
        x = illia.gaussian_sample(mu, rho, key, **block)
        return eps, x, *illia.gaussian_sample_and_log_prob(mu, rho, *priors, key, **block)

    with Count() as count:
        outputs = vmap(drawn)(keys)
    assert len(count.calls) == 3
    for ours, *members in zip(outputs, *map(drawn, keys)):
        assert same_bits(ours, torch.stack(members))


@parametrize("in_dims", [d for d in itertools.product((None, 0, -1), (None, 1), (None, 0)) if d != (None,) * 3])
def test_vmap_is_a_loop(in_dims: tuple[int | None, ...], device: torch.device) -> None:
    """So members with one key share its noise, and members with keys of their own do not."""
    members = torch.linspace(-1, 1, 12).to(device).unflatten(0, (4, 3))
    keys = make_keys(*[(i, 0) for i in range(4)], device=device)
    inputs = (members, members.flip(0), keys)
    inputs = tuple(a[0] if d is None else a.movedim(0, d).contiguous() for a, d in zip(inputs, in_dims))
    outputs = vmap(all_outputs, in_dims)(*inputs)
    for i in range(4):
        member = all_outputs(*(a if d is None else a.select(d, i) for a, d in zip(inputs, in_dims)))
        for batch, one in zip(outputs, member):
            assert same_bits(batch[i], one)
    assert torch.equal(outputs[0][0], outputs[0][1]) is (in_dims[2] is None)


def test_vmap_over_keys_of_a_backward_is_a_loop(device: torch.device) -> None:
    """A backward sums over its keys: those of one member, and no others."""
    rho, grad_x = torch.linspace(-1, 1, 3).to(device), torch.ones(2, 3, device=device)
    keys = make_keys(*[(i, 0) for i in range(8)], device=device).unflatten(0, (4, 2))
    backward = torch.ops.illia_ext.gaussian_sample_backward
    ours = vmap(lambda key: backward(grad_x, rho, key))(keys)
    assert same_bits(ours, torch.stack([backward(grad_x, rho, key) for key in keys]))
    ours = vmap(lambda key: backward(grad_x[0], rho, key))(keys[:, 0])
    assert same_bits(ours, torch.stack([backward(grad_x[0], rho, key) for key in keys[:, 0]]))


def test_vmap_over_no_members(device: torch.device) -> None:
    mu, member = torch.zeros(0, 3, device=device), torch.zeros(3, device=device)
    assert vmap(functional.gaussian_sample, (0, 0, None))(mu, mu, KEY).shape == (0, 3)
    assert vmap(lambda key: functional.gaussian_sample(member, member, key))(KEYS[:0]).shape == (0, 3)


def test_vmap_over_priors(device: torch.device) -> None:
    mu, rho = torch.linspace(-1, 1, 6).to(device).unflatten(0, (2, 3))
    for priors in (torch.tensor([0.5, 2.0], device=device), torch.tensor([[0.5], [2.0]], device=device)):
        ours = vmap(functional.gaussian_kl_divergence, (None, None, None, 0))(mu, rho, 0.25, priors)
        expected = [functional.gaussian_kl_divergence(mu, rho, 0.25, prior) for prior in priors]
        assert same_bits(ours, torch.stack(expected))


@parametrize("randomness", ["error", "same", "different"])
def test_randomness_of_a_drawn_key(randomness: str, device: torch.device) -> None:
    distribution = GaussianDistribution(3, device=device)

    def sample(factor: Tensor) -> tuple[Tensor, Tensor]:
        return distribution.sample() * factor, distribution.sample_and_log_prob(2)[1]

    batched = vmap(sample, randomness=randomness)
    if randomness == "error":
        with pytest.raises(RuntimeError, match="randomness"):
            batched(torch.ones(4, device=device))
        return
    x, log_prob = batched(torch.ones(4, device=device))
    assert x.shape == (4, 3) and log_prob.shape == (4, 2)
    assert [torch.equal(x[0], x[i]) for i in range(1, 4)] == [randomness == "same"] * 3
    assert torch.equal(log_prob[0], log_prob[3]) is (randomness == "same")


class Linear(nn.Module):
    """A Bayesian layer; also returns the log_prob of its weights."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.weights = GaussianDistribution((num_out, num_in), rho_init=-1.0)

    def forward(self, inputs: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
        weights, log_prob = self.weights.sample_and_log_prob(key=key)
        return nn.functional.linear(inputs, weights).tanh(), log_prob


def test_functional_call_of_an_ensemble(device: torch.device) -> None:
    """Members, gradients of members, and inputs: vmap over them is a loop."""
    layers = [Linear(4, 3).to(device) for _ in range(3)]
    stacked = torch.func.stack_module_state(layers)
    inputs, keys = torch.randn(5, 4, device=device), make_keys((1, 0), (2, 0), (3, 0), device=device)

    def loss(parameters: Any, buffers: Any, x: Tensor, key: Tensor) -> Tensor:
        output, log_prob = functional_call(layers[0], (parameters, buffers), (x, key))
        return output.square().sum() + log_prob / 100

    grads = vmap(grad(loss), (0, 0, None, 0))(*stacked, inputs, keys)
    for i, layer in enumerate(layers):
        output, log_prob = layer(inputs, keys[i])
        (output.square().sum() + log_prob / 100).backward()
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(grads[name][i], parameter.grad)

    with Count() as count:  # inputs alone: the weights are drawn once
        outputs = vmap(lambda x: layers[0](x, keys[0])[0])(inputs)
    assert count.calls == ["gaussian_sample_and_log_prob.default"]
    torch.testing.assert_close(outputs, layers[0](inputs, keys[0])[0])


def test_vmap_of_grad_compiles(device: torch.device) -> None:
    """Over members, keys and priors, as in eager."""
    members = torch.linspace(-1, 1, 12).to(device).unflatten(0, (4, 3))
    inputs = (members, members.flip(0), members.cos(), members[:, :1].exp())
    keys = make_keys(*[(i, 0) for i in range(4)], device=device)

    def loss(*inputs: Tensor) -> Tensor:
        x, log_prob = functional.gaussian_sample_and_log_prob(*inputs)
        return x.sin().sum() * log_prob

    gradients = vmap(grad(loss, (0, 1, 2, 3)))
    torch._dynamo.reset()
    compiled = torch.compile(gradients, backend="aot_eager", fullgraph=True)
    for ours, expected in zip(compiled(*inputs, keys), gradients(*inputs, keys), strict=True):
        assert same_bits(ours, expected)
