"""What users hold on a GPU: distributions that move, generators, autocast, compilation; and refusals across devices."""

from collections.abc import Iterator

import pytest
import torch
from agreement import Arguments, assert_agree, device_bounds, every_op
from helpers import FLOAT_DTYPES, make_key, make_keys, rng_state, same_bits
from torch import Tensor, nn

from illia_ext import GaussianDistribution, functional, random

pytestmark = pytest.mark.usefixtures("cuda")
parametrize = pytest.mark.parametrize


@parametrize("dtype", FLOAT_DTYPES)
def test_a_distribution_moves_to_the_gpu_and_back(dtype: torch.dtype, cuda: torch.device) -> None:
    distribution = GaussianDistribution((33, 31), mu_prior=0.25, std_prior=0.125, rho_init=-2.0, dtype=dtype)
    before = {name: tensor.clone() for name, tensor in distribution.state_dict().items()}
    arguments = Arguments.make((33, 31), dtype, num_samples=2)
    arguments = arguments._replace(mu=distribution.mu.detach(), rho=distribution.rho.detach())

    def outputs(a: Arguments) -> dict[str, Tensor]:
        x, log_prob = distribution.sample_and_log_prob(key=a.key)
        values = (distribution.sample(key=a.key), x, log_prob, distribution.log_prob(a.x), distribution.kl_divergence())
        names = ("sample", "fused x", "fused log_prob", "log_prob", "kl_divergence")
        return {name: value.detach() for name, value in zip(names, values)}

    expected = outputs(arguments)
    distribution.to(cuda)
    assert {tensor.device for tensor in distribution.state_dict().values()} == {cuda}
    assert_agree(outputs(arguments.to(cuda)), expected, device_bounds(arguments))
    (distribution.sample(2).sum() + distribution.log_prob() + distribution.kl_divergence()).backward()
    assert all(p.grad.device == cuda and p.grad.isfinite().all() for p in distribution.parameters())
    distribution.cpu()
    assert all(same_bits(tensor, before[name]) for name, tensor in distribution.state_dict().items())


