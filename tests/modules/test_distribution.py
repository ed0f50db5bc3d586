"""GaussianDistribution: what its constructor makes and what its methods return."""

import copy
from typing import Any

import illia_like
import numpy as np
import pytest
import torch
from helpers import DEVICE, FLOAT_DTYPES, arithmetic_dtype, rng_state, same_bits
from module_cases import KEYS
from torch import Tensor

from illia_ext import DistributionModule, GaussianDistribution, functional
from illia_ext.random import draw_key

parametrize = pytest.mark.parametrize


@parametrize(
    ("shape", "expected"),
    [(3, (3,)), ([2, 3], (2, 3)), ((2, 3), (2, 3)), (torch.Size([2, 3]), (2, 3)), ((), ()), ([], ()), (0, (0,))],
)
def test_shape(shape: Any, expected: tuple[int, ...]) -> None:
    distribution = GaussianDistribution(shape, device=DEVICE)
    assert isinstance(distribution.shape, torch.Size) and distribution.shape == expected
    assert distribution.mu.shape == distribution.rho.shape == distribution.sample().shape == expected
    assert distribution.log_prob().shape == distribution.kl_divergence().shape == ()
    assert distribution.num_params() == distribution.mu.numel()


@parametrize(("mu_init", "rho_init"), [(0.0, -7.0), (1.5, 0.25), (-2, 3)])
@parametrize("shape", [(), (5,), (17, 33)])
def test_initial_values_are_those_of_illia(shape: tuple[int, ...], mu_init: float, rho_init: float) -> None:
    torch.manual_seed(3)
    mu = torch.randn(shape).normal_(mu_init, 0.1)
    rho = torch.randn(shape).normal_(rho_init, 0.1)
    state = torch.random.get_rng_state()

    torch.manual_seed(3)
    distribution = GaussianDistribution(shape, mu_init=mu_init, rho_init=rho_init)
    assert same_bits(distribution.mu, mu) and same_bits(distribution.rho, rho)
    assert torch.equal(torch.random.get_rng_state(), state)  # so what comes next is drawn as with illia
    assert (distribution.mu_init, distribution.rho_init) == (mu_init, rho_init)


def test_defaults() -> None:
    distribution = GaussianDistribution(10_000)
    assert isinstance(distribution, DistributionModule)
    assert {name: p.shape for name, p in distribution.named_parameters()} == {"mu": (10_000,), "rho": (10_000,)}
    assert {name: b.tolist() for name, b in distribution.named_buffers()} == {
        "mu_prior": [0.0],
        "std_prior": [pytest.approx(0.1)],
    }
    assert all(parameter.requires_grad for parameter in distribution.parameters())
    for parameter, center in ((distribution.mu, 0), (distribution.rho, -7)):  # 5 standard errors
        assert parameter.mean().item() == pytest.approx(center, abs=5 * 0.1 / 100)
        assert parameter.std().item() == pytest.approx(0.1, abs=5 * 0.1 / 100 / 2**0.5)


@parametrize("dtype", FLOAT_DTYPES)
def test_device_and_dtype(dtype: torch.dtype) -> None:
    distribution = GaussianDistribution((3, 2), mu_prior=0.5, std_prior=0.25, device=DEVICE, dtype=dtype)
    for tensor in distribution.state_dict().values():
        assert (tensor.device.type, tensor.dtype) == (DEVICE.type, dtype)
    x, log_prob = distribution.sample_and_log_prob(2)
    assert (x.dtype, log_prob.dtype) == (dtype, arithmetic_dtype(dtype))
    torch.manual_seed(4)
    expected = torch.randn((3, 2), device=DEVICE, dtype=dtype).normal_(0.5, 0.1)
    torch.manual_seed(4)
    again = GaussianDistribution((3, 2), mu_init=0.5, device=DEVICE, dtype=dtype)
    assert same_bits(again.mu, expected)  # drawn there, not moved there


def test_default_dtype_and_device_are_torchs() -> None:
    with torch.device("meta"):
        assert {tensor.device.type for tensor in GaussianDistribution(3).state_dict().values()} == {"meta"}
    torch.set_default_dtype(torch.float64)
    try:
        assert {tensor.dtype for tensor in GaussianDistribution(3).state_dict().values()} == {torch.float64}
    finally:
        torch.set_default_dtype(torch.float32)


def test_distribution_module_is_abstract() -> None:
    with pytest.raises(TypeError, match=r"abstract.*log_prob.*num_params.*sample"):
        DistributionModule()
    with pytest.raises(TypeError, match="abstract"):
        type("Partial", (DistributionModule,), {"sample": lambda self: torch.zeros(1)})()


