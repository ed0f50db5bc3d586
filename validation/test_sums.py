"""Are log densities and gradients of many elements or keys as exact as their sums can be, beside eager PyTorch's?

The unit is u times the sum of all summands' absolute values; the exact sums are formed in the next wider type.

Bounds. An element's own roundings are at most 24 u. A lane adds 32 elements: its k-th addition rounds k / 32 of its
sum, 16.5 u in all; in float64 so do the 32 lanes of a chunk, which float32 adds without loss. Lanes and chunks round
independently of each other, to either side: of n elements 5 standard deviations leave 5 (24 + 16.5 sqrt(32)) / sqrt(n),
in float64 5 (24 + 16.5 sqrt(32) + 16.5 sqrt(1024)) / sqrt(n), if that is less; and the sum is rounded once. Equal
elements round alike, and nothing averages out; of them the promise in float32 is 1e-6, 16.8 u. Over S keys gradients
are added one after the other: 24 u of their own, and the k-th addition rounds within k / S u, evenly, with variance (k
/ S)^2 / 3, so 5 standard deviations of all S are 5 sqrt(S) / 3 u. Eager adds in blocks, which is closer; 100 u of
float32 are 6e-6, while a mean over 10^5 keys is uncertain by 3e-3 deviations.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import softplus

from illia_ext import functional, random
from illia_ext._ops.fake import op

MU_PRIOR, STD_PRIOR = 0.25, 0.125  # exact in every type
CHUNK = 2**20
WIDER = {torch.float32: np.float64, torch.float64: np.longdouble}
DTYPES = list(WIDER)


def allowed(numel: int, dtype: torch.dtype) -> float:
    own, lane, lanes = 24, 16.5, 16.5 * (dtype == torch.float64)
    apart = own + lane * math.sqrt(32) + lanes * math.sqrt(1024)
    return 1 + min(own + lane + lanes, 5 * apart / math.sqrt(numel))


def error(got: Tensor, summands: list[np.ndarray], size: np.longdouble | None = None) -> float:
    """`size`: the sum of the absolute values, where the summands are themselves sums."""
    total = sum(np.longdouble(terms.sum()) for terms in summands)
    size = sum(np.longdouble(np.abs(terms).sum()) for terms in summands) if size is None else size
    return float(abs(np.longdouble(got.item()) - total) / size) / (torch.finfo(got.dtype).eps / 2)


def weights(numel: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """mu ~ N(0, 0.1^2) and rho ~ N(-3, 1), as in a network under training, and a key."""
    generator = torch.Generator().manual_seed(numel)
    mu = torch.randn(numel, generator=generator, dtype=dtype).mul_(0.1)
    return mu, torch.randn(numel, generator=generator, dtype=dtype).sub_(3), random.key(numel)


def widen(dtype: torch.dtype, *tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().numpy().astype(WIDER[dtype]) for tensor in tensors]


def prior(like: Tensor) -> Normal:
    return Normal(torch.tensor(MU_PRIOR).to(like), torch.tensor(STD_PRIOR).to(like))


def exact_summands(mu: Tensor, rho: Tensor, x: Tensor, eps: Tensor) -> dict[str, list[np.ndarray]]:
    m, r, given, e = widen(mu.dtype, mu, rho, x, eps)
    sigma = np.logaddexp(0, r)
    logs, far = [-np.log(sigma), np.full_like(r, np.log(r.dtype.type(STD_PRIOR)))], np.square
    return {
        "drawn": [*logs, -far(e) / 2, far((m + sigma * e - MU_PRIOR) / STD_PRIOR) / 2],
        "log_prob": [*logs, -far((given - m) / sigma) / 2, far((given - MU_PRIOR) / STD_PRIOR) / 2],
        "KL": [*logs, far(sigma / STD_PRIOR) / 2, far((m - MU_PRIOR) / STD_PRIOR) / 2, np.full_like(r, -0.5)],
    }


def eager_summands(mu: Tensor, rho: Tensor, x: Tensor, eps: Tensor) -> dict[str, Tensor]:
    sigma = softplus(rho)
    q, p, drawn = Normal(mu, sigma), prior(mu), mu + sigma * eps
    return {
        "drawn": q.log_prob(drawn) - p.log_prob(drawn),
        "log_prob": q.log_prob(x) - p.log_prob(x),
        "KL": kl_divergence(q, p),
    }


def density_errors(mu: Tensor, rho: Tensor, key: Tensor) -> dict[str, tuple[float, float]]:
    """Ours and eager's, whose summands are kept, chunk by chunk, and summed by one torch.sum."""
    x, drawn = functional.gaussian_sample_and_log_prob(mu, rho, MU_PRIOR, STD_PRIOR, key)
    ours = {
        "drawn": drawn,
        "log_prob": functional.gaussian_log_prob(x, mu, rho, MU_PRIOR, STD_PRIOR),
        "KL": functional.gaussian_kl_divergence(mu, rho, MU_PRIOR, STD_PRIOR),
    }
    sums: dict[str, list[np.longdouble]] = {name: [] for name in ours}
    sizes = dict.fromkeys(ours, np.longdouble(0))
    kept = {name: torch.empty_like(mu) for name in ours}
    for start in range(0, len(mu), CHUNK):
        stop = min(start + CHUNK, len(mu))
        block = {"full_size": [len(mu)], "origin": [start]}
        eps = op("standard_normal")(key, [stop - start], dtype=mu.dtype, **block)
        part = (mu[start:stop], rho[start:stop], x[start:stop], eps)
        for name, summands in exact_summands(*part).items():
            sums[name] += [np.longdouble(terms.sum()) for terms in summands]
            sizes[name] += sum(np.longdouble(np.abs(terms).sum()) for terms in summands)
        for name, values in eager_summands(*part).items():
            kept[name][start:stop] = values
    return {name: tuple(error(got, sums[name], sizes[name]) for got in (ours[name], kept[name].sum())) for name in ours}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_densities_of_many_elements(dtype: torch.dtype, quick: bool, figure, record_property) -> None:
    largest = (6 if quick else 8) - (dtype == torch.float64)  # the wider type of float64 takes its time
    found = {10**power: density_errors(*weights(10**power, dtype)) for power in range(largest + 1)}
    record_property("errors, ours and eager's", {str(numel): errors for numel, errors in found.items()})
    for sizes in (list(found), [10**largest]):
        worst, eager = np.max([list(found[numel].values()) for numel in sizes], axis=(0, 1))
        numels = " to ".join(f"{numel:,}" for numel in dict.fromkeys((sizes[0], sizes[-1])))
        what = f"error of log densities of {numels} elements, {dtype}"
        figure(what, f"{worst:.2g} u (eager: {eager:.2g} u)", f"<= {allowed(sizes[0], dtype):.2f} u")
    for numel, errors in found.items():
        assert all(ours <= allowed(numel, dtype) for ours, _ in errors.values()), (numel, errors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_elements(dtype: torch.dtype, quick: bool, figure) -> None:
    """Roundings of 2^14 equal elements all go one way; the noise of a draw differs, and does not count here."""
    count, generator = 40 if quick else 400, torch.Generator().manual_seed(0)
    found = []
    for mu, rho in zip(*torch.randn(2, count, generator=generator, dtype=dtype)):
        errors = density_errors(mu.expand(2**14).clone(), 3 * rho.expand(2**14), random.key(0))
        found += [errors["log_prob"][0], errors["KL"][0]]
    bound = 16.8 if dtype == torch.float32 else allowed(1, dtype)
    figure(f"error of log densities of 2^14 equal elements, {dtype}", f"{np.max(found):.2g} u", f"<= {bound} u")
    assert np.max(found) <= bound


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_to_a_shared_prior(dtype: torch.dtype, quick: bool, figure) -> None:
    numel = 10**5 if quick else 10**7 // (1 if dtype == torch.float32 else 10)
    mu, rho, key = weights(numel, dtype)
    priors = [torch.tensor([value], dtype=dtype, requires_grad=True) for value in (MU_PRIOR, STD_PRIOR)]
    functional.gaussian_sample_and_log_prob(mu, rho, *priors, key)[1].backward()
    m, r, e = widen(dtype, mu, rho, op("standard_normal")(key, [numel], dtype=dtype))
    z = (m + np.logaddexp(0, r) * e - MU_PRIOR) / STD_PRIOR
    one = np.full_like(z, 1 / STD_PRIOR)
    found = [error(priors[0].grad, [-z / STD_PRIOR]), error(priors[1].grad, [one, -(z**2) / STD_PRIOR])]
    bound = allowed(numel, dtype)
    what = f"error of gradients to a prior of {numel:.0e} elements, {dtype}"
    figure(what, f"{np.max(found):.2g} u", f"<= {bound:.2f} u")
    assert np.max(found) <= bound


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_over_keys(dtype: torch.dtype, quick: bool, figure) -> None:
    """x is far from the prior's mean, so the terms have one sign."""
    num_keys = 10**4 if quick else 10**5
    keys = random.split(random.key(0), num_keys)
    mu, rho = (torch.full((1,), value, dtype=dtype, requires_grad=True) for value in (1.7, -1.3))
    functional.gaussian_sample_and_log_prob(mu, rho, MU_PRIOR, STD_PRIOR, keys)[1].sum().backward()
    m, r, e = widen(dtype, mu, rho, op("standard_normal")(keys, [1], dtype=dtype))
    sigma, p = np.logaddexp(0, r), 1 / (1 + np.exp(-r))
    w = (m + sigma * e - MU_PRIOR) / STD_PRIOR**2
    found = [error(mu.grad, [w]), error(rho.grad, [p * e * w, np.broadcast_to(-p / sigma, e.shape)])]
    bound = 24 + 5 * math.sqrt(num_keys) / 3
    figure(f"error of gradients over {num_keys:,} keys, {dtype}", f"{np.max(found):.2g} u", f"<= {bound:.0f} u")
    assert np.max(found) <= bound
