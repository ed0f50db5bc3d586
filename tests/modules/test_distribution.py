"""GaussianDistribution: what its constructor makes, and what its methods return, scripted too."""

import copy
import math
from collections.abc import Callable
from typing import Any

import illia_like
import numpy as np
import pytest
import torch
from helpers import DEVICE, FLOAT_DTYPES, arithmetic_dtype, rng_state, same_bits
from module_cases import KEY, KEYS, assert_same, grads, outputs_of
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence

from illia_ext import DistributionModule, GaussianDistribution, functional
from illia_ext.random import draw_key

parametrize = pytest.mark.parametrize
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")


def make_prior(*shape: int) -> Tensor:
    """Positive: it serves as either prior."""
    return torch.linspace(0.25, 1.5, max(1, torch.Size(shape).numel())).reshape(shape).to(DEVICE)


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


@parametrize("dtype", FLOAT_DTYPES)
@parametrize(("mu_init", "rho_init"), [(0.0, -7.0), (1.5, 0.25), (-2, 3)])
@parametrize("shape", [(), (5,), (17, 33)])
def test_initial_values_are_those_of_illia(
    shape: tuple[int, ...], mu_init: float, rho_init: float, dtype: torch.dtype
) -> None:
    """Drawn on the device and in the dtype that are asked for."""
    factory: dict[str, Any] = {"device": DEVICE, "dtype": dtype}
    torch.manual_seed(3)
    mu = torch.randn(shape, **factory).normal_(mu_init, 0.1)
    rho = torch.randn(shape, **factory).normal_(rho_init, 0.1)
    state = rng_state(DEVICE)
    torch.manual_seed(3)
    distribution = GaussianDistribution(shape, mu_init=mu_init, rho_init=rho_init, **factory)
    assert same_bits(distribution.mu, mu) and same_bits(distribution.rho, rho)
    assert torch.equal(rng_state(DEVICE), state)  # so what comes next is drawn as with illia
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


@parametrize("dtype", FLOAT_DTYPES)
def test_device_and_dtype(dtype: torch.dtype) -> None:
    """When it is made, and whenever it is moved; gradients follow."""
    distribution = GaussianDistribution((2, 3), make_prior(3), 0.25, device=DEVICE, dtype=dtype)
    for now in (dtype, torch.float32, dtype):
        distribution.to(now)
        for tensor in distribution.state_dict().values():
            assert (tensor.device.type, tensor.dtype) == (DEVICE.type, now)
        x, log_prob = distribution.sample_and_log_prob(2)
        assert (x.dtype, log_prob.dtype) == (now, arithmetic_dtype(now))
        (x.sum() + log_prob.sum()).backward()
        assert all(grad.dtype == now and grad.isfinite().all() for grad in grads(distribution))


def test_priors_are_copied() -> None:
    prior = make_prior(3)
    distribution = GaussianDistribution((2, 3), prior, prior.double(), device=DEVICE)
    prior.zero_()
    assert same_bits(distribution.mu_prior, make_prior(3)) and same_bits(distribution.std_prior, make_prior(3))
    assert GaussianDistribution(3, torch.tensor(0.5)).mu_prior.shape == (1,)  # as a number


@parametrize(
    ("arguments", "expected"),
    [
        ({}, "(2, 3), mu_prior=0, std_prior=0.1, mu_init=0, rho_init=-7"),
        (
            {"mu_prior": 0.5, "std_prior": 0.25, "mu_init": 1, "rho_init": -3.5},
            "(2, 3), mu_prior=0.5, std_prior=0.25, mu_init=1, rho_init=-3.5",
        ),
        (
            {"mu_prior": make_prior(2, 1), "std_prior": nn.Parameter(make_prior(3))},
            "(2, 3), mu_prior=Tensor[2, 1], std_prior=Parameter[3], mu_init=0, rho_init=-7",
        ),
        ({"device": "meta"}, "(2, 3), mu_init=0, rho_init=-7"),
    ],
)
def test_repr(arguments: Any, expected: str) -> None:
    layer = nn.ModuleDict({"weights": GaussianDistribution((2, 3), **{"device": DEVICE, **arguments})})
    assert f"(weights): GaussianDistribution({expected})" in repr(layer)


