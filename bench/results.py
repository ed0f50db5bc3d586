"""One run of the benchmark: what was measured, where and how, in a file of JSON lines.

The first line describes the machine and the settings, each line after it is one measurement, and the last one holds
what is known at the end. A file without that is of an interrupted run, and a line that was cut off does not count.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FORMAT", "Row", "Run", "write"]

FORMAT = 3  # of the file
ABOUT = {"machine", "settings", "skipped"}


@dataclass
class Row:
    """One case at one point of one work; None where there is nothing to measure."""

    work: str
    point: int  # counts what `bench.report.WORKS[work].axis` names
    case: str
    weights: int  # that one call draws
    untimed: str | None = None  # why this case has no time: "wrong: ..." or "failed: ..."
    median: float | None = None  # of the rounds' times: seconds a call
    iqr: float | None = None  # between the quartiles of the rounds' times, in seconds
    rounds: int | None = None
    minimum_bytes: int | None = None  # memory traffic that no implementation can avoid
    peak_bytes: int | None = None  # held at most of what a call allocated
    kept_bytes: int | None = None  # kept between forward and backward, beside parameters and data
    launches: int | None = None  # kernels, copies and fills on a GPU
    first_call: float | None = None  # seconds, compilation included


@dataclass
class Run:
    about: dict[str, Any]  # machine, settings, cases skipped and why, busy; from the last line seconds, and busy again
    rows: "pd.DataFrame"  # a column for each field of Row

    @classmethod
    def of(cls, about: dict[str, Any], rows: list[Row]) -> "Run":
        names = [field.name for field in fields(Row)]
        measured = dict.fromkeys(names[names.index("median") :], float)  # also where all are None
        import pandas as pd  # here: what measures needs no tables, as on a bare machine with a GPU

        return cls(about, pd.DataFrame([asdict(row) for row in rows], columns=names).astype(measured))

    @classmethod
    def read(cls, path: Path) -> "Run":
        """Raises ValueError for a file that holds no run of this format, OSError for one that cannot be read."""
        try:
            *whole, last = path.read_text().splitlines()
            records = [json.loads(line) for line in whole]
            with suppress(ValueError):
                records.append(json.loads(last))
            about, *lines = records
            if about["format"] != FORMAT or not about.keys() >= ABOUT:
                raise ValueError(f"not format {FORMAT}")
            if lines and "work" not in lines[-1]:
                about |= lines.pop()
            return cls.of(about, [Row(**line) for line in lines])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: no results of this benchmark ({error})") from None


def write(path: Path | None, *records: dict[str, Any], mode: str = "a") -> None:
    """Appends, where there is a path, so that an interrupted run keeps these records; mode "w" begins the file."""
    if path is not None:
        with path.open(mode) as file:
            file.write("".join(json.dumps(record) + "\n" for record in records))
