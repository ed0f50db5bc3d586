"""Writes the measured tables into bench/README.md and README.md: `python -m bench.pages`, never by hand.

Each page holds a region between two comments, `<!-- results -->` and `<!-- end of results -->`; all else stays.
"""

from pathlib import Path
from typing import Annotated

import typer

from bench import counts
from bench.report import heading, markdown, number, surroundings
from bench.results import Measurement, Run
from bench.setting import AXES, FORWARD

__all__ = ["bench_page", "front_page", "pages", "replace_region"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
FRONT = "amd-epyc-avx512-1-thread"  # whose results README.md shows
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
RIVALS = ("eager", "compile", "compile-randn")


def replace_region(page: str, content: str) -> str:
    """Raises ValueError for a page without exactly one region."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(END) < page.index(BEGIN):
        raise ValueError(f"expected one {BEGIN} and then one {END}")
    return f"{page[: page.index(BEGIN)]}{BEGIN}\n{content.strip()}\n{page[page.index(END) :]}"


def bench_page(runs: dict[str, Run]) -> str:
    """All tables of all machines, by the names of their files."""
    parts = [f"## {heading(run)}\n\n{surroundings(run)}\n\n{markdown(run)}" for run in runs.values()]
    return "\n".join(parts)


def power(count: int) -> str:
    exponent = count.bit_length() - 1
    return f"2^{exponent}" if count == 2**exponent else f"{count:,}"


def front_row(run: Run, label: str, work: str, point: int, factor: float) -> str:
    """`factor` takes seconds to the label's unit."""

    def time(row: Measurement | None) -> str:
        if row is None:
            return ""
        return row.failure or number(row.seconds and row.seconds.median, factor=factor)

    rows = [run.find(work, point, case) for case in (*RIVALS, counts.OURS)]
    ratios = [counts.ratio(row, rows[-1]) for row in rows[:-1] if row]
    return f"| {label} | {' | '.join(map(time, rows))} | {', '.join(number(r, 'x') for r in ratios if r)} |"


def front_table(run: Run) -> str:
    lines = [
        "| | plain PyTorch | `torch.compile` | the same, torch's noise | illia_ext | times illia_ext's |",
        "|---|---|---|---|---|---|",
    ]
    for numel in run.points("forward + backward"):
        label = f"{power(numel)} weights, ns each"
        lines.append(front_row(run, label, "forward + backward", numel, 1e9 / numel))
    for count in run.points("tensors"):
        lines.append(front_row(run, f"ResNet-50's {count} tensors, ms", "tensors", count, 1e3))
    for batch in run.points("training step"):
        lines.append(front_row(run, f"training step at batch {batch}, ms", "training step", batch, 1e3))
    return "\n".join(lines)


def faster_than_ours(run: Run) -> list[str]:
    """Whatever took less time than illia_ext at the same point, apart from copies and our own forward pass alone."""
    found = []
    for row in run.measurements:
        ratio = counts.ratio(row, run.find(row.work, row.point, counts.OURS))
        if row.case not in ("copy", FORWARD) and ratio is not None and ratio < 1:
            point = power(row.point) if row.work.startswith("forward") else f"{row.point}"
            found.append(f"{row.case} ({row.work}, {AXES[row.work]} {point}: {ratio:.2f} of its time)")
    return found


def front_page(run: Run) -> str:
    faster = faster_than_ours(run)
    parts = [
        f"Forward + backward, medians, all cases in turn in one run: {heading(run)}.",
        front_table(run),
        f"Faster than illia_ext: {', '.join(faster) if faster else 'nothing in this run'}.",
        f"![Time per weight over size, and the training step](bench/results/{FRONT}.png)",
    ]
    return "\n\n".join(parts)


def pages() -> dict[Path, str]:
    """The pages as they should be."""
    runs = {path.stem: Run.read(path) for path in sorted(RESULTS.glob("*.json"))}
    content = {ROOT / "README.md": front_page(runs[FRONT]), ROOT / "bench" / "README.md": bench_page(runs)}
    return {path: replace_region(path.read_text(), text) for path, text in content.items()}


def main(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail where a page is old.")] = False,
) -> None:
    """Writes the tables of bench/results/*.json into README.md and bench/README.md."""
    for path, text in pages().items():
        if path.read_text() == text:
            continue
        if check:
            raise SystemExit(f"{path.relative_to(ROOT)} is not what bench/results says: run python -m bench.pages")
        path.write_text(text)


if __name__ == "__main__":
    typer.run(main)
