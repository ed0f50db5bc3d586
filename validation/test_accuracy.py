"""How far are our values and gradients from the exact ones, and how far are those of eager PyTorch?

Cells: nine ranges of rho between the numbers where something changes (exp(rho) becomes 0 or subnormal, torch's softplus
becomes linear, exp(rho) overflows), each with nine settings of the others: usual ones, a given x up to 10^6 sigma away,
mu and priors near the ends of the type, a prior of enormous width over usual weights, priors of each element, q = p.
Eager is softplus, torch.distributions and autograd with the same noise, for half types in float32, rounded to what our
op returns. oracle.py gives the exact values and the unit.

Counted are points where what is added up, a drawn x and the gradient to it fit into the type; where x is given, or held
by stick_the_landing, sigma has to be a normal number of the type.

Bounds. Each rounding on a result's way adds at most 1, each elementary function what csrc/core states and
tests/ops/test_elementary.py asserts (an ulp is at most 2 u): S for sigma, H for h = d log sigma / d rho, P for
sigmoid(rho). In a cell our worst error has to stay below eager's or below that bound, and no result may be infinite or
NaN. For results of a half type the bound is twice eager's error, or one rounding. Where
eager is closer, its sigma comes from functions that err by less than ours, and it divides by std_prior where we
multiply by the inverse: some 3 u are the price of our speed.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from oracle import RANGES, SETTINGS, Cell, Exact, Points, arithmetic, cells, draw, exact, exact_normals, widen
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import softplus

from illia_ext import functional, random
from illia_ext._ops.fake import op

HALF_DTYPES = (torch.float16, torch.bfloat16)
DTYPES = [torch.float32, torch.float64, *HALF_DTYPES]
S, H, P = 4.8, 7.2, 9.2
Z = 1 + S + 1  # (x - mu) / sigma; a drawn x errs by S + 1
DRAWN = (S + 1) + 1 + 2 + 1 + 1 + 1  # ((x - mu_prior) * prior_scale) * inverse_std, added
ALLOWED = {  # a density's sums take 5; of the parts of a sum the largest counts
    "sample": S + 1,
    "sample: grad_mu": 0,
    "sample: grad_rho": 1 + P + 1,
    "drawn": 2 * 3 + 1 + 5,
    "drawn: grad_mu": DRAWN,
    "drawn: grad_rho": DRAWN + 1 + P + 1 + 1,
    "drawn: grad_mu_prior": (S + 1) + 3 + 1 + 1 + 1,
    "drawn: grad_std_prior": 2 * (S + 1 + 3) + 1 + 1 + 1 + 1 + 1,
    "stick_the_landing: grad_mu": DRAWN + 1,
    "stick_the_landing: grad_rho": DRAWN + 1 + P + 1 + 1,
    "log_prob": 2 * Z + 1 + 5,
    "log_prob: grad_x": Z + S + 1 + 1 + 1,
    "log_prob: grad_mu": Z + S + 1 + 1,
    "log_prob: grad_rho": 2 * Z + 1 + 1 + H + 1,
    "log_prob: grad_mu_prior": 3 + 1 + 1 + 1,
    "log_prob: grad_std_prior": 2 * 3 + 1 + 1 + 1 + 1 + 1,
    "kl_divergence": 2 * (S + 2) + 1 + 5,
    "kl_divergence: grad_mu": 1 + 2 + 1 + 1 + 1,
    "kl_divergence: grad_rho": S + 2 + 1 + P + 1 + 1 + 1 + 1,
    "kl_divergence: grad_mu_prior": 3 + 1 + 1 + 1,
    "kl_divergence: grad_std_prior": 2 * (S + 2) + 1 + 1 + 1 + 1 + 1 + 1,
}
ONCE_ROUNDED = 1.01  # a float32 result of up to 30 of its u is 30 * 2^-13 of float16's u away, then rounded
Results = dict[str, Tensor]


def gradients(name: str, outputs: Tensor, grads: Tensor, leaves: Results) -> Results:
    """To those leaves that the outputs depend on."""
    found = torch.autograd.grad(outputs, list(leaves.values()), grads, retain_graph=True, allow_unused=True)
    return {f"{name}: grad_{to}": grad for to, grad in zip(leaves, found) if grad is not None}


def with_leaves(points: Points, convert: Callable[[Tensor], Tensor]) -> tuple[Points, Results]:
    """Priors that are numbers have no gradient here: it would be the sum of all elements'."""
    tensors = {name: convert(getattr(points, name).detach()) for name in ("mu", "rho", "x", "mu_prior", "std_prior")}
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items() if tensor.dim()}
    return points._replace(**tensors), leaves


