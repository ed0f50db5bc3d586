"""Memory on the GPU: nothing is written beside outputs, indices pass 2^31, and running out of it does no harm."""

from collections.abc import Iterator

import pytest
import torch
from agreement import Arguments, every_op, every_output
from helpers import FLOAT_DTYPES, HALF_DTYPES, UNIT_ROUNDOFF, make_key, make_keys, make_parameters, same_bits
from torch import Tensor

from illia_ext import functional
from illia_ext._ops.fake import NAMES

parametrize = pytest.mark.parametrize
PATTERN = 0xA5
GRANULE = 512  # bytes: torch's allocator gives whole ones
PRIOR = (0.25, 0.125)
HUGE = 2**31 + 2**20 + 5


@pytest.fixture(autouse=True)
def current_device(cuda: torch.device) -> Iterator[None]:
    with torch.cuda.device(cuda):
        yield
    torch.cuda.empty_cache()


class RawMemory:
    """Bytes anywhere on the GPU, through the interface that arrays of CUDA libraries share."""

    def __init__(self, address: int, num_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "data": (address, False),
            "shape": (num_bytes,),
            "typestr": "|u1",
            "version": 3,
        }

    def tensor(self, device: torch.device) -> Tensor:
        return torch.as_tensor(self, device=device)


def bytes_behind(tensor: Tensor) -> Tensor:
    """What follows a tensor up to the end of its last granule, which belongs to its block of memory."""
    storage = tensor.untyped_storage()
    padding = -storage.nbytes() % GRANULE
    behind = RawMemory(storage.data_ptr() + storage.nbytes(), padding) if padding else None
    return behind.tensor(tensor.device) if behind else tensor.new_empty(0, dtype=torch.uint8)


