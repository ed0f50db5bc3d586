"""Whether log_prob and its gradients estimate the KL divergence and its gradients: their means and variances over keys.

With s = sigma, d = mu - mu_prior, v = std_prior^2 and the noise e, an element adds to log_prob

    log(std_prior / s) - e^2 / 2 + (d + s e)^2 / (2 v) = KL + a e + b (e^2 - 1),   a = d s / v,  b = (s^2 / v - 1) / 2,

because E e = 0 and E e^2 = 1. Var e = 1, Var e^2 = 2 and Cov(e, e^2) = 0, so its variance is a^2 + 2 b^2, and its
fourth moment 3 a^4 + 60 a^2 b^2 + 60 b^4. Every gradient has this form too. With p = sigmoid(rho) = ds / d rho:

| gradient to | a | b |
|---|---|---|
| mu | s / v | 0 |
| mu, stick the landing | s / v - 1 / s | 0 |
| rho | p d / v | p s / v |
| rho, stick the landing | p d / v | p (s / v - 1 / s) |
| mu_prior | -s / v | 0 |
| std_prior | -2 d s / std_prior^3 | -s^2 / std_prior^3 |

Without stick_the_landing the score of log q has dropped out of the first, because log q(mu + s e) is -log s - e^2 / 2.
Both have one mean. Where q = p, s / v = 1 / s and d = 0: with stick_the_landing nothing varies, nor does log_prob. What
the table shows of them there is rounding, which the means and variances leave out. Where s is far below std_prior, as
in fresh weights, 1 / s rules, and it varies more.

**Means** over S keys differ from the closed form by a standard normal, nearly, times sqrt(variance / S), with the
variance of the theory. The closed form and its gradients are those of `torch.distributions.kl_divergence` in float64,
by autograd; ours is judged by its accuracy. **Variances** over S draws have the variance (fourth moment - variance^2) /
S. Bounds on the largest of m figures are Bonferroni's: |z| for which the chance of one normal beyond it is 5.7e-7 / m.
Gradients of many keys are added in calls of 4096, because the sum of a call is one of floats. Keys are `draw_key` under
fixed seeds.
"""

import torch
from scipy import stats
from torch import nn

from illia_ext import BayesianModule, functional
from validation.estimates import Case, Scores, judge, keys_for, make_cases, of_copies
from validation.evidence import P_BOUND, Finding, Section, Table

__all__ = ["collect"]

DTYPES = (torch.float32, torch.float64)


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def nothing_varies(case: Case) -> Finding:
    """stick_the_landing where q = p. Of e / s, that the prior's part cancels, 16 roundings: sigma has 4.8, std_prior 1,
    each product and quotient 1; and x is rounded, by u (|mu| + s |e|), before it is divided by s^2."""
    held, plain = (of_copies(case, 10**4, 1, stick_the_landing)[0] for stick_the_landing in (True, False))
    mu, s = case.wide[0], case.wide[3]
    eps = (plain * s).abs()  # the plain gradient to mu is e / s
    bound = torch.finfo(case.values[0].dtype).eps / 2 * ((mu.abs() + s * eps) / s + 16 * eps) / s
    ratio = float((held.abs() / bound).max())
    measured = f"{ratio:.2f} of the roundings; deviation {float(held.std()):.1g}, without {float(plain.std()):.2g}"
    what = f"stick_the_landing where q = p, {short(case.values[0].dtype)}: gradient to mu is 0"
    return Finding(what, measured, "<= 1", ratio <= 1)


def many_elements(numel: int, num_keys: int, dtype: torch.dtype) -> list[Finding]:
    """Gradients to mu are exactly normal: the squares of their scores are chi-square with numel degrees of freedom. So
    is log_prob of so many elements, but for a skewness of 3 / sqrt(numel)."""
    case = make_cases(dtype, numel)[3]
    kl, exact = case.closed_form()
    leaves = case.leaves()
    log_prob = functional.gaussian_sample_and_log_prob(*leaves, keys_for(num_keys, 11))[1]
    mean = torch.autograd.grad(log_prob.sum(), leaves)[0].double() / num_keys
    theory = case.theory()
    by_element = (mean - exact[0]) ** 2 / (theory["mu"].variance / num_keys)
    by_key = (log_prob.detach().double() - kl) ** 2 / theory["log_prob"].variance.sum()
    found = []
    for what, squares in (("gradient to mu", by_element), ("log_prob", by_key)):
        statistic, degrees = float(squares.sum()), squares.numel()
        p = 2 * min(stats.chi2.sf(statistic, degrees), stats.chi2.cdf(statistic, degrees))
        name = f"{what} of {numel:,} elements, {num_keys} keys, {short(dtype)}"
        found.append(
            Finding(
                name, f"chi-square / {degrees} = {statistic / degrees:.4f}, p = {p:.2g}", f"p > {P_BOUND}", p > P_BOUND
            )
        )
    return found


def wholes(num_keys: int, scores: Scores) -> None:
    """Many tensors in one call, and a module."""
    what = "mean of log_prob of many tensors, and of a BayesianModule"
    for dtype in DTYPES:
        cases = make_cases(dtype, 9)[:4]  # 9: no tensor ends with a Philox block
        lists = [list(values) for values in zip(*(case.values for case in cases))]
        keys = keys_for(num_keys, 21)
        log_prob = functional.foreach_gaussian_sample_and_log_prob(*lists, keys)[1].double()
        kl = sum(case.closed_form()[0] for case in cases)
        variance = sum(case.theory()["log_prob"].variance.sum() for case in cases)
        scores.add(what, f"foreach, {short(dtype)}", (log_prob.mean() - kl) / (variance / num_keys).sqrt())
    torch.manual_seed(31)
    bnn = BayesianModule(
        nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3)), std_prior=0.3, rho_init=-2.0, chunk_size=20_000
    )
    log_prob = bnn(torch.zeros(1, 7), key=keys_for(num_keys, 22))[1].double()
    parts = [
        Case(name, (mu.detach().flatten(), rho.detach().flatten(), torch.tensor([0.0]), torch.tensor([0.3])))
        for name, mu, rho in bnn.named_gaussians()
    ]
    variance = sum(part.theory()["log_prob"].variance.sum() for part in parts)
    kl = sum(part.closed_form()[0] for part in parts)
    score = (log_prob.detach().mean() - kl) / (variance / num_keys).sqrt()
    scores.add(what, "BayesianModule", score)


def collect(quick: bool) -> Section:
    num_keys = 20_000 if quick else 400_000
    section = Section("Estimator", __doc__)
    scores = Scores()
    rows = [judge(case, scores, num_keys, seed) for dtype in DTYPES for seed, case in enumerate(make_cases(dtype, 8))]
    wholes(num_keys // 4, scores)
    section.findings += scores.findings()
    for dtype in DTYPES:
        section.findings += many_elements(10**4 if quick else 10**6, 20, dtype)
        section.findings.append(nothing_varies(make_cases(dtype, 8)[-1]))
    columns = ["case", "KL", "mean of log_prob", "its deviation (theory)", "of grad_mu", "of grad_rho"]
    title = f"Eight elements a case, {num_keys:,} keys. Deviations of gradients: as they are → with stick_the_landing."
    section.tables.append(Table(title, columns, rows))
    return section
