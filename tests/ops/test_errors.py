"""Every refusal: its type, the argument it names and the value it shows, in the same words by ops and by functions.

test_odd_calls.py asks of random calls that a refusal names the argument and changes nothing.
"""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import DEVICE, make_key, make_keys
from torch import Tensor
from torch.utils._pytree import tree_map_only

from illia_ext import GaussianDistribution, functional, random
from illia_ext._native import library
from illia_ext._ops.fake import NAMES, op

nan, inf = float("nan"), float("inf")
HUGE = 2**50  # elements: 4 PiB of float32, more than a process can address
MU, KEY, ONE = torch.zeros(3, device=DEVICE), make_key(1), torch.ones((), device=DEVICE)
LEARNED, DISTRIBUTION = ONE.clone().requires_grad_(), GaussianDistribution(3, device=DEVICE)
FOREACH = [name for name in NAMES if name.startswith("foreach")]
parametrize = pytest.mark.parametrize


def types_of(name: str) -> dict[str, str]:
    return {argument.name: str(argument.type) for argument in op(name)._schema.arguments}


def is_list(name: str, argument: str) -> bool:
    return "Tensor]" in types_of(name)[argument] and types_of(name)[argument].startswith("List[")


def having(*arguments: str) -> list[str]:
    return [name for name in NAMES if set(arguments) <= set(types_of(name))]


def valid_arguments(name: str, numel: int = 3) -> dict[str, Any]:
    """By the names in the schema; lists hold two tensors."""
    elements = torch.ones(1, device=DEVICE).expand(numel)
    values: dict[str, Any] = dict.fromkeys(("mu", "rho", "x", "grad_x"), elements)
    values |= dict.fromkeys(("grad", "grad_log_prob", "mu_prior", "std_prior"), ONE)
    values |= {"key": KEY, "output_mask": [True] * 5, "size": [numel]}
    values |= {"dtype": torch.float32} if name == "standard_normal" else {}
    given = {argument: values[argument] for argument in types_of(name) if argument in values}
    return {argument: [value] * 2 if is_list(name, argument) else value for argument, value in given.items()}


def refuse(call: Callable[[], Any], exception: type[Exception], message: str) -> None:
    for _ in range(2):  # the first leaves nothing behind that the second would trip over
        with pytest.raises(exception, match="^" + re.escape(message)) as caught:
            call()
        assert type(caught.value) is exception


def refuse_everywhere(name: str, arguments: dict[str, Any], exception: type[Exception], message: str) -> None:
    """By the op a RuntimeError, by the function `exception`. The ops of lists say the same where single ops stand in
    for them: for a prior that requires a gradient, and under transforms. A call that autograd records says it, too."""
    learned = tree_map_only(Tensor, lambda tensor: LEARNED if tensor is ONE else tensor, arguments)
    stand_in = name in FOREACH and all(tensor.dtype in (MU.dtype, torch.float16) for tensor in arguments["mu"])
    trained = tree_map_only(Tensor, lambda t: t.detach().requires_grad_(t.dtype == MU.dtype), arguments.get("mu"))
    recorded = arguments | {"mu": trained} if "mu" in arguments else arguments
    ways = [arguments]
    if stand_in:
        ways += [recorded, learned]
    elif name not in FOREACH or hasattr(functional, name):  # single ops stand in for a recorded backward of lists
        ways += [recorded]
    for given in ways:
        refuse(lambda given=given: op(name)(**given), RuntimeError, message)
        if hasattr(functional, name):
            refuse(lambda given=given: getattr(functional, name)(**given), exception, message)

    def scaled(scale: Tensor) -> Any:
        return op(name)(**arguments | {"mu": [scale * tensor for tensor in arguments["mu"]]})

    if stand_in:
        refuse(lambda: torch.func.grad(scaled)(ONE.clone()), RuntimeError, message)
        refuse(lambda: torch.func.jvp(scaled, (ONE.clone(),), (ONE.clone(),)), RuntimeError, message)