def test_learned_priors_are_the_parameters_given() -> None:
    """So modules may share one, which then gets the gradients of all."""
    std_prior = nn.Parameter(torch.ones(1, device=DEVICE))
    layers = nn.ModuleList([GaussianDistribution(3, std_prior=std_prior, device=DEVICE) for _ in range(2)])
    assert layers[0].std_prior is layers[1].std_prior is std_prior
    assert len(list(layers.parameters())) == 5
    sum(layer.kl_divergence() for layer in layers).backward()
    alone = [torch.autograd.grad(layer.kl_divergence(), std_prior)[0] for layer in layers]
    torch.testing.assert_close(std_prior.grad, sum(alone))


def test_empirical_bayes_finds_the_moments() -> None:
    """KL(q || p) is least in the prior at the mean of mu and at the mean of sigma^2 + (mu - that mean)^2."""
    torch.manual_seed(0)
    priors = [nn.Parameter(torch.ones(1, device=DEVICE, dtype=torch.float64)) for _ in range(2)]
    distribution = GaussianDistribution(50, *priors, mu_init=2.0, rho_init=-2.0, device=DEVICE, dtype=torch.float64)
    mu, rho = distribution.mu.detach(), distribution.rho.detach()
    moments = [mu.mean(), (nn.functional.softplus(rho) ** 2 + (mu - mu.mean()) ** 2).mean().sqrt()]

    def kl_divergence(mu_factor: float = 1.0, std_factor: float = 1.0) -> Tensor:
        with torch.no_grad():
            priors[0].copy_(moments[0] * mu_factor)
            priors[1].copy_(moments[1] * std_factor)
        return distribution.kl_divergence()

    for factor in (0.9, 1.1):
        for others in ((factor, 1.0), (1.0, factor)):
            assert kl_divergence(*others) > kl_divergence()
    for gradient in torch.autograd.grad(kl_divergence(), priors):  # 50 terms of up to 10 / sigma^2 in float64
        assert gradient.abs() < 1e-9


def test_values_on_the_meta_device_are_not_read() -> None:
    prior = torch.zeros(3, device="meta")
    distribution = GaussianDistribution(3, prior, nn.Parameter(prior), device="meta")
    assert distribution.sample_and_log_prob(4)[1].shape == (4,)


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
        *[({"num_samples": n}, (n,)) for n in (0, 1, 3)],
        ({"key": KEY}, ()),
        *[({"key": KEYS[:n]}, (n,)) for n in (0, 1, 5)],
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


METHODS: dict[str, Callable[[Any], Any]] = {
    "sample()": lambda d: d.sample(),
    "sample(2)": lambda d: d.sample(2),
    "sample(key)": lambda d: d.sample(None, KEY),
    "sample(keys)": lambda d: d.sample(key=KEYS),
    "log_prob()": lambda d: d.log_prob(),
    "log_prob(x)": lambda d: d.log_prob(torch.ones(2, 3, device=DEVICE)),
    "log_prob(samples)": lambda d: d.log_prob(torch.ones(4, 2, 3, device=DEVICE)),
    "sample_and_log_prob()": lambda d: d.sample_and_log_prob(),
    "sample_and_log_prob(2)": lambda d: d.sample_and_log_prob(num_samples=2),
    "sample_and_log_prob(keys)": lambda d: d.sample_and_log_prob(None, KEYS),
    "stick the landing": lambda d: d.sample_and_log_prob(None, KEY, True),
    "kl_divergence()": lambda d: d.kl_divergence(),
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "log_prob(x)": lambda *inputs: functional.gaussian_log_prob(torch.ones(2, 3, device=DEVICE), *inputs),
    "log_prob(samples)": lambda *inputs: functional.gaussian_log_prob(torch.ones(4, 2, 3, device=DEVICE), *inputs),
    "sample_and_log_prob(keys)": lambda *inputs: functional.gaussian_sample_and_log_prob(*inputs, KEYS),
    "stick the landing": lambda *inputs: functional.gaussian_sample_and_log_prob(*inputs, KEY, None, True),
    "kl_divergence()": functional.gaussian_kl_divergence,
}


def loss_of(result: Any) -> Tensor:
    return sum(output.square().sum() for output in outputs_of(result))


