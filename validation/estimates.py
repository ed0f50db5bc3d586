"""log_prob and its gradients over many keys, beside the laws that they should follow: see validation/estimator.py."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import softplus

from illia_ext import functional, random
from validation.evidence import P_BOUND, Finding

__all__ = ["NAMES", "Case", "Scores", "judge", "keys_for", "make_cases", "of_copies"]

NAMES = ("mu", "rho", "mu_prior", "std_prior")
CALL = 4096


@dataclass(frozen=True)
class Quadratic:
    """a e + b (e^2 - 1) of each element."""

    a: Tensor
    b: Tensor

    @property
    def variance(self) -> Tensor:
        return self.a**2 + 2 * self.b**2

    @property
    def fourth_moment(self) -> Tensor:
        return 3 * self.a**4 + 60 * self.a**2 * self.b**2 + 60 * self.b**4


@dataclass(frozen=True)
class Case:
    """mu and rho [n], priors [1] or [n], in the type under test."""

    name: str
    values: tuple[Tensor, Tensor, Tensor, Tensor]

    @property
    def wide(self) -> tuple[Tensor, ...]:
        return tuple(value.double() for value in self.values)

    def leaves(self) -> list[Tensor]:
        return [value.clone().requires_grad_() for value in self.values]

    def closed_form(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The KL divergence and its gradients."""
        mu, rho, mu_prior, std_prior = leaves = [value.requires_grad_() for value in self.wide]
        kl = kl_divergence(Normal(mu, softplus(rho)), Normal(mu_prior, std_prior)).sum()
        return kl.detach(), torch.autograd.grad(kl, leaves)

    def theory(self, stick_the_landing: bool = False) -> dict[str, Quadratic]:
        mu, rho, mu_prior, std = self.wide
        s, p, d, v = softplus(rho), torch.sigmoid(rho), mu - mu_prior, std**2
        none, slope = torch.zeros_like(s), s / v - (1 / s if stick_the_landing else 0)
        return {
            "log_prob": Quadratic(d * s / v, (s**2 / v - 1) / 2),
            "mu": Quadratic(slope, none),
            "rho": Quadratic(p * d / v, p * slope),
            "mu_prior": Quadratic(-s / v, none),
            "std_prior": Quadratic(-2 * d * s / std**3, -(s**2) / std**3),
        }


def make_cases(dtype: torch.dtype, size: int) -> list[Case]:
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
    return [Case(name, tuple(value.to(dtype) for value in values)) for name, values in cases.items()]


def keys_for(count: int, seed: int) -> Tensor:
    return random.draw_key(count, generator=torch.Generator().manual_seed(seed))


def over_keys(case: Case, keys: Tensor, stick_the_landing: bool) -> tuple[Tensor, list[Tensor]]:
    """log_prob of each key, and the mean gradients, in float64."""
    log_probs, sums = [], [torch.zeros_like(value) for value in case.wide]
    for part in keys.split(CALL):
        leaves = case.leaves()
        log_prob = functional.gaussian_sample_and_log_prob(*leaves, part, stick_the_landing=stick_the_landing)[1]
        log_probs.append(log_prob.detach().double())
        for total, grad in zip(sums, torch.autograd.grad(log_prob.sum(), leaves)):
            total += grad
    return torch.cat(log_probs), [total / len(keys) for total in sums]


def scores_of_means(means: Sequence[Tensor], exact: Sequence[Tensor], laws: Sequence[Quadratic], n: int) -> Tensor:
    """Standard normal where the estimator is right; a gradient to a prior of one element is a sum over all."""
    scores = []
    for mean, value, quadratic in zip(means, exact, laws):
        variance = quadratic.variance.reshape(mean.numel(), -1).sum(-1)
        scores.append((mean - value) / (variance / n).sqrt())
    return torch.cat([score.flatten() for score in scores])


