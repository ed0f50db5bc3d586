"""CPU and CUDA agree: every op, forward and backward, in every dtype, size, number of samples, layout and alignment.

All but sums have the same bits."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from agreement import Arguments, assert_agree, device_bounds, every_output
from helpers import FLOAT_DTYPES, LAYOUTS, UNIT_ROUNDOFF, arithmetic_dtype, make_keys, make_parameters, same_bits
from torch import Tensor

from illia_ext import functional

# The parameters' dtype and the sample's.
DTYPES = [*((dtype, dtype) for dtype in FLOAT_DTYPES), (torch.float32, torch.float16), (torch.float32, torch.bfloat16)]
# none, one, and around what a thread, a warp, a block and a chunk may take at once
NUMELS = (0, 1, 3, 4, 5, 7, 8, 31, 33, 255, 256, 257, 1023, 1024, 1025, 2047, 2048, 2049, 4095, 4096, 4097)
LARGE = 2**20 + 3  # more than the GPU holds at once, and a tail
parametrize = pytest.mark.parametrize


def check(arguments: Arguments, on_device: Arguments, prior_grads: bool = True) -> None:
    outputs = (every_output(a, prior_grads) for a in (on_device, arguments))
    assert_agree(*outputs, device_bounds(arguments))


# A tensor's shape, the number of samples, and whether each element has its own prior.
CASES = [
    *product([(), *((numel,) for numel in NUMELS), (3, 0, 2), (5, 7, 13)], [None, 3], [False]),
    *product([(), (0,), (5,), (4097,)], [0, 1, 2, 33], [False]),
    *product([(LARGE,)], [None, 2], [False]),
    *product([(1,), (5,), (64,)], [5000], [False]),  # more samples than elements
    *product([(), (1,), (5,), (3, 0, 2), (5, 7, 13), (1023,), (4097,), (2**18 + 3,)], [None, 0, 3], [True]),
]


@parametrize(("shape", "num_samples", "each_prior"), CASES)
@parametrize(("dtype", "sample_dtype"), DTYPES)
def test_sizes_samples_and_priors(
    dtype: torch.dtype,
    sample_dtype: torch.dtype,
    shape: tuple[int, ...],
    num_samples: int | None,
    each_prior: bool,
    cuda: torch.device,
) -> None:
    arguments = Arguments.make(shape, dtype, sample_dtype, num_samples, each_prior)
    check(arguments, arguments.to(cuda))


@parametrize("num_samples", [None, 2])
@parametrize(("dtype", "sample_dtype"), DTYPES)
def test_a_whole_is_its_parts(
    dtype: torch.dtype, sample_dtype: torch.dtype, num_samples: int | None, cuda: torch.device
) -> None:
    """Where a block takes several pieces of a tensor: each part, drawn alone by a key moved on, has the same bits."""
    numel, size = 2**25 + 5, 2**22  # a part fits the GPU's blocks
    mu, rho = (tensor.requires_grad_() for tensor in make_parameters((numel,), dtype, cuda))
    keys = make_keys((42, 3), (2**63, 2**64 - 9), device=cuda)
    key = keys[0] if num_samples is None else keys
    grad_x = make_parameters((numel,), sample_dtype, cuda, seed=1)[0].expand(*key.shape[:-1], numel)
    ones = torch.ones(key.shape[:-1], dtype=arithmetic_dtype(dtype), device=cuda)

    def run(part: slice, key: Tensor) -> list[Tensor]:
        leaves = [tensor.detach()[part].requires_grad_() for tensor in (mu, rho)]
        outputs = functional.gaussian_sample_and_log_prob(*leaves, 0.25, 0.125, key, dtype=sample_dtype)
        grads = torch.autograd.grad(outputs, leaves, [grad_x[..., part], ones])
        return [*(output.detach() for output in outputs), *grads]

    x, log_prob, *grads = run(slice(None), key)
    total = torch.zeros_like(log_prob, dtype=torch.float64)
    for start in range(0, numel, size):
        part = slice(start, start + size)
        blocks = start // (2 if dtype == torch.float64 else 4)
        part_x, part_log_prob, *part_grads = run(part, key + torch.tensor([0, blocks], device=cuda))
        assert same_bits(x[..., part], part_x)
        assert all(same_bits(grad[part], part_grad) for grad, part_grad in zip(grads, part_grads))
        total += part_log_prob
    # 1e-6 of summands of which few cancel, for the whole and its parts (2^-29 of it in double)
    torch.testing.assert_close(
        log_prob.double(), total, rtol=4e-6 * (2.0**-29 if dtype == torch.float64 else 1), atol=0
    )


@parametrize(("dtype", "sample_dtype"), DTYPES)
@parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype, sample_dtype: torch.dtype, cuda: torch.device) -> None:
    """One sample; its x and the gradient to it lie as the parameters do."""
    whole = Arguments.make((2, 10, 6, 34), dtype, sample_dtype)
    strided = lay_out(whole.to(cuda), LAYOUTS[layout])
    assert layout == "offset" or not strided.mu.is_contiguous()
    check(Arguments(*(tensor.contiguous() for tensor in lay_out(whole, LAYOUTS[layout]))), strided)


def lay_out(arguments: Arguments, view: Callable[[Tensor], Tensor]) -> Arguments:
    return Arguments(*(view(tensor) if tensor.dim() == 4 else tensor for tensor in arguments))


@parametrize(("dtype", "sample_dtype"), DTYPES)
def test_samples_apart_in_memory(dtype: torch.dtype, sample_dtype: torch.dtype, cuda: torch.device) -> None:
    """The dimension of samples is the innermost one, or has stride 0; keys and their gradients lie apart too."""
    arguments = Arguments.make((5, 13), dtype, sample_dtype, num_samples=3)
    there = arguments.to(cuda)
    innermost = {name: to_innermost(getattr(there, name)) for name in ("x", "grad_x", "grad_log_prob", "key")}
    check(arguments, there._replace(**innermost))
    repeated = {name: getattr(arguments, name)[:1].expand_as(getattr(arguments, name)) for name in ("x", "grad_x")}
    on_device = {name: tensor[:1].to(cuda).expand_as(tensor) for name, tensor in repeated.items()}
    contiguous = {name: tensor.contiguous() for name, tensor in repeated.items()}
    check(arguments._replace(**contiguous), there._replace(**on_device))


def to_innermost(tensor: Tensor) -> Tensor:
    """The same values, every second one of a larger tensor, the first dimension innermost."""
    larger = tensor.new_zeros(*tensor.shape[1:], 2 * tensor.shape[0])
    inside = larger[..., ::2].movedim(-1, 0)
    return inside.copy_(tensor)


@parametrize("numel", [1, 5, 1021, 4099])
@parametrize("offset", [1, 2, 3, 5])
@parametrize(("dtype", "sample_dtype"), DTYPES)
def test_unaligned_views(
    dtype: torch.dtype, sample_dtype: torch.dtype, offset: int, numel: int, cuda: torch.device
) -> None:
    """Contiguous, but no longer at a multiple of 16 bytes: first every tensor in the same way, then each in its own."""
    arguments = Arguments.make((numel,), dtype, sample_dtype, num_samples=2)
    for offsets in ([offset] * len(arguments), [(offset + i) % 6 for i in range(len(arguments))]):
        views = Arguments(*(shifted(t, by) for t, by in zip(arguments.to(cuda), offsets)))
        assert views.mu.is_contiguous() and views.mu.storage_offset() == offsets[0]
        check(arguments, views)


def shifted(tensor: Tensor, offset: int) -> Tensor:
    larger = tensor.new_empty(offset + tensor.numel())
    return larger[offset:].view(tensor.shape).copy_(tensor)


@parametrize(("where", "shape"), [("cpu", ()), ("cuda", ()), ("cuda", (1,)), ("cuda", (1, 1))])
@parametrize("prior_dtype", FLOAT_DTYPES)
@parametrize("dtype", FLOAT_DTYPES)
def test_priors(
    dtype: torch.dtype, prior_dtype: torch.dtype, where: str, shape: tuple[int, ...], cuda: torch.device
) -> None:
    arguments = Arguments.make((1025,), dtype, num_samples=2)
    home = cuda if where == "cuda" else "cpu"
    priors = [prior.to(home, prior_dtype).reshape(shape) for prior in (arguments.mu_prior, arguments.std_prior)]
    there = arguments.to(cuda)
    to_numbers = where == "cuda" and prior_dtype == dtype and shape == (1,)  # as on the CPU here
    check(arguments, there._replace(mu_prior=priors[0], std_prior=priors[1]), prior_grads=to_numbers)
    check(arguments, there._replace(std_prior=priors[1]), prior_grads=to_numbers)  # of two kinds


@parametrize("dtype", FLOAT_DTYPES)
@parametrize("prior_shape", [(7, 1), (13,), (1, 13), (5, 1, 1), (1, 1, 13)])
def test_priors_broadcast(prior_shape: tuple[int, ...], dtype: torch.dtype, cuda: torch.device) -> None:
    """As full ones do, whose gradients torch sums. mu_prior is wider than the parameters, std_prior is a number."""
    a = Arguments.make((5, 7, 13), dtype, num_samples=2, each_prior=True).to(cuda)
    mu_prior = make_parameters(prior_shape, torch.float64, cuda, seed=4)[0].requires_grad_()
    full = mu_prior.detach().to(arithmetic_dtype(dtype)).expand(a.mu.shape).contiguous().requires_grad_()
    grads = []
    for prior in (mu_prior, full):
        log_prob = functional.gaussian_log_prob(a.x, a.mu, a.rho, prior, 0.5)
        grads += torch.autograd.grad(log_prob, prior, a.grad_log_prob)
    expected = grads[1].double().sum_to_size(prior_shape)
    # at most 91 summands, which any order of adding them rounds that often
    u = UNIT_ROUNDOFF[arithmetic_dtype(dtype)]
    bound = 91 * u * grads[1].double().abs().sum_to_size(prior_shape)
    assert grads[0].dtype == torch.float64
    assert ((grads[0] - expected).abs() <= bound).all()


# A tensor's sizes, where a block of it begins, and the block's: rows, columns, a part of each, one row, one element
BLOCKS = [
    ((64, 33), (3, 0), (50, 33)),
    ((64, 33), (0, 6), (64, 26)),
    ((64, 33), (7, 5), (9, 1)),
    ((9, 6, 11, 7), (1, 2, 3, 1), (7, 3, 8, 5)),
    ((9, 6, 11, 7), (2, 0, 5, 0), (3, 6, 2, 7)),
    ((70001,), (6,), (65539,)),
    ((4, 5), (3, 4), (1, 1)),
]


@parametrize("num_samples", [None, 3])
@parametrize(("dtype", "sample_dtype"), DTYPES)
@parametrize(("full_size", "origin", "size"), BLOCKS)
def test_a_block_is_a_part_of_the_whole(
    full_size: tuple[int, ...],
    origin: tuple[int, ...],
    size: tuple[int, ...],
    dtype: torch.dtype,
    sample_dtype: torch.dtype,
    num_samples: int | None,
    cuda: torch.device,
) -> None:
    """The same bits, forward and backward; its log_prob is the CPU's."""
    a = Arguments.make(full_size, dtype, sample_dtype, num_samples).to(cuda)
    part = (..., *(slice(start, start + count) for start, count in zip(origin, size)))
    local = a._replace(**{name: getattr(a, name)[part] for name in ("mu", "rho", "x", "grad_x")})
    place, ops = {"full_size": full_size, "origin": origin}, torch.ops.illia_ext

    def outputs(a: Arguments, **place: tuple[int, ...]) -> list[Tensor]:
        prior = (a.mu_prior, a.std_prior)
        x, log_prob = ops.gaussian_sample_and_log_prob(a.mu, a.rho, *prior, a.key, dtype=a.x.dtype, **place)
        backward = ops.gaussian_sample_and_log_prob_backward
        grads = backward(a.grad_x, a.grad_log_prob, a.mu, a.rho, *prior, a.key, **place)
        return [
            ops.standard_normal(a.key, a.mu.shape, dtype=dtype, **place),
            ops.gaussian_sample(a.mu, a.rho, a.key, dtype=a.x.dtype, **place),
            ops.gaussian_sample_backward(a.grad_x, a.rho, a.key, **place),
            *(x, grads[0], grads[1], log_prob),
        ]

    *ours, log_prob = outputs(local, **place)
    assert all(same_bits(tensor, full[part]) for tensor, full in zip(ours, outputs(a)))
    # 1e-6 of summands of which few cancel, on each device (2^-29 of it in double)
    unit = 2.0**-29 if dtype == torch.float64 else 1.0
    *on_cpu, expected = outputs(local.to(torch.device("cpu")), **place)
    assert all(torch.equal(tensor.cpu(), other) for tensor, other in zip(ours, on_cpu))
    torch.testing.assert_close(log_prob.cpu(), expected, rtol=4e-6 * unit, atol=0)


@parametrize("dtype", FLOAT_DTYPES)
def test_a_wrong_output_is_found(dtype: torch.dtype) -> None:
    """Of these tests themselves, so on the CPU: another key, one element moved by its last place, and a sum by 2^-9
    (2^-6, 2^-30) of itself."""
    arguments = Arguments.make((65,), dtype, num_samples=2)
    expected, bounds = every_output(arguments), device_bounds(arguments)
    assert_agree(expected, expected, bounds)
    with pytest.raises(AssertionError, match="eps: 130 of 130 differ"):
        assert_agree(every_output(arguments._replace(key=arguments.key + 1)), expected, bounds)
    for name, value in expected.items():
        largest = value.abs().argmax()
        wrong = value.clone()
        by = {torch.float64: 2.0**-30, torch.float32: 2.0**-9}.get(value.dtype, 2.0**-6)
        if bounds[name].dim() == 0 and bounds[name] == 0:
            by = torch.finfo(value.dtype).eps
        wrong.view(-1)[largest] *= 1 + by
        with pytest.raises(AssertionError, match=f"^{name}: 1 of"):
            assert_agree({**expected, name: wrong}, expected, bounds)
