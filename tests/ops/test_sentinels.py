"""Nothing is read or written beside the arguments: they lie among NaN, outputs lie among guards."""

import pytest
import torch
from agreement import Arguments, every_output
from helpers import FLOAT_DTYPES, same_bits
from law_cases import every_result, flatten
from torch import Tensor

nan = float("nan")
NUMELS = (1, 15, 17, 63, 65, 1023, 1025, 2047, 4097)


def make_arguments(numel: int, dtype: torch.dtype, device: torch.device) -> Arguments:
    return Arguments.make((numel,), dtype, num_samples=3, each_prior=True).to(device)


def run(a: Arguments) -> list[Tensor]:
    """Values and gradients of every op, and what blocks and gradients to priors give."""
    return [*every_output(a).values(), *flatten(list(every_result(a, general=True).values()))]


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
def test_nothing_around_arguments_is_read_or_written(numel: int, dtype: torch.dtype, device: torch.device) -> None:
    arguments = make_arguments(numel, dtype, device)
    expected, surrounded = run(arguments), [surround(tensor) for tensor in arguments]
    before = [outside.clone() for _, outside in surrounded]
    assert all(map(same_bits, run(Arguments(*(inside for inside, _ in surrounded))), expected))
    assert all(same_bits(outside, copy) for (_, outside), copy in zip(surrounded, before))
    assert all(map(same_bits, run(Arguments(*map(enclose, arguments))), expected))


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("numel", NUMELS)
def test_nothing_around_outputs_is_written(numel: int, dtype: torch.dtype) -> None:
    """Outputs go into the holes of a row of guards, as the allocator reuses memory of one size."""
    arguments = make_arguments(numel, dtype, torch.device("cpu"))
    guards = [torch.full((numel,), nan, dtype=dtype) for _ in range(64)]
    del guards[::2]
    outputs = [run(arguments) for _ in range(4)]
    assert all(guard.isnan().all() for guard in guards)
    assert all(all(map(same_bits, again, outputs[0])) for again in outputs[1:])
