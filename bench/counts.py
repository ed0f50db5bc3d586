"""The arithmetic between what was measured and what is shown."""

from dataclasses import dataclass

from bench.results import Measurement, Run

__all__ = [
    "Change",
    "bandwidth",
    "changes",
    "copy_fraction",
    "elements",
    "kept_per_weight",
    "limit",
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
    """Nanoseconds per weight at the bandwidth of the copy: the memory's limit."""
    row, copy = run.find(work, point, OURS), bandwidth(run.find(work, point, "copy"))
    return row.minimum_bytes / elements(row) / copy if row and row.minimum_bytes and copy else None


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
    verdict: str  # "slower" or "faster" where the middle halves of both runs' rounds do not meet, else ""


def changes(old: Run, new: Run) -> list[Change]:
    """All that both runs timed."""
    result = []
    for row in new.measurements:
        before = old.find(row.work, row.point, row.case)
        if before is None or before.weights != row.weights or before.seconds is None or row.seconds is None:
            continue
        slower, faster = row.seconds.low > before.seconds.high, row.seconds.high < before.seconds.low
        verdict = "slower" if slower else "faster" if faster else ""
        result.append(Change(row, row.seconds.median / before.seconds.median, verdict))
    return result
