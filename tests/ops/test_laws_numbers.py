"""Laws of the values: shifts, scales, signs, sums.

Where the arithmetic is exact the law is too. Elsewhere u = 2^-24 (float64: 2^-53) is one rounding, and a log_prob errs
by 1e-6 (float64: 2^-29 of it) of the absolute values of its summands, as the library states, and is rounded.
"""

import torch
from agreement import Arguments
from foreach_cases import assert_is_sum, one_by_one
from helpers import arithmetic_dtype, noise, same_bits, sigma
from hypothesis import given
from hypothesis import strategies as st
from law_cases import arguments, lists, roundoff, seen, tensors
from torch import Tensor

from illia_ext import functional, reference
from illia_ext._ops.fake import op

WIDE = st.sampled_from((torch.float32, torch.float64))
ONE_SAMPLE = st.none()

sample, fused = functional.gaussian_sample, functional.gaussian_sample_and_log_prob
log_prob, kl_divergence = functional.gaussian_log_prob, functional.gaussian_kl_divergence


def sum_elements(terms: Tensor, mu: Tensor) -> Tensor:
    return terms.flatten(terms.dim() - mu.dim()).sum(-1) if mu.dim() else terms


def terms_of(a: Arguments, x: Tensor, z: Tensor) -> list[Tensor]:
    """The summands of log_prob at x in float64; z is (x - mu) / sigma."""
    mu_prior, std_prior = seen(a.mu_prior, a.mu), seen(a.std_prior, a.mu)
    squares = ((x.double() - mu_prior) / std_prior) ** 2 / 2
    return list(torch.broadcast_tensors(-reference.log_sigma(a.rho.double()), -(z**2) / 2, std_prior.log(), squares))


def sum_error(a: Arguments, terms: list[Tensor]) -> Tensor:
    """Of a log_prob with these summands: one, or one for each sample."""
    return roundoff(a.mu) * (1e-6 * 2**24 + 1) * sum_elements(torch.stack(terms).abs().sum(0), a.mu)


def quarters(z: Tensor) -> Tensor:
    """Multiples of 1/4 in [-16, 16): the sum or difference of two has 8 bits at most, as many as bfloat16. No -0."""
    return (torch.round(4 * z) / 4).clamp(-16, 15.75) + 0.0


@given(arguments(), st.integers(-64, 63), st.data())
def test_a_shift_changes_no_bit_where_differences_are_exact(a: Arguments, c: int, data: st.DataObject) -> None:
    """x, mu and mu_prior enter as x - mu, x - mu_prior and mu - mu_prior alone, values and gradients."""
    points = [data.draw(tensors(tensor.shape, tensor.dtype, quarters)) for tensor in (a.x, a.mu, a.mu_prior)]
    here, there = ((x, mu, a.rho, prior, a.std_prior) for x, mu, prior in (points, [p + c / 4 for p in points]))
    log_prob_backward, kl_backward = op("gaussian_log_prob_backward"), op("gaussian_kl_divergence_backward")
    assert same_bits(log_prob(*there), log_prob(*here))
    assert same_bits(kl_divergence(*there[1:]), kl_divergence(*here[1:]))
    grads = [log_prob_backward(a.grad_log_prob, *inputs, [True] * 5) for inputs in (there, here)]
    assert all(map(same_bits, *grads))
    grads = [kl_backward(a.grad_kl_divergence, *inputs[1:], prior_grads=True) for inputs in (there, here)]
    assert all(map(same_bits, *grads))