def test_a_state_dict_crosses_devices(cuda: torch.device) -> None:
    on_cpu = GaussianDistribution((5, 3), mu_prior=0.5, std_prior=0.25)
    on_gpu = GaussianDistribution((5, 3), device=cuda)
    on_gpu.load_state_dict(on_cpu.state_dict())
    assert {tensor.device for tensor in on_gpu.state_dict().values()} == {cuda}
    again = GaussianDistribution((5, 3))
    again.load_state_dict(on_gpu.state_dict())
    assert all(same_bits(tensor, on_cpu.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_initial_values_and_samples_come_from_the_gpus_generator(cuda: torch.device) -> None:
    cpu_state = torch.random.get_rng_state()
    runs = []
    for _ in range(2):
        torch.cuda.manual_seed(5)
        distribution = GaussianDistribution((5, 3), device=cuda)
        runs.append([distribution.mu, distribution.rho, distribution.sample(), *distribution.sample_and_log_prob(3)])
    assert all(map(same_bits, *runs))
    assert not same_bits(runs[0][2], distribution.sample())
    assert torch.equal(torch.random.get_rng_state(), cpu_state)


def test_a_generator_of_ones_own(cuda: torch.device) -> None:
    generator, state = torch.Generator(cuda).manual_seed(3), rng_state(cuda)
    first, second = (random.draw_key(2, device=cuda, generator=generator) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(random.draw_key(2, device=cuda, generator=generator.manual_seed(3)), first)
    assert torch.equal(rng_state(cuda), state)
    with pytest.raises(RuntimeError, match="generator"):
        random.draw_key(device=cuda, generator=torch.Generator())


@parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype: torch.dtype, cuda: torch.device) -> None:
    """A training step: parameters and their gradients stay float32; the narrowed sample has a log_prob."""
    distribution = GaussianDistribution((8, 16), rho_init=-3.0, device=cuda)
    inputs = torch.linspace(-1, 1, 64, device=cuda).reshape(4, 16)
    with torch.autocast("cuda", dtype):
        weights, log_prob = distribution.sample_and_log_prob()
        outputs = nn.functional.linear(inputs, weights)
        narrow = distribution.log_prob(weights.to(dtype))
    assert (weights.dtype, outputs.dtype, log_prob.dtype, narrow.dtype) == (torch.float32, dtype, *[torch.float32] * 2)
    (outputs.float().square().sum() + log_prob / 1000).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in distribution.parameters())


def test_compiled_into_cuda_graphs_it_still_draws(cuda: torch.device) -> None:
    """mode="reduce-overhead" warms up, records and replays: a recorded key would repeat."""
    distribution = GaussianDistribution((64, 32), rho_init=-1.0, device=cuda)

    @torch.compile(mode="reduce-overhead", fullgraph=True)
    def loss() -> tuple[Tensor, Tensor]:
        x, log_prob = distribution.sample_and_log_prob()
        return x * 2, log_prob

    torch._dynamo.reset()
    draws = []
    for _ in range(6):
        torch.compiler.cudagraph_mark_step_begin()
        x, log_prob = loss()
        (x.square().sum() + log_prob).backward()
        draws.append((x.detach().clone(), log_prob.item()))
    assert len({value for _, value in draws}) == 6
    assert not any(torch.equal(draws[0][0], x) for x, _ in draws[1:])
    assert all(parameter.grad.isfinite().all() for parameter in distribution.parameters())
    torch._dynamo.reset()


# What each op looks at, by the names of Arguments.
READS = {
    "gaussian_sample": ("mu", "rho", "key"),
    "gaussian_sample_backward": ("rho", "grad_x", "key"),
    "gaussian_log_prob": ("mu", "rho", "x", "mu_prior", "std_prior"),
    "gaussian_log_prob_backward": ("mu", "rho", "x", "grad_log_prob", "mu_prior", "std_prior"),
    "gaussian_sample_and_log_prob": ("mu", "rho", "mu_prior", "std_prior", "key"),
    "gaussian_sample_and_log_prob_backward": (
        *("mu", "rho", "grad_x", "grad_log_prob", "mu_prior", "std_prior", "key"),
    ),
    "gaussian_kl_divergence": ("mu", "rho", "mu_prior", "std_prior"),
    "gaussian_kl_divergence_backward": ("mu", "rho", "grad_kl_divergence", "mu_prior", "std_prior"),
}


@pytest.fixture
def still_works(cuda: torch.device) -> Iterator[None]:
    """After an error the next call is what it was before."""
    arguments = (torch.zeros(3, device=cuda), torch.ones(3, device=cuda), 0.0, 1.0, make_keys((1, 2), device=cuda))
    expected = functional.gaussian_sample_and_log_prob(*arguments)
    yield
    assert all(map(same_bits, functional.gaussian_sample_and_log_prob(*arguments), expected))
    torch.cuda.synchronize()


@pytest.mark.usefixtures("still_works")
@parametrize("home_is_gpu", [True, False])
@parametrize(("name", "argument"), [(name, argument) for name, arguments in READS.items() for argument in arguments])
def test_one_argument_on_another_device_is_refused(
    name: str, argument: str, home_is_gpu: bool, cuda: torch.device
) -> None:
    """The message names it; where mu (or rho, without mu) is the stray, all others are, and one of them is named."""
    home, away = (cuda, torch.device("cpu")) if home_is_gpu else (torch.device("cpu"), cuda)
    arguments = Arguments.make((3,)).to(home)
    arguments = arguments._replace(**{argument: getattr(arguments, argument).to(away)})
    named = "grad" if argument == "grad_kl_divergence" else argument
    message = f"^{named}: expected to be on the device of (mu|rho), {home}, got {away}$"
    if argument == READS[name][0]:
        message = rf"^\w+: expected to be on the device of {argument}, {away}, got {home}$"
    with pytest.raises(RuntimeError, match=message):
        every_op(arguments)[name]()


@pytest.mark.usefixtures("still_works")
@parametrize("name", ["mu_prior", "std_prior"])
def test_a_gradient_to_a_number_on_the_cpu_is_refused(name: str, cuda: torch.device) -> None:
    """Its value goes to the GPU with the launch; its gradient could only come back by waiting."""
    arguments = Arguments.make((3,)).to(cuda)
    number = torch.ones((), requires_grad=True)
    a = arguments._replace(**{name: number})
    calls = (
        functional.gaussian_log_prob(a.x, a.mu, a.rho, a.mu_prior, a.std_prior),
        functional.gaussian_sample_and_log_prob(a.mu, a.rho, a.mu_prior, a.std_prior, a.key)[1],
        functional.gaussian_kl_divergence(a.mu, a.rho, a.mu_prior, a.std_prior),
    )
    for output in calls:
        with pytest.raises(
            RuntimeError, match=f"^{name}: a gradient to a number on the CPU beside parameters on another"
        ):
            torch.autograd.grad(output, number)


@pytest.mark.usefixtures("still_works")
def test_a_distribution_refuses_mixed_devices(cuda: torch.device) -> None:
    distribution = GaussianDistribution(3, device=cuda)
    with pytest.raises(RuntimeError, match=f"^key: expected to be on the device of mu, {cuda}, got cpu"):
        distribution.sample(key=make_key(1, device="cpu"))
    with pytest.raises(RuntimeError, match=f"^x: expected to be on the device of mu, {cuda}, got cpu"):
        distribution.log_prob(torch.zeros(3))
