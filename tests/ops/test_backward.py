"""Gradients of every op against float64 autograd on the op's own noise, and what is kept to compute them."""

from collections.abc import Callable

import pytest
import torch
from helpers import (
    FLOAT_DTYPES,
    HALF_DTYPES,
    LAYOUTS,
    UNIT_ROUNDOFF,
    arithmetic_dtype,
    function_roundoffs,
    log_prob_terms,
    make_key,
    make_keys,
    make_parameters,
    make_strided,
    noise,
    same_bits,
    sigma,
)
from torch import Tensor

from illia_ext import GaussianDistribution, functional, reference

MU_PRIOR, STD_PRIOR = PRIORS = (0.25, 0.125)  # exact in every dtype
SHAPES = [(), (0,), (17,), (5, 13), (1025,)]
SAMPLES = [None, 0, 1, 3]
REFERENCES = {torch.float32: 1, torch.float64: 2}  # in float64 the reference errs as we do


def keys_for(num_samples: int | None, device: torch.device) -> Tensor:
    keys = make_keys(*[(42 + i, 2**64 - 1 - i) for i in range(num_samples or 0)], device=device)
    return make_key(42, 2**32 - 1, device) if num_samples is None else keys


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def weights_for(output: Tensor) -> Tensor:
    """Arbitrary gradients of an output."""
    return make_parameters(output.shape, output.dtype, output.device, seed=7)[0]


def per_sample(grad_log_prob: Tensor, mu: Tensor) -> Tensor:
    """[] or [S] in float64, to be multiplied with [*shape] or [S, *shape]."""
    return grad_log_prob.double().reshape([*grad_log_prob.shape, *[1] * mu.dim()])


def sum_samples(tensor: Tensor, mu: Tensor) -> Tensor:
    return tensor.sum(0) if tensor.dim() > mu.dim() else tensor


