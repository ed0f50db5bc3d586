"""Calls of every op at random, as its schema wants them or wrong in one place.

A call that the documentation allows is accepted; a wrong one is refused by a message that begins with the name of what
is wrong. Either way no byte of the arguments' memory changes, nor around and between their elements. test_errors.py
has the sentences themselves.
"""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import FLOAT_DTYPES, HALF_DTYPES, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from law_cases import arguments, flatten, lists, tensors
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from illia_ext._ops.fake import NAMES, op

HUGE = 2**50  # elements: no memory holds them
# What torch itself says before an op sees the call, and when there is no memory
TORCHS_OWN = r"illia_ext::\w+\(\) Expected a value of type|There were no tensor arguments"
ANOTHER_DEVICE = r"(tensor \d+: )?\w+: expected to be on the device of "  # than mu, wherever that is
NO_MEMORY = "(out of memory: )?cannot allocate a torch"
Call = dict[str, Any]


@st.composite
def valid_calls(draw: Any, name: str) -> Call:
    """By the names in the schema; what has a default may be missing."""
    if name.startswith("foreach"):
        values = draw(lists())
        mu, samples = values["mu"], values["key"].shape[:-1]
        if draw(st.booleans()):
            values["mu_prior"] = [draw(tensors((), draw(st.sampled_from(FLOAT_DTYPES))))]
        values["grad_x"] = [draw(st.sampled_from((None, grad))) for grad in values["grad_x"]]
        total = torch.float64 if mu[0].dtype == torch.float64 else torch.float32
        values |= {"grad": draw(tensors((), total)), "grad_log_prob": draw(tensors(samples, total))}
    else:
        a = draw(arguments())
        values, mu = a._asdict() | {"grad": a.grad_kl_divergence, "size": list(a.mu.shape)}, [a.mu]
        if draw(st.booleans()):
            values["std_prior"] = draw(tensors((), draw(st.sampled_from(FLOAT_DTYPES)), torch.exp))
        if mu[0].dim() <= 8:  # more may be more dimensions than a block's rows may have
            before, after = (draw(st.lists(st.integers(0, 5), min_size=9, max_size=9)) for _ in range(2))
            values["origin"] = before[: mu[0].dim()]
            values["full_size"] = [i + n + j for i, n, j in zip(before, mu[0].shape, after)]
    dtypes = (mu[0].dtype, *(HALF_DTYPES if mu[0].dtype == torch.float32 else ()))
    values |= {
        "dtype": draw(st.sampled_from(dtypes)),
        "output_mask": draw(st.lists(st.booleans(), min_size=5, max_size=5)),
    }
    values |= {flag: draw(st.booleans()) for flag in ("stick_the_landing", "prior_grads")}
    schema, has_block = op(name)._schema.arguments, draw(st.booleans())
    left_out = {a.name for a in schema if a.has_default_value() and draw(st.booleans())} - {"full_size", "origin"}
    left_out |= set() if has_block else {"full_size", "origin"}
    return {a.name: values[a.name] for a in schema if a.name in values and a.name not in left_out}


def wrong_tensors(name: str, tensor: Tensor, leads: bool) -> Iterator[tuple[str, Any]]:
    """Each with the start of its refusal. The others must have the shape of a tensor that leads."""
    for dtype in (torch.int32, torch.complex64, torch.float8_e5m2, torch.bool):
        yield f"{name}: expected ", tensor.new_zeros(tensor.shape, dtype=dtype)
    if not leads:
        yield f"{name}: expected ", tensor.new_zeros([2] * 12)
    if not leads and tensor.dim() and name not in ("x", "mu_prior", "std_prior"):
        yield f"{name}: expected ", tensor.new_zeros([*tensor.shape[:-1], tensor.shape[-1] + 3])
    yield ANOTHER_DEVICE if leads else f"{name}: expected to be on the device of ", tensor.to("meta")


