"""A run as tables, for the terminal and as Markdown; and two runs side by side."""

import textwrap
from typing import NamedTuple

import numpy as np
import pandas as pd

from bench.results import Run
from bench.setting import OURS

__all__ = ["WIDTH", "WORKS", "compared", "costs", "heading", "markdown", "number", "ratios", "table", "text"]

WIDTH = 100  # of a terminal


class Work(NamedTuple):
    title: str
    axis: str  # what a point counts
    factor: float | None  # of seconds in a cell; None: nanoseconds per drawn weight
    base: str = OURS  # the case that others are compared with


WORKS = {
    "forward": Work("One tensor, forward; ns per weight", "weights", None),
    "forward + backward": Work("One tensor, forward + backward; ns per weight", "weights", None),
    "samples": Work("Samples of one tensor, forward + backward; ns per drawn weight", "samples", None),
    "tensors": Work("ResNet-50's tensors, forward + backward; ms", "tensors", 1e3),
    "priors": Work(
        "Priors, one tensor and ResNet-50's tensors, forward + backward; ns per weight",
        "weights",
        None,
        f"{OURS}, Gaussian",
    ),
    "transforms": Work(f"Transforms of one call of {OURS}; us", "weights", 1e6, "a loss"),
    "training step": Work("Training step, 784-1024-1024-10, Adam; ms", "batch", 1e3),
}
LEGEND = (
    "Cells: the median ± half its interquartile range, then its ratio to illia_ext's (transforms: to that of a loss; "
    "priors: to that of the Gaussian); above 1x it takes longer. "
    "A case that is wrong or failed gets no time."
)


def number(value: float | None) -> str:
    """Three significant digits, and two below 0.1."""
    if value is None or pd.isna(value):
        return ""
    return f"{value:{'.0f' if value >= 99.95 or value == 0 else '#.3g' if value >= 0.0995 else '.2g'}}"


def ratio_text(ratio: float) -> str:
    return "" if pd.isna(ratio) else f"{number(ratio) if ratio >= 9.995 else f'{ratio:.2f}'}x"


def times(rows: pd.DataFrame, work: str) -> pd.Series:
    """Medians in the unit of the work."""
    factor = WORKS[work].factor
    return rows["median"] * (1e9 / rows["weights"] if factor is None else factor)


def ratios(rows: pd.DataFrame, base: str) -> pd.Series:
    """How many times as long as the case `base` a row of one work takes at the same point."""
    return rows["median"] / rows["point"].map(rows[rows["case"] == base].set_index("point")["median"])


def by_point(rows: pd.DataFrame, cells: pd.Series, axis: str) -> pd.DataFrame:
    """A row for each case and a column for each point, in the order of measurement."""
    wide = rows.assign(cell=cells).pivot(index="case", columns="point", values="cell").reindex(rows["case"].unique())
    wide.columns = pd.Index([f"{point:,}" for point in wide.columns], name=axis)
    return wide.rename_axis(index=None)


def table(run: Run, work: str) -> pd.DataFrame:
    rows = run.rows[run.rows["work"] == work]
    about = WORKS[work]
    parts = zip(times(rows, work), rows["iqr"] / rows["median"] / 2, ratios(rows, about.base), rows["untimed"])
    cells = [
        reason.split(":")[0] if isinstance(reason, str) else f"{number(time)}±{spread:.0%} {ratio_text(ratio):>5}"
        for time, spread, ratio, reason in parts
    ]
    return by_point(rows, pd.Series(cells, rows.index, dtype=object), about.axis).fillna("")


def costs(run: Run) -> pd.DataFrame:
    """What a call costs beside time, at the largest point that a case was measured at; but for parts of other rows."""
    timed = run.rows[run.rows["median"].notna()]
    # The works on one tensor are of one case: its first call is the longer of the two that compile something.
    cases = [timed["work"].replace("forward", "forward + backward"), timed["case"]]
    smallest = timed["point"] == timed.groupby(cases)["point"].transform("min")
    firsts = timed["first_call"].where(smallest).groupby(cases).transform("max")
    largest = timed["point"] == timed.groupby(["work", "case"])["point"].transform("max")
    rows = timed[largest & ~timed["work"].isin(["forward", "transforms"]) & (timed["case"] != "copy")]
    columns = {
        "point": [f"{point:,}" for point in rows["point"]],
        "GB/s": (rows["minimum_bytes"] / rows["median"] / 1e9).map(number),
        "peak B": (rows["peak_bytes"] / rows["weights"]).map(number),
        "kept B": (rows["kept_bytes"] / rows["weights"]).map(number),
        "launches": rows["launches"].map(number),
        "first ms": (firsts[rows.index] * 1e3).map(number),
    }
    wide = pd.DataFrame(columns).set_axis(pd.MultiIndex.from_frame(rows[["work", "case"]]))
    return wide.loc[:, (wide != "").any()]  # launches are counted on a GPU


