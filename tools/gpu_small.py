"""Every op once in every dtype at a few sizes, on the GPU: what compute-sanitizer watches, which slows it down much."""

import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from agreement import Arguments, every_op  # noqa: E402  (found in the folders above)

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
NUMELS = (0, 1, 5, 1027, 40_003)  # none, less than a vector, a tail, more than a chunk, more than a few blocks
SAMPLES = (None, 0, 2)
# More samples than blocks at work: a block then adds up several in turn, in the same shared memory.
MANY_SAMPLES = 3 * 4096 + 1
MANY_TENSORS = 300  # more than one launch takes


def unaligned(tensor: torch.Tensor) -> torch.Tensor:
    """One element behind a multiple of 16 bytes."""
    return tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor)


def every_foreach_op(tensors: Sequence[Arguments], stick_the_landing: bool = False) -> list[Callable[[], Any]]:
    """Calls of the ops of many tensors; keys and gradients to sums are those of the last."""
    mu, rho, mu_prior, std_prior = (
        [getattr(a, name) for a in tensors] for name in ("mu", "rho", "mu_prior", "std_prior")
    )
    a, ops = tensors[-1], torch.ops.illia_ext
    parameters, grad_x = (mu, rho, mu_prior, std_prior), [b.grad_x if k % 3 else None for k, b in enumerate(tensors)]
    return [
        lambda: ops.foreach_gaussian_sample_and_log_prob(*parameters, a.key, dtype=a.x.dtype),
        lambda: ops.foreach_gaussian_sample_and_log_prob_backward(
            grad_x, a.grad_log_prob, *parameters, a.key, stick_the_landing=stick_the_landing
        ),
        lambda: ops.foreach_gaussian_sample_and_log_prob_backward(grad_x, None, *parameters, a.key),
        lambda: ops.foreach_gaussian_kl_divergence(*parameters),
        lambda: ops.foreach_gaussian_kl_divergence_backward(a.grad_kl_divergence, *parameters),
    ]


def every_call(device: torch.device) -> list[Callable[[], Any]]:
    calls: list[Callable[[], Any]] = []
    pairs = [*((dtype, dtype) for dtype in DTYPES), (torch.float32, torch.bfloat16)]
    for dtype, sample_dtype in pairs:
        cases = list(itertools.product(NUMELS, SAMPLES))
        if dtype == torch.float32:
            cases.append((5, MANY_SAMPLES))
        for numel, num_samples in cases:
            arguments = Arguments.make((numel,), dtype, sample_dtype, num_samples).to(device)
            views = [arguments, Arguments(*map(unaligned, arguments))] if numel == 1027 else [arguments]
            calls += (call for view in views for call in every_op(view).values())
        for num_samples in SAMPLES:
            tensors = [Arguments.make((numel,), dtype, sample_dtype, num_samples).to(device) for numel in NUMELS]
            odd = [Arguments(*map(unaligned, a)) if k % 2 else a for k, a in enumerate(tensors)]
            each = Arguments.make((1027,), dtype, sample_dtype, num_samples, each_prior=True).to(device)
            calls += every_foreach_op(tensors) + every_foreach_op([*odd, each], stick_the_landing=True)
    return calls + every_foreach_op([Arguments.make((k % 6,)).to(device) for k in range(MANY_TENSORS)])


def main() -> None:
    device = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cuda")
    calls = every_call(device)
    for call in calls:
        call()
    torch.randint(2, [1], device=device).item()  # waits for all
    print(f"{len(calls)} calls of ops on {device}")


if __name__ == "__main__":
    main()
