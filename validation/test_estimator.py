"""Do log_prob and its gradients estimate the KL divergence and its gradients? Means and variances over keys.

With s = sigma, d = mu - mu_prior, v = std_prior^2 and the noise e, an element adds to log_prob

    log(std_prior / s) - e^2 / 2 + (d + s e)^2 / (2 v) = KL + a e + b (e^2 - 1),   a = d s / v,  b = (s^2 / v - 1) / 2,

because E e = 0 and E e^2 = 1. Var e = 1, Var e^2 = 2 and Cov(e, e^2) = 0, so the variance is a^2 + 2 b^2, and the
fourth moment 3 a^4 + 60 a^2 b^2 + 60 b^4. Every gradient has this form too: `quadratics` has their a and b, with p =
sigmoid(rho) = ds / d rho. stick_the_landing leaves the score of log q in the gradients, whose mean is 0: where q = p
nothing varies then.

Means over S keys differ from the closed form, by torch.distributions and autograd in float64, by a normal times
sqrt(variance / S), nearly. Variances over S draws have the variance (fourth moment - variance^2) / S. The bound on the
largest of m |z| is that of Bonferroni, for P_BOUND. Calls have 4096 keys, because a call adds its gradients in its own
type. Keys are `draw_key` under fixed seeds.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from scipy import stats
from significance import P_BOUND, two_sided, z_bound
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import softplus

from illia_ext import BayesianModule, functional, random

DTYPES = [torch.float32, torch.float64]
NAMES = ("mu", "rho", "mu_prior", "std_prior")
Values = tuple[Tensor, Tensor, Tensor, Tensor]  # mu and rho [n], priors [1] or [n]


class Quadratic(NamedTuple):
    """a e + b (e^2 - 1) of each element."""

    a: Tensor
    b: Tensor

    @property
    def variance(self) -> Tensor:
        return self.a**2 + 2 * self.b**2

    @property
    def fourth_moment(self) -> Tensor:
        return 3 * self.a**4 + 60 * self.a**2 * self.b**2 + 60 * self.b**4


def make_cases(dtype: torch.dtype, size: int) -> dict[str, Values]:
    generator = torch.Generator().manual_seed(7)

    def normal(mean: float, std: float) -> Tensor:
        return mean + std * torch.randn(size, generator=generator, dtype=torch.float64)

    def one(value: float) -> Tensor:
        return torch.tensor([value])

    near, own = normal(0, 0.1), normal(-1, 1)
    cases = {
        "initial weights": (normal(0, 0.1), normal(-7, 0.1), one(0.0), one(0.1)),
        "near the prior": (normal(0, 0.02), normal(-2, 0.05), one(0.0), one(0.125)),
        "far from the prior": (normal(2, 1), normal(1.5, 0.5), one(-1.0), one(0.5)),
        "priors of each element": (normal(0, 1), normal(-1, 1), normal(0, 1), normal(0, 0.5).exp()),
        "q = p": (near, own, near, softplus(own.to(dtype).double())),
    }
    return {name: tuple(value.to(dtype) for value in values) for name, values in cases.items()}


def quadratics(values: Values, stick_the_landing: bool = False) -> dict[str, Quadratic]:
    """Laws of log_prob and of its gradients."""
    mu, rho, mu_prior, std = (value.double() for value in values)
    s, p, d, v = softplus(rho), torch.sigmoid(rho), mu - mu_prior, std**2
    zero, slope = torch.zeros_like(s), s / v - (1 / s if stick_the_landing else 0)
    return {
        "log_prob": Quadratic(d * s / v, (s**2 / v - 1) / 2),
        "mu": Quadratic(slope, zero),
        "rho": Quadratic(p * d / v, p * slope),
        "mu_prior": Quadratic(-s / v, zero),
        "std_prior": Quadratic(-2 * d * s / std**3, -(s**2) / std**3),
    }


def closed_form(values: Values) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The KL divergence and its gradients, in float64."""
    mu, rho, mu_prior, std_prior = leaves = [value.double().requires_grad_() for value in values]
    kl = kl_divergence(Normal(mu, softplus(rho)), Normal(mu_prior, std_prior)).sum()
    return kl.detach(), torch.autograd.grad(kl, leaves)


def keys_for(count: int, seed: int) -> Tensor:
    return random.draw_key(count, generator=torch.Generator().manual_seed(seed))


