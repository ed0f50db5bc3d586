"""How far our results are from the exact ones, and how far those of eager PyTorch are.

**Points.** rho runs from the most negative finite number to the largest, in nine ranges between the numbers where
something changes: exp(rho) becomes 0 or subnormal (-104 and -87 in float32, -745 and -708 in float64), torch's softplus
becomes linear (20), exp(rho) overflows. Each range meets nine settings of the others: usual ones; a given x up to
10^6 sigma away; mu and priors near the largest number's power 0.78 (1e30 in float32), near its inverse, near the
smallest normal number; a prior of the first width over usual weights; priors of each element across all of that; q = p;
and priors of each element's own, of usual size. Seeds are fixed.

**Oracle.** The textbook's formulas in long double (64 bits of mantissa, exponents to 10^4932), none of our
rearrangements; a sample of the points is done once more by mpmath with 60 digits, which tells of its digits, not of its
formulas. Those meet others, PyTorch's distributions and autograd in float64, where rho is between -1 and 20 and priors
are usual, common or of each element: there sigma is at least 0.31 and |x| / sigma below 20, by which each of eager's 20
roundings grows at most, to 400 u in all; a wrong sign or term would be some 2^50 u off. Noise is taken as drawn, and
judged by itself, from its uniforms.
**Eager** is `softplus`, `torch.distributions` and autograd with the same noise; for half types in float32, rounded to
what our op returns. So it is usually written, and not at its best in rounding: its softplus is linear from 20 on, and
its densities are taken of a rounded x.

**Unit.** u times the sum of the absolute values of what is added up on the way, where u is 2^-24 in float32, 2^-53 in
float64, 2^-11 in float16 and 2^-8 in bfloat16: a result that is rounded once, and has nothing to cancel, errs by at
most 1. Counted are points where that sum, a drawn x and the gradient to it fit into the type (else the exact result is
infinite, or a step to it is that a user sees); where x is given, or held by stick_the_landing, sigma has to be a normal
number of the type.

**Bound.** Each rounding on a result's way adds at most 1, each elementary function what `csrc/core` states and
`tests/ops/test_elementary.py` asserts (an ulp is at most 2 u): 4.8 for sigma, 7.2 for h = d log sigma / d rho, 9.2 for
sigmoid(rho). For example z = (x - mu) / sigma has 1 + 4.8 + 1, its square twice that and 1, a density 5 more for its
sums: 20 in all. `validation/compare.py` lists them. In a cell, which is a range, a setting, a type and a result, our
worst error has to stay below eager's or below that bound, and no more of our results may be infinite or NaN than of
eager's. For results of a half type the bound is twice eager's error, or one rounding (1.01). Where eager is closer, its
sigma comes from functions that err by less than ours, and it divides by std_prior where we multiply by the inverse:
some 3 u are the price of our speed.

**Sums.** The unit is u times the sum of all summands' absolute values. An element's own roundings are at most 24 u. A
lane adds 32 elements: its k-th addition rounds k / 32 of its sum, 16.5 u in all; in float64 so do the 32 lanes of a
chunk, which float32 adds without loss. Lanes and chunks round independently of each other, to either side: of n
elements 5 standard deviations leave 5 (24 + 16.5 sqrt(32)) / sqrt(n), in float64 5 (24 + 16.5 sqrt(32) + 16.5
sqrt(1024)) / sqrt(n), if that is less; and the sum is rounded once. Equal elements round alike, and nothing averages
out; of them the promise in float32 is 1e-6, 16.8 u. Over S keys gradients are added plainly, one after the other: 24 u
of their own, and the k-th addition rounds within k / S u, evenly, with variance (k / S)^2 / 3, so 5 standard deviations
of all S are 5 sqrt(S) / 3 u. Eager PyTorch adds in blocks, which is closer; 100 u of float32 are 6e-6, while a mean
over 10^5 keys is uncertain by 3e-3 deviations.
"""

from collections.abc import Iterable, Sequence

import torch

from validation import sums
from validation.compare import ALLOWED, CellError, cell_errors, normal_errors, oracle_error
from validation.evidence import Finding, Section, Table
from validation.points import HALF_DTYPES, RANGES, SETTINGS

__all__ = ["collect"]

USUAL = ("usual", "far x", "own")  # of mu and the priors
DTYPES = (torch.float32, torch.float64, *HALF_DTYPES)


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def of_place(results: Iterable[CellError]) -> str:
    """Ours / eager's."""
    found = list(results)
    if not found:
        return "-"
    lost = any(r.ours_lost for r in found), any(r.eager_lost for r in found)
    worst = max(r.ours for r in found), max(r.eager for r in found)
    return " / ".join("inf" if gone else f"{error:.2g}" if error > 0.005 else "0" for gone, error in zip(lost, worst))