def assert_grad_close(grad: Tensor, like: Tensor, expected: Tensor, scale: Tensor, num_samples: int | None = 1) -> None:
    """`scale` sums the absolute values of the terms that add up to a gradient. In units of u = 2^-24 (2^-53):
    sigma errs by 5, sigmoid by 10, h by 6, z by 7; no term multiplies up more than 24, or three functions of a GPU
    (see function_roundoffs); S samples take S additions."""
    precise = arithmetic_dtype(grad.dtype)
    bound = (
        REFERENCES[precise] * (3 * function_roundoffs(8, grad) + (num_samples or 1)) * UNIT_ROUNDOFF[precise] * scale
    )
    if grad.dtype != precise:
        bound = bound + UNIT_ROUNDOFF[grad.dtype] * (expected.abs() + bound) + 2.0**-25  # half of the smallest float16
    assert grad.dtype == like.dtype and grad.shape == like.shape
    assert ((grad.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("used", ["sample", "x", "log_prob", "x and log_prob"])
@pytest.mark.parametrize("num_samples", SAMPLES)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_sample_gradients(
    shape: tuple[int, ...], dtype: torch.dtype, num_samples: int | None, used: str, device: torch.device
) -> None:
    mu, rho = leaves(*make_parameters(shape, dtype, device))
    key = keys_for(num_samples, device)

    # 1. ours
    if used == "sample":
        outputs = {"x": functional.gaussian_sample(mu, rho, key)}
    else:
        outputs = dict(zip(("x", "log_prob"), functional.gaussian_sample_and_log_prob(mu, rho, *PRIORS, key)))
        outputs = {name: output for name, output in outputs.items() if name in used}
    cotangents = {name: weights_for(output) for name, output in outputs.items()}
    grads = torch.autograd.grad(list(outputs.values()), [mu, rho], list(cotangents.values()))

    # 2. float64 autograd
    mu64, rho64 = leaves(mu.double(), rho.double())
    eps = noise(key, mu)
    x64 = mu64 + sigma(rho64) * eps
    grad_x = cotangents["x"].double() if "x" in cotangents else torch.zeros_like(x64)
    go = per_sample(cotangents["log_prob"], mu) if "log_prob" in cotangents else torch.zeros_like(x64)
    terms = log_prob_terms(x64, mu64, rho64, *PRIORS, eps)
    expected = torch.autograd.grad((grad_x * x64).sum() + (go * sum(terms)).sum(), [mu64, rho64])

    # 3. what rounding can do
    mu64, rho64 = mu64.detach(), rho64.detach()
    prior_terms = (mu64.abs() + sigma(rho64) * eps.abs() + MU_PRIOR) / STD_PRIOR**2
    scale = grad_x.abs() + go.abs() * prior_terms
    h_terms = sum_samples((go * torch.ones_like(eps)).abs(), mu) * torch.sigmoid(rho64) / sigma(rho64)
    scale_rho = torch.sigmoid(rho64) * sum_samples(scale * eps.abs(), mu) + h_terms
    assert_grad_close(grads[0], mu, expected[0], sum_samples(scale, mu), num_samples)
    assert_grad_close(grads[1], rho, expected[1], scale_rho, num_samples)


@pytest.mark.parametrize("num_samples", SAMPLES)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_log_prob_gradients(
    shape: tuple[int, ...], dtype: torch.dtype, num_samples: int | None, device: torch.device
) -> None:
    mu, rho = make_parameters(shape, dtype, device)
    x, mu, rho = leaves(functional.gaussian_sample(mu, rho, keys_for(num_samples, device)), mu, rho)
    log_prob = functional.gaussian_log_prob(x, mu, rho, *PRIORS)
    weights = weights_for(log_prob)
    grads = torch.autograd.grad(log_prob, [x, mu, rho], weights)

    inputs = leaves(x.double(), mu.double(), rho.double())
    go = per_sample(weights, mu)
    expected = torch.autograd.grad((go * sum(log_prob_terms(*inputs, *PRIORS))).sum(), inputs)

    x64, mu64, rho64 = (tensor.detach() for tensor in inputs)
    z, h = (x64 - mu64) / sigma(rho64), torch.sigmoid(rho64) / sigma(rho64)
    scale_mu = (go * z / sigma(rho64)).abs()
    scale_x = scale_mu + (go * (x64 - MU_PRIOR)).abs() / STD_PRIOR**2
    scale_rho = sum_samples(go.abs() * h * (z**2 + 1), mu)
    scales = (scale_x, sum_samples(scale_mu, mu), scale_rho)
    for grad, like, exact, scale in zip(grads, (x, mu, rho), expected, scales):
        assert_grad_close(grad, like, exact, scale, num_samples)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_kl_divergence_gradients(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    mu, rho = leaves(*make_parameters(shape, dtype, device))
    weight = torch.tensor(-1.75, dtype=arithmetic_dtype(dtype), device=device)
    grads = torch.autograd.grad(functional.gaussian_kl_divergence(mu, rho, *PRIORS), [mu, rho], weight)
    mu64, rho64 = leaves(mu.double(), rho.double())
    kl_divergence = reference.gaussian_kl_divergence(mu64, rho64, *PRIORS)
    expected = torch.autograd.grad(kl_divergence, [mu64, rho64], weight.double())
    p, spread = torch.sigmoid(rho64.detach()), sigma(rho.detach())
    assert_grad_close(grads[0], mu, expected[0], expected[0].abs())
    assert_grad_close(grads[1], rho, expected[1], 1.75 * p * (spread / STD_PRIOR**2 + 1 / spread))


@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_half_sample_beside_float32_parameters(dtype: torch.dtype, device: torch.device) -> None:
    """The gradients to the parameters are those of the float32 sample at the same gradients to x."""
    mu, rho = leaves(*make_parameters((5, 13), torch.float32, device))
    key = keys_for(3, device)
    half = functional.gaussian_sample_and_log_prob(mu, rho, *PRIORS, key, dtype=dtype)
    full = functional.gaussian_sample_and_log_prob(mu, rho, *PRIORS, key)
    weights = [weights_for(output) for output in half]
    grads = torch.autograd.grad(half, [mu, rho], weights)
    expected = torch.autograd.grad(full, [mu, rho], [weights[0].float(), weights[1]])
    assert all(map(same_bits, grads, expected))


@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_gradient_to_half_x_beside_float32_parameters(dtype: torch.dtype, device: torch.device) -> None:
    x, (mu, rho) = make_parameters((3, 65), dtype, device, seed=1)[0], make_parameters((65,), torch.float32, device)
    half, full = leaves(x, mu, rho), leaves(x.float(), mu, rho)
    for inputs in (half, full):
        functional.gaussian_log_prob(*inputs, *PRIORS).sum().backward()
    assert same_bits(half[0].grad, full[0].grad.to(dtype))
    assert all(same_bits(a.grad, b.grad) for a, b in zip(half[1:], full[1:]))


def every_call(x: Tensor, mu: Tensor, rho: Tensor, key: Tensor) -> dict[str, Callable[[], Tensor | tuple[Tensor, ...]]]:
    return {
        "gaussian_sample": lambda: functional.gaussian_sample(mu, rho, key),
        "gaussian_sample_and_log_prob": lambda: functional.gaussian_sample_and_log_prob(mu, rho, *PRIORS, key),
        "gaussian_log_prob": lambda: functional.gaussian_log_prob(x, mu, rho, *PRIORS),
        "gaussian_kl_divergence": lambda: functional.gaussian_kl_divergence(mu, rho, *PRIORS),
    }


OPS = list(every_call(*[torch.empty(0)] * 4))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_matter(layout: str, dtype: torch.dtype, op: str, device: torch.device) -> None:
    """Neither of inputs nor of the gradient to x."""
    strided = [make_strided(layout, dtype, device, seed).requires_grad_() for seed in range(3)]
    plain = [tensor.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for tensor in strided]
    grad_x = make_strided(layout, dtype, device, seed=3)
    grads = []
    for inputs, grad in ((strided, grad_x), (plain, grad_x.contiguous())):
        outputs = every_call(*inputs, keys_for(None, device))[op]()
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        weights = [grad if output.dim() else weights_for(output) for output in outputs]
        grads.append(torch.autograd.grad(outputs, inputs, weights, allow_unused=True))
    for ours, expected in zip(*grads):
        assert (ours is None) == (expected is None)
        assert ours is None or same_bits(ours, expected)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_contiguous(layout: str, op: str, device: torch.device) -> None:
    """Also where the gradient to x is not."""
    inputs = [make_strided(layout, torch.float32, device, seed).requires_grad_() for seed in range(3)]
    outputs = every_call(*inputs, keys_for(None, device))[op]()
    first = outputs[0] if isinstance(outputs, tuple) else outputs
    weights = make_strided(layout, torch.float32, device) if first.dim() else weights_for(first)
    grads = torch.autograd.grad(first, inputs, weights, allow_unused=True)
    assert all(grad is None or grad.is_contiguous() for grad in grads)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("trained", ["mu", "rho"])
def test_frozen_inputs_get_no_gradient(op: str, trained: str, device: torch.device) -> None:
    mu, rho = make_parameters((65,), device=device)
    x, key = mu + 1, keys_for(2, device)
    everything, one = leaves(mu, rho), {"mu": mu.clone(), "rho": rho.clone()}
    one[trained].requires_grad_()
    for inputs in (everything, list(one.values())):
        outputs = every_call(x, *inputs, key)[op]()
        sum(output.sum() for output in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()
    frozen = one["rho" if trained == "mu" else "mu"]
    assert frozen.grad is None and x.grad is None
    assert same_bits(one[trained].grad, everything[trained == "rho"].grad)


@pytest.mark.parametrize("mask", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_gradients_not_asked_for_are_empty(dtype: torch.dtype, mask: tuple[int, ...], device: torch.device) -> None:
    x, mu, rho = (make_parameters((65,), dtype, device, seed)[0] for seed in range(3))
    priors = [torch.tensor(value) for value in PRIORS]
    log_prob = functional.gaussian_log_prob(*leaves(x, mu, rho), *PRIORS)
    arguments = (torch.ones_like(log_prob), x, mu, rho, *priors)
    everything, asked = (
        torch.ops.illia_ext.gaussian_log_prob_backward(*arguments, [*map(bool, wanted), False, False])
        for wanted in ((1, 1, 1), mask)
    )
    for grad, full, wanted in zip(asked, everything, (*mask, 0, 0)):
        assert same_bits(grad, full) if wanted else grad.numel() == 0


def test_separate_samples_before_one_backward(device: torch.device) -> None:
    """Each call keeps noise of its own: S samples give the sum of S gradients, where a shared buffer gives others."""
    distribution = GaussianDistribution((5, 13), device=device, rho_init=0.0)
    keys = keys_for(4, device)
    grads = []
    for key in keys:
        (distribution.sample(key=key) ** 2).sum().backward()
        grads.append([parameter.grad.clone() for parameter in distribution.parameters()])
        distribution.zero_grad()
    sum((distribution.sample(key=key) ** 2).sum() for key in keys).backward()
    for parameter, single in zip(distribution.parameters(), zip(*grads)):
        torch.testing.assert_close(parameter.grad, sum(single))  # another order of float32 additions
    exact = sigma(distribution.rho).detach() * noise(keys, distribution.mu) + distribution.mu.detach().double()
    expected = (2 * exact * noise(keys, distribution.mu)).sum(0) * torch.sigmoid(distribution.rho.detach().double())
    torch.testing.assert_close(distribution.rho.grad.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", OPS)
def test_backward_twice(op: str, device: torch.device) -> None:
    inputs = leaves(*[make_parameters((1025,), device=device, seed=seed)[0] for seed in range(3)])
    outputs = every_call(*inputs, keys_for(None, device))[op]()
    total = sum(output.sum() for output in (outputs if isinstance(outputs, tuple) else (outputs,)))
    once, again = (torch.autograd.grad(total, inputs, retain_graph=r, allow_unused=True) for r in (True, False))
    assert all(a is b is None or same_bits(a, b) for a, b in zip(once, again))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(total, inputs, allow_unused=True)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("num_samples", [None, 3])
def test_kept_for_backward_are_inputs_and_the_key(op: str, num_samples: int | None, device: torch.device) -> None:
    x, mu, rho = leaves(*[make_parameters((5, 13), device=device, seed=seed)[0] for seed in range(3)])
    key = keys_for(num_samples, device)
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = every_call(x, mu, rho, key)[op]()
    node = (outputs if isinstance(outputs, tuple) else (outputs,))[0].grad_fn
    inputs = {"gaussian_sample": [rho, key], "gaussian_sample_and_log_prob": [mu, rho, key]}.get(op, [mu, rho])
    inputs = [x, *inputs] if op == "gaussian_log_prob" else inputs
    large = [tensor for tensor in kept if tensor.numel() > 1]  # the others are priors
    assert sorted(t.data_ptr() for t in large) == sorted(t.data_ptr() for t in inputs)
    assert len(kept) - len(large) == (0 if op == "gaussian_sample" else 2)
    assert not [value for value in vars(node).values() if isinstance(value, Tensor)]