FLOATS = "expected float32, float64, float16 or bfloat16, got torch."
NARROW = "expected the dtype of mu, torch.float32, or float16 or bfloat16 beside float32, got torch."
KEY_SHAPE = "expected shape [2] or [num_samples, 2], got "
X_SHAPE = "expected the shape of mu, [3], or one dimension of "
PRIOR_SHAPE = "expected one element, or a shape that broadcasts to that of mu, [3], got "
FAR, PARAMETERS = f"{DEVICE}, got meta", having("mu")
ALIKE = {"rho": MU, "x": MU, "grad_x": MU, "key": KEY, "grad": ONE, "grad_log_prob": ONE}
# The ops, their argument, what is wrong with it, what the message says after the argument's name, and which exception
# the functions raise. Of a list, the second tensor is wrong, and the message names it.
WRONG: list[tuple[list[str], str, Any, str, type[Exception]]] = [
    *[
        (PARAMETERS, "mu", MU.to(dtype), FLOATS + str(dtype).removeprefix("torch."), TypeError)
        for dtype in (torch.int32, torch.bool, torch.complex64, torch.float8_e5m2)
    ],
    (PARAMETERS, "rho", MU.double(), "expected the dtype of mu, torch.float32, got torch.float64", TypeError),
    (PARAMETERS, "rho", MU[:2], "expected the shape of mu, [3], got [2]", ValueError),
    (PARAMETERS, "rho", MU[None], "expected the shape of mu, [3], got [1, 3]", ValueError),
    (["gaussian_sample_backward"], "rho", MU.int(), FLOATS + "int32", RuntimeError),
    (having("key"), "key", KEY.int(), "expected int64 or uint64, got torch.int32", TypeError),
    (having("key"), "key", KEY.double(), "expected int64 or uint64, got torch.float64", TypeError),
    (having("key"), "key", MU.long(), KEY_SHAPE + "[3]", ValueError),
    (having("key"), "key", KEY[0], KEY_SHAPE + "[]", ValueError),
    (having("key"), "key", KEY[None, None], KEY_SHAPE + "[1, 1, 2]", ValueError),
    (having("dtype", "mu"), "dtype", torch.float64, NARROW + "float64", RuntimeError),
    (having("dtype", "mu"), "dtype", torch.int64, NARROW + "int64", RuntimeError),
    (["standard_normal"], "dtype", torch.complex64, FLOATS + "complex64", RuntimeError),
    (["standard_normal"], "size", [4, -2], "expected no negative dimension, got [4, -2]", RuntimeError),
    (having("x"), "x", MU.double(), NARROW + "float64", RuntimeError),
    *[
        (having("x"), "x", x, X_SHAPE + f"samples before it, got {list(x.shape)}", RuntimeError)
        for x in (ONE, MU[:2], MU[:, None].expand(3, 2), MU.expand(2, 2, 3))
    ],
    (having("grad_x"), "grad_x", MU.double(), NARROW + "float64", RuntimeError),
    (having("grad_x"), "grad_x", MU[:2], "expected shape [3], got [2]", RuntimeError),
    *[
        ([name for name in having(grad) if name.endswith("backward")], grad, wrong, message, RuntimeError)
        for grad in ("grad", "grad_log_prob")
        for wrong, message in (
            (ONE.double(), "expected torch.float32, got torch.float64"),
            (ONE.half(), "expected torch.float32, got torch.float16"),
            (MU, "expected shape [], got [3]"),
        )
    ],
    *[
        (having(prior), prior, wrong, message, RuntimeError)
        for prior in ("mu_prior", "std_prior")
        for wrong, message in (
            (ONE.long(), FLOATS + "int64"),
            (MU[:2], PRIOR_SHAPE + "[2]"),
            (MU.expand(2, 3), PRIOR_SHAPE + "[2, 3]"),
            (MU[:0], PRIOR_SHAPE + "[0]"),
        )
    ],
    *[
        (having(argument, "mu"), argument, value.to("meta"), f"expected to be on the device of mu, {FAR}", RuntimeError)
        for argument, value in ALIKE.items()
    ],
    *[
        (having(prior), prior, value, f"expected to be on the device of mu, {FAR}", RuntimeError)
        for prior in ("mu_prior", "std_prior")
        for value in (ONE.to("meta"), MU.to("meta"))
    ],
    (
        ["gaussian_sample_backward"],
        "grad_x",
        MU.to("meta"),
        f"expected to be on the device of rho, {FAR}",
        RuntimeError,
    ),
    *[
        (["gaussian_log_prob_backward"], "output_mask", [True] * n, f"expected 5 values, got {n}", RuntimeError)
        for n in (4, 6)
    ],
]
WRONG_ARGUMENTS = [(name, *row) for names, *row in WRONG for name in names]


