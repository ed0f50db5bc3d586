"""
Each stream of normals is drawn in chunks of 10^6, from keys that are fixed in the source, and looked at once. **One
key** is the main one: each chunk continues it by `random.advance`. The others are **float64**; **seeds**, the first
block of each of consecutive seeds; and **split keys**, the first block of each key of
`random.split(random.fold_in(key, chunk))`.

Bounds. A mean of x^k has the standard error sqrt(((2k-1)!! - ((k-1)!!)^2) / n), as all normals of a stream are
independent. A product of two independent normals, or of their h(x) = (x^2 - 1) / sqrt(2), has mean 0 and variance 1, so
a sum of n of them over sqrt(n) is z; all such pairs are taken of normals in the same block and in blocks 1 to 8, 16 and
256 apart, each place of a block on its own. Chunks give one Kolmogorov-Smirnov p-value each by SciPy, and one of
Anderson-Darling by Anderson and Darling's series: limits for many values, at 10^6 less than 0.001 off, where 1000
p-values resolve 0.03. They must be uniform, again by Kolmogorov-Smirnov: these two see what shifts 10^6 normals, while
moments, tails and chi-square judge a stream as a whole. Chi-square has 1024 equally likely bins and is
two-sided: too regular is wrong as well. Counts beyond a cut are binomial. p > 5.7e-7 asks of one z that |z| < 5. Where
several figures share a finding, its p-value is the smallest times their number (Bonferroni); of many z these are the
worst of them and the chi-square of all their squares.

Words have 32 bits, so the radius of float32 ends at 6.76 and takes steps: moments and tails are held against that law,
summed over its words. The table shows how little it differs from the ideal normal, which the other tests assume.
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy import special
from torch import Tensor

from illia_ext import random
from validation.correlations import Correlations, keys_z
from validation.evidence import P_BOUND, Finding, Section, Table
from validation.laws import MOMENTS, drawn_moments, drawn_tail, moment, worst_of, z_family
from validation.moments import CUTS, Marginal

CHUNK = 10**6
SEED = 2026
KEYS = 64  # beside each other

standard_normal = torch.ops.illia_ext.standard_normal


def one_key(chunk: int, dtype: torch.dtype = torch.float32) -> Tensor:
    blocks = CHUNK // 4 if dtype == torch.float32 else CHUNK // 2
    return standard_normal(random.advance(random.key(SEED), chunk * blocks), [CHUNK], dtype=dtype)


def float64(chunk: int) -> Tensor:
    return one_key(chunk, torch.float64)


def first_blocks(keys: Tensor) -> Tensor:
    return standard_normal(keys, [4], dtype=torch.float32).flatten()


def seeds(chunk: int) -> Tensor:
    first = SEED + chunk * (CHUNK // 4)
    seed = torch.arange(first, first + CHUNK // 4)
    return first_blocks(torch.stack([seed, torch.zeros_like(seed)], dim=1))


def split_keys(chunk: int) -> Tensor:
    return first_blocks(random.split(random.fold_in(random.key(SEED), chunk), CHUNK // 4))


class Stream:
    """All tests of one stream."""

    def __init__(self, name: str, draw: Callable[[int], Tensor], chunks: int) -> None:
        marginal, correlations = Marginal(), Correlations(2 if draw is float64 else 4)
        for chunk in range(chunks):
            eps = draw(chunk).numpy()
            marginal.add(eps)
            correlations.add(eps)
        moments = list(map(moment, MOMENTS)) if draw is float64 else drawn_moments()
        tails = [float(special.ndtr(-cut)) if draw is float64 else drawn_tail(cut) for cut in CUTS]
        self.name = f"{name}, {power_of_ten(marginal.size)} normals"
        self.moment_z = marginal.moment_z(moments)
        self.shifts = (np.array(moments) - list(map(moment, MOMENTS))) / marginal.moment_errors()
        self.tail_rows = [
            [f"{cut:g} sigma", f"{p * marginal.size:.2f}", *map(str, counts)]
            for cut, p, counts in zip(CUTS, tails, marginal.tails)
        ]
        self.p_values = {
            "moments": worst_of((2 * special.ndtr(-np.abs(self.moment_z))).tolist()),
            "Kolmogorov-Smirnov": marginal.ks_p(),
            "Anderson-Darling": marginal.ad_p(),
            "chi-square": marginal.chi_square_p(),
            "tails": worst_of(marginal.tail_p(tails).ravel().tolist()),
            "correlations": z_family(correlations.z())[1],
        }


def power_of_ten(n: int) -> str:
    return f"10^{len(str(n)) - 1}" if str(n).strip("0") == "1" else f"{n:.2g}"


def p_finding(what: str, p: float, more: str = "") -> Finding:
    return Finding(what, f"p = {p:.3g}{more}", f"p > {P_BOUND}", p > P_BOUND)


def stream_findings(main: Stream, *others: Stream) -> list[Finding]:
    worst = int(np.abs(main.moment_z).argmax())
    z = float(main.moment_z[worst])
    more = {"moments": f" (worst z = {z:.2f}, of moment {MOMENTS[worst]})"}
    findings = [p_finding(f"{test}, {main.name}", p, more.get(test, "")) for test, p in main.p_values.items()]
    for stream in others:
        test, p = min(stream.p_values.items(), key=lambda item: item[1])
        all_p = list(stream.p_values.values())
        findings.append(p_finding(f"all {len(all_p)} tests, {stream.name}", worst_of(all_p), f" (of {test}: {p:.3g})"))
    return findings


def tables(streams: list[Stream]) -> list[Table]:
    main, names = streams[0], [stream.name for stream in streams]
    p_rows = [[test, *(f"{stream.p_values[test]:.3g}" for stream in streams)] for test in main.p_values]
    moment_rows = [
        [str(k), f"{moment(k):g}", f"{main.shifts[i]:.2g}", *(f"{stream.moment_z[i]:.2f}" for stream in streams)]
        for i, k in enumerate(MOMENTS)
    ]
    return [
        Table("P-values.", ["test", *names], p_rows),
        Table(
            "Moments in standard errors: of 32-bit words instead of a continuum, and as measured (z).",
            ["k", "E x^k", "32-bit words", *names],
            moment_rows,
        ),
        Table(f"Normals beyond a cut, {main.name}.", ["cut", "expected", "below", "above"], main.tail_rows),
    ]


def beside_findings(size: int) -> list[Finding]:
    """Between whole samples of keys, place by place."""
    steps = torch.arange(KEYS)
    zeros = torch.zeros_like(steps)
    kinds = {
        "consecutive seeds": torch.stack([SEED + steps, zeros], dim=1),
        "consecutive offsets, a sample apart": torch.stack([zeros + SEED, steps * (size // 4)], dim=1),
        "S keys of split": random.split(random.key(SEED), KEYS),
    }
    findings = []
    for kind, keys in kinds.items():
        z = keys_z(lambda keys, n: standard_normal(keys, [n], dtype=torch.float32), keys, size)
        worst, p = z_family(z)
        what = f"correlations of the samples of {KEYS} keys, {kind}, {power_of_ten(size)} normals each"
        findings.append(p_finding(what, p, f" (worst |z| = {worst:.2f} of {z.size})"))
    return findings


def advance_finding() -> Finding:
    """Samples of consecutive offsets overlap, by contract: one block further on is the same stream, bit for bit."""
    eps = standard_normal(random.key(SEED), [CHUNK], dtype=torch.float32)
    steps = [*range(1, 65), 255, 256, 257, 65535]
    differ = 0
    for blocks in steps:
        rest = standard_normal(random.advance(random.key(SEED), blocks), [CHUNK - 4 * blocks], dtype=torch.float32)
        differ += int((rest != eps[4 * blocks :]).sum())
    return Finding(f"a key advanced by {len(steps)} numbers of blocks", f"{differ} normals differ", "0", differ == 0)


def collect(quick: bool) -> Section:
    chunks, others = (100, 8) if quick else (1000, 100)
    streams = [
        Stream("one key", one_key, chunks),
        Stream("float64", float64, others),
        Stream("seeds", seeds, others),
        Stream("split keys", split_keys, others),
    ]
    findings = [*stream_findings(*streams), *beside_findings(CHUNK // 10 if quick else CHUNK), advance_finding()]
    return Section("Noise", __doc__, findings, tables(streams))