def ours(points: Points) -> Results:
    """Gradients from one call of all elements; log densities from one of each, or of each pair."""
    p, leaves = with_leaves(points, Tensor.clone)
    parameters = {name: leaves[name] for name in ("mu", "rho")}
    priors, go = (p.mu_prior, p.std_prior), p.grad_log_prob
    if not p.mu_prior.dim():
        priors = (p.mu_prior.item(), p.std_prior.item())
    sample = functional.gaussian_sample(p.mu, p.rho, p.key)
    drawn = functional.gaussian_sample_and_log_prob(p.mu, p.rho, *priors, p.key)[1]
    held = functional.gaussian_sample_and_log_prob(p.mu, p.rho, *priors, p.key, stick_the_landing=True)[1]
    log_prob = functional.gaussian_log_prob(p.x, p.mu, p.rho, *priors)
    kl = functional.gaussian_kl_divergence(p.mu, p.rho, *priors)
    return {
        "sample": sample.detach(),
        **gradients("sample", sample, p.grad_x, leaves),
        **gradients("drawn", drawn, go, leaves),
        **gradients("stick_the_landing", held, go, parameters),
        **gradients("log_prob", log_prob, go, leaves),
        **gradients("kl_divergence", kl, go, leaves),
        **log_densities(points),
    }


def log_densities(points: Points) -> Results:
    found: dict[str, list[Tensor]] = {"drawn": [], "log_prob": [], "kl_divergence": []}
    fused, given, closed = (op(f"gaussian_{name}") for name in ("sample_and_log_prob", "log_prob", "kl_divergence"))
    parts = [tensor.split(points.group) for tensor in (points.mu, points.rho, points.x)]
    priors = [
        prior.split(points.group) if prior.dim() else [prior.double()] * len(parts[0])
        for prior in (points.mu_prior, points.std_prior)
    ]
    for k, (mu, rho, x, *prior) in enumerate(zip(*parts, *priors)):
        block = {"full_size": [len(points.mu)], "origin": [k * points.group]}
        found["drawn"].append(fused(mu, rho, *prior, points.key, **block)[1])
        found["log_prob"].append(given(x, mu, rho, *prior))
        found["kl_divergence"].append(closed(mu, rho, *prior))
    return {name: torch.stack(values) for name, values in found.items()}


def eager(points: Points) -> Results:
    dtype, total = points.mu.dtype, arithmetic(points.mu.dtype)
    p, leaves = with_leaves(points, lambda tensor: tensor.to(total, copy=True))
    parameters = {name: leaves[name] for name in ("mu", "rho")}
    sigma = softplus(p.rho)
    sample = p.mu + sigma * p.eps
    q, prior = Normal(p.mu, sigma, validate_args=False), Normal(p.mu_prior, p.std_prior, validate_args=False)
    q_held = Normal(p.mu.detach(), sigma.detach(), validate_args=False)
    log_prior = prior.log_prob(sample)
    drawn = q.log_prob(sample) - log_prior
    log_prob = q.log_prob(p.x) - prior.log_prob(p.x)
    kl = kl_divergence(q, prior)
    go = p.grad_log_prob.expand(p.mu.shape)
    outputs = {
        "sample": sample.detach(),
        **gradients("sample", sample, p.grad_x.to(total), leaves),
        **gradients("drawn", drawn, go, leaves),
        **gradients("stick_the_landing", q_held.log_prob(sample) - log_prior, go, parameters),
        **gradients("log_prob", log_prob, go, leaves),
        **gradients("kl_divergence", kl, go, leaves),
    }
    outputs = {name: tensor.to(dtype) for name, tensor in outputs.items()}
    for name, terms in (("drawn", drawn), ("log_prob", log_prob), ("kl_divergence", kl)):
        outputs[name] = terms.detach().reshape(-1, points.group).sum(1)
    return outputs


def worst_error(got: Tensor, wanted: Exact) -> tuple[float, int, int]:
    """In the unit; and how many results are not finite, of how many that count."""
    info = torch.finfo(got.dtype)
    scale = np.maximum(wanted.scale, info.tiny)
    counts = (scale <= info.max / 4).astype(bool)
    finite = counts & got.isfinite().numpy()
    errors = np.abs(widen(got)[finite] - wanted.value[finite]) / scale[finite]
    return float(errors.max(initial=0)) / (float(info.eps) / 2), int((counts & ~finite).sum()), int(counts.sum())


class Result(NamedTuple):
    cell: Cell
    name: str
    is_half: bool
    ours: float
    eager: float
    ours_lost: int
    eager_lost: int

    @property
    def bound(self) -> float:
        return max(2 * self.eager, ONCE_ROUNDED) if self.is_half else max(self.eager, ALLOWED[self.name])


