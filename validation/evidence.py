"""What a part of the evidence hands on: findings, each a figure beside the bound that it must keep."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

__all__ = ["P_BOUND", "Finding", "Section", "Table"]

# A normal z has |z| > 5 by chance in 5.7e-7 of all keys. Keys are fixed and nothing runs twice, so a finding that holds
# always holds; the number says how often an innocent key would have been accused.
P_BOUND = 5.7e-7


@dataclass
class Finding:
    what: str  # was looked at, such as "third moment of 10^9 normals"
    measured: str  # the figure, with its unit
    bound: str  # what it must keep, such as "|z| < 5"
    holds: bool

    def __post_init__(self) -> None:
        self.holds = bool(self.holds)  # numpy's own bool is no JSON


@dataclass
class Table:
    """Figures to read, beside the findings that judge them."""

    title: str
    columns: list[str]
    rows: list[list[str]]


@dataclass
class Section:
    """One part: a heading, how it is done and where its bounds come from (Markdown), and what was found."""

    title: str
    text: str
    findings: list[Finding] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    seconds: float = 0.0
    run: str = ""  # the command, date, machine, versions and commit

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> "Section":
        fields = json.loads(path.read_text())
        fields["findings"] = [Finding(**finding) for finding in fields["findings"]]
        fields["tables"] = [Table(**table) for table in fields["tables"]]
        return cls(**fields)
