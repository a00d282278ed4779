"""How long each folder of tests takes: `pytest --minutes` ends with a table, which CI shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import pytest

TITLE = "minutes by folder (of all workers together)"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--minutes", action="store_true", help="end with a table of minutes by folder")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("minutes"):
        reports = [one for several in terminalreporter.stats.values() for one in several]
        terminalreporter.section(TITLE)
        for line in table(one for one in reports if isinstance(one, pytest.TestReport)):
            terminalreporter.write_line(line)


def table(reports: Iterable[pytest.TestReport]) -> list[str]:
    """A line for each folder, slowest first, and one for all: number of tests, minutes with their fixtures."""
    seconds: defaultdict[str, float] = defaultdict(float)
    tests: defaultdict[str, set[str]] = defaultdict(set)
    for report in reports:
        folder = report.nodeid.split("::")[0].rpartition("/")[0]
        seconds[folder] += report.duration
        tests[folder].add(report.nodeid)
    rows = sorted(((name, len(tests[name]), seconds[name]) for name in seconds), key=lambda row: -row[2])
    rows.append(("all", sum(count for _, count, _ in rows), sum(spent for *_, spent in rows)))
    return [f"{name:<24} {count:>5} tests {spent / 60:>7.2f} min" for name, count, spent in rows]
