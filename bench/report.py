"""A run as tables: for the terminal, and as Markdown."""

from collections.abc import Callable
from dataclasses import dataclass

from rich import box
from rich.console import Console, Group
from rich.table import Table

from bench import counts
from bench.machine import title
from bench.results import Measurement, Run, Timing
from bench.setting import AXES, BASES, BUDGETS, PLAIN, TARGETS

__all__ = ["SECTIONS", "Section", "compared", "heading", "markdown", "number", "tables"]

Cell = Callable[[Run, Measurement], str]


@dataclass(frozen=True)
class Section:
    """One table: the rows of one work."""

    work: str
    heading: str  # {weights} is filled in
    columns: dict[str, Cell]

    def rows(self, run: Run) -> list[Measurement]:
        rows = [row for row in run.measurements if row.work == self.work]
        if self.work == "forward + backward":  # torch.randn has a forward alone
            rows += [row for row in run.measurements if row.work == "forward" and row.case == "torch.randn"]
            rows.sort(key=lambda row: row.point)
        return rows

    def title(self, run: Run) -> str:
        return self.heading.format(weights=max((row.weights for row in self.rows(run)), default=0))

    def table(self, run: Run, style: box.Box) -> Table:
        """Columns that no row fills are left out."""
        rows = self.rows(run)
        columns = {name: cell for name, cell in self.columns.items() if any(cell(run, row) for row in rows)}
        table = Table(box=style)
        table.add_column(AXES[self.work], justify="right", no_wrap=True)
        table.add_column("case", no_wrap=True)
        for name in columns:
            table.add_column(name, justify="right", no_wrap=style is not box.MARKDOWN)
        previous = None
        for row in rows:
            if previous not in (None, row.point) and style is not box.MARKDOWN:
                table.add_section()
            point = "" if previous == row.point else f"{row.point:,}"
            table.add_row(point, row.case, *[cell(run, row) for cell in columns.values()])
            previous = row.point
        return table


def number(value: float | None, unit: str = "", factor: float = 1.0) -> str:
    """Three significant digits, and two below 0.1."""
    if value is None:
        return ""
    scaled = value * factor
    digits = ".0f" if scaled >= 99.95 or scaled == 0 else "#.3g" if scaled >= 0.1 else ".2g"
    return f"{scaled:{digits}}{unit}"


def _time(seconds: Timing | None, factor: float) -> str:
    """Median, and half the width of the middle half in percent of it."""
    if seconds is None:
        return ""
    return f"{number(seconds.median, factor=factor)} ±{seconds.spread:.0%}"


def _per_weight(row: Measurement | None) -> str:
    return _time(row.seconds, 1e9 / counts.elements(row)) if row else ""


def _ratio(run: Run, row: Measurement, to: str) -> str:
    if row.case == "copy":  # another work: only its bandwidth compares
        return ""
    return row.failure or number(counts.ratio(row, run.find(row.work, row.point, to)), "x")


COST: dict[str, Cell] = {
    "peak B": lambda run, row: number(counts.peak_per_weight(row)),
    "kept B": lambda run, row: number(counts.kept_per_weight(row)),
    "launches": lambda run, row: "" if row.launches is None else str(row.launches),
    "first ms": lambda run, row: number(row.first_call, factor=1e3),
}
OURS: dict[str, Cell] = {"to ours": lambda run, row: _ratio(run, row, counts.OURS)}
ONE_TENSOR: dict[str, Cell] = {
    "forward ns": lambda run, row: _per_weight(run.find("forward", row.point, row.case)),
    "both ns": lambda run, row: _per_weight(row) if row.work != "forward" else "",
    **OURS,
    "GB/s": lambda run, row: number(counts.bandwidth(row)),
    "of copy": lambda run, row: number(counts.copy_fraction(run, row), "%", 100),
    **COST,
}
SEVERAL: dict[str, Cell] = {
    "ms": lambda run, row: _time(row.seconds, 1e3),
    "ns": lambda run, row: number(counts.nanoseconds(row)),
    **OURS,
    **COST,
}


def _target(run: Run, row: Measurement) -> str:
    """On a CPU, and whether it is reached."""
    base, most = TARGETS.get((row.work, row.point, row.case), ("", 0))
    ratio = counts.ratio(row, run.find(row.work, row.point, base))
    if ratio is None or run.settings["device"] != "cpu":
        return ""
    return f"{most}x {base}{'' if ratio <= most else ', missed'}"


TENSORS: dict[str, Cell] = {
    "ms": SEVERAL["ms"],
    "ns": SEVERAL["ns"],
    **OURS,
    "at most": _target,
    "peak B": COST["peak B"],
    "kept bytes": lambda run, row: "" if row.kept_bytes is None else f"{row.kept_bytes:,}",
    "launches": COST["launches"],
    "first ms": COST["first ms"],
}
STEP: dict[str, Cell] = {
    "ms": lambda run, row: _time(row.seconds, 1e3),
    **OURS,
    "to plain": lambda run, row: _ratio(run, row, PLAIN),
    "at most": _target,
    "peak MB": lambda run, row: number(row.peak_bytes, factor=1e-6),
    "kept MB": lambda run, row: number(row.kept_bytes, factor=1e-6),
    "launches": COST["launches"],
    "first ms": COST["first ms"],
}


