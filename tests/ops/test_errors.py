"""Every refusal: its type, the argument it names and the value it shows. Nothing is changed by it."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import DEVICE, make_key, make_keys, same_bits
from torch import Tensor

from illia_ext import GaussianDistribution, functional, random
from illia_ext._native import library
from illia_ext._ops.fake import op

nan, inf = float("nan"), float("inf")
MU, RHO, ONE = torch.zeros(3, device=DEVICE), torch.ones(3, device=DEVICE), torch.ones((), device=DEVICE)
KEY, KEYS, PRIOR = make_key(1), make_keys((1, 2), (3, 4)), (MU[:1].clone(), RHO[:1].clone())
DISTRIBUTION = GaussianDistribution(3, device=DEVICE)
MASK = [True, True, True, False, False]

sample, log_prob = functional.gaussian_sample, functional.gaussian_log_prob
both, kl_divergence = functional.gaussian_sample_and_log_prob, functional.gaussian_kl_divergence
op_normal, op_sample, op_log_prob = op("standard_normal"), op("gaussian_sample"), op("gaussian_log_prob")
op_both, op_kl_divergence = op("gaussian_sample_and_log_prob"), op("gaussian_kl_divergence")
op_sample_backward, op_log_prob_backward = op("gaussian_sample_backward"), op("gaussian_log_prob_backward")
op_both_backward = op("gaussian_sample_and_log_prob_backward")
op_kl_divergence_backward = op("gaussian_kl_divergence_backward")

Case = tuple[Callable[[], Any], type[Exception], str]  # the call, what it raises, and how the message starts

FUNCTIONAL: list[Case] = [
    # kinds of things
    (lambda: sample([0.0], RHO, KEY), TypeError, "mu: expected a tensor, got [0.0]"),
    (lambda: sample(MU, 1.0, KEY), TypeError, "rho: expected a tensor, got 1.0"),
    (lambda: sample(MU, RHO, 5), TypeError, "key: expected a tensor, got 5"),
    (lambda: sample(MU, RHO, None), TypeError, "key: expected a tensor, got None"),
    (lambda: log_prob(None, MU, RHO, 0.0, 1.0), TypeError, "x: expected a tensor, got None"),
    (lambda: kl_divergence(MU, RHO, None, 1.0), TypeError, "mu_prior: expected a number, got None"),
    (lambda: kl_divergence(MU, RHO, 0.0, "1"), TypeError, "std_prior: expected a number, got '1'"),
    # dtypes
    (
        lambda: sample(MU.int(), RHO.int(), KEY),
        TypeError,
        "mu: expected float32, float64, float16 or bfloat16, got torch.int32",
    ),
    (
        lambda: both(MU.bool(), RHO, 0.0, 1.0, KEY),
        TypeError,
        "mu: expected float32, float64, float16 or bfloat16, got torch.bool",
    ),
    (
        lambda: kl_divergence(MU.cfloat(), RHO, 0, 1),
        TypeError,
        "mu: expected float32, float64, float16 or bfloat16, got torch.complex64",
    ),
    (
        lambda: sample(MU, RHO.double(), KEY),
        TypeError,
        "rho: expected the dtype of mu, torch.float32, got torch.float64",
    ),
    (lambda: sample(MU, RHO, KEY.int()), TypeError, "key: expected int64 or uint64, got torch.int32"),
    (lambda: sample(MU, RHO, KEY.double()), TypeError, "key: expected int64 or uint64, got torch.float64"),
    # shapes
    (lambda: sample(MU, RHO[:2], KEY), ValueError, "rho: expected the shape of mu, [3], got [2]"),
    (lambda: kl_divergence(MU, RHO[None], 0.0, 1.0), ValueError, "rho: expected the shape of mu, [3], got [1, 3]"),
    (lambda: sample(MU, RHO, MU.long()), ValueError, "key: expected shape [2] or [num_samples, 2], got [3]"),
    (lambda: sample(MU, RHO, KEY[0]), ValueError, "key: expected shape [2] or [num_samples, 2], got []"),
    (lambda: both(MU, RHO, 0, 1, KEYS[None]), ValueError, "key: expected shape [2] or [num_samples, 2], got [1, 2, 2]"),
    # values
    *[
        (call, ValueError, f"std_prior: expected a positive finite number, got {value}")
        for value in (0, 0.0, -0.5, nan, inf, -inf, 10**400)
        for call in (
            lambda value=value: kl_divergence(MU, RHO, 0.0, value),
            lambda value=value: log_prob(MU, MU, RHO, 0.0, value),
            lambda value=value: both(MU, RHO, 0.0, value, KEY),
            lambda value=value: GaussianDistribution(3, std_prior=value),
        )
    ],
    *[
        (call, ValueError, f"mu_prior: expected a finite number, got {value}")
        for value in (nan, inf, -inf, 10**400)
        for call in (
            lambda value=value: kl_divergence(MU, RHO, value, 1.0),
            lambda value=value: GaussianDistribution(3, mu_prior=value),
        )
    ],
]

OPS: list[Case] = [
    (call, RuntimeError, message)
    for call, message in [
        # dtypes
        (
            lambda: op_sample(MU.int(), RHO.int(), KEY),
            "mu: expected float32, float64, float16 or bfloat16, got torch.int32",
        ),
        (
            lambda: op_kl_divergence(MU.to(torch.float8_e5m2), RHO, *PRIOR),
            "mu: expected float32, float64, float16 or bfloat16, got torch.float8_e5m2",
        ),
        (
            lambda: op_both(MU, RHO.half(), *PRIOR, KEY),
            "rho: expected the dtype of mu, torch.float32, got torch.float16",
        ),
        (lambda: op_sample(MU, RHO, KEY.int()), "key: expected int64 or uint64, got torch.int32"),
        (lambda: op_normal(KEY.float(), [2], dtype=torch.float32), "key: expected int64 or uint64, got torch.float32"),
        (lambda: op_normal(KEY, [2], dtype=torch.cfloat), "dtype: expected float32, float64, float16 or bfloat16"),
        *[
            (
                lambda dtype=dtype: op_sample(MU, RHO, KEY, dtype=dtype),
                f"dtype: expected the dtype of mu, torch.float32, or float16 or bfloat16 beside float32, got {name}",
            )
            for dtype, name in ((torch.float64, "torch.float64"), (torch.int64, "torch.int64"))
        ],
        (
            lambda: op_both(MU.double(), RHO.double(), *PRIOR, KEY, dtype=torch.float16),
            "dtype: expected the dtype of mu, torch.float64, or float16 or bfloat16 beside float32, got torch.float16",
        ),
        (
            lambda: op_log_prob(MU.double(), MU, RHO, *PRIOR),
            "x: expected the dtype of mu, torch.float32, or float16 or bfloat16 beside float32, got torch.float64",
        ),
        (
            lambda: op_log_prob(MU.half(), MU.bfloat16(), RHO.bfloat16(), *PRIOR),
            "x: expected the dtype of mu, torch.bfloat16, or float16 or bfloat16 beside float32, got torch.float16",
        ),
        (
            lambda: op_kl_divergence(MU, RHO, PRIOR[0].long(), PRIOR[1]),
            "mu_prior: expected float32, float64, float16 or bfloat16, got torch.int64",
        ),
        (
            lambda: op_log_prob_backward(ONE.double(), MU, MU, RHO, *PRIOR, MASK),
            "grad_log_prob: expected torch.float32, got torch.float64",
        ),
        (
            lambda: op_kl_divergence_backward(ONE.half(), MU, RHO, *PRIOR),
            "grad: expected torch.float32, got torch.float16",
        ),
        # shapes
        (lambda: op_sample(MU, RHO[:2], KEY), "rho: expected the shape of mu, [3], got [2]"),
        (lambda: op_sample(MU, RHO, KEYS[None]), "key: expected shape [2] or [num_samples, 2], got [1, 2, 2]"),
        (lambda: op_normal(KEY, [4, -2], dtype=torch.float32), "size: expected no negative dimension, got [4, -2]"),
        *[
            (
                lambda x=x: op_log_prob(x, MU, RHO, *PRIOR),
                f"x: expected the shape of mu, [3], or one dimension of samples before it, got {list(x.shape)}",
            )
            for x in (ONE, RHO[:2], RHO[:, None].expand(3, 2), RHO.expand(2, 2, 3))
        ],
        (lambda: op_sample_backward(MU, RHO, KEYS), "grad_x: expected shape [2, 3], got [3]"),
        (
            lambda: op_log_prob_backward(KEYS[0].float(), MU, MU, RHO, *PRIOR, MASK),
            "grad_log_prob: expected shape [], got [2]",
        ),
        (lambda: op_both_backward(None, ONE, MU, RHO, *PRIOR, KEYS), "grad_log_prob: expected shape [2], got []"),
        (lambda: op_both_backward(MU[:2], None, MU, RHO, *PRIOR, KEY), "grad_x: expected shape [3], got [2]"),
        (lambda: op_kl_divergence_backward(MU, MU, RHO, *PRIOR), "grad: expected shape [], got [3]"),
        # devices
        *[
            (
                lambda call=call, place=place, args=args: call(
                    *args[:place], args[place].to("meta"), *args[place + 1 :]
                ),
                f"{name}: expected to be on the device of {home}, {DEVICE}, got meta",
            )
            for call, args, place, name, home in (
                (op_sample, (MU, RHO, KEY), 1, "rho", "mu"),
                (op_sample, (MU, RHO, KEY), 2, "key", "mu"),
                (op_log_prob, (MU, MU, RHO, *PRIOR), 0, "x", "mu"),
                (op_log_prob, (MU, MU, RHO, *PRIOR), 3, "mu_prior", "mu"),
                (op_both, (MU, RHO, *PRIOR, KEY), 3, "std_prior", "mu"),
                (op_kl_divergence, (MU, RHO, ONE, ONE), 2, "mu_prior", "mu"),
                (op_kl_divergence, (MU, RHO, *PRIOR), 1, "rho", "mu"),
                (op_sample_backward, (MU, RHO, KEY), 0, "grad_x", "rho"),
                (op_both_backward, (MU, ONE, MU, RHO, *PRIOR, KEY), 1, "grad_log_prob", "mu"),
                (op_kl_divergence_backward, (ONE, MU, RHO, *PRIOR), 0, "grad", "mu"),
            )
        ],
        # priors
        *[
            (
                lambda prior=prior: op_kl_divergence(MU, RHO, *prior),
                f"{name}: expected one element, or a shape that broadcasts to that of mu, [3], got {shape}",
            )
            for name, prior, shape in (
                ("mu_prior", (MU[:2], ONE), [2]),
                ("std_prior", (ONE, RHO.expand(2, 3)), [2, 3]),
                ("std_prior", (MU, RHO[:0]), [0]),
            )
        ],
        # blocks of a larger tensor
        *[
            (lambda call=call, block=block: call(*block), message)
            for call in (
                lambda full_size, origin: op_normal(KEY, [3], dtype=MU.dtype, full_size=full_size, origin=origin),
                lambda full_size, origin: op_sample(MU, RHO, KEY, full_size=full_size, origin=origin),
                lambda full_size, origin: op_sample_backward(MU, RHO, KEY, full_size=full_size, origin=origin),
                lambda full_size, origin: op_both(MU, RHO, *PRIOR, KEY, full_size=full_size, origin=origin),
                lambda full_size, origin: op_both_backward(
                    MU, ONE, MU, RHO, *PRIOR, KEY, full_size=full_size, origin=origin
                ),
            )
            for block, message in (
                (([3], None), "origin: expected an index beside full_size, [3], got None"),
                ((None, [0]), "full_size: expected sizes beside origin, [0], got None"),
                (([3, 3], [0]), "full_size: expected one value for each dimension of "),
                (([3], []), "origin: expected one value for each dimension of "),
                *[
                    (block, f"origin: expected 0 <= origin and origin + size <= full_size, got {block[1]} for size [3]")
                    for block in (([5], [-1]), ([5], [3]), ([2], [0]), ([-5], [-9]), ([5], [2**63 - 1]))
                ],
            )
        ],
        (
            lambda: op_normal(KEY, [1, 1], dtype=MU.dtype, full_size=[2**32, 2**31], origin=[0, 0]),
            "full_size: expected fewer than 2^63 elements, got [4294967296, 2147483648]",
        ),
        (
            lambda: op_normal(KEY, [2] * 10, dtype=MU.dtype, full_size=[3] * 10, origin=[0] * 10),
            "full_size: expected a block whose rows are told by at most 8 dimensions, got size [2, 2",
        ),
        (lambda: op_log_prob_backward(ONE, MU, MU, RHO, *PRIOR, MASK[:4]), "output_mask: expected 5 values, got 4"),
    ]
]

MODULE: list[Case] = [
    (lambda: GaussianDistribution(3, scale=2), TypeError, "GaussianDistribution: unknown arguments ['scale']"),
    (lambda: GaussianDistribution(-3), ValueError, "shape: expected no negative size, got -3"),
    (lambda: GaussianDistribution((2, -3)), ValueError, "shape: expected no negative size, got (2, -3)"),
    (
        lambda: GaussianDistribution(3, dtype=torch.int64),
        TypeError,
        "dtype: expected float32, float64, float16 or bfloat16, got torch.int64",
    ),
    (
        lambda: GaussianDistribution(3, dtype=torch.cfloat),
        TypeError,
        "dtype: expected float32, float64, float16 or bfloat16, got torch.complex64",
    ),
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
    *[
        (call, ValueError, "num_samples: a key says how many samples to draw, got num_samples=2 too")
        for call in (
            lambda: DISTRIBUTION.sample(2, KEYS),
            lambda: DISTRIBUTION.sample_and_log_prob(num_samples=2, key=KEY),
        )
    ],
    (lambda: DISTRIBUTION.sample(key=KEY.int()), TypeError, "key: expected int64 or uint64, got torch.int32"),
    (
        lambda: DISTRIBUTION.log_prob(torch.ones(4, device=DEVICE)),
        RuntimeError,
        "x: expected the shape of mu, [3], or one dimension of",
    ),
    (lambda: random.key(2**64), ValueError, f"seed: expected an integer in [-2**63, 2**64), got {2**64}"),
    (lambda: random.draw_key(-1), ValueError, "num_keys: must be at least 0, got -1"),
    (lambda: random.draw_key(mesh="x"), TypeError, "mesh: expected a torch.distributed.DeviceMesh, got 'x'"),
    (lambda: random.draw_key(True), TypeError, "num_keys: expected an integer, got True"),
    (lambda: random.split(KEY, -1), ValueError, "n: must be at least 0, got -1"),
    (lambda: random.split(KEY.int()), TypeError, "key: expected int64 or uint64, got torch.int32"),
    (lambda: random.fold_in(MU.long(), 1), ValueError, "key: expected shape [..., 2], got [3]"),
    (lambda: random.fold_in(KEY, 2**64), ValueError, f"data: expected an integer in [-2**63, 2**64), got {2**64}"),
]


def snapshot() -> list[Tensor]:
    inputs = [MU, RHO, KEY, KEYS, ONE, *PRIOR, *DISTRIBUTION.state_dict().values(), torch.random.get_rng_state()]
    return [tensor.clone() for tensor in inputs]


@pytest.mark.parametrize("case", [*FUNCTIONAL, *OPS, *MODULE], ids=lambda case: case[2])
def test_refusal(case: Case) -> None:
    call, exception, message = case
    before, expected = snapshot(), both(MU, RHO, *PRIOR, KEYS)
    for _ in range(2):  # the first leaves nothing behind that the second would trip over
        with pytest.raises(exception, match="^" + re.escape(message)) as caught:
            call()
        assert type(caught.value) is exception
    assert all(map(same_bits, snapshot(), before))
    assert all(map(same_bits, both(MU, RHO, *PRIOR, KEYS), expected))


@pytest.mark.parametrize("rho", [RHO, RHO.to_sparse()])
def test_an_op_missing_on_a_device_says_which(rho: Tensor) -> None:
    with pytest.raises(NotImplementedError, match=r"'illia_ext::gaussian_sample'.* the 'Sparse(CPU|CUDA)' backend"):
        sample(MU.to_sparse(), rho, KEY)


def test_an_unknown_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ILLIA_EXT_JIT", "yes")
    with pytest.raises(ValueError, match=r"^ILLIA_EXT_JIT: expected 0 or 1, got 'yes'"):
        library.load()
