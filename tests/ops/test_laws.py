"""Laws that hold bit for bit, on random arguments: what a value depends on, and what it does not.

hypothesis draws the arguments, by the profiles of conftest.py. All these laws are exact: the same arithmetic on the
same numbers in the same order, so they need no tolerance.
"""

from typing import Any

import torch
from agreement import Arguments, every_output
from helpers import HALF_DTYPES, same_bits
from hypothesis import given
from hypothesis import strategies as st
from law_cases import WORDS, arguments, every_result, keys, lists
from torch import Tensor

from illia_ext import GaussianDistribution, functional, random
from illia_ext._ops.fake import op

MOVES = WORDS | st.integers(-(2**63), -1)


def assert_same(ours: dict[str, list[Tensor]], expected: dict[str, list[Tensor]]) -> None:
    for name, outputs in expected.items():
        assert all(same_bits(*pair) for pair in zip(ours[name], outputs, strict=True)), name


@given(arguments(), st.booleans())
def test_layout_does_not_matter(a: Arguments, general: bool) -> None:
    """Nor whether the words of a key are signed."""
    contiguous = Arguments(*(tensor.resolve_neg().contiguous().clone() for tensor in a))
    contiguous = contiguous._replace(key=contiguous.key.view(torch.int64))
    assert_same(every_result(a, general), every_result(contiguous, general))
    expected = every_output(contiguous)
    for name, output in every_output(a).items():
        assert same_bits(output, expected[name]) and output.is_contiguous(), name


@given(arguments())
def test_a_broadcast_prior_is_its_copies(a: Arguments) -> None:
    """But for two numbers, which are read as double; gradients to a prior add up over its copies."""
    if a.mu_prior.numel() == a.std_prior.numel() == 1:
        a = a._replace(mu_prior=a.mu)
    mu_prior, std_prior = (
        (prior.reshape(()) if prior.numel() == 1 else prior).expand_as(a.mu).contiguous()
        for prior in (a.mu_prior, a.std_prior)
    )
    expected = every_output(a._replace(mu_prior=mu_prior, std_prior=std_prior), prior_grads=False)
    for name, output in every_output(a, prior_grads=False).items():
        assert same_bits(output, expected[name]), name


@given(arguments(num_samples=st.integers(0, 3)))
def test_s_keys_are_s_calls(a: Arguments) -> None:
    prior, ops = (a.mu_prior, a.std_prior), {name: op(name) for name in ("standard_normal", "gaussian_log_prob")}
    eps = ops["standard_normal"](a.key, a.mu.shape, dtype=a.mu.dtype)
    x, log_prob = functional.gaussian_sample_and_log_prob(a.mu, a.rho, *prior, a.key, a.x.dtype)
    at_x = ops["gaussian_log_prob"](a.x, a.mu, a.rho, *prior)
    for s in range(a.key.shape[0]):
        one_x, one_log_prob = functional.gaussian_sample_and_log_prob(a.mu, a.rho, *prior, a.key[s], a.x.dtype)
        assert same_bits(eps[s], ops["standard_normal"](a.key[s], a.mu.shape, dtype=a.mu.dtype))
        assert same_bits(x[s], one_x) and same_bits(log_prob[s], one_log_prob)
        assert same_bits(x[s], functional.gaussian_sample(a.mu, a.rho, a.key[s], a.x.dtype))
        assert same_bits(at_x[s], ops["gaussian_log_prob"](a.x[s], a.mu, a.rho, *prior))


