"""The same bits for every number of threads; test_golden.py: for every instruction set, and in later versions."""

import hashlib
from collections.abc import Iterator

import pytest
import torch
from helpers import FLOAT_DTYPES, bits, make_keys, make_parameters, run_python, same_bits
from torch import Tensor

from illia_ext import functional

PRIORS = (0.25, 1.0)  # log(std_prior) is exact: no bit depends on the C library
NUMEL = 256 * 1024 + 777  # 257 chunks; a thread takes 16 or more


def every_output(dtype: torch.dtype, numel: int) -> list[Tensor]:
    """Noise, samples, sums and gradients of every op; a few rho are far out."""
    mu, rho = make_parameters((numel,), dtype)
    rho[::97] *= 100
    mu.requires_grad_(), rho.requires_grad_()
    keys = make_keys((42, 2**32 - 5), (2**64 - 1, 2**64 - 5))
    calls = [
        (functional.gaussian_sample(mu, rho, keys),),
        functional.gaussian_sample_and_log_prob(mu, rho, *PRIORS, keys),
        (functional.gaussian_log_prob(mu.detach() + 0.5, mu, rho, *PRIORS),),
        (functional.gaussian_kl_divergence(mu, rho, *PRIORS),),
    ]
    results = [torch.ops.illia_ext.standard_normal(keys, [numel], dtype=dtype)]
    for outputs in calls:
        weights = [make_parameters(output.shape, output.dtype, seed=7)[0] for output in outputs]
        results += [*outputs, *torch.autograd.grad(outputs, [mu, rho], weights)]
    return results + general_outputs(mu.detach(), rho.detach(), keys) + list_outputs(mu, rho, keys)


def list_outputs(mu: Tensor, rho: Tensor, keys: Tensor) -> list[Tensor]:
    """Tensors of many chunks among small ones: chunks of one tensor go to several threads."""
    sizes = [3, *[40] * 5, mu.numel() // 2, mu.numel() - 203 - mu.numel() // 2]
    lists = [[part.detach().requires_grad_() for part in tensor.split(sizes)] for tensor in (mu, rho)]
    x, log_prob = functional.foreach_gaussian_sample_and_log_prob(*lists, *PRIORS, keys)
    outputs = [*x, log_prob, functional.foreach_gaussian_kl_divergence(*lists, *PRIORS)]
    weights = [make_parameters(output.shape, output.dtype, seed=7)[0] for output in outputs]
    return [*outputs, *torch.autograd.grad(outputs, [*lists[0], *lists[1]], weights)]


def general_outputs(mu: Tensor, rho: Tensor, keys: Tensor) -> list[Tensor]:
    """Blocks, priors of each element, gradients to priors of either kind, and stick_the_landing."""
    ops = torch.ops.illia_ext
    block = {"full_size": (len(mu) + 7, 3), "origin": (5, 1)}
    mu, rho = mu[:, None], rho[:, None]
    x = mu + make_parameters((2, *mu.shape), mu.dtype, seed=8)[0]
    each = (mu.flip(0).clone(), rho.abs() + 0.5)
    grad = make_parameters((2,), torch.float64 if mu.dtype == torch.float64 else torch.float32, seed=9)[0]
    results = [ops.standard_normal(keys, mu.shape, dtype=mu.dtype, **block)]
    for priors in (each, [torch.tensor(value) for value in PRIORS]):
        results += ops.gaussian_sample_and_log_prob(mu, rho, *priors, keys, **block)
        results += [ops.gaussian_log_prob(x, mu, rho, *priors), ops.gaussian_kl_divergence(mu, rho, *priors)]
        results += ops.gaussian_sample_and_log_prob_backward(
            x, grad, mu, rho, *priors, keys, stick_the_landing=True, **block, prior_grads=True
        )
        results += ops.gaussian_log_prob_backward(grad, x, mu, rho, *priors, [True] * 5)
        results += ops.gaussian_kl_divergence_backward(grad[0], mu, rho, *priors, True)
    return results


def digest(tensors: list[Tensor]) -> str:
    return hashlib.sha256(b"".join(bits(tensor).numpy().tobytes() for tensor in tensors)).hexdigest()


def digest_of_everything() -> str:
    return digest([output for dtype in FLOAT_DTYPES for output in every_output(dtype, numel=5 * 1024 + 77)])


@pytest.fixture
def restored_threads() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.usefixtures("cpu", "restored_threads")
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_threads_do_not_matter(dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    expected = every_output(dtype, NUMEL)
    for num_threads in (2, 3, 7):
        torch.set_num_threads(num_threads)
        assert all(map(same_bits, every_output(dtype, NUMEL), expected))


def test_unknown_instruction_set_is_refused_at_import() -> None:
    result = run_python("import illia_ext", ILLIA_EXT_CPU_CAPABILITY="sse2")
    message = result.stderr.splitlines()[-1]
    assert result.returncode == 1
    assert "ILLIA_EXT_CPU_CAPABILITY: expected base, avx2 or avx512" in message and message.endswith("got sse2")
