"""Log densities and gradients of many elements or keys: the error of their sums, beside that of eager PyTorch's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import softplus

from illia_ext import functional, random
from illia_ext._ops.fake import op
from validation.evidence import Finding, Table

__all__ = ["collect"]

MU_PRIOR, STD_PRIOR = 0.25, 0.125  # exact in every type
CHUNK = 2**20
WIDER = {torch.float32: np.float64, torch.float64: np.longdouble}
Total = tuple[np.longdouble, np.longdouble]  # a sum, and that of the absolute values


@dataclass(frozen=True)
class Sum:
    """Errors in units of u times the sum of the absolute values of the summands."""

    what: str
    numel: int
    ours: float
    eager: float


def compare(what: str, numel: int, ours: Tensor, eager: Tensor, exact: Total) -> Sum:
    def error(got: Tensor) -> float:
        return float(abs(np.longdouble(got.item()) - exact[0]) / exact[1]) / (torch.finfo(got.dtype).eps / 2)

    return Sum(what, numel, error(ours), error(eager))


def weights(numel: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """mu ~ N(0, 0.1^2) and rho ~ N(-3, 1), as in a network under training, and a key."""
    generator = torch.Generator().manual_seed(numel)
    mu = torch.randn(numel, generator=generator, dtype=dtype).mul_(0.1)
    return mu, torch.randn(numel, generator=generator, dtype=dtype).sub_(3), random.key(numel)


def exact_summands(mu: Tensor, rho: Tensor, x: Tensor, eps: Tensor) -> dict[str, list[np.ndarray]]:
    """In the wider type; a summand of one element is the same for all."""
    m, r, given, e = (tensor.numpy().astype(WIDER[mu.dtype]) for tensor in (mu, rho, x, eps))
    sigma = np.log1p(np.exp(-np.abs(r))) + np.maximum(r, 0)
    logs = [-np.log(sigma), np.log(np.full(1, STD_PRIOR, r.dtype))]
    far = np.square
    return {
        "drawn": [*logs, -far(e) / 2, far((m + sigma * e - MU_PRIOR) / STD_PRIOR) / 2],
        "log_prob": [*logs, -far((given - m) / sigma) / 2, far((given - MU_PRIOR) / STD_PRIOR) / 2],
        "kl_divergence": [*logs, far(sigma / STD_PRIOR) / 2, far((m - MU_PRIOR) / STD_PRIOR) / 2, 0 * logs[1] - 0.5],
    }


def eager_summands(mu: Tensor, rho: Tensor, x: Tensor, eps: Tensor) -> dict[str, Tensor]:
    sigma = softplus(rho)
    q, p = Normal(mu, sigma), Normal(torch.tensor(MU_PRIOR).to(mu), torch.tensor(STD_PRIOR).to(mu))
    drawn = mu + sigma * eps
    return {
        "drawn": q.log_prob(drawn) - p.log_prob(drawn),
        "log_prob": q.log_prob(x) - p.log_prob(x),
        "kl_divergence": kl_divergence(q, p),
    }


def densities(numel: int, dtype: torch.dtype) -> list[Sum]:
    mu, rho, key = weights(numel, dtype)
    return density_sums("", mu, rho, key)


def density_sums(what: str, mu: Tensor, rho: Tensor, key: Tensor) -> list[Sum]:
    """Eager's summands are kept, chunk by chunk, and summed by one torch.sum, as if memory were no matter."""
    x, drawn = functional.gaussian_sample_and_log_prob(mu, rho, MU_PRIOR, STD_PRIOR, key)
    ours = {
        "drawn": drawn,
        "log_prob": functional.gaussian_log_prob(x, mu, rho, MU_PRIOR, STD_PRIOR),
        "kl_divergence": functional.gaussian_kl_divergence(mu, rho, MU_PRIOR, STD_PRIOR),
    }
    numel = len(mu)
    totals = {name: [np.longdouble(0), np.longdouble(0)] for name in ours}
    summands = {name: torch.empty_like(mu) for name in ours}
    for start in range(0, numel, CHUNK):
        size = min(CHUNK, numel - start)
        eps = op("standard_normal")(key, [size], dtype=mu.dtype, full_size=[numel], origin=[start])
        parts = [tensor[start : start + size] for tensor in (mu, rho, x)]
        for name, terms in exact_summands(*parts, eps).items():
            for term in terms:
                for n, values in enumerate((term, np.abs(term))):
                    totals[name][n] += np.longdouble(values.sum()) * (size // len(term))
        for name, values in eager_summands(*parts, eps).items():
            summands[name][start : start + size] = values
    return [
        compare(what + name, numel, total, summands[name].sum(), tuple(totals[name])) for name, total in ours.items()
    ]


def equal_elements(count: int, dtype: torch.dtype) -> list[Sum]:
    """2^14 equal elements, whose roundings all go one way: the worst of `count` constants."""
    found: list[Sum] = []
    generator = torch.Generator().manual_seed(0)
    for mu, rho in zip(*torch.randn(2, count, generator=generator, dtype=dtype)):
        sums = density_sums("equal elements: ", mu.expand(2**14).clone(), 3 * rho.expand(2**14), random.key(0))
        found += [sum_ for sum_ in sums if not sum_.what.endswith("drawn")]  # whose noise differs
    return found


def total(terms: np.ndarray) -> Total:
    return np.longdouble(terms.sum()), np.longdouble(np.abs(terms).sum())


def prior_gradients(numel: int, dtype: torch.dtype) -> list[Sum]:
    """To a prior that all elements share."""
    mu, rho, key = weights(numel, dtype)
    eps = op("standard_normal")(key, [numel], dtype=dtype)

    def priors() -> list[Tensor]:
        return [torch.tensor([value], dtype=dtype, requires_grad=True) for value in (MU_PRIOR, STD_PRIOR)]

    mine, plain = priors(), priors()
    ours = functional.gaussian_sample_and_log_prob(mu, rho, *mine, key)[1]
    eager = -Normal(*plain).log_prob(mu + softplus(rho) * eps).sum()
    m, r, e = (tensor.numpy().astype(WIDER[dtype]) for tensor in (mu, rho, eps))
    z = (m + (np.log1p(np.exp(-np.abs(r))) + np.maximum(r, 0)) * e - MU_PRIOR) / STD_PRIOR
    exact = (total(-z / STD_PRIOR), (total((1 - z**2) / STD_PRIOR)[0], total((1 + z**2) / STD_PRIOR)[1]))
    return [
        compare(f"gradient to {name}", numel, *grads)
        for name, *grads in zip(
            ("mu_prior", "std_prior"), torch.autograd.grad(ours, mine), torch.autograd.grad(eager, plain), exact
        )
    ]


def sums_over_keys(num_keys: int, dtype: torch.dtype) -> list[Sum]:
    """Gradients to one mu and rho, summed over samples, where the terms have one sign: x is far from the prior's."""
    mu, rho = (torch.full((1,), value, dtype=dtype) for value in (1.7, -1.3))
    keys = torch.stack([torch.full((num_keys,), 5), 4 * torch.arange(num_keys)], 1)
    eps = op("standard_normal")(keys, [1], dtype=dtype)

    def gradients(log_prob: Tensor, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(log_prob, leaves, torch.ones_like(log_prob))

    mine, plain = ([tensor.clone().requires_grad_() for tensor in (mu, rho)] for _ in range(2))
    ours = gradients(functional.gaussian_sample_and_log_prob(*mine, MU_PRIOR, STD_PRIOR, keys)[1], mine)
    sigma = softplus(plain[1])
    x = plain[0] + sigma * eps
    prior = Normal(torch.tensor(MU_PRIOR).to(mu), torch.tensor(STD_PRIOR).to(mu))
    eager = gradients((Normal(plain[0], sigma).log_prob(x) - prior.log_prob(x)).sum(-1), plain)
    m, r, e = (tensor.numpy().astype(WIDER[dtype]) for tensor in (mu, rho, eps))
    s = np.log1p(np.exp(r))
    w, p = (m + s * e - MU_PRIOR) / STD_PRIOR**2, 1 / (1 + np.exp(-r))
    h = np.broadcast_to(p / s, e.shape)
    through_x, through_q = total(p * e * w), total(h)
    exact = (total(w), (through_x[0] - through_q[0], through_x[1] + through_q[1]))
    return [
        compare(f"gradient to {name}, over keys", num_keys, *grads)
        for name, *grads in zip(("mu", "rho"), ours, eager, exact)
    ]


def allowed(numel: int, dtype: torch.dtype) -> float:
    """In u, as the text of validation/accuracy.py derives it."""
    own, lane, lanes = 24, 16.5, 16.5 * (dtype == torch.float64)
    apart = own + lane * math.sqrt(32) + lanes * math.sqrt(1024)
    return 1 + min(own + lane + lanes, 5 * apart / math.sqrt(numel))


def collect(quick: bool) -> tuple[list[Finding], Table]:
    findings, rows = [], []
    for dtype in (torch.float32, torch.float64):
        name = str(dtype).removeprefix("torch.")
        largest = (6 if quick else 8) - (dtype == torch.float64)  # the wider type of float64 takes its time
        found = [one for power in range(largest + 1) for one in densities(10**power, dtype)]
        found += [one for power in range(largest) for one in prior_gradients(10**power, dtype)]
        closer = sum(one.ours <= one.eager for one in found)
        large = max(one.ours for one in found if one.numel >= 10**4)
        measured = f"at most {max(one.ours for one in found):.2g} u, from 10^4 on {large:.2g} u"
        measured += f"; not above eager's in {closer} of {len(found)}"
        held = all(one.ours <= allowed(one.numel, dtype) for one in found)
        what = f"sums, {name}: densities of 1 to 10^{largest} elements, gradients to a prior of 10^{largest - 1}"
        bound = f"<= {allowed(1, dtype):.1f} u, from 10^4 on {allowed(10**4, dtype):.1f}"
        findings.append(Finding(what, measured, f"{bound}, at the end {allowed(10**largest, dtype):.1f}", held))
        equal = equal_elements(40 if quick else 400, dtype)
        mine, plain = (float(np.max([getattr(one, of) for one in equal])) for of in ("ours", "eager"))
        most, note = (16.8, " (1e-6)") if dtype == torch.float32 else (allowed(1, dtype), "")
        measured, bound = f"{mine:.2g} u (eager: {plain:.2g})", f"<= {most} u{note}"
        what = f"sums of 2^14 equal elements, {name}, the worst of {len(equal)}"
        findings.append(Finding(what, measured, bound, mine <= most))
        num_keys = 10**4 if quick else 10**5
        worst = max(sums_over_keys(num_keys, dtype), key=lambda one: one.ours)
        measured, bound = f"{worst.ours:.2g} u (eager: {worst.eager:.2g})", 24 + 5 * math.sqrt(num_keys) / 3
        what = f"{worst.what}, {num_keys:,} of them, {name}"
        findings.append(Finding(what, measured, f"<= {bound:,.0f} u", worst.ours <= bound))
        for kind in dict.fromkeys(one.what for one in found):
            cells = {one.numel: f"{one.ours:.2g} / {one.eager:.2g}" for one in found if one.what == kind}
            rows.append([name, kind, *(cells.get(10**power, "-") for power in range(9))])
    title = "Errors of sums in u of the sum of all summands' absolute values, ours / eager PyTorch's."
    return findings, Table(title, ["type", "sum", *(f"10^{power}" for power in range(9))], rows)
