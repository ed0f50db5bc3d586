"""What the multi-tensor functions and ops refuse: the argument, the tensor's number and the value are named."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import DEVICE, make_key, make_parameters
from torch import Tensor
from torch.utils._pytree import tree_map_only

from illia_ext import functional, random
from illia_ext._ops.fake import op

parametrize = pytest.mark.parametrize
sample_and_log_prob = functional.foreach_gaussian_sample_and_log_prob
kl_divergence = functional.foreach_gaussian_kl_divergence
MU, RHO = (list(tensors) for tensors in zip(*(make_parameters(shape, seed=1) for shape in ((3,), (2, 2)))))
KEY, ONE, LEARNED = make_key(1), torch.ones((), device=DEVICE), torch.zeros((), device=DEVICE, requires_grad=True)

Case = tuple[Callable[[], Any], type[Exception], str]
FUNCTIONAL: list[Case] = [
    (lambda: sample_and_log_prob([], [], 0, 1, KEY), ValueError, "mu: expected at least one tensor, got an empty list"),
    (lambda: sample_and_log_prob(MU[0], RHO, 0, 1, KEY), TypeError, "mu: expected a sequence of tensors, got tensor("),
    (lambda: sample_and_log_prob(MU, None, 0, 1, KEY), TypeError, "rho: expected a sequence of tensors, got None"),
    (lambda: sample_and_log_prob(MU, [RHO[0], 2], 0, 1, KEY), TypeError, "tensor 1: rho: expected a tensor, got 2"),
    (lambda: sample_and_log_prob(MU, RHO, 0, 1, None), TypeError, "key: expected a tensor, got None"),
    (lambda: kl_divergence(MU, RHO, 0, torch.ones(()).numpy()), TypeError, "std_prior: expected a number, got array("),
    (
        lambda: sample_and_log_prob(MU, RHO, 0, 1, KEY.int()),
        TypeError,
        "key: expected int64 or uint64, got torch.int32",
    ),
    (
        lambda: sample_and_log_prob(MU, RHO, 0, 1, MU[0].long()),
        ValueError,
        "key: expected shape [2] or [num_samples, 2]",
    ),
    *[
        (lambda prior=prior: kl_divergence([MU[0], None], RHO, prior, 1), TypeError, "tensor 1: mu: expected a tensor")
        for prior in (0, LEARNED)
    ],
    (lambda: kl_divergence(MU, RHO[:1], 0, 1), ValueError, "rho: expected as many tensors as mu, 2, got 1"),
    (
        lambda: kl_divergence(MU, RHO, [0, 0, 0], 1),
        ValueError,
        "mu_prior: expected one tensor, or as many as mu, 2, got 3",
    ),
    (
        lambda: kl_divergence(MU, RHO, 0, []),
        ValueError,
        "std_prior: expected one tensor, or as many as mu, 2, got 0",
    ),
    (lambda: kl_divergence(MU, RHO, 0, None), TypeError, "std_prior: expected a number, got None"),
    (lambda: kl_divergence(MU, RHO, [0, "1"], 1), TypeError, "tensor 1: mu_prior: expected a number, got '1'"),
    (
        lambda: kl_divergence(MU, RHO, 0, [1, 0.0]),
        ValueError,
        "tensor 1: std_prior: expected a positive finite number, got 0.0",
    ),
    (lambda: kl_divergence(MU, RHO, float("nan"), 1), ValueError, "mu_prior: expected a finite number, got nan"),
    (
        lambda: kl_divergence(MU, RHO[::-1], 0, 1),
        ValueError,
        "tensor 0: rho: expected the shape of mu, [3], got [2, 2]",
    ),
    (
        lambda: kl_divergence([MU[0], MU[1].double()], [RHO[0], RHO[1].double()], 0, 1),
        TypeError,
        "tensor 1: mu: expected the dtype of tensor 0, torch.float32, got torch.float64",
    ),
    *[
        (
            lambda call=call: call([MU[0], MU[1].half()], [RHO[0], RHO[1].half()], LEARNED, 1),
            TypeError,
            "tensor 1: mu: expected the dtype of tensor 0, torch.float32, got torch.float16",
        )
        for call in (kl_divergence, lambda *args: sample_and_log_prob(*args, KEY))
    ],
    (
        lambda: kl_divergence([MU[0], MU[1].int()], RHO, 0, 1),
        TypeError,
        "tensor 1: mu: expected float32, float64, float16 or bfloat16, got torch.int32",
    ),
    (lambda: random.advance(KEY, 0.5), TypeError, "blocks: expected an integer, got 0.5"),
    (lambda: random.advance(KEY, 2**64), ValueError, f"blocks: expected an integer in [-2**63, 2**64), got {2**64}"),
]


@parametrize("requires_grad", [False, True])
@parametrize("case", FUNCTIONAL, ids=lambda case: case[2])
def test_refusals(case: Case, requires_grad: bool, device: torch.device) -> None:
    call, exception, message = case
    for parameter in (*MU, *RHO):
        parameter.requires_grad_(requires_grad)
    with pytest.raises(exception, match="^" + re.escape(message)) as caught:
        call()
    assert type(caught.value) is exception


PRIOR = ([ONE], [ONE])
FORWARD, BACKWARD = "foreach_gaussian_sample_and_log_prob", "foreach_gaussian_sample_and_log_prob_backward"
KL, KL_BACKWARD = "foreach_gaussian_kl_divergence", "foreach_gaussian_kl_divergence_backward"
OPS: list[tuple[str, tuple[Any, ...], str]] = [
    (FORWARD, ([], [], *PRIOR, KEY), "mu: expected at least one tensor, got an empty list"),
    (FORWARD, (MU, RHO[:1], *PRIOR, KEY), "rho: expected as many tensors as mu, 2, got 1"),
    (FORWARD, (MU, RHO[::-1], *PRIOR, KEY), "tensor 0: rho: expected the shape of mu, [3], got [2, 2]"),
    (FORWARD, (MU, RHO, *PRIOR, MU[0].long()), "key: expected shape [2] or [num_samples, 2], got [3]"),
    (KL, (MU, RHO, [], [ONE]), "mu_prior: expected one tensor, or as many as mu, 2, got 0"),
    (KL, (MU, RHO, [ONE], [ONE] * 3), "std_prior: expected one tensor, or as many as mu, 2, got 3"),
    (
        KL,
        (MU, RHO, [MU[0]], [ONE]),
        "tensor 1: mu_prior: expected one element, or a shape that broadcasts to that of mu, [2, 2], got [3]",
    ),
    (BACKWARD, ([None], ONE, MU, RHO, *PRIOR, KEY), "grad_x: expected as many gradients as mu has tensors, 2, got 1"),
    (BACKWARD, ([None, MU[0]], ONE, MU, RHO, *PRIOR, KEY), "tensor 1: grad_x: expected shape [2, 2], got [3]"),
    (BACKWARD, ([None, None], MU[0], MU, RHO, *PRIOR, KEY), "grad_log_prob: expected shape [], got [3]"),
    (KL_BACKWARD, (MU[0], MU, RHO, *PRIOR), "grad: expected shape [], got [3]"),
]


@parametrize("case", OPS, ids=lambda case: f"{case[0]}: {case[2]}")
def test_the_ops_refuse_in_the_same_words(case: tuple[str, tuple[Any, ...], str]) -> None:
    """Also where the single ops stand in for them, as they do for a prior that requires a gradient."""
    name, args, message = case
    learned = tree_map_only(Tensor, lambda tensor: ONE.clone().requires_grad_() if tensor is ONE else tensor, args)
    for arguments in (args, learned):
        with pytest.raises(RuntimeError, match="^" + re.escape(message)):
            op(name)(*arguments)


@parametrize("names", [("rho",), ("mu", "rho")], ids=str)
def test_mixed_devices(names: tuple[str, ...], device: torch.device) -> None:
    lists = {"mu": list(MU), "rho": list(RHO)}
    for name in names:
        lists[name][1] = lists[name][1].detach().to("meta")
    home = "mu" if names == ("rho",) else "tensor 0"
    message = f"^tensor 1: {names[0]}: expected to be on the device of {home}, {device}, got meta"
    with pytest.raises(RuntimeError, match=message):
        kl_divergence(*lists.values(), 0.0, 1.0)


LISTS = [  # mu, rho, mu_prior, and how the message goes on
    ([], [], [ONE], "mu: expected at least one tensor, got an empty list"),
    (MU, RHO[:1], [ONE], "rho: expected as many tensors as mu, 2, got 1"),
    (MU, RHO, [ONE] * 3, "mu_prior: expected one tensor, or as many as mu, 2, got 3"),
    (MU, RHO[::-1], [ONE], "tensor 0: rho: expected the shape of mu, [3], got [2, 2]"),
    (
        [MU[0], MU[1].detach().half()],
        [RHO[0], RHO[1].detach().half()],
        [ONE],
        "tensor 1: mu: expected the dtype of tensor 0, torch.float32, got torch.float16",
    ),
]


@parametrize("name", [FORWARD, KL])
@parametrize(("mu", "rho", "priors", "message"), LISTS, ids=lambda value: value if isinstance(value, str) else "")
def test_lists_are_refused_in_one_voice_under_transforms(
    name: str, mu: list[Tensor], rho: list[Tensor], priors: list[Tensor], message: str
) -> None:
    def function(scale: Tensor) -> Tensor:
        arguments = ([scale * tensor for tensor in mu], [tensor.detach() for tensor in rho], priors, [scale])
        outputs = op(name)(*arguments, *[KEY] * (name == FORWARD))
        return outputs[1] if name == FORWARD else outputs

    for transform in (torch.func.grad, lambda f: lambda x: torch.func.jvp(f, (x,), (x,))):
        with pytest.raises(RuntimeError, match="^" + re.escape(message)):
            transform(function)(ONE.clone())


@parametrize("name", [FORWARD, KL])
def test_a_mixture_of_devices_is_refused_where_single_ops_stand_in(name: str, device: torch.device) -> None:
    """Each single op would take its own."""
    learned = ONE.clone().requires_grad_()
    mu, rho = ([MU[0].detach(), MU[1].detach().to("meta")], [RHO[0].detach(), RHO[1].detach().to("meta")])
    with pytest.raises(RuntimeError, match=r"^tensor 1: mu: expected to be on the device of tensor 0"):
        op(name)(mu, rho, [learned], [ONE], *[KEY] * (name == FORWARD))
