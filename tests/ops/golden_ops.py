"""The bits of every op and of illia_ext.random: as lines of tests/data/golden_bits.txt, which `main` prints."""

import hashlib
from collections.abc import Sequence

import torch
from helpers import FLOAT_DTYPES, HALF_DTYPES, arithmetic_dtype, bits, make_keys
from torch import Tensor

from illia_ext import random

OPS = torch.ops.illia_ext
NUMEL = 2083  # three chunks, the last one short
KEYS = ((42, 0), (2**64 - 1, 2**64 - 5))


def digest(tensors: Sequence[Tensor]) -> str:
    """64 bits of BLAKE2b. All NaN count as one: IEEE 754 leaves their bits open."""
    one_nan = [torch.where(tensor.isnan(), torch.nan, tensor) for tensor in tensors]
    return hashlib.blake2b(b"".join(bits(tensor).numpy().tobytes() for tensor in one_nan), digest_size=8).hexdigest()


def dyadic(numel: int, dtype: torch.dtype, low: float, step: float) -> Tensor:
    """`numel` of the numbers low, low + step, ... below low + 256 step, scattered: all types hold them."""
    return (torch.arange(numel, dtype=torch.float64) * 97 % 256 * step + low).to(dtype)


def op_lines(dtype: torch.dtype, sample_dtype: torch.dtype) -> dict[str, str]:
    acc, keys = arithmetic_dtype(dtype), make_keys(*KEYS, device="cpu")
    mu, rho = dyadic(NUMEL, dtype, -1, 2**-7), dyadic(NUMEL, dtype, -12, 2**-4)
    rho[::61] *= 64
    x, grad_x = dyadic(2 * NUMEL, sample_dtype, -2, 2**-6), dyadic(2 * NUMEL + 1, sample_dtype, -1, 2**-7)[1:]
    x, grad_x = x.reshape(2, -1), grad_x.reshape(2, -1)
    grad = torch.tensor([0.75, -1.5], dtype=acc)
    same = [torch.tensor(value, dtype=torch.float64) for value in (0.25, 0.7)]
    each = [dyadic(NUMEL, acc, -0.5, 2**-8), dyadic(NUMEL, acc, 2**-5, 2**-7)]
    block = {"full_size": (NUMEL + 7, 3), "origin": (5, 1)}
    column = [tensor[..., None] for tensor in (mu, rho, grad_x, x)]
    results: dict[str, list[Tensor]] = {
        "standard_normal": [
            OPS.standard_normal(keys, [NUMEL], dtype=sample_dtype),
            OPS.standard_normal(keys, [NUMEL, 1], dtype=sample_dtype, **block),
        ],
        "gaussian_sample": [OPS.gaussian_sample(mu, rho, keys, dtype=sample_dtype)],
        "gaussian_sample_backward": [OPS.gaussian_sample_backward(grad_x, rho, keys)],
        **{name: [] for name in ("gaussian_sample_and_log_prob", "gaussian_sample_and_log_prob_backward")},
        **{name: [] for name in ("gaussian_log_prob", "gaussian_log_prob_backward")},
        **{name: [] for name in ("gaussian_kl_divergence", "gaussian_kl_divergence_backward")},
    }
    for priors, elements in ((same, same), (each, [prior[:, None] for prior in each])):
        results["gaussian_sample_and_log_prob"] += [
            *OPS.gaussian_sample_and_log_prob(mu, rho, *priors, keys, dtype=sample_dtype),
            *OPS.gaussian_sample_and_log_prob(*column[:2], *elements, keys, dtype=sample_dtype, **block),
        ]
        asked = {"prior_grads": True, "stick_the_landing": priors is each}
        results["gaussian_sample_and_log_prob_backward"] += [
            *OPS.gaussian_sample_and_log_prob_backward(grad_x, grad, mu, rho, *priors, keys),
            *OPS.gaussian_sample_and_log_prob_backward(column[2], grad, *column[:2], *elements, keys, **asked, **block),
        ]
        results["gaussian_log_prob"] += [OPS.gaussian_log_prob(x, mu, rho, *priors)]
        results["gaussian_log_prob_backward"] += OPS.gaussian_log_prob_backward(grad, x, mu, rho, *priors, [True] * 5)
        results["gaussian_kl_divergence"] += [OPS.gaussian_kl_divergence(mu, rho, *priors)]
        results["gaussian_kl_divergence_backward"] += OPS.gaussian_kl_divergence_backward(
            grad[0], mu, rho, *priors, True
        )
    if dtype == sample_dtype:
        lists = [list(tensor.split([1, 30, 1026, 1026])) for tensor in (mu, rho)]
        grad_xs = [part.contiguous() for part in grad_x.split([1, 30, 1026, 1026], dim=1)]
        priors = [[prior] for prior in same]
        xs, log_prob = OPS.foreach_gaussian_sample_and_log_prob(*lists, *priors, keys)
        results["foreach_gaussian_sample_and_log_prob"] = [*xs, log_prob]
        grads = OPS.foreach_gaussian_sample_and_log_prob_backward(grad_xs, grad, *lists, *priors, keys)
        results["foreach_gaussian_sample_and_log_prob_backward"] = [*grads[0], *grads[1]]
        results["foreach_gaussian_kl_divergence"] = [OPS.foreach_gaussian_kl_divergence(*lists, *priors)]
        grads = OPS.foreach_gaussian_kl_divergence_backward(grad[0], *lists, *priors)
        results["foreach_gaussian_kl_divergence_backward"] = [*grads[0], *grads[1]]
    types = ".".join(str(name).removeprefix("torch.") for name in dict.fromkeys((dtype, sample_dtype)))
    return {f"ops.{name}.{types}": digest(tensors) for name, tensors in results.items()}


def words(key: Tensor) -> str:
    return ",".join(str(word % 2**64) for word in key.flatten().tolist())


def random_lines() -> dict[str, str]:
    """Keys are few: they stand there as they are."""
    first, last = make_keys(*KEYS, device="cpu")
    return {
        "random.key.-1": words(random.key(-1)),
        "random.split.first.3": words(random.split(first, 3)),
        "random.split.last.3": words(random.split(last, 3)),
        "random.fold_in.first.2^40": words(random.fold_in(first, 2**40)),
        "random.fold_in.last.-1": words(random.fold_in(last, -1)),
        "random.advance.last.9": words(random.advance(last, 9)),
    }


def lines() -> list[str]:
    pairs = [*((dtype, dtype) for dtype in FLOAT_DTYPES), *((torch.float32, dtype) for dtype in HALF_DTYPES)]
    found = random_lines()
    for dtype, sample_dtype in pairs:
        found |= op_lines(dtype, sample_dtype)
    return [f"{name} {value}" for name, value in found.items()]


if __name__ == "__main__":
    print(*lines(), sep="\n")
