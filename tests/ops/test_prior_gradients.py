"""Priors of every shape: derivatives to them of every op and order, in every mode, and only where asked for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import FLOAT_DTYPES, UNIT_ROUNDOFF, make_key, make_keys, make_parameters, same_bits
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from transform_cases import TRANSFORMS

from illia_ext import GaussianDistribution, functional, reference
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


@parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@parametrize("pair", PAIRS.values(), ids=PAIRS)
@parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_transforms_as_in_plain_pytorch(
    function: Callable[..., Tensor], pair: Callable[..., Any], transform: Callable[..., Any], device: torch.device
) -> None:
    fixed, key = POINT.to(device), make_key(3, device=device)
    ours, expected = (
        transform(lambda a, b, o=o: function(o, key, *pair(fixed, a, b)))(*fixed) for o in (functional, reference)
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


class Record(TorchDispatchMode):
    """What each backward op is asked for: (to mu_prior, to std_prior)."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[bool, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "illia_ext" and "_backward" in func.__name__:
            names = [argument.name for argument in func._schema.arguments]
            given = {**dict(zip(names, args)), **(kwargs or {})}
            self.asked.append(tuple(given["output_mask"][3:]) if "output_mask" in given else given.get("prior_grads"))
        return func(*args, **(kwargs or {}))


ASKING: dict[str, Callable[..., Tensor]] = {
    **FUNCTIONS,
    "stick_the_landing": lambda library, key, *inputs: op("gaussian_sample_and_log_prob")(
        *inputs, key, stick_the_landing=True
    )[1],
}


@parametrize("wanted", [(False, False), (True, False), (False, True), (True, True)])
@parametrize("name", ASKING)
def test_gradients_come_only_where_they_are_asked_for(
    name: str, wanted: tuple[bool, bool], device: torch.device
) -> None:
    function, key = ASKING[name], make_key(3, device=device)
    inputs = [a.to(device).detach() for a in (*POINT, POINT[1], POINT[0].exp())]
    for leaf, is_wanted in zip(inputs, (True, True, *wanted)):
        leaf.requires_grad_(is_wanted)
    value = function(functional, key, *inputs)
    with Record() as record:
        grads = torch.autograd.grad(value.sum(), [leaf for leaf in inputs if leaf.requires_grad])
    one_flag = wanted if "samples" in name else (True if any(wanted) else None)
    assert record.asked == [one_flag]
    every = [a.detach().requires_grad_() for a in inputs]
    expected = torch.autograd.grad(function(functional, key, *every).sum(), every)
    for ours, theirs in zip(grads, (e for e, leaf in zip(expected, inputs) if leaf.requires_grad), strict=True):
        assert same_bits(ours, theirs)


@parametrize("prior_dtype", FLOAT_DTYPES)
@parametrize("dtype", FLOAT_DTYPES)
@parametrize("shape", [(), (1,), (1, 33), (5, 33)])
def test_a_gradient_has_the_shape_and_dtype_of_its_prior(
    shape: tuple[int, ...], dtype: torch.dtype, prior_dtype: torch.dtype, device: torch.device
) -> None:
    mu, rho = make_parameters((5, 33), dtype, device)
    keys = keys_for(3, device)
    priors = [torch.full(shape, value, dtype=prior_dtype, device=device) for value in (0.25, 0.75)]

    def gradients(library: Any, *inputs: Tensor) -> list[Tensor]:
        leaves = [a.detach().requires_grad_() for a in inputs]
        x, log_prob = library.gaussian_sample_and_log_prob(*leaves, keys)
        return list(torch.autograd.grad(log_prob.sum(), leaves))[2:]

    ours = gradients(functional, mu, rho, *priors)
    for gradient, prior in zip(ours, priors):
        assert (gradient.shape, gradient.dtype, gradient.device) == (prior.shape, prior.dtype, prior.device)
        assert gradient.is_contiguous()
    if mu.dtype != torch.float64:  # the noise of the reference depends on the type that it runs in
        return
    # One rounding to the prior's type, and float64's own of terms that cancel to some digits.
    expected = gradients(reference, mu, rho, *(prior.double() for prior in priors))
    rtol = UNIT_ROUNDOFF[prior_dtype] + 1e-12
    torch.testing.assert_close([g.double() for g in ours], expected, rtol=rtol, atol=1e-12)


def test_samples_before_one_backward(device: torch.device) -> None:
    """The gradient of a sum is the sum of S gradients, not a mean; and a graph that is kept gives it again."""
    mu, rho = make_parameters((5, 13), torch.float64, device)
    inputs = [a.requires_grad_() for a in (mu, rho, mu[:, :1].cos(), rho[0].exp())]
    keys = keys_for(4, device)

    def draw(key: Tensor) -> Tensor:
        x, log_prob = functional.gaussian_sample_and_log_prob(*inputs, key)
        return x.sin().sum() + (log_prob * functional.gaussian_log_prob(x, *inputs)).sum()

    singles = [torch.autograd.grad(draw(key), inputs) for key in keys]
    expected = [sum(grads) for grads in zip(*singles)]
    for total in (sum(draw(key) for key in keys), draw(keys)):
        once, again = (torch.autograd.grad(total, inputs, retain_graph=keep) for keep in (True, False))
        torch.testing.assert_close(list(once), expected, rtol=1e-10, atol=1e-10)
        assert all(map(same_bits, once, again))
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(total, inputs)


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


def test_a_learnt_prior_compiles(device: torch.device) -> None:
    """In one graph for all sizes, forward and backward, as in eager."""

    def gradients(*inputs: Tensor, run: Callable[..., Any]) -> list[Tensor]:
        leaves = [a.detach().requires_grad_() for a in inputs[:4]]
        return list(torch.autograd.grad(run(*leaves, *inputs[4:]), leaves))

    def loss(*inputs: Tensor) -> Tensor:
        x, log_prob = functional.gaussian_sample_and_log_prob(*inputs)
        return functional.gaussian_kl_divergence(*inputs[:4]) + (log_prob * x.sum((1, 2))).sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=True)
    for num_samples, size in ((3, (4, 7)), (5, (6, 9))):
        mu, rho = make_parameters(size, device=device)
        priors = mu[:1].sin(), rho[:, :1].exp()
        inputs = (mu, rho, *priors, keys_for(num_samples, device))
        for ours, expected in zip(gradients(*inputs, run=compiled), gradients(*inputs, run=loss), strict=True):
            assert same_bits(ours, expected)
