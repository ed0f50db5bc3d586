"""docs/validation.md: every figure of the evidence, each part by its latest full run."""

from collections.abc import Sequence

from validation.evidence import Finding, Section, Table

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


def page(sections: list[Section], command: str, seconds: float, missing: Sequence[str] = ()) -> str:
    """`command`: the last one, which took `seconds`. `missing`: parts that no section is of."""
    findings = [finding for section in sections for finding in section.findings]
    failed = [finding for finding in findings if not finding.holds]
    verdict = f"**{len(findings) - len(failed)} of {len(findings)} findings hold.**"
    if failed:
        verdict += f" These do not: {'; '.join(finding.what for finding in failed)}."
    if missing:
        verdict += f" **Not measured: {', '.join(missing)}.**"
    parts = [
        "# Validation: what was measured of the numbers",
        f"Written by `{command}`, in {seconds / 60:.0f} min, never by hand. Each section ends with its own run: the "
        "command, date, machine, versions and commit.",
        verdict,
        *map(section_page, sections),
    ]
    return "\n\n".join(parts) + "\n"
