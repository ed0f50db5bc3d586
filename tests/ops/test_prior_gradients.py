"""Priors of every shape: derivatives to them of every op and order, in every mode."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import make_key, make_keys, make_parameters, same_bits
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, vmap
from transform_cases import SECOND, TRANSFORMS

from illia_ext import GaussianDistribution, functional, random, reference
from illia_ext._ops.fake import op

# With 2 samples of [2, 2] no dimension can be told from another by its size.
SHAPE, NUM_SAMPLES = (2, 2), 2
KINDS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {  # shapes of mu_prior and std_prior
    "scalars": ((), ()),
    "one element": ((1,), (1, 1, 1)),
    "rows": ((2,), (1, 2)),
    "columns": ((2, 1), (2, 1)),
    "full": ((2, 2), (2, 2)),
    "row and column": ((1, 2), (2, 1)),
}
Call = tuple[Callable[..., Any], tuple[Tensor, ...]]
parametrize = pytest.mark.parametrize


def keys_for(num_samples: int | None, device: torch.device) -> Tensor:
    keys = make_keys(*[(42, i) for i in range(num_samples or 0)], device=device)
    return make_key(42, device=device) if num_samples is None else keys


def make_calls(kind: str, key: Tensor) -> dict[str, Call]:
    """Each op as a function of what it can be differentiated to, and the point where."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(key.device).requires_grad_()

    samples = key.shape[:-1]
    mu, rho, x, grad_log_prob, grad = leaf(*SHAPE), leaf(*SHAPE), leaf(*samples, *SHAPE), leaf(*samples), leaf()
    priors = (leaf(*KINDS[kind][0]), (leaf(*KINDS[kind][1]).abs() + 0.5).detach().requires_grad_())
    inputs = (mu, rho, *priors)
    both, both_backward = op("gaussian_sample_and_log_prob"), op("gaussian_sample_and_log_prob_backward")
    log_prob_backward, kl_divergence_backward = op("gaussian_log_prob_backward"), op("gaussian_kl_divergence_backward")
    return {
        "gaussian_log_prob": (op("gaussian_log_prob"), (x, *inputs)),
        "gaussian_sample_and_log_prob": (lambda *a: both(*a, key), inputs),
        "gaussian_kl_divergence": (op("gaussian_kl_divergence"), inputs),
        "gaussian_log_prob_backward": (lambda *a: log_prob_backward(*a, [True] * 5), (grad_log_prob, x, *inputs)),
        "gaussian_sample_and_log_prob_backward": (
            lambda *a: both_backward(*a, key, prior_grads=True),
            (x, grad_log_prob, *inputs),
        ),
        "gaussian_kl_divergence_backward": (lambda *a: kl_divergence_backward(*a, True), (grad, *inputs)),
    }


CALLS = tuple(make_calls("scalars", make_key(0)))
CASES = [
    (name, kind, num_samples)
    for name in CALLS
    for kind in KINDS
    for num_samples in ((None,) if "kl" in name else (None, 0, NUM_SAMPLES))
    if num_samples != 0 or kind == "row and column"
]


@parametrize(("name", "kind", "num_samples"), CASES)
def test_first_derivatives(name: str, kind: str, num_samples: int | None, device: torch.device) -> None:
    function, inputs = make_calls(kind, keys_for(num_samples, device))[name]
    assert gradcheck(function, inputs, check_forward_ad=True, fast_mode="backward" in name)


@parametrize(("name", "kind", "num_samples"), [case for case in CASES if "backward" not in case[0]])
def test_second_derivatives(name: str, kind: str, num_samples: int | None, device: torch.device) -> None:
    function, inputs = make_calls(kind, keys_for(num_samples, device))[name]
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, fast_mode=True)


# Functions of two inputs, the others fixed, from illia_ext.functional or illia_ext.reference.
POINT = torch.tensor([[0.5, -1.0, 0.25], [-2.0, 0.5, 1.0]], dtype=torch.float64)
PAIRS: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]] = {
    "mu_prior, std_prior": lambda fixed, a, b: (*fixed, a, b.exp()),
    "mu, mu_prior": lambda fixed, a, b: (a, fixed[1], b, fixed[0].exp()),
    "rho, std_prior": lambda fixed, a, b: (fixed[0], a, fixed[1], b.exp()),
}
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "log_prob of samples": lambda library, key, *inputs: library.gaussian_log_prob(
        torch.stack([inputs[0].sin(), inputs[1]]), *inputs
    ),
    "sample_and_log_prob": lambda library, key, *inputs: torch.mul(*library.gaussian_sample_and_log_prob(*inputs, key)),
    "kl_divergence": lambda library, key, *inputs: library.gaussian_kl_divergence(*inputs),
}


def stick_the_landing(library: Any, key: Tensor, *inputs: Tensor) -> Tensor:
    """Of one sample and of three; it has no second derivatives."""
    values = []
    for keys in (key, random.split(key, 3)):
        x, log_prob = library.gaussian_sample_and_log_prob(*inputs, keys, stick_the_landing=True)
        values.append((x.sum(-1) * log_prob).sum())
    return torch.stack(values)


TRANSFORMED = [(function, transform) for function in FUNCTIONS.values() for transform in TRANSFORMS]
TRANSFORMED += [(stick_the_landing, transform) for transform in TRANSFORMS if transform not in SECOND]