@given(arguments(num_samples=st.none()), st.data())
def test_a_shard_is_a_part_of_the_whole(a: Arguments, data: st.DataObject) -> None:
    """Of samples, noise and gradients; the block is cut out of every dimension.

    But for gradients where the cut leaves one element of priors that had several: two numbers are read as double, and
    1 / std_prior is then rounded elsewhere.
    """
    origin, size = [], []
    for n in a.mu.shape:
        origin.append(data.draw(st.integers(0, n)))
        size.append(data.draw(st.integers(0, n - origin[-1])))

    def cut(tensor: Tensor) -> Tensor:
        for dim in range(-tensor.dim(), 0):  # a prior may lack dimensions, or have one element along them
            if tensor.shape[dim] == a.mu.shape[dim]:
                tensor = tensor.narrow(dim, origin[dim], size[dim])
        return tensor

    def run(cut: Any, **block: Any) -> list[Tensor]:
        mu, rho, grad_x = cut(a.mu), cut(a.rho), cut(a.grad_x)
        prior = [tensor if tensor.numel() == 1 else cut(tensor) for tensor in (a.mu_prior, a.std_prior)]
        outputs = [
            op("standard_normal")(a.key, mu.shape, dtype=mu.dtype, **block),
            op("gaussian_sample")(mu, rho, a.key, dtype=a.x.dtype, **block),
            op("gaussian_sample_and_log_prob")(mu, rho, *prior, a.key, dtype=a.x.dtype, **block)[0],
            op("gaussian_sample_backward")(grad_x, rho, a.key, **block),
        ]
        for held in (False, True) if numbers == all(tensor.numel() == 1 for tensor in prior) else ():
            arguments = (grad_x, a.grad_log_prob, mu, rho, *prior, a.key)
            outputs += op("gaussian_sample_and_log_prob_backward")(*arguments, stick_the_landing=held, **block)[:2]
        return outputs

    numbers = all(tensor.numel() == 1 for tensor in (a.mu_prior, a.std_prior))
    wholes = run(lambda tensor: tensor)
    parts = run(cut, full_size=list(a.mu.shape), origin=origin)
    index = tuple(slice(start, start + n) for start, n in zip(origin, size))
    assert all(same_bits(part, whole[index]) for part, whole in zip(parts, wholes))


