"""Options and the figures of the evidence: `--quick`, and `--figures FILE`, which keeps what tests have measured.

The file, docs/validation.json, has the latest run of every test, and docs/validation.md beside it gets a table of it.
"""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import machine


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="smaller numbers and fewer builds: what CI runs")
    parser.addoption("--figures", type=Path, help="a JSON file that keeps the figures")


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    return request.config.getoption("--quick")


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[..., None]:
    """figure(what, measured, bound): a row of the page's table. The test asserts what the row says.

    pytest's own `record_property` keeps figures for the file alone.
    """
    return lambda *row: request.node.user_properties.append(("figures", row))


def this_run() -> str:
    here = machine.describe(torch.device("cpu"), torch.get_num_threads())
    described = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    return (
        f"{here['date']}, {here['cpu']} ({here['cores']} cores, {here['capability']}, {here['memory_gib']} GiB), torch "
        f"{here['torch']}, Python {here['python']}, {here['build']['compiler']}, commit {described.stdout.strip()}"
    )


class Figures:
    """Gathers the reports of all tests, by whichever process they come from."""

    def __init__(self, path: Path, run: str) -> None:
        self.path, self.run = path, run
        self.tests: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            found: dict[str, Any] = {"outcome": report.outcome, "seconds": round(report.duration, 1), "run": self.run}
            for name, value in report.user_properties:
                if name == "figures":
                    found.setdefault(name, []).append(value)
                else:
                    found[name] = value
            self.tests[report.nodeid] = found

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.tests[report.nodeid] = {"outcome": "failed", "run": self.run}

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if exitstatus > pytest.ExitCode.TESTS_FAILED:  # interrupted
            return
        self.path.write_text(json.dumps(dict(sorted(self.tests.items())), indent=1) + "\n")
        page = self.path.with_suffix(".md")
        if not page.exists():
            return
        begin, end = "<!-- figures -->", "<!-- end of figures -->"
        before, _, rest = page.read_text().partition(begin)
        page.write_text(f"{before}{begin}\n{self.table()}\n{end}{rest.partition(end)[2]}")

    def table(self) -> str:
        """A table for each file, and where the tests ran."""
        rows: dict[str, list[str]] = {}
        for name, test in self.tests.items():
            for row in test.get("figures", []):
                cells = [cell.replace("|", "\\|") for cell in row]
                failed = " **FAILED**" if test["outcome"] == "failed" else ""
                title = Path(name.split("::")[0]).stem.removeprefix("test_").capitalize()
                rows.setdefault(title, [f"| {title} | measured | bound |", "|---|---|---|"])
                rows[title].append(f"| {' | '.join(cells)}{failed} |")
        outcomes = [test["outcome"] for test in self.tests.values()]
        counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in dict.fromkeys(outcomes))
        runs = [f"- {run}" for run in sorted({test["run"] for test in self.tests.values()})]
        tables = ["\n".join(lines) for lines in rows.values()]
        return "\n\n".join([*tables, f"{len(outcomes)} tests: {counts}. Where they ran:", "\n".join(runs)])


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--figures") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Figures(config.getoption("--figures"), this_run()))
