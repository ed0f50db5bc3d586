"""Autocast: samples in its dtype, rounded once by the kernel; parameters and log_prob stay float32."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import HALF_DTYPES, make_key, make_keys, make_parameters, same_bits
from torch import Tensor, nn
from torch.func import grad, jvp, vmap
from transform_cases import PRIOR, assert_same_bits, lists, with_gradients

from illia_ext import GaussianDistribution, functional

parametrize = pytest.mark.parametrize
each_dtype = parametrize("dtype", HALF_DTYPES)


def draw(mu: Tensor, rho: Tensor, key: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """Samples in three ways, and the log_probs of two of them."""
    x, log_prob = functional.gaussian_sample_and_log_prob(mu, rho, *PRIOR, key, dtype)
    many, log_prob_of_many = functional.foreach_gaussian_sample_and_log_prob(*lists(mu, rho), *PRIOR, key, dtype)
    return functional.gaussian_sample(mu, rho, key, dtype), x, *many, log_prob, log_prob_of_many


def make_leaves(device: torch.device) -> list[Tensor]:
    return [parameter.requires_grad_() for parameter in make_parameters((3, 2), device=device)]


@each_dtype
@parametrize("samples", [None, 2])
def test_sample_in_its_dtype(dtype: torch.dtype, samples: int | None, device: torch.device) -> None:
    """The very bits of `dtype=`, gradients too, and log_prob as if there were no autocast."""
    leaves = make_leaves(device)
    key = make_key(1, device=device) if samples is None else make_keys((1, 2), (3, 4), device=device)
    with torch.autocast(device.type, dtype):
        outputs = draw(*leaves, key)
    assert {output.dtype for output in outputs[:-2]} == {dtype}
    assert_same_bits(outputs[-2:], draw(*leaves, key)[-2:])
    assert_same_bits(with_gradients(outputs, leaves), with_gradients(draw(*leaves, key, dtype), leaves))


@parametrize("dtype", [torch.float64, *HALF_DTYPES])
def test_other_parameters_are_left_alone(dtype: torch.dtype, device: torch.device) -> None:
    inputs = (*make_parameters((3, 2), dtype, device), make_key(1, device=device))
    with torch.autocast(device.type, torch.float16 if dtype == torch.bfloat16 else torch.bfloat16):
        outputs = draw(*inputs)
    assert_same_bits(outputs, draw(*inputs))


@parametrize("explicit", [torch.float32, torch.float16])
def test_an_explicit_dtype_wins(explicit: torch.dtype, device: torch.device) -> None:
    arguments = (*make_parameters((3, 2), device=device), make_key(1, device=device), explicit)
    with torch.autocast(device.type, torch.bfloat16):
        outputs = draw(*arguments)
    assert_same_bits(outputs, draw(*arguments))


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_nested_regions_and_the_other_device(device: torch.device) -> None:
    mu, rho = make_parameters((3,), device=device)
    key = make_key(1, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        with torch.autocast(device.type, enabled=False):
            assert functional.gaussian_sample(mu, rho, key).dtype == torch.float32
        with torch.autocast(device.type, torch.float16):
            assert functional.gaussian_sample(mu, rho, key).dtype == torch.float16
        assert functional.gaussian_sample(mu, rho, key).dtype == torch.bfloat16
    with torch.autocast("cpu" if device.type == "cuda" else "cuda", torch.bfloat16):
        assert functional.gaussian_sample(mu, rho, key).dtype == torch.float32


@each_dtype
def test_the_other_ops_take_what_autocast_made(dtype: torch.dtype, device: torch.device) -> None:
    distribution = GaussianDistribution((2, 3), rho_init=-1.0, device=device)
    with torch.autocast(device.type, dtype):
        narrow = nn.functional.linear(distribution.sample(), torch.eye(3, device=device))
        assert narrow.dtype == dtype
        log_prob, kl_divergence = distribution.log_prob(narrow), distribution.kl_divergence()
        log_prob.backward()  # in the region, which users are told not to do, and do
    assert log_prob.dtype == kl_divergence.dtype == torch.float32
    assert same_bits(kl_divergence, distribution.kl_divergence())
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in distribution.parameters())


def under_autocast(mu: Tensor, rho: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    with torch.autocast(mu.device.type, torch.bfloat16):
        return draw(mu, rho, key)


class Draws(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mu, self.rho = map(nn.Parameter, make_parameters((3, 2)))

    def forward(self, key: Tensor) -> tuple[Tensor, ...]:
        return under_autocast(self.mu, self.rho, key)


CAPTURES: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "compile": lambda module, key: torch.compile(module, fullgraph=True, backend="aot_eager"),
    "export": lambda module, key: torch.export.export(module, (key,), strict=False).module(),
    "strict export": lambda module, key: torch.export.export(module, (key,), strict=True).module(),
}


@parametrize("capture", CAPTURES.values(), ids=CAPTURES)
def test_captured_with_its_region(capture: Callable[[nn.Module, Tensor], Any], device: torch.device) -> None:
    module, key = Draws().to(device), make_key(1, device=device)
    captured = capture(module, key)
    ours, expected = (with_gradients(m(key), list(m.parameters())) for m in (captured, module))
    assert ours[0].dtype == torch.bfloat16
    assert_same_bits(ours, expected)


def test_one_compiled_function_inside_and_outside(device: torch.device) -> None:
    inputs = (*make_parameters((3, 2), device=device), make_key(1, device=device))
    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    with torch.autocast(device.type, torch.bfloat16):
        inside = compiled(*inputs)
    assert_same_bits(inside, draw(*inputs, torch.bfloat16))
    assert_same_bits(compiled(*inputs), draw(*inputs))


def test_transforms(device: torch.device) -> None:
    mu, rho = make_parameters((3, 2), device=device)
    keys = make_keys((1, 2), (3, 4), device=device)
    expected = under_autocast(mu, rho, keys)
    assert_same_bits(vmap(under_autocast, (None, None, 0))(mu, rho, keys), expected)
    assert_same_bits(vmap(under_autocast, (0, None, 0))(torch.stack([mu, mu]), rho, keys), expected)
    primal, tangent = jvp(lambda mu: under_autocast(mu, rho, keys[0])[0], (mu,), (mu,))
    assert primal.dtype == tangent.dtype == torch.bfloat16 and same_bits(tangent, mu.bfloat16())
    gradient = grad(lambda mu: under_autocast(mu, rho, keys[0])[0].float().sum())(mu)
    assert same_bits(gradient, torch.ones_like(mu))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript(device: torch.device) -> None:
    """A region around a scripted call counts. One inside is a pass of TorchScript's own that knows torch's ops alone:
    the sample stays float32, and torch's op beside it narrows it."""
    distribution = GaussianDistribution((3, 2), device=device)
    scripted, key = torch.jit.script(distribution), make_key(1, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        assert same_bits(scripted.sample(None, key), distribution.sample(key=key))
        assert scripted.sample(None, key).dtype == torch.bfloat16

    def inside(mu: Tensor, rho: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            x = torch.ops.illia_ext.gaussian_sample(mu, rho, key)
            return x, torch.mm(x, x.t())

    mu, rho = (parameter.cpu() for parameter in distribution.parameters())
    assert [output.dtype for output in torch.jit.script(inside)(mu, rho, key.cpu())] == [torch.float32, torch.bfloat16]


def test_training_with_a_grad_scaler_stays_finite(device: torch.device) -> None:
    """Six steps at the default rho with samples in float16, where 2 sigma^2 is 1.7e-6: the gradient of plain formulas
    divides by its square, which float16 rounds to zero."""
    torch.manual_seed(0)
    weights = GaussianDistribution((4, 8), device=device)
    start = weights.rho.detach().clone()
    inputs = torch.randn(16, 8, device=device)
    targets = inputs[:, :4].sin()
    optimizer, scaler = torch.optim.Adam(weights.parameters(), lr=0.05), torch.amp.GradScaler(device.type, 2.0**10)
    for _ in range(6):
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.float16):
            w, log_prob = weights.sample_and_log_prob()
            assert w.dtype == torch.float16
            loss = nn.functional.mse_loss(nn.functional.linear(inputs, w), targets.half()) + log_prob / 1000
        scaler.scale(loss).backward()
        assert all(parameter.grad.isfinite().all() for parameter in weights.parameters())
        scaler.step(optimizer)
        scaler.update()
    assert weights.rho.isfinite().all() and not (weights.rho == start).any()
