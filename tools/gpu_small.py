"""Every op once in every dtype at a few sizes, on the GPU: what compute-sanitizer watches, which slows it down much."""

import itertools
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from agreement import Arguments, every_op  # noqa: E402  (found in the folders above)

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
NUMELS = (0, 1, 5, 1027, 40_003)  # none, less than a vector, a tail, more than a chunk, more than a few blocks
SAMPLES = (None, 0, 2)
# More samples than blocks at work: a block then adds up several in turn, in the same shared memory.
MANY_SAMPLES = 3 * 4096 + 1


def unaligned(tensor: torch.Tensor) -> torch.Tensor:
    """One element behind a multiple of 16 bytes."""
    return tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor)


def main() -> None:
    device, calls = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cuda"), 0
    pairs = [*((dtype, dtype) for dtype in DTYPES), (torch.float32, torch.bfloat16)]
    for dtype, sample_dtype in pairs:
        cases = list(itertools.product(NUMELS, SAMPLES))
        if dtype == torch.float32:
            cases.append((5, MANY_SAMPLES))
        for numel, num_samples in cases:
            arguments = Arguments.make((numel,), dtype, sample_dtype, num_samples).to(device)
            views = [arguments, Arguments(*map(unaligned, arguments))] if numel == 1027 else [arguments]
            for call in (call for view in views for call in every_op(view).values()):
                call()
                calls += 1
    torch.randint(2, [1], device=device).item()  # waits for all
    print(f"{calls} calls of ops on {device}")


if __name__ == "__main__":
    main()