@parametrize(
    ("arguments", "samples"),
    [
        ({}, ()),
        ({"num_samples": None}, ()),
        ({"num_samples": 0}, (0,)),
        ({"num_samples": 1}, (1,)),
        ({"num_samples": 3}, (3,)),
        ({"key": KEYS[0]}, ()),
        ({"key": KEYS[:0]}, (0,)),
        ({"key": KEYS[:1]}, (1,)),
        ({"key": KEYS}, (5,)),
        ({"key": KEYS.to(torch.uint64)}, (5,)),
    ],
)
@parametrize("shape", [(), (2, 3), (0,)])
def test_num_samples_and_key(shape: tuple[int, ...], arguments: dict[str, Any], samples: tuple[int, ...]) -> None:
    distribution = GaussianDistribution(shape, device=DEVICE)
    x, log_prob = distribution.sample_and_log_prob(**arguments)
    assert x.shape == distribution.sample(**arguments).shape == (*samples, *shape)
    assert log_prob.shape == distribution.log_prob(x).shape == samples


@parametrize("num_samples", [None, 0, 1, 3])
def test_drawn_key_is_randint(num_samples: int | None) -> None:
    distribution = GaussianDistribution((2, 3), device=DEVICE)
    size = [2] if num_samples is None else [num_samples, 2]
    torch.manual_seed(9)
    key = torch.randint(2**63 - 1, size, generator=None, device=DEVICE)
    state = rng_state(DEVICE)
    by_key = distribution.sample_and_log_prob(key=key)
    assert torch.equal(rng_state(DEVICE), state)
    torch.manual_seed(9)
    assert torch.equal(draw_key(num_samples, device=DEVICE), key)
    for draw in (distribution.sample, lambda n: distribution.sample_and_log_prob(n)[0]):
        torch.manual_seed(9)
        assert same_bits(draw(num_samples), by_key[0])
        assert torch.equal(rng_state(DEVICE), state)
    if num_samples is None:
        torch.manual_seed(9)
        assert same_bits(distribution.log_prob(), by_key[1])


@parametrize("scripted", [False, True])
@parametrize("size", [(1, 3), (3,), (2, 1), (1, 1), (1,), ()])
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_log_prob_of_an_x_that_broadcasts(size: tuple[int, ...], scripted: bool) -> None:
    """As illia's: the x of all weights, to which the gradient adds up; samples of such sizes give a value each."""
    distribution = GaussianDistribution((2, 3), rho_init=-1.0, device=DEVICE)
    illia = illia_like.GaussianDistribution((2, 3)).to(DEVICE)
    illia.load_state_dict(distribution.state_dict())
    ours = torch.jit.script(distribution) if scripted else distribution
    x = torch.rand(size, device=DEVICE).requires_grad_()
    log_prob = ours.log_prob(x)
    assert same_bits(log_prob, distribution.log_prob(x.expand(2, 3)))
    results = [
        torch.autograd.grad(value, [x, *d.parameters()])
        for value, d in ((log_prob, distribution), (illia.log_prob(x), illia))
    ]
    torch.testing.assert_close(log_prob, illia.log_prob(x), rtol=1e-5, atol=1e-4)  # float32: six terms up to 100
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-3)  # up to 100 divided by sigma
    samples = torch.stack([x, 2 * x])
    if len(size) == 2:
        assert same_bits(ours.log_prob(samples), distribution.log_prob(samples.expand(2, 2, 3)))


@parametrize("size", [(3, 3), (2, 2), (2, 2, 2, 3), (4, 2, 2)])
def test_log_prob_of_an_x_that_does_not_fit(size: tuple[int, ...]) -> None:
    """Also where the weights would broadcast to it, which illia adds up: there S samples may be meant."""
    distribution = GaussianDistribution((2, 3), device=DEVICE)
    with pytest.raises(
        RuntimeError, match=r"x: expected the shape of mu, \[2, 3\], or one dimension of samples before"
    ):
        distribution.log_prob(torch.zeros(size, device=DEVICE))
    with pytest.raises(RuntimeError, match=r"x: expected the shape of mu, \[1, 3\]"):
        GaussianDistribution((1, 3), device=DEVICE).log_prob(torch.zeros(2, 3, device=DEVICE))