def of_copies(case: Case, copies: int, seed: int, stick_the_landing: bool) -> list[Tensor]:
    """Gradients [copies, n] of as many draws, all by one key: each element is drawn for itself."""
    size = len(case.values[0])
    whole = [value.expand(size).repeat(copies).requires_grad_() for value in case.values]
    key = keys_for(1, seed)[0]
    log_prob = functional.gaussian_sample_and_log_prob(*whole, key, stick_the_landing=stick_the_landing)[1]
    return [grad.double().reshape(copies, size) for grad in torch.autograd.grad(log_prob, whole)]


def score_of_variance(values: Tensor, mean: Tensor, variance: Tensor, fourth_moment: Tensor) -> Tensor:
    """values: [draws, ...]."""
    error = ((values - mean) ** 2).mean(0) - variance
    return error / ((fourth_moment - variance**2) / len(values)).sqrt()


class Scores:
    """Scores of many cases, standard normal each, which one finding judges by the largest."""

    def __init__(self) -> None:
        self.largest: dict[str, tuple[float, str]] = {}
        self.counts: dict[str, int] = {}

    def add(self, what: str, where: str, scores: Tensor) -> None:
        largest = float(scores.abs().nan_to_num(nan=torch.inf).max())
        self.counts[what] = self.counts.get(what, 0) + scores.numel()
        if largest > self.largest.get(what, (-1.0, ""))[0]:
            self.largest[what] = largest, where

    def findings(self) -> list[Finding]:
        found = []
        for what, (largest, where) in self.largest.items():
            count = self.counts[what]
            bound = float(stats.norm.isf(P_BOUND / (2 * count)))
            measured = f"max of {count} |z| = {largest:.2f} ({where})"
            found.append(Finding(what, measured, f"|z| < {bound:.2f}", largest < bound))
        return found


def per_element_moments(case: Case, stick_the_landing: bool) -> list[tuple[Tensor, Quadratic]]:
    """Mean and law of each element's gradients, priors taken for each element."""
    each = Case(case.name, tuple(value.expand_as(case.values[0]) for value in case.values))
    theory = each.theory(stick_the_landing)
    return [(mean, theory[name]) for name, mean in zip(NAMES, each.closed_form()[1])]


def judge(case: Case, scores: Scores, num_keys: int, seed: int) -> list[str]:
    """The case's row of the table."""
    where = f"{case.name}, {str(case.values[0].dtype).removeprefix('torch.')}"
    kl, exact = case.closed_form()
    equal = case.name == "q = p"
    deviations = []
    for held in (False, True):
        of = "with stick_the_landing" if held else "as they are"
        log_prob, means = over_keys(case, keys_for(num_keys, seed), held)
        theory = case.theory(held)
        if not held:
            variance = theory["log_prob"].variance.sum()
            kurtosis = theory["log_prob"].fourth_moment - 3 * theory["log_prob"].variance ** 2
            if not equal:
                score = (log_prob.mean() - kl) / (variance / num_keys).sqrt()
                scores.add("mean of log_prob is the KL divergence", where, score)
                fourth = 3 * variance**2 + kurtosis.sum()
                scores.add("variance of log_prob", where, score_of_variance(log_prob, kl, variance, fourth))
        if not (held and equal):
            laws = [theory[name] for name in NAMES]
            what = f"means of gradients, {of}"
            scores.add(what, where, scores_of_means(means, exact, laws, num_keys))
        draws = of_copies(case, num_keys, seed, held)
        for values, (mean, law) in zip(draws, per_element_moments(case, held)):
            if not (held and equal):
                score = score_of_variance(values, mean, law.variance, law.fourth_moment)
                scores.add(f"variances of gradients, {of}", where, score)
        deviations.append([float(values.std(0).mean()) for values in draws[:2]])
    spread = float(theory["log_prob"].variance.sum().sqrt())
    (mu, rho), (mu_held, rho_held) = deviations
    return [
        where,
        f"{float(kl):.6g}",
        f"{float(log_prob.mean()):.6g} ± {float(log_prob.std()) / num_keys**0.5:.1g}",
        f"{float(log_prob.std()):.4g} ({spread:.4g})",
        f"{mu:.3g} → {mu_held:.2g}",
        f"{rho:.3g} → {rho_held:.2g}",
    ]