@parametrize(("name", "argument", "wrong", "message", "exception"), WRONG_ARGUMENTS)
def test_a_wrong_argument(name: str, argument: str, wrong: Any, message: str, exception: type[Exception]) -> None:
    arguments, message = valid_arguments(name), f"{argument}: {message}"
    if is_list(name, argument):
        wrong, message = [arguments[argument][0], wrong], f"tensor 1: {message}"
    refuse_everywhere(name, arguments | {argument: wrong}, exception, message)


SEVERAL = [("grad_x", MU, "expected shape [2, 3], got [3]"), ("grad_log_prob", ONE, "expected shape [2], got []")]


@parametrize(
    ("name", "argument", "wrong", "message"), [(name, *row) for row in SEVERAL for name in having("key", row[0])]
)
def test_a_gradient_without_a_dimension_of_samples(name: str, argument: str, wrong: Tensor, message: str) -> None:
    """Beside several keys."""
    arguments, right = valid_arguments(name), {"grad_x": MU.expand(2, 3), "grad_log_prob": ONE.expand(2)}
    arguments |= {k: [right[k]] * 2 if is_list(name, k) else right[k] for k in right if k in arguments}
    arguments["key"] = make_keys((1, 2), (3, 4))
    op(name)(**arguments)
    message = f"{argument}: {message}"
    if is_list(name, argument):
        wrong, message = [right[argument], wrong], f"tensor 1: {message}"
    refuse_everywhere(name, arguments | {argument: wrong}, RuntimeError, message)


LISTS: list[tuple[dict[str, Any], str, type[Exception]]] = [
    ({"mu": [], "rho": []}, "mu: expected at least one tensor, got an empty list", ValueError),
    ({"rho": [MU]}, "rho: expected as many tensors as mu, 2, got 1", ValueError),
    ({"mu_prior": [ONE] * 3}, "mu_prior: expected one tensor, or as many as mu, 2, got 3", ValueError),
    ({"std_prior": []}, "std_prior: expected one tensor, or as many as mu, 2, got 0", ValueError),
    ({"mu": [MU, ONE], "rho": [ONE, MU]}, "tensor 0: rho: expected the shape of mu, [3], got []", ValueError),
    *[
        ({"mu": [MU, other], "rho": [MU, other]}, f"tensor 1: mu: {message}", exception)
        for other, message, exception in (
            (MU.double(), "expected the dtype of tensor 0, torch.float32, got torch.float64", TypeError),
            (MU.half(), "expected the dtype of tensor 0, torch.float32, got torch.float16", TypeError),
            (MU.to("meta"), f"expected to be on the device of tensor 0, {FAR}", RuntimeError),
        )
    ],
    ({"grad_x": [None]}, "grad_x: expected as many gradients as mu has tensors, 2, got 1", RuntimeError),
]


@parametrize(
    ("name", "wrong", "message", "exception"), [(n, *row) for row in LISTS for n in having(*row[0]) if n in FOREACH]
)
def test_wrong_lists(name: str, wrong: dict[str, Any], message: str, exception: type[Exception]) -> None:
    refuse_everywhere(name, valid_arguments(name) | wrong, exception, message)


