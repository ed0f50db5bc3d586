"""stick_the_landing: laws of the gradient with log q's own parameters held fixed, and no second derivatives.

test_values.py compares it with the definition, test_prior_gradients.py its transforms with plain PyTorch.
"""

from typing import Any

import pytest
import torch
from helpers import UNIT_ROUNDOFF, make_key, make_keys, make_parameters, noise, same_bits, sigma
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.functional import softplus
from transform_cases import SECOND, TRANSFORMS, Count

from illia_ext._ops.fake import op

parametrize = pytest.mark.parametrize


def both(*inputs: Any, **options: Any) -> tuple[Tensor, Tensor]:
    return op("gaussian_sample_and_log_prob")(*inputs, **{"stick_the_landing": True, **options})


def keys_for(num_samples: int, device: torch.device) -> Tensor:
    return make_keys(*[(7, i) for i in range(num_samples)], device=device)


def make_inputs(dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """mu, rho, mu_prior, std_prior."""
    (mu, rho), (mu_prior, std_prior) = (make_parameters((5, 13), dtype, device, seed) for seed in (0, 1))
    return [mu, rho.clamp(min=-3), mu_prior, softplus(std_prior) + 0.5]


@parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_is_zero_where_posterior_and_prior_agree(dtype: torch.dtype, device: torch.device) -> None:
    """For every key: log q(x) - log p(x) does not depend on x there. The plain gradient is zero only on average."""
    mu, rho = make_parameters((1025,), dtype, device)
    priors = (mu.clone(), sigma(rho).to(dtype))
    for key in keys_for(4, device):
        leaves = [mu.clone().requires_grad_(), rho.clone().requires_grad_()]
        grad_mu, grad_rho = torch.autograd.grad(both(*leaves, *priors, key)[1], leaves)
        # x is rounded, and (x - mu) / std_prior^2 and eps / sigma are some 16 roundings of eps / sigma apart.
        s, eps = sigma(rho), noise(key, mu)
        bound = UNIT_ROUNDOFF[dtype] * ((mu.double() + s * eps).abs() / s + 16 * eps.abs()) / s
        assert (grad_mu.double().abs() <= bound).all()
        p = torch.sigmoid(rho.double())
        assert (grad_rho.double().abs() <= p * eps.abs() * bound).all()
        plain = torch.autograd.grad(both(*leaves, *priors, key, stick_the_landing=False)[1], leaves)
        torch.testing.assert_close(plain[0].double(), eps / s, rtol=1e-2, atol=1e-2)


def test_the_gradient_is_unbiased_and_varies_less(device: torch.device) -> None:
    """Over keys its mean is the gradient of the KL divergence; near the prior it varies less than the plain one."""
    mu, rho = torch.tensor([[0.02, -0.03, 0.01], [0.5, 0.52, 0.55]], dtype=torch.float64, device=device)
    priors = (torch.zeros_like(mu), softplus(torch.full_like(rho, 0.53)))
    keys = keys_for(512, device)

    def per_key(**options: Any) -> list[Tensor]:
        gradient = grad(lambda mu, rho, key: both(mu, rho, *priors, key, **options)[1], (0, 1))
        return list(vmap(gradient, (None, None, 0))(mu, rho, keys))

    exact = op("gaussian_kl_divergence_backward")(mu.new_ones(()), mu, rho, *priors)[:2]
    for ours, plain, expected in zip(per_key(), per_key(stick_the_landing=False), exact):
        standard_error = ours.std(0) / len(keys) ** 0.5
        assert ((ours.mean(0) - expected).abs() <= 5 * standard_error).all()
        assert (ours.std(0) < plain.std(0) / 10).all()


@parametrize("transform", [*SECOND, "backward of backward"])
def test_second_derivatives_are_refused(transform: str, device: torch.device) -> None:
    mu, rho = torch.ones(2, 3, dtype=torch.float64, device=device)

    def function(mu: Tensor, rho: Tensor) -> Tensor:
        return both(mu, rho, mu.new_zeros(()), mu.new_ones(()), make_key(7, device=device))[1]

    def backward_of_backward(mu: Tensor, rho: Tensor) -> None:
        leaf = mu.clone().requires_grad_()
        torch.autograd.grad(function(leaf, rho), leaf, create_graph=True)[0].sum().backward()

    differentiate = backward_of_backward if transform not in TRANSFORMS else TRANSFORMS[transform](function)
    with pytest.raises(RuntimeError, match=r"^stick_the_landing: second derivatives are not offered, got True"):
        differentiate(mu, rho)


def test_tangents_of_narrow_parameters(device: torch.device) -> None:
    """In float32, like all others: to sigma = 9e-4 at the default rho, where float16 holds 3 digits of a score."""
    mu, tangent = torch.zeros(2, 65, device=device).normal_().half().unbind()
    rho, key, priors = torch.full_like(mu, -7.0), keys_for(3, device), (mu.new_zeros(()), mu.new_ones(()))

    def tangents(dtype: torch.dtype) -> Tensor:
        function = lambda mu: both(mu, rho.to(dtype), *priors, key)[1]  # noqa: E731
        return torch.func.jvp(function, (mu.to(dtype),), (tangent.to(dtype),))[1]

    assert same_bits(tangents(torch.float16), tangents(torch.float32))


def test_vmap_over_keys_is_one_call(device: torch.device) -> None:
    """Of a block, with a prior for each weight, too."""
    inputs, keys = make_inputs(torch.float32, device), keys_for(4, device).unflatten(0, (2, 2))
    block = {"full_size": [6, 20], "origin": [1, 3]}
    with Count() as count:
        outputs = vmap(lambda key: both(*inputs, key, **block))(keys)
    assert len(count.calls) == 1
    for ours, expected in zip(outputs, both(*inputs, keys.flatten(0, 1), **block)):
        assert same_bits(ours, expected.unflatten(0, (2, 2)))


def test_a_block_as_a_slice_of_the_whole(device: torch.device) -> None:
    """Gradients of either mode."""
    inputs, keys = make_inputs(torch.float64, device), keys_for(2, device)
    place, block = (slice(1, 4), slice(3, 10)), {"full_size": [5, 13], "origin": [1, 3]}

    def gradients(inputs: list[Tensor], **options: Any) -> tuple[Tensor, ...]:
        leaves = [a.clone().requires_grad_() for a in inputs]
        return torch.autograd.grad(both(*leaves, keys, **options)[1].sum(), leaves)

    of_block, of_whole = gradients([a[place] for a in inputs], **block), [a[place] for a in gradients(inputs)]
    for ours, expected in zip(of_block, of_whole, strict=True):
        assert torch.equal(ours, expected)
    mu, *others = (a[place] for a in inputs)
    slope = torch.func.jvp(lambda mu: both(mu, *others, keys, **block)[1].sum(), (mu,), (mu.cos(),))[1]
    torch.testing.assert_close(slope, (of_whole[0] * mu.cos()).sum(), rtol=1e-10, atol=1e-10)


def test_no_gradient_stays_none_where_sigma_underflows(device: torch.device) -> None:
    """At rho = -110 sigma is 0 in float32, where a summand of 0 times eps / sigma would make the sum NaN."""
    mu = torch.zeros(1, device=device, requires_grad=True)
    rho, keys = torch.full((1,), -110.0, device=device), make_keys((1, 2), (3, 4), device=device)
    x, log_prob = both(mu, rho, torch.tensor(0.0), torch.tensor(1.0), keys)
    assert torch.autograd.grad(x.sum() + 0 * log_prob.sum(), mu)[0] == 2