def over_keys(values: Values, keys: Tensor, stick_the_landing: bool) -> tuple[Tensor, list[Tensor]]:
    """log_prob of each key, and the mean gradients, in float64."""
    log_probs, sums = [], [torch.zeros_like(value, dtype=torch.float64) for value in values]
    for part in keys.split(4096):
        leaves = [value.clone().requires_grad_() for value in values]
        log_prob = functional.gaussian_sample_and_log_prob(*leaves, part, stick_the_landing=stick_the_landing)[1]
        log_probs.append(log_prob.detach().double())
        for total, grad in zip(sums, torch.autograd.grad(log_prob.sum(), leaves)):
            total += grad
    return torch.cat(log_probs), [total / len(keys) for total in sums]


def of_copies(values: Values, copies: int, stick_the_landing: bool) -> list[Tensor]:
    """Gradients [copies, n] of as many draws, all by one key: each element has noise of its own."""
    size = len(values[0])
    whole = [value.expand(size).repeat(copies).requires_grad_() for value in values]
    key = keys_for(1, seed=100)[0]
    log_prob = functional.gaussian_sample_and_log_prob(*whole, key, stick_the_landing=stick_the_landing)[1]
    return [grad.double().reshape(copies, size) for grad in torch.autograd.grad(log_prob, whole)]


def z_of_variance(draws: Tensor, mean: Tensor, variance: Tensor, fourth_moment: Tensor) -> Tensor:
    """draws: [draws, ...]."""
    error = ((draws - mean) ** 2).mean(0) - variance
    return error / ((fourth_moment - variance**2) / len(draws)).sqrt()


