"""torch.library.opcheck of every op, and the schemas, which scripted and exported files store: frozen for ever."""

import re
from typing import Any

import pytest
import torch
from helpers import make_key, make_keys, make_parameters
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck
from torch.utils._pytree import tree_leaves, tree_map_only

import illia_ext.functional  # noqa: F401  (the ops' derivatives)
from illia_ext._ops.fake import NAMES, op

SCHEMAS = """
illia_ext::standard_normal(Tensor key, SymInt[] size, *, ScalarType dtype, SymInt[]? full_size=None, SymInt[]? origin=None) -> Tensor
illia_ext::gaussian_sample(Tensor mu, Tensor rho, Tensor key, *, ScalarType? dtype=None, SymInt[]? full_size=None, SymInt[]? origin=None, bool antithetic=False) -> Tensor
illia_ext::gaussian_sample_backward(Tensor grad_x, Tensor rho, Tensor key, *, SymInt[]? full_size=None, SymInt[]? origin=None, bool antithetic=False) -> Tensor
illia_ext::gaussian_log_prob(Tensor x, Tensor mu, Tensor rho, Tensor mu_prior, Tensor std_prior, *, str? family=None, float[]? family_parameters=None) -> Tensor
illia_ext::gaussian_log_prob_backward(Tensor grad_log_prob, Tensor x, Tensor mu, Tensor rho, Tensor mu_prior, Tensor std_prior, bool[5] output_mask, *, str? family=None, float[]? family_parameters=None) -> (Tensor, Tensor, Tensor, Tensor, Tensor)
illia_ext::gaussian_sample_and_log_prob(Tensor mu, Tensor rho, Tensor mu_prior, Tensor std_prior, Tensor key, *, ScalarType? dtype=None, bool stick_the_landing=False, SymInt[]? full_size=None, SymInt[]? origin=None, str? family=None, float[]? family_parameters=None, bool antithetic=False) -> (Tensor, Tensor)
illia_ext::gaussian_sample_and_log_prob_backward(Tensor? grad_x, Tensor? grad_log_prob, Tensor mu, Tensor rho, Tensor mu_prior, Tensor std_prior, Tensor key, *, bool stick_the_landing=False, SymInt[]? full_size=None, SymInt[]? origin=None, bool prior_grads=False, str? family=None, float[]? family_parameters=None, bool antithetic=False) -> (Tensor, Tensor, Tensor, Tensor)
illia_ext::gaussian_kl_divergence(Tensor mu, Tensor rho, Tensor mu_prior, Tensor std_prior) -> Tensor
illia_ext::gaussian_kl_divergence_backward(Tensor grad, Tensor mu, Tensor rho, Tensor mu_prior, Tensor std_prior, bool prior_grads=False) -> (Tensor, Tensor, Tensor, Tensor)
illia_ext::foreach_gaussian_sample_and_log_prob(Tensor[] mu, Tensor[] rho, Tensor[] mu_prior, Tensor[] std_prior, Tensor key, *, ScalarType? dtype=None, bool stick_the_landing=False, str[]? family=None, float[]? family_parameters=None, bool antithetic=False) -> (Tensor[], Tensor)
illia_ext::foreach_gaussian_sample_and_log_prob_backward(Tensor?[] grad_x, Tensor? grad_log_prob, Tensor[] mu, Tensor[] rho, Tensor[] mu_prior, Tensor[] std_prior, Tensor key, *, bool stick_the_landing=False, str[]? family=None, float[]? family_parameters=None, bool antithetic=False) -> (Tensor[], Tensor[])
illia_ext::foreach_gaussian_kl_divergence(Tensor[] mu, Tensor[] rho, Tensor[] mu_prior, Tensor[] std_prior) -> Tensor
illia_ext::foreach_gaussian_kl_divergence_backward(Tensor grad, Tensor[] mu, Tensor[] rho, Tensor[] mu_prior, Tensor[] std_prior) -> (Tensor[], Tensor[])
"""  # noqa: E501  (one schema a line, as torch prints it)