def fill_free_memory(device: torch.device) -> None:
    """Writes PATTERN to all memory that small tensors made next can get: every free granule of every segment."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    pages = []

    def take(num_bytes: int) -> None:
        pages.append(torch.full((num_bytes,), PATTERN, dtype=torch.uint8, device=device))

    sizes = [2**k for k in range(20, 8, -1)]
    for size in sizes:
        reserved = torch.cuda.memory_reserved()
        while torch.cuda.memory_reserved() == reserved:
            take(size)
        pages.pop()  # the one that began a new segment, which goes back: smaller pages would all fill it
        torch.cuda.empty_cache()
    for _ in range(2):  # one new segment of 2^21 bytes
        take(2**20)
    torch.cuda.synchronize()


@parametrize("general", [False, True])
@parametrize("num_samples", [None, 3])
@parametrize("dtype", FLOAT_DTYPES)
@parametrize("numel", [1, 3, 5, 7, 127, 129, 255, 257, 1023, 1025, 4095, 4097])
def test_nothing_behind_outputs_is_written(
    numel: int, dtype: torch.dtype, num_samples: int | None, general: bool, cuda: torch.device
) -> None:
    """A vector store that passes the end lands in the padding. No other tool looks there: it is allocated memory."""
    calls = every_op(Arguments.make((numel,), dtype, num_samples=num_samples, each_prior=general).to(cuda), general)
    for name, call in calls.items():
        fill_free_memory(cuda)
        outputs = call()
        for output in [outputs] if isinstance(outputs, Tensor) else outputs:
            behind = bytes_behind(output)
            assert (behind == PATTERN).all(), f"{name}: bytes behind an output are {behind.tolist()[:32]}"


def test_padding_that_is_written_is_found(cuda: torch.device) -> None:
    fill_free_memory(cuda)
    output = torch.zeros(5, device=cuda)
    behind = bytes_behind(output)
    assert behind.numel() == GRANULE - 20 and (behind == PATTERN).all()
    RawMemory(output.data_ptr() + 20, 4).tensor(cuda).fill_(0)
    assert (behind == PATTERN).sum() == GRANULE - 24


@parametrize("dtype", FLOAT_DTYPES)
def test_every_element_is_written(dtype: torch.dtype, cuda: torch.device) -> None:
    """Memory for the outputs holds NaN before."""
    arguments = Arguments.make((2**20 + 3,), dtype, num_samples=2).to(cuda)
    expected = every_output(arguments)
    for _ in range(2):
        poison = [torch.full_like(output, float("nan")) for output in expected.values()]
        torch.cuda.synchronize()
        del poison
        outputs = every_output(arguments)
        assert all(same_bits(outputs[name], value) for name, value in expected.items())
    assert all(output.isfinite().all() for output in outputs.values())


def test_more_than_2_31_elements(cuda: torch.device) -> None:
    """bfloat16. Element i of key [seed, offset] is normal i % 4 of block offset + i // 4: shifting the offset draws
    any place alone, on the CPU and, for the sum, piece by piece here."""
    needed = 5 * 2 * HUGE + 2**30  # mu, rho, x and two gradients
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < needed + 2**31:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of GPU memory")
    mu = torch.empty(HUGE, dtype=torch.bfloat16, device=cuda).normal_().requires_grad_()
    rho = torch.empty(HUGE, dtype=torch.bfloat16, device=cuda).uniform_(-6, 2).requires_grad_()
    x, log_prob = functional.gaussian_sample_and_log_prob(mu, rho, *PRIOR, make_key(7, 11, cuda))

    places = (0, 2**29 - 4, 2**31 - 8, 2**31, 2**31 + 2**19, HUGE - HUGE % 4 - 60)
    windows = [slice(place, min(place + 64, HUGE)) for place in places]
    expected = []
    for window in windows:
        leaves = [tensor.detach()[window].cpu().requires_grad_() for tensor in (mu, rho)]
        key = make_key(7, 11 + window.start // 4, "cpu")
        outputs = functional.gaussian_sample_and_log_prob(*leaves, *PRIOR, key)
        grads = torch.autograd.grad(outputs, leaves, [leaves[0].detach(), torch.ones(())])
        expected.append([outputs[0].detach(), *grads])
        assert_few_ulp(x[window], expected[-1][0])

    pieces = 0.0
    with torch.no_grad():
        for start in range(0, HUGE, 2**28):
            key = make_key(7, 11 + start // 4, cuda)
            piece = (mu[start : start + 2**28], rho[start : start + 2**28])
            pieces += functional.gaussian_sample_and_log_prob(*piece, *PRIOR, key)[1].item()
    # each sum errs by 1e-6 of summands of which few cancel: (x - mu_prior)^2 / (2 std_prior^2) is some 40
    assert log_prob.item() == pytest.approx(pieces, rel=4e-6)

    torch.cuda.empty_cache()
    grads = torch.autograd.grad([x, log_prob], [mu, rho], [mu.detach(), torch.ones((), device=cuda)])
    for window, (_, *gradients) in zip(windows, expected):
        for grad, gradient in zip(grads, gradients):
            assert_few_ulp(grad[window], gradient)


def assert_few_ulp(ours: Tensor, expected: Tensor) -> None:
    """In bfloat16 what two devices round apart is one ulp; where terms cancel, one ulp of the largest in the window."""
    bound = 2 * UNIT_ROUNDOFF[torch.bfloat16] * expected.double().abs() + 1e-5 * expected.double().abs().max()
    assert ((ours.detach().cpu().double() - expected.double()).abs() <= bound).all()


@parametrize("dtype", HALF_DTYPES)
def test_more_than_2_31_elements_in_all_samples(dtype: torch.dtype, cuda: torch.device) -> None:
    """A sample's place in memory passes 2^31, and no single tensor of parameters does."""
    numel, num_samples = 2**24 + 3, 2**7 + 1
    if torch.cuda.mem_get_info()[0] < 2 * num_samples * numel * 2:
        pytest.skip(f"needs {2 * num_samples * numel * 2 / 2**30:.0f} GiB of GPU memory")
    mu, rho = make_parameters((numel,), dtype, cuda)
    keys = make_keys(*[(i, 5) for i in range(num_samples)], device=cuda)
    x, log_prob = functional.gaussian_sample_and_log_prob(mu, rho, *PRIOR, keys)
    for i in (0, num_samples // 2, num_samples - 2, num_samples - 1):
        one, its_log_prob = functional.gaussian_sample_and_log_prob(mu, rho, *PRIOR, keys[i])
        assert same_bits(x[i], one) and same_bits(log_prob[i], its_log_prob)


# Those with an output as large as mu, of one tensor.
SMALL_OUTPUTS = ("gaussian_log_prob", "gaussian_kl_divergence")
LARGE_OUTPUTS = [name for name in NAMES if name not in SMALL_OUTPUTS and not name.startswith("foreach_")]


@pytest.fixture
def scarce_memory() -> Iterator[None]:
    """torch may take 64 MiB more than what the test has at its start."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**30 + 2**26) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.usefixtures("scarce_memory")
@parametrize("strided", [False, True])
@parametrize("name", LARGE_OUTPUTS)
def test_out_of_memory(name: str, strided: bool, cuda: torch.device) -> None:
    """For an output, or for the copy of an argument: the error says so, nothing is kept, and the next call is right."""
    arguments = Arguments.make((1025,)).to(cuda)
    expected = every_output(arguments)
    large = torch.ones(2**28, device=cuda)  # the GiB that is left, but for 64 MiB
    if strided:
        large = large.view(2**14, 2**14).T
    call = every_op(arguments._replace(mu=large, rho=large, x=large, grad_x=large))[name]
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"(?i)out of memory"):  # torch.OutOfMemoryError is one
            call()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
    outputs = every_output(arguments)
    assert all(same_bits(outputs[output], value) for output, value in expected.items())