@parametrize("scripted", [False, True])
@parametrize(
    ("dtype", "other", "expected"),
    [
        (torch.float32, torch.float64, torch.float64),
        (torch.float16, torch.float32, torch.float32),
        (torch.bfloat16, torch.float64, torch.float64),
        (torch.bfloat16, torch.float16, torch.float32),
        (torch.float64, torch.float32, torch.float64),
        (torch.float64, torch.float16, torch.float64),
        (torch.float32, torch.int64, torch.float32),
        (torch.float16, torch.int32, torch.float16),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_log_prob_of_an_x_of_another_dtype(
    dtype: torch.dtype, other: torch.dtype, expected: torch.dtype, scripted: bool
) -> None:
    """All in the dtype to which torch promotes both; the gradients come back in the parameters' own."""
    distribution = GaussianDistribution((2, 3), 0.5, 0.25, rho_init=-1.0, dtype=dtype, device=DEVICE)
    ours = torch.jit.script(distribution) if scripted else distribution
    x = (3 * torch.randn(2, 3, device=DEVICE)).to(other)
    log_prob = ours.log_prob(x)
    log_prob.backward()
    assert (
        log_prob.dtype == arithmetic_dtype(expected)
        and distribution.mu.grad.dtype == distribution.rho.grad.dtype == dtype
    )
    assert same_bits(log_prob, copy.deepcopy(distribution).to(expected).log_prob(x.to(expected)))
    assert distribution.mu.grad.any() and distribution.rho.grad.any()


def test_log_prob_of_a_new_sample_is_fused() -> None:
    """Its gradient is that of the drawn sample too, as of sample_and_log_prob; illia's sample is another one."""
    distribution = GaussianDistribution((5, 3), rho_init=-1.0, device=DEVICE)
    gradients = []
    for draw in (distribution.log_prob, lambda: distribution.sample_and_log_prob()[1]):
        torch.manual_seed(2)
        gradients.append(torch.autograd.grad(draw(), list(distribution.parameters())))
    torch.manual_seed(2)
    x = distribution.sample()
    gradients.append(torch.autograd.grad(distribution.log_prob(x), list(distribution.parameters())))
    for fused, both, apart in zip(*gradients):
        assert same_bits(fused, both)
        torch.testing.assert_close(fused, apart, rtol=1e-5, atol=1e-3)  # apart, 1 / sigma cancels


@parametrize("dtype", FLOAT_DTYPES)
def test_moves_to_another_dtype(dtype: torch.dtype) -> None:
    distribution = GaussianDistribution((2, 3), std_prior=0.25, device=DEVICE)
    for _ in range(2):  # there, and in use
        distribution.to(dtype)
        x, log_prob = distribution.sample_and_log_prob(2)
        assert (x.dtype, log_prob.dtype) == (dtype, arithmetic_dtype(dtype))
        (x.sum() + log_prob.sum()).backward()
        assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in distribution.parameters())
        distribution.zero_grad()
    distribution.float()
    assert distribution.log_prob(distribution.sample()).dtype == torch.float32


METHODS = {
    "sample": lambda d: d.sample().sum(),
    "samples": lambda d: d.sample(3).square().sum(),
    "log_prob": lambda d: d.log_prob(),
    "log_prob(x)": lambda d: d.log_prob(torch.ones_like(d.mu)),
    "sample_and_log_prob": lambda d: torch.mul(*d.sample_and_log_prob()).sum(),
    "kl_divergence": lambda d: d.kl_divergence(),
}


@parametrize("frozen", [None, "mu", "rho"])
@parametrize("method", METHODS.values(), ids=METHODS)
def test_every_parameter_trains_unless_frozen(method: Any, frozen: str | None) -> None:
    distribution = GaussianDistribution((2, 3), device=DEVICE)
    if frozen:
        getattr(distribution, frozen).requires_grad_(False)
    method(distribution).backward()
    for name, parameter in distribution.named_parameters():
        assert (parameter.grad is None) is (name == frozen)
        assert name == frozen or (parameter.grad.isfinite().all() and parameter.grad.any())
    assert not any(buffer.requires_grad for buffer in distribution.buffers())


def test_frozen_as_a_whole() -> None:
    distribution = GaussianDistribution((2, 3), device=DEVICE).requires_grad_(False)
    outputs: list[Tensor] = [distribution.sample(2), distribution.log_prob(), distribution.kl_divergence()]
    assert not any(output.requires_grad for output in outputs)


def test_numbers_of_numpy_and_integers_are_numbers() -> None:
    state = GaussianDistribution(np.int64(3), mu_prior=0, std_prior=np.float64(1)).state_dict()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert functional.gaussian_kl_divergence(torch.zeros(1), torch.zeros(1), np.float32(0), np.int64(1)) > 0