def test_schemas_are_frozen() -> None:
    assert [str(op(name)._schema) for name in NAMES] == SCHEMAS.strip().splitlines()


def test_there_are_no_other_ops() -> None:
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("illia_ext::")}
    assert registered == {f"illia_ext::{name}" for name in NAMES}


def make_samples(device: torch.device) -> dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """Arguments for each op, ordinary ones first."""
    mu, rho = make_parameters((4, 3), device=device)
    mu_half, rho_half = make_parameters((), torch.float16, device)
    mu_double, rho_double = make_parameters((4, 3), torch.float64, device)
    key, keys = make_key(1, device=device), make_keys((1, 2), (3, 4), (5, 6), (7, 8), (9, 0), device=device)
    x, grad_x = make_parameters((5, 4, 3), device=device, seed=1)
    grad, grads = make_parameters((), device=device)[0], make_parameters((5,), device=device)[0]
    prior = (torch.zeros(1, device=device), torch.ones(1, device=device))
    row_and_column = (torch.zeros(3, device=device), torch.ones(4, 1, dtype=torch.float64, device=device))
    full_prior = (mu / 2, rho.exp())
    block = {"full_size": [6, 5], "origin": [2, 1]}
    host_prior = (torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    lists = ([mu, mu[:0]], [rho, rho[:0]])
    halves = ([mu_half, mu.half()], [rho_half, rho.half()])
    priors = ([row_and_column[0], prior[0]], [prior[1]])
    host_priors = ([host_prior[0]], [host_prior[1]])
    return {
        "standard_normal": [
            ((keys, [4, 3]), {"dtype": torch.float32}),
            ((key.to(torch.uint64), []), {"dtype": torch.float64}),
            ((keys[:0], [3]), {"dtype": torch.bfloat16}),
            ((keys, [4, 3]), {"dtype": torch.float32, **block}),
        ],
        "gaussian_sample": [
            ((mu, rho, keys), {}),
            ((mu.T.contiguous().T, rho, key), {"dtype": torch.bfloat16}),
            ((mu_half, rho_half, keys), {}),
            ((mu, rho, keys), block),
        ],
        "gaussian_sample_backward": [
            ((grad_x, rho, keys), {}),
            ((grad_x[0].bfloat16(), rho, key), {}),
            ((mu_half, rho_half, key), {}),
            ((grad_x, rho, keys), block),
        ],
        "gaussian_log_prob": [
            ((x, mu, rho, *prior), {}),
            ((x[0].half(), mu, rho, *host_prior), {}),
            ((mu_double, mu_double + 1, rho_double, *host_prior), {}),
            ((x, mu, rho, *row_and_column), {}),
        ],
        "gaussian_log_prob_backward": [
            ((grads, x, mu, rho, *prior, [True, True, True, False, False]), {}),
            ((grad, x[0].half(), mu, rho, *host_prior, [True, False, True, False, False]), {}),
            ((grads, x, mu, rho, *row_and_column, [False, True, False, True, True]), {}),
        ],
        "gaussian_sample_and_log_prob": [
            ((mu, rho, *prior, keys), {}),
            ((mu, rho, *host_prior, key), {"dtype": torch.float16}),
            ((mu_half, rho_half, *prior, keys), {}),
            ((mu, rho, *full_prior, keys), {"stick_the_landing": True, **block}),
        ],
        "gaussian_sample_and_log_prob_backward": [
            ((grad_x, grads, mu, rho, *prior, keys), {}),
            ((None, grad, mu, rho, *host_prior, key), {}),
            ((grad_x, None, mu, rho, *prior, keys), {}),
            ((grad_x, grads, mu, rho, *full_prior, keys), {"prior_grads": True, **block}),
        ],
        "gaussian_kl_divergence": [
            ((mu, rho, *prior), {}),
            ((mu_half, rho_half, *host_prior), {}),
            ((mu, rho, *row_and_column), {}),
        ],
        "gaussian_kl_divergence_backward": [
            ((grad, mu, rho, *prior), {}),
            ((grad.double(), mu_double, rho_double, *host_prior), {}),
            ((grad, mu, rho, *row_and_column, True), {}),
        ],
        "foreach_gaussian_sample_and_log_prob": [
            ((*lists, *priors, keys), {}),
            ((*halves, *host_priors, key), {"stick_the_landing": True}),
            ((*lists, *host_priors, key), {"dtype": torch.float16}),
        ],
        "foreach_gaussian_sample_and_log_prob_backward": [
            (([None, mu.half()], grad, *halves, *host_priors, key), {}),
            (([grad_x, None], None, *lists, *priors, keys), {}),
        ],
        "foreach_gaussian_kl_divergence": [
            ((*lists, *priors), {}),
            ((*halves, *host_priors), {}),
        ],
        "foreach_gaussian_kl_divergence_backward": [
            ((grad, *lists, *priors), {}),
        ],
    }


def require_grad(args: tuple[Any, ...], names: list[str]) -> tuple[Any, ...]:
    """Floating arguments become leaves, but for priors of one element, as most users have them."""

    def leaf(arg: Tensor, name: str) -> Tensor:
        becomes_leaf = arg.is_floating_point() and (arg.numel() > 1 or not name.endswith("_prior"))
        return arg.detach().clone().requires_grad_() if becomes_leaf else arg

    return tuple(tree_map_only(Tensor, lambda t, name=name: leaf(t, name), arg) for name, arg in zip(names, args))


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name: str, requires_grad: bool, device: torch.device) -> None:
    names = [argument.name for argument in op(name)._schema.arguments]
    samples = make_samples(device)[name]
    assert samples
    for args, kwargs in samples:
        opcheck(op(name), require_grad(args, names) if requires_grad else args, kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_meta_tensors_get_the_real_shapes(name: str, device: torch.device) -> None:
    for args, kwargs in make_samples(device)[name]:
        real = op(name)(*args, **kwargs)
        meta = op(name)(*tree_map_only(Tensor, lambda tensor: tensor.to("meta"), args), **kwargs)
        for ours, expected in zip(*map(tree_leaves, (meta, real)), strict=True):
            assert (ours.shape, ours.dtype, ours.stride()) == (expected.shape, expected.dtype, expected.stride())
            assert ours.device.type == "meta"


@pytest.mark.parametrize("size", [(4,), (2, 3), (1, 4, 3), (0,), (3, 4)])
@pytest.mark.parametrize("name", ["gaussian_log_prob", "gaussian_sample_and_log_prob", "gaussian_kl_divergence"])
def test_priors_that_do_not_broadcast_are_refused(name: str, size: tuple[int, ...], device: torch.device) -> None:
    args, kwargs = make_samples(device)[name][0]
    for place, argument in enumerate(op(name)._schema.arguments):
        if argument.name.endswith("_prior"):
            with pytest.raises(RuntimeError, match=rf"^{argument.name}: expected one element"):
                op(name)(*args[:place], torch.ones(size, device=device), *args[place + 1 :], **kwargs)


@pytest.mark.parametrize("size", [(2,), (3, 1)])
def test_a_traced_program_is_refused_when_it_runs(size: tuple[int, ...], device: torch.device) -> None:
    """Fake kernels repeat no rule of C++: what is wrong is found by the op, which names it."""
    key, mu = make_key(1, device=device), torch.zeros(3, device=device)
    program = make_fx(op("gaussian_sample"), tracing_mode="fake")(mu, mu.new_zeros(size), key)
    with pytest.raises(RuntimeError, match=rf"^rho: expected the shape of mu, \[3\], got {re.escape(str(list(size)))}"):
        program(mu, mu.new_zeros(size), key)