def wrong_values(name: str, argument: str, value: Any, call: Call) -> Iterator[tuple[str, Any]]:
    """What is certainly wrong in place of `value`, whatever else the call has."""
    kind = next(str(each.type) for each in op(name)._schema.arguments if each.name == argument)
    leads = argument == "mu" or (argument == "rho" and "mu" not in call)
    if kind in ("Tensor", "Optional[Tensor]"):
        wrong = wrong_tensors(argument, value, leads)
        # a key is the only tensor of standard_normal, and may be on any device
        yield from (each for each in wrong if name != "standard_normal" or not each[1].is_meta)
        if kind == "Tensor":
            yield f"{argument}: expected a tensor, got None|{TORCHS_OWN}", None
    elif "Tensor" in kind:
        yield f"{argument}: expected ", []
        if argument != "mu":
            yield f"{argument}: expected ", value + [value[0]] * len(call["mu"])
        if "Optional" not in kind:
            yield TORCHS_OWN, [None, *value[1:]]
        for k, tensor in enumerate(value):
            for message, wrong in () if tensor is None else wrong_tensors(argument, tensor, leads):
                where = "" if message == ANOTHER_DEVICE else f"tensor {k}: "
                yield where + message, [*value[:k], wrong, *value[k + 1 :]]
    elif argument == "dtype":
        yield from ((f"{argument}: expected ", dtype) for dtype in (torch.int64, torch.complex64))
    elif argument == "output_mask":
        yield from ((f"{argument}: expected 5 values", mask) for mask in (value[1:], [*value, True]))
    elif argument == "size":
        yield from ((f"{argument}: expected no negative dimension", [*value, n]) for n in (-1, -(2**62)))
        if "full_size" not in call and 0 not in value and call["key"].numel():
            yield NO_MEMORY, [*value, HUGE]
    elif argument in ("full_size", "origin"):
        yield f"{argument}: expected ", None
        yield f"{argument}: expected one value for each dimension", [*value, 1]
        for n in (-1, -(2**63), *([2**63 - 1] if argument == "origin" else ())) if value else ():
            yield "origin: expected 0 <= origin and origin", [n, *value[1:]]
        if len(value) > 1 and argument == "full_size":
            yield f"{argument}: expected fewer than 2\\^63 elements", [2**62] * len(value)


def memory(call: Call) -> list[Tensor]:
    """All bytes behind the arguments."""
    storages = [t.untyped_storage() for t in tree_leaves(call) if isinstance(t, Tensor) and not t.is_meta]
    return [torch.empty(0, dtype=torch.uint8, device=s.device).set_(s) for s in storages]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=settings.default.max_examples // 2)
@given(data=st.data())
def test_calls(name: str, data: st.DataObject) -> None:
    call = data.draw(valid_calls(name))
    before = [each.clone() for each in memory(call)]
    outputs = flatten(op(name)(**call))
    expected = flatten(op(name)(**tree_map_only(Tensor, lambda tensor: tensor.to("meta"), call)))
    for output, meta in zip(outputs, expected, strict=True):
        assert (output.shape, output.dtype) == (meta.shape, meta.dtype) and output.is_contiguous()
        # the arguments are moderate, and only float16 ends so near that a gradient may be beyond
        assert output.dtype == torch.float16 or output.isfinite().all()
    assert all(map(torch.equal, memory(call), before))

    changes = [(arg, *each) for arg, value in call.items() for each in wrong_values(name, arg, value, call)]
    for argument, message, wrong in changes[data.draw(st.integers(0, 4)) :: 5]:
        odd = call | {argument: wrong}
        before_odd = [each.clone() for each in memory(odd)]
        with pytest.raises((RuntimeError, TypeError, ValueError, NotImplementedError)) as caught:
            op(name)(**odd)
        assert re.match(message, str(caught.value)), f"{argument}: {wrong}: {caught.value}"
        assert all(map(torch.equal, memory(odd), before_odd)), argument
    assert all(map(same_bits, flatten(op(name)(**call)), outputs))