def _base(run: Run, row: Measurement) -> Measurement | None:
    return run.find(row.work, row.point, BASES.get(row.case, ""))


def _budget(run: Run, row: Measurement) -> str:
    """For 2^10 weights on a CPU, and whether it is kept."""
    budget, base = BUDGETS.get(row.case), _base(run, row)
    if budget is None or row.seconds is None or (row.point, run.settings["device"]) != (2**10, "cpu"):
        return ""
    added = row.seconds.median - (base.seconds.median if base and base.seconds else 0)
    return f"{'+' if base else ''}{budget}{'' if added * 1e6 <= budget else ', missed'}"


TRANSFORMS: dict[str, Cell] = {
    "us": lambda run, row: row.failure or _time(row.seconds, 1e6),
    "times": lambda run, row: number(counts.ratio(row, _base(run, row)), "x"),
    "of": lambda run, row: BASES.get(row.case, ""),
    "at most": _budget,
    "first ms": COST["first ms"],
}
SECTIONS = [
    Section("forward + backward", "One tensor: sample and log q - log p; per weight", ONE_TENSOR),
    Section("samples", "Samples of {weights:,} weights, forward + backward; per drawn weight", SEVERAL),
    Section("tensors", "ResNet-50's parameters, {weights:,} weights, forward + backward", TENSORS),
    Section("transforms", "Transforms of one call of illia_ext, its key given", TRANSFORMS),
    Section("training step", "Training step, 784-1024-1024-10, {weights:,} weights, Adam", STEP),
]


def remarks(run: Run) -> list[str]:
    """What a reader of the tables must know besides."""
    busy = run.machine.get("busy")
    untimed = {f"{m.case}, {m.work} at {m.point:,}: {m.untimed}": None for m in run.measurements if m.untimed}
    skipped = [f"{case} is skipped: {reason}" for case, reason in run.skipped.items()]
    return [*([f"warning: {busy}; do not trust the times"] if busy else []), *untimed, *skipped]


def heading(run: Run) -> str:
    quick = ", quick" if run.settings["quick"] else ""
    return f"{title(run.machine)}, {run.settings['dtype']}{quick}"


def surroundings(run: Run) -> str:
    about, build = run.machine, run.machine["build"]
    cuda = f"CUDA {build['cuda']['version']}" if build["cuda"] else "without CUDA"
    compiler = f"{build['compiler']}, {cuda}, libtorch {build['libtorch_target']}"
    return f"{about['cores']} cores, {about['memory_gib']} GiB, Python {about['python']}; illia_ext built by {compiler}"


def tables(run: Run) -> Group:
    """For the terminal."""
    parts: list[Table | str] = [heading(run), surroundings(run)]
    for section in SECTIONS:
        if section.rows(run):
            parts += ["", section.title(run), section.table(run, box.SIMPLE_HEAD)]
    return Group(*parts, *remarks(run))


def markdown(run: Run) -> str:
    """Every table under a heading of its own."""
    console = Console(width=10**4, color_system=None)
    parts = []
    for section in SECTIONS:
        if section.rows(run):
            with console.capture() as capture:
                console.print(section.table(run, box.MARKDOWN))
            lines = [" ".join(line.split()) for line in capture.get().splitlines() if line.strip()]
            parts += [f"### {section.title(run)}", "\n".join(lines)]
    return "\n\n".join([*parts, *(f"- {remark}" for remark in remarks(run))]) + "\n"


def compared(old: Run, new: Run) -> Group:
    """What both runs timed, as ratios of the new time to the old."""
    table = Table("work", "point", "case", "new / old", "", box=box.SIMPLE_HEAD)
    changes = counts.changes(old, new)
    for change in changes:
        row = change.new
        table.add_row(row.work, f"{row.point:,}", row.case, f"{change.ratio:.2f}", change.verdict)
    slower = [
        f"{change.new.case}, {change.new.work} at {change.new.point:,}: {change.ratio:.2f}x"
        for change in changes
        if change.verdict == "slower"
    ]
    nothing = "nothing got slower beyond its spread" if changes else "the two runs have no point in common"
    lines = ["slower than before: " + "; ".join(slower) if slower else nothing]
    lines += [
        f"no time any more: {row.case}, {row.work} at {row.point:,}: {row.untimed}" for row in counts.lost(old, new)
    ]
    facts = [(name, run_facts(old), run_facts(new)) for name in run_facts(old) | run_facts(new)]
    differing = [name for name, before, now in facts if before.get(name) != now.get(name)]
    lines += [f"warning: the two runs differ in {', '.join(differing)}"] if differing else []
    return Group("", f"Against {heading(old)}", table, *lines)


def run_facts(run: Run) -> dict[str, object]:
    """What two runs must share to be compared."""
    names = ("cpu", "gpu", "capability", "cores", "threads", "torch", "build")
    about = {name: run.machine.get(name) for name in names}
    return about | {name: run.settings.get(name) for name in ("device", "dtype", "quick")}
