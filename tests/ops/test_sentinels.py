"""Nothing is read or written beside the arguments: they lie among NaN, outputs lie among guards."""

import pytest
import torch
from helpers import FLOAT_DTYPES, make_keys, make_parameters, same_bits
from torch import Tensor

from illia_ext import functional

nan = float("nan")
NUMELS = (1, 15, 17, 63, 65, 1023, 1025, 2047, 4097)
SAMPLES = 3
PRIORS = {"mu_prior": 0.25, "std_prior": 0.125}


def make_arguments(numel: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Contiguous arguments of every call below."""
    mu, rho = make_parameters((numel,), dtype, device)
    x, grad_x = (make_parameters((SAMPLES, numel), dtype, device, seed)[0] for seed in (1, 2))
    key = make_keys(*[(42 + i, 2**64 - 1) for i in range(SAMPLES)], device=device)
    priors = {name: torch.tensor([value], dtype=dtype, device=device) for name, value in PRIORS.items()}
    return {"mu": mu, "rho": rho, "x": x, "grad_x": grad_x, "key": key, **priors}


def every_output(
    mu: Tensor, rho: Tensor, x: Tensor, grad_x: Tensor, key: Tensor, mu_prior: Tensor, std_prior: Tensor
) -> list[Tensor]:
    """Values and gradients of every op."""
    mu, rho, x = (tensor.detach().requires_grad_() for tensor in (mu, rho, x))
    priors = (mu_prior, std_prior)
    sample = functional.gaussian_sample(mu, rho, key)
    fused_x, fused_log_prob = functional.gaussian_sample_and_log_prob(mu, rho, *priors, key)
    log_prob = functional.gaussian_log_prob(x, mu, rho, *priors)
    kl_divergence = functional.gaussian_kl_divergence(mu, rho, *priors)
    ones = torch.ones_like(log_prob)
    return [
        torch.ops.illia_ext.standard_normal(key, list(mu.shape), dtype=mu.dtype),
        *(sample, fused_x, fused_log_prob, log_prob, kl_divergence),
        *torch.autograd.grad(sample, [mu, rho], grad_x),
        *torch.autograd.grad([fused_x, fused_log_prob], [mu, rho], [grad_x, ones]),
        *torch.autograd.grad(log_prob, [x, mu, rho], ones),
        *torch.autograd.grad(kl_divergence, [mu, rho]),
    ]


def surround(tensor: Tensor, margin: int = 70) -> tuple[Tensor, Tensor]:
    """The same values inside a larger tensor of NaN (of -1 for keys), and that tensor; 70 exceeds a tile of noise."""
    outside = torch.full_like(
        tensor.new_empty(margin + tensor.numel() + margin), nan if tensor.is_floating_point() else -1
    )
    inside = outside[margin : margin + tensor.numel()].view(tensor.shape)
    return inside.copy_(tensor), outside


def enclose(tensor: Tensor) -> Tensor:
    """The same values with a NaN before, after and between any two of them: strides of 2 and more."""
    larger = tensor.new_full([2 * size + 1 for size in tensor.shape], nan if tensor.is_floating_point() else -1)
    inside = larger[tuple(slice(1, None, 2) for _ in tensor.shape)]
    return inside.copy_(tensor)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("numel", NUMELS)
def test_nothing_around_arguments_is_touched(numel: int, dtype: torch.dtype, device: torch.device) -> None:
    arguments = make_arguments(numel, dtype, device)
    expected = every_output(**arguments)
    surrounded = {name: surround(tensor) for name, tensor in arguments.items()}
    before = [outside.clone() for _, outside in surrounded.values()]
    outputs = every_output(**{name: inside for name, (inside, _) in surrounded.items()})
    assert all(map(same_bits, outputs, expected))
    assert all(map(same_bits, [outside for _, outside in surrounded.values()], before))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("numel", NUMELS)
def test_nothing_between_strided_elements_is_read(numel: int, dtype: torch.dtype, device: torch.device) -> None:
    arguments = make_arguments(numel, dtype, device)
    enclosed = {name: enclose(tensor) for name, tensor in arguments.items()}
    assert all(map(same_bits, every_output(**enclosed), every_output(**arguments)))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_strides_of_zero(dtype: torch.dtype, device: torch.device) -> None:
    numel = 1025
    scalars = {name: argument[..., :1] for name, argument in make_arguments(1, dtype, device).items() if name != "key"}
    key = make_keys((42, 7), device=device).expand(SAMPLES, 2)
    shapes = {"mu": (numel,), "rho": (numel,), "x": (SAMPLES, numel), "grad_x": (SAMPLES, numel)}
    arguments = {name: value.expand(shapes.get(name, (1,))) for name, value in scalars.items()} | {"key": key}
    expected = every_output(**{name: argument.contiguous() for name, argument in arguments.items()})
    assert all(map(same_bits, every_output(**arguments), expected))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("numel", NUMELS)
def test_samples_do_not_spill_into_each_other(numel: int, dtype: torch.dtype, device: torch.device) -> None:
    arguments = make_arguments(numel, dtype, device)
    mu, rho, priors = arguments["mu"], arguments["rho"], (arguments["mu_prior"], arguments["std_prior"])
    xs, log_probs = functional.gaussian_sample_and_log_prob(mu, rho, *priors, arguments["key"])
    at_x = functional.gaussian_log_prob(arguments["x"], mu, rho, *priors)
    for i, key in enumerate(arguments["key"]):
        x, log_prob = functional.gaussian_sample_and_log_prob(mu, rho, *priors, key)
        assert same_bits(xs[i], x) and same_bits(log_probs[i], log_prob)
        assert same_bits(at_x[i], functional.gaussian_log_prob(arguments["x"][i], mu, rho, *priors))


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("numel", NUMELS)
def test_nothing_around_outputs_is_written(numel: int, dtype: torch.dtype) -> None:
    """Outputs go into the holes of a row of guards, as the allocator reuses memory of one size."""
    arguments = make_arguments(numel, dtype, torch.device("cpu"))
    guards = [torch.full((numel,), nan, dtype=dtype) for _ in range(64)]
    del guards[::2]
    outputs = [every_output(**arguments) for _ in range(4)]
    assert all(guard.isnan().all() for guard in guards)
    assert all(all(map(same_bits, again, outputs[0])) for again in outputs[1:])


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("numel", [2**18 + 1, 2**18 + 1037])
def test_head_of_a_tensor_is_sampled_alone(numel: int, dtype: torch.dtype, device: torch.device) -> None:
    """An element of x or of a gradient depends on its own place only, whatever the tail behind it."""
    mu, rho = make_parameters((2**18 + 2048,), dtype, device)
    key = make_keys((1, 2), (3, 4), device=device)
    whole_mu, whole_rho = mu.clone().requires_grad_(), rho.clone().requires_grad_()
    head_mu, head_rho = mu[:numel].requires_grad_(), rho[:numel].requires_grad_()
    whole = functional.gaussian_sample(whole_mu, whole_rho, key)
    head = functional.gaussian_sample(head_mu, head_rho, key)
    assert same_bits(head, whole[:, :numel])
    grads = torch.autograd.grad(head.sum(), [head_mu, head_rho])
    expected = torch.autograd.grad(whole.sum(), [whole_mu, whole_rho])
    assert all(same_bits(grad, full[:numel]) for grad, full in zip(grads, expected))