@parametrize("name", FUNCTIONS)
@parametrize("shapes", [((), ()), ((1,), (1, 1)), ((3,), (2, 1)), ((2, 3), (2, 3)), ((2, 3), ())])
@parametrize("learned", [False, True])
def test_methods_are_the_functions(name: str, shapes: Any, learned: bool) -> None:
    """With priors of every shape, gradients to learned ones included."""
    priors = [make_prior(*shape) for shape in shapes]
    kept = [nn.Parameter(prior) for prior in priors] if learned else priors
    distribution = GaussianDistribution((2, 3), *kept, rho_init=-1.0, device=DEVICE)
    assert list(distribution.state_dict()) == ["mu", "rho", "mu_prior", "std_prior"]
    parameters = list(distribution.parameters())
    assert len(parameters) == (4 if learned else 2)
    leaves = [distribution.mu, distribution.rho, *(prior.requires_grad_(learned) for prior in priors)]
    ours, expected = METHODS[name](distribution), FUNCTIONS[name](*leaves)
    gradients = torch.autograd.grad(loss_of(ours), parameters)
    assert_same([ours, *gradients], [expected, *torch.autograd.grad(loss_of(expected), leaves[: len(parameters)])])
    assert all(gradient.any() for gradient in gradients)


@parametrize("frozen", [(), ("mu",), ("rho",), ("mu", "rho")], ids=str)
@parametrize("name", METHODS)
def test_methods_scripted_and_frozen(name: str, frozen: tuple[str, ...]) -> None:
    """Each gives a gradient to all that is not frozen; scripted, it has the same values and gradients."""
    distribution = GaussianDistribution((2, 3), device=DEVICE)
    for parameter in frozen:
        distribution.get_parameter(parameter).requires_grad_(False)
    results, scripted = [], torch.jit.script(distribution)
    for module in (distribution, scripted):
        torch.manual_seed(1)
        result = METHODS[name](module)
        if len(frozen) < 2:
            loss_of(result).backward()
        else:
            assert not any(output.requires_grad for output in outputs_of(result))
        results.append([result, grads(distribution)])
    assert_same(*results)
    assert [(g.isfinite().all() and g.any()).item() for g in results[0][1]] == [True] * (2 - len(frozen))
    assert scripted.num_params() == 6


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


def test_numbers_of_numpy_and_integers_are_numbers() -> None:
    state = GaussianDistribution(np.int64(3), mu_prior=0, std_prior=np.float64(1)).state_dict()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert functional.gaussian_kl_divergence(torch.zeros(1), torch.zeros(1), np.float32(0), np.int64(1)) > 0


def make_distribution(*shape: int) -> GaussianDistribution:
    """Where 1 / sigma is no large number: plain formulas then lose no digits."""
    torch.manual_seed(0)
    return GaussianDistribution(shape, 0.25, 0.75, 0.5, -1.0, device=DEVICE, dtype=torch.float64)


@parametrize("samples", [(), (3,)])
@parametrize("shape", [(), (5,), (2, 3), (0,)])
def test_to_distribution(shape: tuple[int, ...], samples: tuple[int, ...]) -> None:
    """The same q among torch.distributions: sums of at most 12 terms of order 10 in float64, which may cancel to
    0.01."""
    distribution = make_distribution(*shape)
    q, parameters = distribution.to_distribution(), list(distribution.parameters())
    p = Independent(Normal(torch.full_like(distribution.mu, 0.25), 0.75), len(shape))
    assert isinstance(q, Independent) and (q.event_shape, q.batch_shape) == (shape, ())
    assert q.rsample(samples).shape == (*samples, *shape) and q.rsample().requires_grad
    x = torch.randn((*samples, *shape), device=DEVICE, dtype=torch.float64)
    for ours, expected in (
        (distribution.log_prob(x), q.log_prob(x) - p.log_prob(x)),
        (distribution.kl_divergence(), kl_divergence(q, p)),
    ):
        gradients = [torch.autograd.grad(o.sum(), parameters, retain_graph=True) for o in (ours, expected)]
        torch.testing.assert_close([ours, *gradients[0]], [expected, *gradients[1]], rtol=1e-10, atol=1e-12)


def test_no_threshold() -> None:
    """torch's softplus is by default rho itself above 20, 2e-9 off there; and a tiny sigma is exp(rho)."""
    distribution = make_distribution(2)
    with torch.no_grad():
        distribution.rho.copy_(torch.tensor([20.5, -40.0]))
    sigma = distribution.to_distribution().stddev.tolist()
    assert sigma[0] - 20.5 == pytest.approx(math.exp(-20.5), rel=1e-5)  # 1.25e-9, of which the sum keeps 4e-15
    assert math.log(sigma[1]) == pytest.approx(-40)