@parametrize(("function", "transform"), TRANSFORMED)
@parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_transforms_as_in_plain_pytorch(
    function: Callable[..., Tensor], transform: str, pair: Callable[..., Any], device: torch.device
) -> None:
    fixed, key = POINT.to(device), make_key(3, device=device)
    ours, expected = (
        TRANSFORMS[transform](lambda a, b, o=o: function(o, key, *pair(fixed, a, b)))(*fixed)
        for o in (functional, reference)
    )
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)


@parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_third_derivatives(function: Callable[..., Tensor], device: torch.device) -> None:
    key, point = keys_for(3, device), POINT.to(device)

    def third(library: Any) -> list[Tensor]:
        inputs = [a.clone().requires_grad_() for a in (*point, point[1], point[0].exp())]
        value = function(library, key[0], *inputs)
        for _ in range(3):
            grads = torch.autograd.grad(value.sum(), inputs, create_graph=True)
            value = sum(grad * grad for grad in grads)
        return list(grads)

    torch.testing.assert_close(third(functional), third(reference), rtol=1e-9, atol=1e-9)


@parametrize("shared", [(), (0,), (1,), (2, 3), (0, 1, 2)])
def test_vmap_is_a_loop(shared: tuple[int, ...], device: torch.device) -> None:
    """A prior that the members share broadcasts to each of them: with 3 members of 3 samples of [3], too."""
    inputs = (*POINT.to(device).repeat(3, 1, 1).unbind(1), torch.rand(3, 3, device=device), torch.rand(3, 1).to(device))
    inputs = tuple(a[0] if i in shared else a * torch.arange(1.0, 4.0).to(a)[:, None] for i, a in enumerate(inputs))
    in_dims = tuple(None if i in shared else 0 for i in range(4))
    keys = keys_for(3, device)

    def loss(*inputs: Tensor) -> Tensor:
        x, log_prob = functional.gaussian_sample_and_log_prob(*inputs, keys)
        log_prob_again = functional.gaussian_log_prob(x.sin(), *inputs)
        return (x.sum(-1) + log_prob * log_prob_again).sum() + functional.gaussian_kl_divergence(*inputs)

    def gradients(*inputs: Tensor) -> tuple[Tensor, ...]:
        return loss(*inputs), *grad(loss, (0, 1, 2, 3))(*inputs)

    for batch, *members in zip(
        vmap(gradients, in_dims)(*inputs),
        *(gradients(*(a if d is None else a[i] for a, d in zip(inputs, in_dims))) for i in range(3)),
    ):
        assert same_bits(batch, torch.stack(members))


def test_a_module_learns_its_prior_by_functional_call(device: torch.device) -> None:
    """Gradients to its buffers, as to its parameters."""
    module = GaussianDistribution(3, mu_prior=0.25, std_prior=0.75, device=device, dtype=torch.float64)
    module.forward = module.kl_divergence
    tensors = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    ours = grad(lambda tensors: functional_call(module, tensors))(tensors)
    names = ("mu", "rho", "mu_prior", "std_prior")
    expected = grad(lambda tensors: reference.gaussian_kl_divergence(*map(tensors.get, names)))(tensors)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
    assert all(gradient.count_nonzero() for gradient in ours.values())


def test_a_number_on_the_cpu_beside_another_device() -> None:
    """It does not stand in the way of the other prior's gradient; that it gets none itself, C++ says on a GPU."""
    mu = torch.ones(3, device="meta", requires_grad=True)
    number, learnt = torch.tensor(0.5), torch.ones(3, device="meta", requires_grad=True)
    key = torch.ones(2, dtype=torch.int64, device="meta")
    functions: list[Callable[..., Tensor]] = [
        lambda *priors: functional.gaussian_log_prob(mu, mu, mu, *priors),
        lambda *priors: functional.gaussian_sample_and_log_prob(mu, mu, *priors, key)[1],
        lambda *priors: functional.gaussian_kl_divergence(mu, mu, *priors),
    ]
    for function in functions:
        for priors in ((number, learnt), (learnt, number)):
            assert torch.autograd.grad(function(*priors), learnt)[0].shape == (3,)


@parametrize("held", [False, True], ids=["plain", "stick_the_landing"])
def test_it_compiles(held: bool, device: torch.device) -> None:
    """In one graph for all sizes, forward and backward to parameters and priors, as in eager; the place of a block in
    the whole may be dynamic, too."""

    def loss(mu: Tensor, rho: Tensor, mu_prior: Tensor, std_prior: Tensor, key: Tensor, whole: Tensor) -> Tensor:
        block = {"full_size": list(whole.shape), "origin": [n - m for n, m in zip(whole.shape, mu.shape)]}
        inputs, options = (mu, rho, mu_prior, std_prior), {"stick_the_landing": held, **block}
        x, log_prob = op("gaussian_sample_and_log_prob")(*inputs, key, **options)
        return functional.gaussian_kl_divergence(*inputs) + (log_prob * x.sin().sum((1, 2))).sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=True)
    for num_samples, size, full_size in ((3, (4, 7), (6, 9)), (5, (6, 9), (11, 10))):
        mu, rho = make_parameters(size, device=device)
        inputs, gradients = (mu, rho, mu[:1].sin(), rho[:, :1].exp()), []
        for run in (compiled, loss):
            leaves = [tensor.detach().requires_grad_() for tensor in inputs]
            value = run(*leaves, keys_for(num_samples, device), torch.empty(full_size, device="meta"))
            gradients.append(torch.autograd.grad(value, leaves))
        assert all(map(same_bits, *gradients))