def results_of(cell: Cell, count: int, seed: int) -> list[Result]:
    points, found = draw(cell, count, seed), []
    mine, plain, wanted = ours(points), eager(points), exact(points)
    for name, got in mine.items():
        error, lost, num_counted = worst_error(got, wanted[name])
        if num_counted:
            eager_error, eager_lost, _ = worst_error(plain[name], wanted[name])
            found.append(Result(cell, name, got.dtype in HALF_DTYPES, error, eager_error, lost, eager_lost))
    return found


def table(results: list[Result], axis: str, names: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Worst errors of each kind of result, "ours / eager's"; inf where some are infinite or NaN."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        here = [result for result in results if getattr(result.cell, axis) == name]
        for kind in dict.fromkeys(result.name.split(":")[0] for result in here):
            of_kind = [result for result in here if result.name.split(":")[0] == kind]
            mine = max(np.inf if result.ours_lost else result.ours for result in of_kind)
            plain = max(np.inf if result.eager_lost else result.eager for result in of_kind)
            found.setdefault(kind, {})[name] = f"{mine:.3g} / {plain:.3g}"
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients(dtype: torch.dtype, quick: bool, figure, record_property) -> None:
    count = 24 if quick else 300
    results = [result for seed, cell in enumerate(cells(dtype)) for result in results_of(cell, count, seed)]
    record_property("worst errors by range of rho", table(results, "rho_range", RANGES))
    record_property("worst errors by setting", table(results, "setting", SETTINGS))
    closer = sum(result.ours <= result.eager or result.eager_lost > 0 for result in results)
    lost, eager_lost = (sum(getattr(result, name) for result in results) for name in ("ours_lost", "eager_lost"))
    worst = max(result.ours for result in results)
    measured = f"at most {worst:.2g} u; not above eager's in {closer} of them"
    what = f"error of values and gradients, {dtype}, {len(results)} pairs of a cell and a result, {count} points each"
    bound = f"eager's, or {max(ALLOWED.values()):.0f} u at most"
    figure(what, measured, f"twice eager's, or 1.01 u; log densities {bound}" if dtype in HALF_DTYPES else bound)
    figure(f"infinite or NaN where the exact result is not, {dtype}", f"{lost} (eager: {eager_lost})", "0")
    assert [result for result in results if not result.ours <= result.bound] == []
    assert lost == 0
    assert {result.name for result in results} == set(ALLOWED)


def test_the_oracle_agrees_with_eager(figure, quick: bool) -> None:
    """The formulas of the oracle are not ours alone: in float64, rho of -1 to 20 and usual priors sigma is at least
    0.31 and |x| / sigma below 20, by which each of eager's 20 roundings grows at most, to 400 u in all; a wrong sign or
    term would be some 2^50 u off."""
    results = [
        result
        for seed, cell in enumerate(cells(torch.float64))
        if cell.rho_range in ("to 1", "to 20") and cell.setting in ("usual", "own")
        for result in results_of(cell, 40 if quick else 300, seed)
    ]
    worst = max(result.eager for result in results)
    figure("the oracle's formulas against torch.distributions and autograd", f"at most {worst:.2g} u", "<= 400 u")
    assert worst <= 400 and not any(result.eager_lost for result in results)
    assert {result.name for result in results} == set(ALLOWED)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 4.3), (torch.float64, 4.8)], ids=str)
def test_normals(dtype: torch.dtype, bound: float, quick: bool, figure) -> None:
    """In u of the radius: half the logarithm's 1.78 u or 2.6 u, the root's 1, the cosine's 1.36 or 1.5, the product's
    1."""
    key, count = random.key(2026), 4000 if quick else 10**5
    words = random.philox4x32(key[0], torch.arange(count // (2 if dtype == torch.float64 else 4)))
    if dtype == torch.float64:
        uniforms = [
            high.double() * 2.0**-32 + (low.double() * 2.0**-64 + 2.0**-65) for high, low in (words[:2], words[2:])
        ]
        pairs = torch.stack(uniforms, 1)
    else:
        pairs = torch.stack([word.float() * 2.0**-32 + 2.0**-33 for word in words], 1).reshape(-1, 2)
    radius, angle = torch.sqrt(-2 * torch.log(pairs[:, 0])), 2 * torch.pi * pairs[:, 1]
    plain = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], 1).flatten()
    wanted = exact_normals(pairs)
    mine, eagers = (worst_error(got, wanted)[0] for got in (op("standard_normal")(key, [count], dtype=dtype), plain))
    figure(f"error of {count:.0e} standard normals, {dtype}", f"{mine:.2g} u (eager: {eagers:.2g} u)", f"<= {bound} u")
    assert mine <= bound
