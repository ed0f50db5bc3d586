"""torch.func: the transforms give what they give for plain PyTorch, and vmap its promised noise."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from foreach_cases import make_lists, one_by_one
from helpers import make_key, make_keys, same_bits
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from transform_cases import (
    FOREACH_FUNCTIONS,
    FUNCTIONS,
    PRIOR,
    TRANSFORMS,
    Count,
    assert_same_bits,
    lists,
    with_gradients,
)

from illia_ext import GaussianDistribution, functional, reference

KEY, KEYS = make_key(3), make_keys((1, 2), (3, 4))
parametrize = pytest.mark.parametrize
CASES = [
    (function, key)
    for function in (*FUNCTIONS, *FOREACH_FUNCTIONS)
    for key in ((KEY,) if "kl_divergence" in function else (KEY, KEYS))
]


@parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@parametrize(("function", "key"), CASES, ids=[f"{function}-{key.dim()}" for function, key in CASES])
def test_transforms_as_in_plain_pytorch(
    function: str, key: Tensor, transform: Callable[..., Any], device: torch.device
) -> None:
    """float64, where the libraries' functions and sums of some ten terms differ by some 1e-15."""
    mu = torch.tensor([[0.5, -1.0, 0.25], [-2.0, 0.5, 1.0]], dtype=torch.float64, device=device)
    rho = mu.flip(0)
    call = {**FUNCTIONS, **FOREACH_FUNCTIONS}[function]

    def run(library: Any) -> Any:
        def of_parameters(mu: Tensor, rho: Tensor) -> Tensor:
            x = mu.sin() if key.dim() == 1 else torch.stack([mu.sin(), rho])
            return call(library, key, x, mu, rho)

        return transform(of_parameters)(mu, rho)

    torch.testing.assert_close(run(functional), run(reference), rtol=1e-9, atol=1e-11)