def heading(run: Run) -> str:
    """The machine in one line; of the CPU what matters where a GPU did the work."""
    about, settings = run.about["machine"], run.about["settings"]
    where = f"{about['cpu']}, {about['capability']}, {about['threads']} thread{'s' if about['threads'] != 1 else ''}"
    if "gpu" in about:
        where = f"{about['gpu']} (CUDA {about['cuda']}; {where})"
    return f"{where}, torch {about['torch']}, {about['date']}, {settings['dtype']}{', quick' * settings['quick']}"


def surroundings(run: Run) -> str:
    about, build = run.about["machine"], run.about["machine"]["build"]
    cuda = f"CUDA {build['cuda']['version']}" if build["cuda"] else "without CUDA"
    compiler = f"{build['compiler']}, {cuda}, libtorch {build['libtorch_target']}"
    return f"{about['cores']} cores, {about['memory_gib']} GiB, Python {about['python']}; illia_ext built by {compiler}"


def remarks(run: Run) -> list[str]:
    """What a reader of the tables must know besides."""
    about = run.about
    lines = [f"warning: {about['busy']}; do not trust the times"] if about.get("busy") else []
    untimed = run.rows[run.rows["untimed"].notna()]
    for row in untimed.drop_duplicates(["work", "case", "untimed"]).itertuples():
        lines.append(f"{row.case}, {row.work} at {row.point:,}: {row.untimed}")
    lines += [f"{case} is skipped: {reason}" for case, reason in about["skipped"].items()]
    if "seconds" not in about:
        lines.append("the run was interrupted")
    elif about["seconds"] is not None:
        lines.append(f"measured in {about['seconds']:.0f} s")
    return lines


def parts(run: Run) -> dict[str, pd.DataFrame]:
    """All tables that have rows, by their titles."""
    measured = run.rows["work"].unique()
    tables = {about.title: table(run, work) for work, about in WORKS.items() if work in measured}
    other = {"Costs at the largest point, per drawn weight; first calls at the smallest": costs(run)}
    return tables | {title: wide for title, wide in other.items() if len(wide)}


def terminal(wide: pd.DataFrame) -> str:
    return "\n".join(line.rstrip() for line in wide.to_string(line_width=WIDTH).splitlines())


def text(run: Run) -> str:
    """For a terminal of 100 columns."""
    tables = [f"{title}\n{terminal(wide)}" for title, wide in parts(run).items()]
    prose = [[heading(run)], [surroundings(run)], [LEGEND], remarks(run)]
    first, second, legend, last = ("\n".join(textwrap.fill(line, WIDTH) for line in lines) for lines in prose)
    return "\n\n".join([f"{first}\n{second}", legend, *tables, last])


def markdown(run: Run) -> str:
    """Every table under a heading of its own."""
    sections = []
    for title, wide in parts(run).items():
        if wide.index.nlevels > 1:
            wide = wide.reset_index().set_index("work")
            wide.index = wide.index.where(~wide.index.duplicated(), "")
        sections += [f"### {title}", wide.to_markdown(disable_numparse=True)]
    return "\n\n".join([*sections, *(f"- {remark}" for remark in remarks(run))]) + "\n"


def compared(old: Run, new: Run) -> str:
    """The time of every row that both runs have, as a ratio new / old, and what has no time any more."""
    both = new.rows.merge(old.rows, on=["work", "point", "case", "weights"], suffixes=("", "_old"))
    both["ratio"] = both["median"] / both["median_old"]
    timed, lost = both.dropna(subset="ratio"), both[both["median"].isna() & both["median_old"].notna()]
    sections = [textwrap.fill(f"New time / old time, against {heading(old)}", WIDTH)]
    for work, rows in timed.groupby("work", sort=False):
        sections.append(
            f"{work}\n{terminal(by_point(rows, rows['ratio'].map('{:.2f}'.format), WORKS[work].axis).fillna(''))}"
        )
    if len(timed):
        logs = np.log(timed["ratio"]).groupby(timed["case"], sort=False).agg(["mean", "size"])
        means = pd.DataFrame({"ratio": np.exp(logs["mean"]).map("{:.2f}".format), "rows": logs["size"]})
        sections.append(f"Geometric mean of each case\n{terminal(means.rename_axis(index=None))}")
    else:
        sections.append("The two runs have no time in common.")
    lines = [f"no time any more: {row.case}, {row.work} at {row.point:,}: {row.untimed}" for row in lost.itertuples()]
    before, now = ({**run.about["machine"], **run.about["settings"], "date": None, "cases": None} for run in (old, new))
    differing = [name for name in now if before.get(name) != now[name]]
    lines += [f"warning: the two runs differ in {', '.join(differing)}"] if differing else []
    for name, run in ("old", old), ("new", new):
        lines += [f"warning: the {name} run: {run.about['busy']}"] if run.about.get("busy") else []
        lines += [f"warning: the {name} run was interrupted"] if "seconds" not in run.about else []
    return "\n\n".join([*sections, *(textwrap.fill(line, WIDTH) for line in lines)])
