"""Arguments of the ops at random, for the laws of tests/ops/test_laws*.py: shapes, strides, dtypes, keys, priors."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import helpers
import torch
from agreement import Arguments, every_op
from helpers import FLOAT_DTYPES, HALF_DTYPES, UNIT_ROUNDOFF, arithmetic_dtype, make_keys, sigma
from hypothesis import strategies as st
from torch import Tensor

CORNERS = (0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1)
WORDS = st.sampled_from(CORNERS) | st.integers(0, 2**64 - 1)
SEEDS = st.integers(0, 2**32 - 1)  # of values: hypothesis shrinks shapes and layouts, not each element
DTYPES = st.sampled_from(FLOAT_DTYPES)
SAMPLES = st.none() | st.integers(0, 3)  # one without a dimension of its own, or S
# none, one, a few; short rows of many dimensions; across a piece of 256 and a chunk of 1024 elements
SHAPES = (
    st.lists(st.integers(0, 4), max_size=5).map(tuple)
    | st.lists(st.integers(1, 2), min_size=6, max_size=9).map(tuple)
    | st.tuples(st.integers(1, 40), st.integers(1, 60))
)


def normals(seed: int, shape: Sequence[int]) -> Tensor:
    """float64, on the CPU; the law at hand makes of them what it needs."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform_rho(z: Tensor) -> Tensor:
    """rho uniform in (-8, 4)."""
    return 6 * torch.erf(z / math.sqrt(2)) - 2


def lay_out(tensor: Tensor, order: Sequence[int], steps: Sequence[int], offset: int) -> Tensor:
    """The same values: dimensions in memory in another order, NaN between elements, before the first and after the
    last."""
    sizes = [tensor.shape[dim] * steps[dim] for dim in order]
    numel = math.prod(sizes)
    storage = tensor.new_full([offset + numel + offset], math.nan if tensor.is_floating_point() else -1)
    inside = storage[offset : offset + numel].view(sizes)[tuple(slice(None, None, steps[dim]) for dim in order)]
    view = inside.permute(sorted(range(len(order)), key=order.__getitem__))
    return view.copy_(tensor)


@st.composite
def laid_out(draw: Any, tensor: Tensor) -> Tensor:
    """As it is, with strides, with some dimensions expanded, which makes their values equal, or lazily negated."""
    kinds = ("plain", "strided", "expanded", "negated")
    kind, shape, dims = draw(st.sampled_from(kinds)), tensor.shape, range(tensor.dim())
    if kind == "plain" or (kind == "negated" and not tensor.is_floating_point()):
        return tensor
    if kind == "negated":
        return torch._neg_view(-tensor)
    if kind == "expanded":
        once = draw(st.lists(st.booleans(), min_size=len(dims), max_size=len(dims)))
        tensor = tensor[tuple(slice(0, 1) if one else slice(None) for one in once)]
    steps = draw(st.lists(st.integers(1, 3), min_size=len(dims), max_size=len(dims)))
    return lay_out(tensor, draw(st.permutations(dims)), steps, draw(st.integers(0, 3))).expand(shape)


@st.composite
def tensors(
    draw: Any, shape: Sequence[int], dtype: torch.dtype, rule: Callable[[Tensor], Tensor] = lambda z: z
) -> Tensor:
    return draw(laid_out(rule(normals(draw(SEEDS), shape)).to(helpers.DEVICE, dtype)))


@st.composite
def keys(draw: Any, num_samples: int | None) -> Tensor:
    """[2] or [S, 2], int64 or uint64, with any strides."""
    words = st.tuples(WORDS, WORDS)
    count = 1 if num_samples is None else num_samples
    batch = make_keys(*draw(st.lists(words, min_size=count, max_size=count)), device=helpers.DEVICE)
    key = draw(laid_out(batch[0] if num_samples is None else batch))
    return key.view(torch.uint64) if draw(st.booleans()) else key


@st.composite
def prior_shapes(draw: Any, shape: Sequence[int]) -> tuple[int, ...]:
    """One element, or a shape that broadcasts to `shape`."""
    if draw(st.booleans()):
        return (1,) * draw(st.integers(0, 2))
    sizes = tuple(draw(st.sampled_from((1, size))) for size in shape)
    return sizes[draw(st.integers(0, len(sizes))) :]


@st.composite
def arguments(draw: Any, dtypes: Any = DTYPES, num_samples: Any = SAMPLES, broadcast: bool = True) -> Arguments:
    """The given x lies up to some 5 sigma from mu; without `broadcast`, priors are of one element or of mu's shape."""
    dtype, shape, samples = draw(dtypes), draw(SHAPES), draw(num_samples)
    batch = () if samples is None else (samples,)
    sample_dtype = draw(st.sampled_from((dtype, *(HALF_DTYPES if dtype == torch.float32 else ()))))
    mu, rho = draw(tensors(shape, dtype)), draw(tensors(shape, dtype, uniform_rho))
    spread = sigma(rho)
    priors = []
    for rule in (lambda z: z, torch.exp):
        prior_shape = draw(prior_shapes(shape) if broadcast else st.sampled_from(((1,), shape)))
        prior_dtype = draw(st.sampled_from((dtype, torch.float32))) if broadcast else dtype
        priors.append(draw(tensors(prior_shape, prior_dtype, rule)))
    return Arguments(
        mu,
        rho,
        draw(tensors((*batch, *shape), sample_dtype, lambda z: mu.double().cpu() + spread.cpu() * z)),
        draw(tensors((*batch, *shape), sample_dtype)),
        draw(tensors(batch, arithmetic_dtype(dtype))),
        draw(tensors((), arithmetic_dtype(dtype))),
        draw(keys(samples)),
        *priors,
    )


@st.composite
def lists(draw: Any) -> dict[str, Any]:
    """Arguments of the functions of many tensors, two to five of them, and the gradients to their samples, of which
    test_foreach.py tells why none is lazily negated."""
    dtype, shapes, samples = draw(DTYPES), draw(st.lists(SHAPES, min_size=2, max_size=5)), draw(SAMPLES)
    batch = () if samples is None else (samples,)
    return {
        "mu": [draw(tensors(shape, dtype)) for shape in shapes],
        "rho": [draw(tensors(shape, dtype, uniform_rho)) for shape in shapes],
        "mu_prior": [draw(tensors(draw(st.sampled_from(((1,), shape))), dtype)) for shape in shapes],
        "std_prior": [draw(tensors(draw(st.sampled_from(((), shape))), dtype, torch.exp)) for shape in shapes],
        "grad_x": [draw(tensors((*batch, *shape), dtype)).resolve_neg() for shape in shapes],
        "key": draw(keys(samples)),
    }


def flatten(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else [tensor for output in outputs for tensor in flatten(output)]


def every_result(a: Arguments, general: bool) -> dict[str, list[Tensor]]:
    """Of every op, backward ones too; `general` as of agreement.every_op."""
    return {name: flatten(call()) for name, call in every_op(a, general).items()}


def roundoff(like: Tensor) -> float:
    return UNIT_ROUNDOFF[arithmetic_dtype(like.dtype)]


def seen(prior: Tensor, mu: Tensor) -> Tensor:
    """In float64, as the kernels read it: rounded to the arithmetic type."""
    return prior.to(arithmetic_dtype(mu.dtype)).double().reshape(prior.shape if prior.numel() != 1 else ())