INSIDE = "origin: expected 0 <= origin and origin + size <= full_size, got "
BLOCKS = [  # full_size, origin
    ([3], None, "origin: expected an index beside full_size, [3], got None"),
    (None, [0], "full_size: expected sizes beside origin, [0], got None"),
    ([3, 3], [0], "full_size: expected one value for each dimension of "),
    ([3], [], "origin: expected one value for each dimension of "),
    *[
        (full_size, origin, f"{INSIDE}{origin} for size [3] and full_size {full_size}")
        for full_size, origin in (([5], [-1]), ([5], [3]), ([2], [0]), ([-5], [-9]), ([5], [2**63 - 1]))
    ],
]


@parametrize("name", having("full_size"))
@parametrize(("full_size", "origin", "message"), BLOCKS)
def test_wrong_blocks(name: str, full_size: list[int] | None, origin: list[int] | None, message: str) -> None:
    arguments = valid_arguments(name) | {"full_size": full_size, "origin": origin}
    refuse(lambda: op(name)(**arguments), RuntimeError, message)


@parametrize(
    ("size", "full_size", "message"),
    [
        ([1, 1], [2**32, 2**31], "full_size: expected fewer than 2^63 elements, got [4294967296, 2147483648]"),
        ([2] * 10, [3] * 10, "full_size: expected a block whose rows are told by at most 8 dimensions, got size [2, 2"),
    ],
)
def test_blocks_that_no_kernel_takes(size: list[int], full_size: list[int], message: str) -> None:
    block = {"full_size": full_size, "origin": [0] * len(size)}
    refuse(lambda: op("standard_normal")(KEY, size, dtype=MU.dtype, **block), RuntimeError, message)


# What torch's own checks let through to an op

TENSORS = [(name, argument) for name in NAMES for argument, kind in types_of(name).items() if kind == "Tensor"]


@parametrize(("name", "argument"), TENSORS)
def test_none_for_a_tensor(name: str, argument: str) -> None:
    arguments = valid_arguments(name)
    op(name)(**arguments)
    if name == "standard_normal":  # torch then finds no device
        refuse(lambda: op(name)(**arguments | {"key": None}), NotImplementedError, "There were no tensor arguments")
    else:
        on_meta = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), arguments)
        for given in (arguments | {argument: None}, on_meta | {argument: None}):
            refuse(lambda given=given: op(name)(**given), RuntimeError, f"{argument}: expected a tensor, got None")


@parametrize(("name", "grad"), [(name, grad) for grad in ("grad", "grad_log_prob") for name in having(grad, "mu")])
def test_only_a_prior_is_a_number_on_the_cpu(name: str, grad: str) -> None:
    arguments = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), valid_arguments(name))
    number = torch.ones(())
    op(name)(**arguments | {"std_prior": [number] if is_list(name, "std_prior") else number})
    message = f"{grad}: expected to be on the device of mu, meta, got cpu"
    refuse(lambda: op(name)(**arguments | {grad: number}), RuntimeError, message)


@parametrize("dtype", [torch.uint4, torch.bits8, torch.float8_e8m0fnu])
@parametrize(("name", "argument"), TENSORS)
def test_a_dtype_that_the_shims_do_not_know(name: str, argument: str, dtype: torch.dtype) -> None:
    arguments = valid_arguments(name)
    odd = torch.empty(arguments[argument].shape, dtype=dtype, device=DEVICE)
    message = f"{argument}: expected a dtype that torch's stable interface knows, got "
    refuse(lambda: op(name)(**arguments | {argument: odd}), RuntimeError, message)


@parametrize("name", NAMES)
def test_larger_than_any_memory(name: str) -> None:
    message = f"cannot allocate a torch.float32 tensor of shape [{HUGE}]"
    with pytest.raises(RuntimeError, match=rf"^(out of memory: )?{re.escape(message)}"):
        op(name)(**valid_arguments(name, HUGE))


