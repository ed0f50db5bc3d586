"""One run of the benchmark: what was measured, where and how; read from and written to JSON."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

__all__ = ["FORMAT", "Measurement", "Run", "Timing"]

FORMAT = 2  # of the file; 1 had no works beside forward and backward
MACHINE = {"cpu", "cores", "memory_gib", "capability", "threads", "torch", "python", "build", "date"}
SETTINGS = {"device", "dtype", "quick", "cases"}


@dataclass
class Timing:
    """Seconds a call, of every round."""

    rounds: list[float]

    @property
    def median(self) -> float:
        return median(self.rounds)

    @property
    def spread(self) -> float:
        """Half the width of the middle half of the rounds, in parts of the median."""
        low, _, high = quantiles(self.rounds, n=4, method="inclusive")
        return (high - low) / 2 / self.median


@dataclass
class Measurement:
    """One case at one point of one work; None where there is nothing to measure."""

    work: str
    point: int  # counts what `bench.works.AXES[work]` names
    case: str
    weights: int  # how many Gaussian weights one call draws for one sample
    untimed: str | None = None  # why this case has no time: "wrong: ..." or "failed: ..."
    seconds: Timing | None = None
    minimum_bytes: int | None = None  # memory traffic that no implementation can avoid
    peak_bytes: int | None = None  # held at most of what a call allocated
    kept_bytes: int | None = None  # kept between forward and backward, beside parameters and data
    launches: int | None = None  # kernels, copies and fills on a GPU
    first_call: float | None = None  # seconds, compilation included

    @property
    def failure(self) -> str | None:
        """In a word: "wrong" or "failed"."""
        return self.untimed.split(":")[0] if self.untimed else None


@dataclass
class Run:
    machine: dict[str, Any]
    settings: dict[str, Any]
    skipped: dict[str, str] = field(default_factory=dict)  # cases that could not run here, and why
    measurements: list[Measurement] = field(default_factory=list)

    def find(self, work: str, point: int, case: str) -> Measurement | None:
        found = (m for m in self.measurements if (m.work, m.point, m.case) == (work, point, case))
        return next(found, None)

    def points(self, work: str) -> list[int]:
        return sorted({m.point for m in self.measurements if m.work == work})

    def cases(self, work: str) -> list[str]:
        """In the order of measurement."""
        return list(dict.fromkeys(m.case for m in self.measurements if m.work == work))

    def write(self, path: Path) -> None:
        path.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Run":
        """Raises ValueError for a file that holds no run of this format, OSError for one that cannot be read."""
        try:
            content = json.loads(path.read_text())
            if content.pop("format") != FORMAT:
                raise ValueError(f"not format {FORMAT}")
            rows = content.pop("measurements")
            times = [row.pop("seconds") for row in rows]
            timings = [Timing([float(second) for second in time["rounds"]]) if time else None for time in times]
            run = cls(**content, measurements=[Measurement(**row, seconds=t) for row, t in zip(rows, timings)])
            missing = (MACHINE - set(run.machine)) | (SETTINGS - set(run.settings))
            if missing:
                raise ValueError(f"without {', '.join(sorted(missing))}")
            return run
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: no results of this benchmark ({error})") from None