@pytest.mark.parametrize("stick_the_landing", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_means_and_variances(dtype: torch.dtype, stick_the_landing: bool, quick: bool, figure, record_property) -> None:
    num_keys = 20_000 if quick else 400_000
    scores: dict[str, Tensor] = {}
    for seed, (name, values) in enumerate(make_cases(dtype, 8).items()):
        keys = keys_for(num_keys, seed)
        log_prob, means = over_keys(values, keys, stick_the_landing)
        draws = of_copies(values, num_keys, stick_the_landing)
        deviations = dict(zip(NAMES, (float(grads.std(0).mean()) for grads in draws)))
        kl = closed_form(values)[0]
        record_property(
            name, {"KL": float(kl), "log_prob": [float(log_prob.mean()), float(log_prob.std())], **deviations}
        )
        if name != "q = p":
            scores[f"{name}: log_prob"] = z_of_log_prob(values, log_prob)
        if name != "q = p" or not stick_the_landing:  # else nothing varies: see below
            scores[name] = z_of_gradients(values, means, draws, num_keys, stick_the_landing)
    largest = {name: float(z.detach().abs().max()) for name, z in scores.items()}
    count, worst = sum(z.numel() for z in scores.values()), max(largest, key=lambda name: largest[name])
    bound = z_bound(count)
    how = ", stick_the_landing" * stick_the_landing
    what = f"means and variances of log_prob and its gradients over {num_keys:,} keys, {dtype}{how}"
    figure(what, f"largest of {count} |z| = {largest[worst]:.2f} ({worst})", f"|z| < {bound:.2f}")
    assert all(torch.cat(list(scores.values())).abs() < bound), largest


def z_of_log_prob(values: Values, log_prob: Tensor) -> Tensor:
    """Standard normals, if the estimator is right: of the mean and of the variance."""
    kl, law = closed_form(values)[0], quadratics(values)["log_prob"]
    variance = law.variance.sum()
    fourth_moment = 3 * variance**2 + (law.fourth_moment - 3 * law.variance**2).sum()
    z_of_mean = (log_prob.mean() - kl) / (variance / len(log_prob)).sqrt()
    return torch.stack([z_of_mean, z_of_variance(log_prob, kl, variance, fourth_moment)])


def z_of_gradients(
    values: Values, means: list[Tensor], draws: list[Tensor], num_keys: int, stick_the_landing: bool
) -> Tensor:
    """Standard normals, if the estimators are right: of each gradient's mean and variance."""
    z, laws = [], quadratics(values, stick_the_landing)
    for grad, mean, value in zip(NAMES, means, closed_form(values)[1]):  # of a prior that all share: a sum over all
        variance = laws[grad].variance.reshape(mean.numel(), -1).sum(-1)
        z.append((mean - value) / (variance / num_keys).sqrt())
    each = closed_form(tuple(value.expand_as(values[0]) for value in values))[1]
    for grad, drawn, mean in zip(NAMES, draws, each):
        z.append(z_of_variance(drawn, mean, laws[grad].variance, laws[grad].fourth_moment))
    return torch.cat([score.flatten() for score in z])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_varies_where_q_is_the_prior(dtype: torch.dtype, figure) -> None:
    """stick_the_landing: the gradient to mu is e / s less e / s. 16 roundings of each: sigma has 4.8, std_prior 1, each
    product and quotient 1; and x is rounded, by u (|mu| + s |e|), before it is divided by s^2."""
    values = make_cases(dtype, 8)["q = p"]
    held, plain = (of_copies(values, 10**4, stick_the_landing)[0] for stick_the_landing in (True, False))
    mu, s = values[0].double(), softplus(values[1].double())
    eps = (plain * s).abs()  # the plain gradient to mu is e / s
    bound = torch.finfo(dtype).eps / 2 * ((mu.abs() + s * eps) / s + 16 * eps) / s
    ratio = float((held.abs() / bound).max())
    figure(f"gradient to mu where q = p, stick_the_landing, {dtype}", f"{ratio:.2f} of its roundings", "<= 1")
    assert ratio <= 1 and plain.std() > 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_elements(dtype: torch.dtype, quick: bool, figure) -> None:
    """Gradients to mu are exactly normal, so the squares of their z are chi-square with a degree of freedom for each;
    log_prob of so many elements is normal but for a skewness of 3 / sqrt(n)."""
    numel, num_keys = 10**4 if quick else 10**6, 20
    values = make_cases(dtype, numel)["priors of each element"]
    kl, exact = closed_form(values)
    laws = quadratics(values)
    leaves = [value.requires_grad_() for value in values]
    log_prob = functional.gaussian_sample_and_log_prob(*leaves, keys_for(num_keys, 11))[1]
    mean = torch.autograd.grad(log_prob.sum(), leaves)[0].double() / num_keys
    squares = {
        "gradient to mu": (mean - exact[0]) ** 2 / (laws["mu"].variance / num_keys),
        "log_prob": (log_prob.detach().double() - kl) ** 2 / laws["log_prob"].variance.sum(),
    }
    for name, square in squares.items():
        law, total = stats.chi2(square.numel()), float(square.sum())
        p = two_sided(law.sf(total))
        figure(
            f"{name} of {numel:.0e} elements, {num_keys} keys, {dtype}: chi-square", f"p = {p:.2g}", f"p > {P_BOUND}"
        )
        assert p > P_BOUND


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_tensors(dtype: torch.dtype, quick: bool, figure) -> None:
    num_keys = 5_000 if quick else 100_000
    cases = [values for name, values in make_cases(dtype, 9).items() if name != "q = p"]  # 9: no whole Philox blocks
    lists = [list(values) for values in zip(*cases)]
    log_prob = functional.foreach_gaussian_sample_and_log_prob(*lists, keys_for(num_keys, 21))[1]
    check_mean(f"several tensors, {dtype}", log_prob, cases, figure)


def test_a_module(quick: bool, figure) -> None:
    num_keys = 5_000 if quick else 100_000
    torch.manual_seed(31)
    network = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    bnn = BayesianModule(network, std_prior=0.3, rho_init=-2.0, chunk_size=5_000)
    log_prob = bnn(torch.zeros(1, 7), key=keys_for(num_keys, 22))[1]
    prior = (torch.tensor([0.0]), torch.tensor([0.3]))
    cases = [(mu.detach().flatten(), rho.detach().flatten(), *prior) for _, mu, rho in bnn.named_gaussians()]
    check_mean("a BayesianModule", log_prob, cases, figure)


def check_mean(what: str, log_prob: Tensor, cases: list[Values], figure: Callable[..., None]) -> None:
    kl = sum(closed_form(values)[0] for values in cases)
    variance = sum(quadratics(values)["log_prob"].variance.sum() for values in cases)
    z = float((log_prob.detach().double().mean() - kl) / (variance / len(log_prob)).sqrt())
    bound = z_bound(1)
    figure(f"mean of log_prob of {what}, {len(log_prob):,} keys", f"z = {z:.2f}", f"|z| < {bound:.2f}")
    assert abs(z) < bound