@parametrize("rho", [MU, MU.to_sparse()])
def test_an_op_missing_on_a_device_says_which(rho: Tensor) -> None:
    with pytest.raises(NotImplementedError, match=r"'illia_ext::gaussian_sample'.* the 'Sparse(CPU|CUDA)' backend"):
        functional.gaussian_sample(MU.to_sparse(), rho, KEY)


@parametrize("name", having("x") + having("dtype", "mu"))
def test_only_float32_parameters_have_narrower_samples(name: str) -> None:
    for dtype, sample_dtype in ((torch.float64, torch.float16), (torch.bfloat16, torch.float16)):
        arguments = tree_map_only(Tensor, lambda t, d=dtype: t.to(d) if t.shape == (3,) else t, valid_arguments(name))
        argument, value = ("x", MU.to(sample_dtype)) if "x" in arguments else ("dtype", sample_dtype)
        message = NARROW.replace("float32", str(dtype).removeprefix("torch."), 1) + "float16"
        refuse(lambda a=arguments | {argument: value}: op(name)(**a), RuntimeError, f"{argument}: {message}")


def test_gradients_to_samples_of_two_dtypes() -> None:
    name, message = (
        "foreach_gaussian_sample_and_log_prob_backward",
        "tensor 1: grad_x: expected the dtype of the gradients",
    )
    arguments = valid_arguments(name) | {"grad_x": [MU, MU.half()]}
    refuse(lambda: op(name)(**arguments), RuntimeError, f"{message} before it, torch.float32, got torch.float16")


# What the functions of Python refuse by themselves

POSITIVE, FINITE = "expected a positive finite number, got ", "expected a finite number, got "
KINDS: list[tuple[str, Any, str, type[Exception]]] = [  # argument, value, message, exception
    ("mu", [0.0], "expected a tensor, got [0.0]", TypeError),
    ("rho", 1.0, "expected a tensor, got 1.0", TypeError),
    *[(argument, None, "expected a tensor, got None", TypeError) for argument in ("x", "mu", "rho", "key")],
    ("key", 5, "expected a tensor, got 5", TypeError),
    ("mu_prior", None, "expected a number, got None", TypeError),
    ("std_prior", "1", "expected a number, got '1'", TypeError),
    *[("std_prior", n, POSITIVE + str(n), ValueError) for n in (0, 0.0, -0.5, nan, inf, -inf, 10**400)],
    *[("mu_prior", n, FINITE + str(n), ValueError) for n in (nan, inf, -inf, 10**400)],
]


@parametrize(
    ("name", "argument", "value", "message", "exception"),
    [(name, *row) for row in KINDS for name in functional.__all__ if row[0] in types_of(name)],
)
def test_values_of_a_wrong_kind(name: str, argument: str, value: Any, message: str, exception: type[Exception]) -> None:
    arguments, message = valid_arguments(name), f"{argument}: {message}"
    if is_list(name, argument):
        value, message = [arguments[argument][0], value], f"tensor 1: {message}"
    learned = {"mu_prior": LEARNED} if "mu_prior" in arguments else {}
    for others in ({}, learned):
        refuse(
            lambda others=others: getattr(functional, name)(**arguments | others | {argument: value}),
            exception,
            message,
        )


FOREACH_KINDS: list[tuple[str, Any, str, type[Exception]]] = [
    ("mu", MU, "mu: expected a sequence of tensors, got tensor(", TypeError),
    ("rho", None, "rho: expected a sequence of tensors, got None", TypeError),
    ("std_prior", None, "std_prior: expected a number, got None", TypeError),
    ("std_prior", torch.ones(()).numpy(), "std_prior: expected a number, got array(", TypeError),
    ("mu_prior", nan, "mu_prior: expected a finite number, got nan", ValueError),
]