def test_no_grad_inside_a_transform(device: torch.device) -> None:
    """As in plain PyTorch nothing inside is recorded, at no level."""

    def function(mu: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            x = functional.gaussian_sample(mu, mu, KEY)
        return (mu * x).sum(), x

    gradient, x = grad(function, has_aux=True)(torch.ones(3, device=device, requires_grad=True))
    assert torch.equal(gradient, x)
    assert not gradient.requires_grad and not x.requires_grad


NUM_CALLS = 4  # of ops, in `all_outputs`


def all_outputs(mu: Tensor, rho: Tensor, key: Tensor, prior: Any = PRIOR) -> tuple[Tensor, ...]:
    """Of every op that takes a key."""
    eps = torch.ops.illia_ext.standard_normal(key, [3], dtype=torch.float32)
    x = functional.gaussian_sample(mu, rho, key, dtype=torch.bfloat16)
    both = functional.gaussian_sample_and_log_prob(mu, rho, *prior, key)
    many, log_prob = functional.foreach_gaussian_sample_and_log_prob(*lists(mu, rho), *prior, key)
    return eps, x, *both, *many, log_prob


def make_matrices(device: torch.device) -> list[Tensor]:
    return list(torch.linspace(-1, 1, 12).to(device).reshape(2, 2, 3))


@parametrize("in_dim", [0, 1, -1])
@parametrize("dtype", [torch.int64, torch.uint64])
def test_vmap_over_keys_is_one_call(dtype: torch.dtype, in_dim: int, device: torch.device) -> None:
    """Gradients reach the parameters through it."""
    leaves = [tensor.requires_grad_() for tensor in make_matrices(device)]
    keys = make_keys((1, 2), (3, 4), (2**64 - 1, 5), device=device).to(dtype)
    batched = keys.T.contiguous() if in_dim else keys
    with Count() as count:
        _, *outputs = vmap(lambda key: all_outputs(*leaves, key), in_dim)(batched)
    assert len(count.calls) == NUM_CALLS
    _, *expected = all_outputs(*leaves, keys)
    assert_same_bits(with_gradients(outputs, leaves), with_gradients(expected, leaves))


def test_vmap_over_batches_of_keys_is_one_call(device: torch.device) -> None:
    mu, rho = make_matrices(device)
    keys = make_keys(*itertools.product(range(3), range(2)), device=device)
    for function in (vmap(lambda key: all_outputs(mu, rho, key)), vmap(vmap(lambda key: all_outputs(mu, rho, key)))):
        with Count() as count:
            outputs = function(keys.unflatten(0, (3, 2)))
        assert len(count.calls) == NUM_CALLS
        assert_same_bits(outputs, [expected.unflatten(0, (3, 2)) for expected in all_outputs(mu, rho, keys)])


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
    assert_same_bits(outputs, [torch.stack(members) for members in zip(*map(drawn, keys))])


@parametrize("in_dims", [d for d in itertools.product((None, 0, -1), (None, 1), (None, 0)) if d != (None,) * 3])
def test_vmap_is_a_loop(in_dims: tuple[int | None, ...], device: torch.device) -> None:
    """So members with one key share its noise, and members with keys of their own do not."""
    members = torch.linspace(-1, 1, 24).to(device).reshape(4, 2, 3)
    keys = make_keys(*[(i, 0) for i in range(4)], device=device)
    inputs = (members, members.flip(0), keys)
    inputs = tuple(a[0] if d is None else a.movedim(0, d).contiguous() for a, d in zip(inputs, in_dims))
    outputs = vmap(all_outputs, in_dims)(*inputs)
    for i in range(4):
        member = all_outputs(*(a if d is None else a.select(d, i) for a, d in zip(inputs, in_dims)))
        assert_same_bits([batch[i] for batch in outputs], member)
    assert torch.equal(outputs[0][0], outputs[0][1]) is (in_dims[2] is None)


def test_vmap_over_keys_of_a_backward_is_a_loop(device: torch.device) -> None:
    """A backward sums over its keys: those of one member, and no others."""
    rho, grad_x = torch.linspace(-1, 1, 3).to(device), torch.ones(2, 3, device=device)
    keys = make_keys(*[(i, 0) for i in range(8)], device=device).unflatten(0, (4, 2))
    for given, of_member in ((grad_x, keys), (grad_x[0], keys[:, 0])):
        backward = lambda key, given=given: torch.ops.illia_ext.gaussian_sample_backward(given, rho, key)  # noqa: E731
        assert same_bits(vmap(backward)(of_member), torch.stack([backward(key) for key in of_member]))


def test_vmap_over_no_members(device: torch.device) -> None:
    mu, member = torch.zeros(0, 3, device=device), torch.zeros(3, device=device)
    assert vmap(functional.gaussian_sample, (0, 0, None))(mu, mu, KEY).shape == (0, 3)
    assert vmap(lambda key: functional.gaussian_sample(member, member, key))(KEYS[:0]).shape == (0, 3)


@parametrize("shape", [(2,), (2, 1)])
def test_vmap_over_priors(shape: tuple[int, ...], device: torch.device) -> None:
    mu, rho = make_matrices(device)

    def outputs(std_prior: Tensor) -> list[Tensor]:
        kl_divergence = functional.gaussian_kl_divergence(mu, rho, 0.25, std_prior)
        return [kl_divergence, *all_outputs(mu, rho, KEY, (0.25, std_prior))]

    priors = torch.tensor([0.5, 2.0], device=device).reshape(shape)
    assert_same_bits(vmap(outputs)(priors), [torch.stack(members) for members in zip(*map(outputs, priors))])


@parametrize("transform", [vmap, lambda function: vmap(grad(function))])
@parametrize("name", ["gaussian_sample_and_log_prob", "foreach_gaussian_sample_and_log_prob"])
def test_transforms_of_inputs_alone_draw_once(name: str, transform: Callable[..., Any], device: torch.device) -> None:
    """And what they give can be differentiated to the parameters."""
    leaves = [tensor.requires_grad_() for tensor in make_matrices(device)]
    tensors = lists(*leaves) if "foreach" in name else leaves
    draw = lambda: getattr(functional, name)(*tensors, *PRIOR, KEY)[1]  # noqa: E731
    with Count() as count:
        outputs = transform(lambda x: x * draw())(torch.ones(3, device=device))
    assert count.calls == [f"{name}.default"]
    expected = draw()
    assert_same_bits(list(outputs), [expected] * 3)
    assert_same_bits(with_gradients(outputs[0], leaves), with_gradients(expected, leaves))


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

    def forward(self, inputs: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        weights, log_prob = self.weights.sample_and_log_prob(key=key)
        return nn.functional.linear(inputs, weights).tanh(), log_prob


def test_functional_call_of_an_ensemble(device: torch.device) -> None:
    """vmap over members and their gradients is a loop."""
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


@pytest.mark.usefixtures("fresh_compiler")
def test_vmap_of_grad_compiles(device: torch.device) -> None:
    """Over members, keys and priors, as in eager."""
    members = torch.linspace(-1, 1, 12).to(device).unflatten(0, (4, 3))
    inputs = (members, members.flip(0), members.cos(), members[:, :1].exp())
    keys = make_keys(*[(i, 0) for i in range(4)], device=device)

    def loss(*inputs: Tensor) -> Tensor:
        x, log_prob = functional.gaussian_sample_and_log_prob(*inputs)
        return x.sin().sum() * log_prob

    gradients = vmap(grad(loss, (0, 1, 2, 3)))
    compiled = torch.compile(gradients, backend="aot_eager", fullgraph=True)
    assert_same_bits(compiled(*inputs, keys), gradients(*inputs, keys))


@parametrize("learned", [False, True])
def test_batches_of_gradients(learned: bool, device: torch.device) -> None:
    """is_grads_batched, by which jacobians are vectorized, gives the bits of a loop over the batch."""
    mu, rho = make_lists(torch.float32, device)
    prior = [torch.tensor([value], device=device, requires_grad=learned) for value in PRIOR]
    x, log_prob = functional.foreach_gaussian_sample_and_log_prob(mu, rho, *prior, KEY)
    outputs = [*x, log_prob, functional.foreach_gaussian_kl_divergence(mu, rho, *prior)]
    leaves = [*mu, *rho, *(prior if learned else [])]
    weights = [torch.stack([torch.full_like(output, 1.0 + member) for member in range(3)]) for output in outputs]
    batched = torch.autograd.grad(outputs, leaves, weights, retain_graph=True, is_grads_batched=True)
    for member in range(3):
        one = torch.autograd.grad(outputs, leaves, [weight[member] for weight in weights], retain_graph=True)
        assert_same_bits([gradient[member] for gradient in batched], one)


@parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_learned_priors_of_many_tensors(dtype: torch.dtype, device: torch.device) -> None:
    """One mean for all tensors; a deviation for each, of which some are learned. log_prob is rounded once."""
    mu, rho = make_lists(dtype, device, ((3, 2), (), (5,)) * 20)
    leaf = lambda value: torch.tensor([value], dtype=dtype, device=device, requires_grad=True)  # noqa: E731
    mu_prior = leaf(0.25)
    each = [leaf(0.5 + k / 10) if k % 2 else 1.0 for k in range(len(mu))]
    for priors, leaves in (((mu_prior, 0.75), [*mu, *rho, mu_prior]), ((0.25, each), [*mu, *rho, *each[1::2]])):
        x, log_prob = functional.foreach_gaussian_sample_and_log_prob(mu, rho, *priors, KEY)
        expected_x, parts = one_by_one(mu, rho, *priors, KEY)
        assert_same_bits([x, log_prob], [expected_x, sum(part.double() for part in parts).to(log_prob.dtype)])
        gradients = [
            torch.autograd.grad(outputs, leaves, [torch.ones_like(output) for output in outputs])
            for outputs in ([*x, log_prob], [*expected_x, *parts])
        ]
        assert_same_bits(*gradients)