def error_table(results: list[CellError], axis: str, names: Sequence[str], what: str) -> Table:
    rows = []
    for dtype in DTYPES:
        mine = [r for r in results if r.cell.dtype == dtype]
        for family in dict.fromkeys(r.quantity.split(":")[0] for r in mine):
            of_family = [r for r in mine if r.quantity.split(":")[0] == family]
            by_place = (of_place(r for r in of_family if getattr(r.cell, axis) == name) for name in names)
            rows.append([short(dtype), family, *by_place])
    title = f"Worst errors of values and gradients, ours / eager PyTorch's, by {what}. `inf`: some are infinite or NaN."
    return Table(title, ["type", "result", *names], rows)


def type_finding(dtype: torch.dtype, results: list[CellError]) -> Finding:
    mine = [r for r in results if r.cell.dtype == dtype]
    possible = len(RANGES) * len(SETTINGS) * len(ALLOWED)
    closer = sum(r.ours <= r.eager or r.eager_lost > 0 for r in mine)
    beyond = max((r for r in mine if not r.eager_lost), key=lambda r: r.ours - r.eager)
    failed = [r for r in mine if r.worse]
    words = [
        f"{len(mine) - len(failed)} of {len(mine)} cells hold; {possible - len(mine)} others have no point that counts "
        "or are gradients to a prior that all share",
        f"ours is not above eager's in {closer}",
        f"most above it: {beyond.ours:.2g} against {beyond.eager:.2g} ({beyond.quantity}, {beyond.cell.setting})",
    ]
    words += [f"fails: {r.quantity} of {r.cell}: {r.ours:.3g} against {r.eager:.3g}" for r in failed[:3]]
    bound = "eager's, or our roundings"
    if dtype in HALF_DTYPES:
        bound = f"twice eager's, or 1.01; log densities, which are float32: {bound}"
    return Finding(f"worst error in each cell, {short(dtype)}", "; ".join(words), f"all cells: {bound}", not failed)


def oracle_finding(results: list[CellError]) -> Finding:
    other = [
        r
        for r in results
        if r.cell.dtype == torch.float64
        and r.cell.rho_range in ("to 1", "to 20")
        and r.cell.setting in ("usual", "own")
    ]
    far, seen = max(other, key=lambda r: r.eager), {r.quantity for r in other}
    measured = f"{len(seen)} of {len(ALLOWED)} results, at most {far.eager:.2g} u ({far.quantity})"
    holds = far.eager <= 400 and len(seen) == len(ALLOWED) and not any(r.eager_lost for r in other)
    return Finding("the oracle against eager PyTorch, float64, rho of -1 to 20", measured, "all, <= 400 u", holds)


def lost_finding(results: list[CellError]) -> Finding:
    mine, plain, count = (sum(values) for values in zip(*((r.ours_lost, r.eager_lost, r.count) for r in results)))
    usual = sum(r.eager_lost for r in results if r.cell.setting in USUAL)
    measured = f"{mine} of {count:,} (eager: {plain:,}, of these {usual:,} with usual mu and priors)"
    return Finding("infinite or NaN where the exact result is not", measured, "0", mine == 0)


def collect(quick: bool) -> Section:
    section = Section("Accuracy", __doc__)
    points = 40 if quick else 1000
    error = oracle_error(4 if quick else 10)
    # 25 roundings of 2^-64 are 0.012 of 2^-53
    section.findings.append(
        Finding("the oracle against mpmath", f"{error:.2g} units of float64", "<= 0.02 units", error <= 0.02)
    )
    # Half the logarithm's 1.78 u or 2.6 u, the root's 1, the cosine's 1.36 or 1.5, the product's 1.
    for dtype, bound in ((torch.float32, 4.3), (torch.float64, 4.8)):
        mine, plain = normal_errors(dtype, 10**5 if quick else 10**6)
        measured = f"{mine:.2g} u of the radius (eager: {plain:.2g})"
        section.findings.append(Finding(f"standard normals, {short(dtype)}", measured, f"<= {bound} u", mine <= bound))
    results = [result for dtype in DTYPES for result in cell_errors(dtype, points)]
    usual = [r for r in results if r.cell.setting in USUAL]
    section.tables.append(error_table(usual, "rho_range", RANGES, "the range of rho, with usual mu and priors"))
    section.tables.append(error_table(results, "setting", SETTINGS, "setting, over all of rho"))
    section.findings.append(oracle_finding(results))
    section.findings += [type_finding(dtype, results) for dtype in DTYPES]
    section.findings.append(lost_finding(results))
    findings, table = sums.collect(quick)
    section.findings += findings
    section.tables.append(table)
    return section