@given(arguments(), st.integers(0, 600))
def test_split_is_concatenation(a: Arguments, blocks: int) -> None:
    """A tensor's tail, from a Philox block on, is drawn alone with the key moved on by the blocks before it."""
    mu, rho, per_block = a.mu.reshape(-1), a.rho.reshape(-1), 2 if a.mu.dtype == torch.float64 else 4
    cut = min(blocks, mu.numel() // per_block) * per_block
    key = random.advance(a.key, cut // per_block)
    whole = functional.gaussian_sample(a.mu, a.rho, a.key)
    head, tail = (
        functional.gaussian_sample(mu[:cut], rho[:cut], a.key),
        functional.gaussian_sample(mu[cut:], rho[cut:], key),
    )
    assert same_bits(torch.cat([head, tail], -1), whole.reshape(*a.key.shape[:-1], mu.numel()))


@given(lists(), st.randoms(use_true_random=False))
def test_tensors_of_a_list_in_any_order(arguments: dict[str, Any], shuffler: Any) -> None:
    """Each is drawn as alone, with the key moved on by the blocks of those before it in the order at hand."""
    key, order = arguments.pop("key"), list(range(len(arguments["mu"])))
    shuffler.shuffle(order)
    in_order = {name: [values[k] for k in order] for name, values in arguments.items()}
    grad_x = in_order.pop("grad_x")
    x, _ = functional.foreach_gaussian_sample_and_log_prob(**in_order, key=key)
    backward = op("foreach_gaussian_sample_and_log_prob_backward")
    grads = backward(grad_x, None, *in_order.values(), key)
    for k, (mu, rho, mu_prior, std_prior) in enumerate(zip(*in_order.values())):
        alone, _ = functional.gaussian_sample_and_log_prob(mu, rho, mu_prior, std_prior, key)
        assert same_bits(x[k], alone)
        each = op("gaussian_sample_and_log_prob_backward")(grad_x[k], None, mu, rho, mu_prior, std_prior, key)
        assert same_bits(grads[0][k], each[0]) and same_bits(grads[1][k], each[1])
        key = random.advance(key, -(-mu.numel() // (2 if mu.dtype == torch.float64 else 4)))


def same_sums(a: Tensor, b: Tensor) -> bool:
    """Of equal summands read from different dtypes: the same bits on the CPU. On a GPU as many bytes are read at once,
    so the order follows the dtype; log_prob then errs by 1e-6 of summands of which, with the tests' priors, few cancel:
    4e-6 of the sum is ample."""
    if a.is_cuda and a.dtype == torch.float32:
        return a.dtype == b.dtype and torch.allclose(a, b, rtol=4e-6, atol=0)
    return same_bits(a, b)


@given(arguments(dtypes=st.sampled_from((*HALF_DTYPES, torch.float32))), st.sampled_from(HALF_DTYPES), st.booleans())
def test_half_is_float32_rounded_once(a: Arguments, half: torch.dtype, stick_the_landing: bool) -> None:
    """Half types are read as float32, as parameters and as a sample beside float32 parameters, and only what is stored
    is rounded: samples and gradients, not log_prob."""
    dtype = a.mu.dtype if a.mu.dtype in HALF_DTYPES else half
    a = a._replace(x=a.x.to(dtype), grad_x=a.grad_x.to(dtype))
    wide, prior = a._replace(mu=a.mu.float(), rho=a.rho.float(), x=a.x.float()), (a.mu_prior, a.std_prior)
    functions = ("gaussian_sample_and_log_prob", "gaussian_log_prob", "gaussian_kl_divergence")
    fused, log_prob, kl_divergence = (getattr(functional, name) for name in functions)
    narrow_x, narrow_log_prob = fused(a.mu, a.rho, *prior, a.key, dtype)
    wide_x, wide_log_prob = fused(wide.mu, wide.rho, *prior, a.key)
    assert same_bits(narrow_x, wide_x.to(dtype)) and same_sums(narrow_log_prob, wide_log_prob)
    assert same_bits(functional.gaussian_sample(a.mu, a.rho, a.key, dtype), narrow_x)
    assert same_sums(log_prob(a.x, a.mu, a.rho, *prior), log_prob(wide.x, wide.mu, wide.rho, *prior))
    assert same_sums(kl_divergence(a.mu, a.rho, *prior), kl_divergence(wide.mu, wide.rho, *prior))
    eps = op("standard_normal")(a.key, a.mu.shape, dtype=torch.float32)
    assert same_bits(op("standard_normal")(a.key, a.mu.shape, dtype=dtype), eps.to(dtype))
    backward, options = op("gaussian_sample_and_log_prob_backward"), {"stick_the_landing": stick_the_landing}
    narrow = backward(a.grad_x, a.grad_log_prob, a.mu, a.rho, *prior, a.key, **options)[:2]
    expected = backward(a.grad_x.float(), a.grad_log_prob, wide.mu, wide.rho, *prior, a.key, **options)[:2]
    given, mask = op("gaussian_log_prob_backward"), [True] * 3 + [False] * 2
    narrow += given(a.grad_log_prob, a.x, a.mu, a.rho, *prior, mask)[:3]
    expected += given(a.grad_log_prob, wide.x, wide.mu, wide.rho, *prior, mask)[:3]
    assert all(same_bits(ours, grad.to(ours.dtype)) for ours, grad in zip(narrow, expected, strict=True))


@given(arguments(broadcast=False))
def test_op_function_list_and_module_agree(a: Arguments) -> None:
    """The module's priors have its dtype, as here."""
    module = GaussianDistribution(a.mu.shape, a.mu_prior, a.std_prior, dtype=a.mu.dtype, device=a.mu.device)
    module.load_state_dict({"mu": a.mu, "rho": a.rho}, strict=False)
    arguments = (a.mu, a.rho, a.mu_prior, a.std_prior, a.key)
    x, log_prob = functional.gaussian_sample_and_log_prob(*arguments)
    kl_divergence = functional.gaussian_kl_divergence(*arguments[:4])
    listed_x, listed_log_prob = functional.foreach_gaussian_sample_and_log_prob(*([t] for t in arguments[:4]), a.key)
    for other_x, other_log_prob in (
        (listed_x[0], listed_log_prob),
        op("gaussian_sample_and_log_prob")(*arguments),
        module.sample_and_log_prob(key=a.key),
        (module.sample(key=a.key), log_prob),
    ):
        assert same_bits(other_x, x) and same_bits(other_log_prob, log_prob)
    for other in (functional.foreach_gaussian_kl_divergence(*([t] for t in arguments[:4])), module.kl_divergence()):
        assert same_bits(other, kl_divergence)
    at_x = functional.gaussian_log_prob(a.x, *arguments[:4])
    assert same_bits(module.log_prob(a.x), at_x) and same_bits(op("gaussian_log_prob")(a.x, *arguments[:4]), at_x)


@given(keys(None), MOVES, MOVES, st.integers(0, 5))
def test_keys_move_and_split(key: Tensor, a: int, b: int, n: int) -> None:
    """Offsets add up modulo 2^64, and uint64 words are the same bits as int64 words."""
    moved, total = random.advance(random.advance(key, a), b), (a + b) % 2**64
    assert torch.equal(moved, random.advance(key, total)) and moved.dtype == torch.int64
    assert torch.equal(random.advance(moved, -total % 2**64), key.view(torch.int64))
    assert torch.equal(random.advance(key, 1)[1], key.view(torch.int64)[1] + 1)
    parts = random.split(key, n)
    assert all(torch.equal(parts[i], random.fold_in(key, i)) for i in range(n)) and len(parts) == n
    assert len({tuple(part.tolist()) for part in parts}) == n  # two of these equal: chance 2^-128 each pair
    assert torch.equal(random.fold_in(random.advance(key, a), b), random.fold_in(key, total))
