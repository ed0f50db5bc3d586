"""The arithmetic between what was measured and what is shown."""

from dataclasses import dataclass

from scipy.stats import mannwhitneyu

from bench.results import Measurement, Run

__all__ = [
    "Change",
    "bandwidth",
    "changes",
    "copy_fraction",
    "elements",
    "kept_per_weight",
    "limit",
    "lost",
    "nanoseconds",
    "peak_per_weight",
    "ratio",
]

OURS = "illia_ext"


def elements(row: Measurement) -> int:
    """Weights drawn by one call."""
    return row.weights * (row.point if row.work == "samples" else 1)


def nanoseconds(row: Measurement) -> float | None:
    """Time per drawn weight."""
    return row.seconds.median / elements(row) * 1e9 if row.seconds and row.weights else None


def ratio(row: Measurement, ours: Measurement | None) -> float | None:
    """How many times as long as illia_ext a case takes."""
    return row.seconds.median / ours.seconds.median if row.seconds and ours and ours.seconds else None


def bandwidth(row: Measurement | None) -> float | None:
    """GB/s, of the traffic that the work cannot avoid: a case that moves more has no credit for it."""
    if row is None or row.seconds is None or row.minimum_bytes is None:
        return None
    return row.minimum_bytes / row.seconds.median / 1e9


def copy_fraction(run: Run, row: Measurement) -> float | None:
    """Of the bandwidth that a copy of as many elements reached in the same run."""
    ours, copy = bandwidth(row), bandwidth(run.find(row.work, row.point, "copy"))
    return ours / copy if ours and copy else None


def limit(run: Run, work: str, point: int) -> float | None:
    """Nanoseconds per weight at the bandwidth of the copy: the memory's limit, whichever the case."""
    copy = bandwidth(run.find(work, point, "copy"))
    rows = [row for row in run.measurements if (row.work, row.point) == (work, point) and row.case != "copy"]
    traffic = [row.minimum_bytes / elements(row) for row in rows if row.minimum_bytes]
    return traffic[0] / copy if traffic and copy else None


def kept_per_weight(row: Measurement) -> float | None:
    """Bytes kept for backward per drawn weight."""
    return row.kept_bytes / elements(row) if row.kept_bytes is not None and row.weights else None


def peak_per_weight(row: Measurement) -> float | None:
    """Bytes held at most during a call, per drawn weight."""
    return row.peak_bytes / elements(row) if row.peak_bytes is not None and row.weights else None


@dataclass(frozen=True)
class Change:
    """One case in two runs."""

    new: Measurement
    ratio: float  # of the new median to the old
    verdict: str  # "slower", "faster" or ""


def changes(old: Run, new: Run) -> list[Change]:
    """All that both runs timed.

    A verdict needs medians 5 % apart and rounds that a rank test (Mann and Whitney, 1947) tells apart with p < 0.01,
    for which 5 rounds on both sides are the fewest. It does not know how the machine changed between the runs.
    """
    result = []
    for row in new.measurements:
        before = old.find(row.work, row.point, row.case)
        if before is None or before.weights != row.weights or before.seconds is None or row.seconds is None:
            continue
        ratio = row.seconds.median / before.seconds.median
        differs = mannwhitneyu(row.seconds.rounds, before.seconds.rounds).pvalue < 0.01
        verdict = ("slower" if ratio > 1.05 else "faster" if ratio < 1 / 1.05 else "") if differs else ""
        result.append(Change(row, ratio, verdict))
    return result


def lost(old: Run, new: Run) -> list[Measurement]:
    """What has no time any more, though the new run tried."""
    rows = ((row, old.find(row.work, row.point, row.case)) for row in new.measurements if row.seconds is None)
    return [row for row, before in rows if before and before.seconds]