@given(arguments(WIDE), st.integers(-64, 63))
def test_a_shift_moves_the_sample_and_not_log_prob(a: Arguments, c: int) -> None:
    """Rounded are mu + c, mu_prior + c and x, here and there: x and x - mu_prior move by less than
    d = 2 u (2 |x| + 2 |mu| + 2 |mu_prior| + 4 |c|), so z_p^2 / 2 by |z_p| d / std_prior + (d / std_prior)^2 / 2. Its
    own size, which log_prob's error is measured by, is then off by 1 % at most."""
    prior = [seen(tensor, a.mu).to(a.mu.dtype) for tensor in (a.mu_prior, a.std_prior)]
    x, here = fused(a.mu, a.rho, *prior, a.key)
    moved, there = fused(a.mu + c, a.rho, prior[0] + c, prior[1], a.key)
    size = x.double().abs() + a.mu.double().abs() + prior[0].double().abs() + 2 * abs(c)
    d = 4 * roundoff(a.mu) * size
    assert ((moved.double() - x.double() - c).abs() <= d).all()
    z_p, d = (x.double() - prior[0].double()) / prior[1].double(), d / prior[1].double()
    error = sum_error(a, terms_of(a, x, noise(a.key, a.mu)))
    bound = 2 * error + sum_elements(z_p.abs() * d + d**2 / 2, a.mu)
    assert ((there.double() - here.double()).abs() <= 1.01 * bound).all()


@given(arguments(WIDE), st.integers(-6, 6))
def test_a_scale_changes_neither_log_prob_nor_kl(a: Arguments, k: int) -> None:
    """Of x, mu and both priors by 2^k, exactly; sigma's rho is rounded, and what that adds is exact in float64, but for
    the float64 of this line: a third error of the size of the library's two."""
    scale, wide = 2.0**k, 2.0**k * sigma(a.rho)
    rho = torch.where(wide > 30, wide, torch.expm1(wide.clamp(max=30)).log()).to(a.mu.dtype)
    prior = [seen(tensor, a.mu).to(a.mu.dtype) for tensor in (a.mu_prior, a.std_prior)]
    here, there = (a.mu, a.rho, *prior), (scale * a.mu, rho, *(scale * tensor for tensor in prior))
    ratio, z = sigma(rho) / wide, (a.x.double() - a.mu.double()) / sigma(a.rho)
    x, terms = a.x.to(a.mu.dtype), terms_of(a, a.x, z)
    added = sum_elements(-ratio.log() + z**2 * (1 - ratio**-2) / 2, a.mu)
    change = log_prob(scale * x, *there).double() - log_prob(x, *here).double()
    assert ((change - added).abs() <= 3.01 * sum_error(a, terms)).all()
    spread = (sigma(a.rho) / prior[1].double()) ** 2 / 2
    terms = [*terms_of(a, a.mu, torch.ones_like(spread)), spread]  # those of KL: 1/2, and sigma^2 beside the distance
    added = (-ratio.log() + spread * (ratio**2 - 1)).sum()
    change = kl_divergence(*there).double() - kl_divergence(*here).double()
    total = roundoff(a.mu) * (1e-6 * 2**24 + 1) * torch.stack(terms).abs().sum()
    assert (change - added).abs() <= 3.01 * total


@given(arguments(), st.integers(0, 16))
def test_a_sample_lies_on_the_side_of_its_noise(a: Arguments, more: int) -> None:
    """sigma > 0, and rounding keeps order: x >= mu where eps >= 0, and a larger mu gives no smaller x. The largest
    |eps| is that of the smallest uniform, sqrt(-2 log 2^-33), for float64 2^-65; 1 + 2e-6 is its own error."""
    eps, x = noise(a.key, a.mu), sample(a.mu, a.rho, a.key).double()
    assert ((x - a.mu.double()) * eps >= 0).all()
    assert (sample(a.mu + more / 4, a.rho, a.key).double() >= x).all()
    digits = 65 if a.mu.dtype == torch.float64 else 33
    assert (eps.abs() <= (1 + 2e-6) * (2 * digits * torch.tensor(2.0).log()).sqrt()).all()