@parametrize("name", [name for name in functional.__all__ if name in FOREACH])
@parametrize(("argument", "value", "message", "exception"), FOREACH_KINDS)
def test_lists_of_a_wrong_kind(name: str, argument: str, value: Any, message: str, exception: type[Exception]) -> None:
    arguments = valid_arguments(name) | {argument: value}
    refuse(lambda: getattr(functional, name)(**arguments), exception, message)


WORDS = f"expected an integer in [-2**63, 2**64), got {2**64}"
TWICE = "num_samples: a key says how many samples to draw, got num_samples=2 too"
MODULE: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: GaussianDistribution(3, scale=2), TypeError, "GaussianDistribution: unknown arguments ['scale']"),
    (lambda: GaussianDistribution(3, std_prior=-0.5), ValueError, f"std_prior: {POSITIVE}-0.5"),
    (lambda: GaussianDistribution(3, mu_prior=inf), ValueError, f"mu_prior: {FINITE}inf"),
    (lambda: GaussianDistribution(-3), ValueError, "shape: expected no negative size, got -3"),
    (lambda: GaussianDistribution((2, -3)), ValueError, "shape: expected no negative size, got (2, -3)"),
    (lambda: GaussianDistribution(3, dtype=torch.int64), TypeError, f"dtype: {FLOATS}int64"),
    (lambda: GaussianDistribution(3, dtype=torch.cfloat), TypeError, f"dtype: {FLOATS}complex64"),
    *[
        (call, error, f"num_samples: {expected}, got {value}")
        for value, error, expected in (
            (-1, ValueError, "must be at least 0"),
            (True, TypeError, "expected an integer"),
            (False, TypeError, "expected an integer"),
        )
        for call in (
            lambda value=value: DISTRIBUTION.sample(value),
            lambda value=value: DISTRIBUTION.sample_and_log_prob(num_samples=value),
        )
    ],
    (lambda: DISTRIBUTION.sample(2, KEY), ValueError, TWICE),
    (lambda: DISTRIBUTION.sample_and_log_prob(num_samples=2, key=KEY), ValueError, TWICE),
    (lambda: DISTRIBUTION.sample(key=KEY.int()), TypeError, "key: expected int64 or uint64, got torch.int32"),
    (lambda: DISTRIBUTION.log_prob(torch.ones(4, device=DEVICE)), RuntimeError, f"x: {X_SHAPE}"),
    (lambda: random.key(2**64), ValueError, f"seed: {WORDS}"),
    (lambda: random.draw_key(-1), ValueError, "num_keys: must be at least 0, got -1"),
    (lambda: random.draw_key(mesh="x"), TypeError, "mesh: expected a torch.distributed.DeviceMesh, got 'x'"),
    (lambda: random.draw_key(True), TypeError, "num_keys: expected an integer, got True"),
    (lambda: random.split(KEY, -1), ValueError, "n: must be at least 0, got -1"),
    (lambda: random.split(KEY.int()), TypeError, "key: expected int64 or uint64, got torch.int32"),
    (lambda: random.fold_in(MU.long(), 1), ValueError, "key: expected shape [..., 2], got [3]"),
    (lambda: random.fold_in(KEY, 2**64), ValueError, f"data: {WORDS}"),
    (lambda: random.advance(KEY, 0.5), TypeError, "blocks: expected an integer, got 0.5"),
    (lambda: random.advance(KEY, 2**64), ValueError, f"blocks: {WORDS}"),
]


@parametrize(("call", "exception", "message"), MODULE, ids=lambda value: value if isinstance(value, str) else "")
def test_modules_and_keys(call: Callable[[], Any], exception: type[Exception], message: str) -> None:
    before = torch.random.get_rng_state()
    refuse(call, exception, message)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_unknown_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ILLIA_EXT_JIT", "yes")
    with pytest.raises(ValueError, match=r"^ILLIA_EXT_JIT: expected 0 or 1, got 'yes'"):
        library.load()
