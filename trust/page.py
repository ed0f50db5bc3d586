"""docs/trust.md: every figure of one run of the evidence."""

from trust.evidence import Finding, Section, Table

__all__ = ["page"]


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def row(*cells: str) -> str:
    return f"| {' | '.join(map(cell, cells))} |"


def finding_rows(findings: list[Finding]) -> str:
    lines = [row(f.what, f.measured, f.bound, "yes" if f.holds else "**NO**") for f in findings]
    return "\n".join(["| what | measured | bound | holds |", "|---|---|---|---|", *lines])


def free_table(table: Table) -> str:
    lines = [row(*table.columns), "|" + "---|" * len(table.columns), *(row(*cells) for cells in table.rows)]
    return f"{table.title}\n\n" + "\n".join(lines)


def section_page(section: Section) -> str:
    parts = [f"## {section.title}", section.text.strip(), *map(free_table, section.tables)]
    if section.findings:
        parts.append(finding_rows(section.findings))
    return "\n\n".join([*parts, f"Took {section.seconds:.0f} s; {section.run}."])


def page(sections: list[Section], command: str, about: str, seconds: float) -> str:
    """`command`: that made them. `about`: the machine, the versions, the commit and the date, in one line."""
    findings = [finding for section in sections for finding in section.findings]
    failed = [finding for finding in findings if not finding.holds]
    verdict = f"{len(findings) - len(failed)} of {len(findings)} findings hold"
    parts = [
        "# Trust: what was measured of the numbers",
        f"Written by `{command}`, in {seconds / 60:.0f} min, never by hand. {about}. Each section names its own run.",
        f"**{verdict}.**" + (f" These do not: {'; '.join(finding.what for finding in failed)}." if failed else ""),
        *map(section_page, sections),
    ]
    return "\n\n".join(parts) + "\n"