@given(arguments())
def test_kl_is_positive_and_zero_where_q_is_p(a: Arguments) -> None:
    """KL errs by its summands' 1e-6. With mu_prior = mu and std_prior = sigma as rounded by r, each element adds
    r^2, nothing; to rho the gradient is h (s - 1) with s = (sigma / std_prior)^2, which errs by 2 |r| + 16 u."""
    mu, rho = a.mu, a.rho
    spread = (sigma(rho) / seen(a.std_prior, mu)) ** 2 / 2
    terms = [*terms_of(a, mu, torch.ones_like(spread)), spread]
    assert kl_divergence(*a[:2], a.mu_prior, a.std_prior) >= -sum_all_error(a, terms)

    std_prior = sigma(rho).to(arithmetic_dtype(mu.dtype))
    r = (sigma(rho) / std_prior.double() - 1).abs()
    same = a._replace(mu_prior=mu.to(std_prior.dtype), std_prior=std_prior)
    half = torch.full_like(r, 0.5)
    terms = [*terms_of(same, mu, torch.ones_like(r)), half]
    assert kl_divergence(mu, rho, same.mu_prior, std_prior).abs() <= sum_all_error(a, terms) + (r**2).sum()
    one = torch.ones((), dtype=std_prior.dtype, device=mu.device)
    grad_mu, grad_rho, *_ = op("gaussian_kl_divergence_backward")(one, mu, rho, same.mu_prior, std_prior)
    h = torch.sigmoid(rho.double()) / sigma(rho)
    assert (grad_mu == 0).all()
    assert (grad_rho.double().abs() <= h * (2 * r + 16 * roundoff(mu))).all()


def sum_all_error(a: Arguments, terms: list[Tensor]) -> Tensor:
    return roundoff(a.mu) * (1e-6 * 2**24 + 1) * torch.stack(terms).abs().sum()


@given(arguments(WIDE))
def test_log_prob_of_the_drawn_is_that_of_the_given(a: Arguments) -> None:
    """The drawn one takes z = eps; the given one sees x as rounded: (x - mu) / sigma is off by d = (u |x| + u |x - mu|
    + 4 u sigma |eps|) / sigma, with which |z| d + d^2 / 2 enters. Both round their sums."""
    prior, eps, u = (a.mu_prior, a.std_prior), noise(a.key, a.mu), roundoff(a.mu)
    x, drawn = fused(a.mu, a.rho, *prior, a.key)
    given_x = log_prob(x, a.mu, a.rho, *prior)
    d = u * (x.double().abs() / sigma(a.rho) + 6 * eps.abs())
    bound = 2 * sum_error(a, terms_of(a, x, eps)) + sum_elements(eps.abs() * d + d**2 / 2, a.mu)
    assert ((drawn.double() - given_x.double()).abs() <= 1.01 * bound).all()


@given(arguments(num_samples=st.integers(0, 3)), st.data())
def test_log_prob_of_shards_adds_up(a: Arguments, data: st.DataObject) -> None:
    """Cut along one dimension, with priors of one element: each part errs by its summands, all by those of the whole,
    twice; and each is rounded."""
    if not a.mu.dim():
        return
    dim = data.draw(st.integers(0, a.mu.dim() - 1))
    cut = data.draw(st.integers(0, a.mu.shape[dim]))
    prior = [tensor.reshape(-1)[:1] if tensor.numel() else tensor.new_ones(1) for tensor in (a.mu_prior, a.std_prior)]
    a = a._replace(mu_prior=prior[0], std_prior=prior[1])
    x, whole = fused(a.mu, a.rho, *prior, a.key)
    parts = []
    for start, size in ((0, cut), (cut, a.mu.shape[dim] - cut)):
        origin = [start if n == dim else 0 for n in range(a.mu.dim())]
        block = {"full_size": list(a.mu.shape), "origin": origin}
        mu, rho = (tensor.narrow(dim, start, size) for tensor in (a.mu, a.rho))
        parts.append(op("gaussian_sample_and_log_prob")(mu, rho, *prior, a.key, **block)[1].double())
    bound = 2 * sum_error(a, terms_of(a, x, noise(a.key, a.mu)))
    rounded = roundoff(a.mu) * (whole.double().abs() + sum(part.abs() for part in parts))
    assert ((sum(parts) - whole.double()).abs() <= bound + rounded).all()


@given(lists())
def test_log_prob_of_a_list_is_the_sum_of_its_tensors(arguments: dict) -> None:
    inputs = [arguments[name] for name in ("mu", "rho", "mu_prior", "std_prior")]
    total = functional.foreach_gaussian_sample_and_log_prob(*inputs, arguments["key"])[1]
    assert_is_sum(total, one_by_one(*inputs, arguments["key"])[1])
    assert_is_sum(functional.foreach_gaussian_kl_divergence(*inputs), [kl_divergence(*each) for each in zip(*inputs)])
