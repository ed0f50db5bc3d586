"""Writes the measured tables into bench/README.md and README.md: `python -m bench.pages`, never by hand.

Each page holds a region between two comments, `<!-- results -->` and `<!-- end of results -->`; all else stays.
"""

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from bench.report import WORKS, heading, markdown, number, ratio_text, ratios, surroundings, times
from bench.results import Run
from bench.setting import OURS

__all__ = ["bench_page", "front_page", "pages", "replace_region"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
FRONT = "intel-xeon-avx512-1-thread"  # whose results README.md shows
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
COLUMNS = {
    "eager": "plain PyTorch",
    "compile": "`torch.compile`",
    "compile-randn": "the same, torch's noise",
    OURS: OURS,
}
LABELS = {  # of the works that README.md shows
    "forward + backward": "{} weights, ns each",
    "tensors": "ResNet-50's {} tensors, ms",
    "training step": "training step at batch {}, ms",
}


def replace_region(page: str, content: str) -> str:
    """Raises ValueError for a page without exactly one region."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(END) < page.index(BEGIN):
        raise ValueError(f"expected one {BEGIN} and then one {END}")
    return f"{page[: page.index(BEGIN)]}{BEGIN}\n{content.strip()}\n{page[page.index(END) :]}"


def bench_page(runs: dict[str, Run]) -> str:
    """All tables of all machines, by the names of their files."""
    return "\n".join(f"## {heading(run)}\n\n{surroundings(run)}\n\n{markdown(run)}" for run in runs.values())


def power(count: int) -> str:
    exponent = count.bit_length() - 1
    return f"2^{exponent}" if count == 2**exponent else f"{count:,}"


def front_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Times, and how many times illia_ext's they are."""
    parts = []
    for work, label in LABELS.items():
        here = rows[(rows["work"] == work) & rows["case"].isin(COLUMNS)]
        pairs = zip(times(here, work), ratios(here, OURS))
        cells = ["no time" if pd.isna(time) else f"{number(time)} ({ratio_text(ratio)})" for time, ratio in pairs]
        points = here["point"].map(power if "weights" in label else str)
        parts.append(here.assign(label=points.map(label.format), cell=cells))
    found = pd.concat(parts)
    wide = found.pivot(index="label", columns="case", values="cell").fillna("")
    wide = wide.reindex(index=found["label"].unique(), columns=[case for case in COLUMNS if case in wide])
    return wide.rename(columns=COLUMNS).rename_axis(index=None)


def faster_than_ours(rows: pd.DataFrame) -> list[str]:
    """Whatever took less time than illia_ext at the same point, apart from copies and our own forward pass alone."""
    found = []
    for work in rows["work"].unique():
        here = rows[(rows["work"] == work) & ~rows["case"].isin(["copy", f"{OURS}, forward"])]
        here = here.assign(ratio=ratios(here, OURS))
        for row in here[here["ratio"] < 1].itertuples():
            point = power(row.point) if work.startswith("forward") else row.point
            where = work if work == WORKS[work].axis else f"{work}, {WORKS[work].axis}"
            found.append(f"{row.case} ({where} {point}: {row.ratio:.2f} of its time)")
    return found


def front_page(run: Run) -> str:
    parts = [
        f"Forward + backward, medians, all cases in turn in one run: {heading(run)}. In brackets: times illia_ext's.",
        front_table(run.rows).to_markdown(disable_numparse=True),
        f"Faster than illia_ext: {'; '.join(faster_than_ours(run.rows)) or 'nothing in this run'}.",
        f"![Time per weight over size, and the training step](bench/results/{FRONT}.png)",
    ]
    return "\n\n".join(parts)


def pages() -> dict[Path, str]:
    """The pages as they should be."""
    runs = {path.stem: Run.read(path) for path in sorted(RESULTS.glob("*.jsonl"))}
    content = {ROOT / "README.md": front_page(runs[FRONT]), ROOT / "bench" / "README.md": bench_page(runs)}
    return {path: replace_region(path.read_text(), text) for path, text in content.items()}


def main(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail where a page is old.")] = False,
) -> None:
    """Writes the tables of bench/results/*.jsonl into README.md and bench/README.md."""
    for path, text in pages().items():
        if path.read_text() == text:
            continue
        if check:
            raise SystemExit(f"{path.relative_to(ROOT)} is not what bench/results says: run python -m bench.pages")
        path.write_text(text)


if __name__ == "__main__":
    typer.run(main)
