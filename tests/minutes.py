"""How long the tests take: `pytest --minutes` ends with tables by folder and by file; what takes longest begins first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import pytest

TITLE = "minutes by folder (of all workers together)"
FILES = "the files that take longest (LONGEST in tests/minutes.py)"

# A run begins with these, longest first: a worker takes a file as a whole, and one that came last would be waited for.
LONGEST = (
    "flows/test_character.py",
    "services/test_real_servers.py",
    "stages/train/test_loop.py",
    "test_studio.py",
    "stages/train/test_step.py",
    "stages/test_crop.py",
    "machine/test_own_packages.py",
    "stages/train/test_benchmark.py",
    "stages/train/test_lessons.py",
    "cli/test_cli.py",
    "flows/test_batch.py",
    "test_architecture.py",
    "models/test_full.py",
    "cases/test_adapter_fuzz.py",
    "stages/expand/test_expand_models.py",
    "models/test_survey.py",
    "test_packaging.py",
    "models/test_qwen_edit.py",
    "cases/test_adapters.py",
    "adapter/test_network.py",
    "stages/sweep/test_sweep_continues.py",
    "adapter/test_merging.py",
    "docs/test_manual_runs.py",
    "embedded/test_world.py",
    "docs/test_site.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--minutes", action="store_true", help="end with a table of minutes by folder")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("minutes"):
        reports = [one for several in terminalreporter.stats.values() for one in several]
        terminalreporter.section(TITLE)
        timed = [one for one in reports if isinstance(one, pytest.TestReport)]
        for line in table(timed):
            terminalreporter.write_line(line)
        terminalreporter.section(FILES)
        for line in longest(timed):
            terminalreporter.write_line(line)


def table(reports: Iterable[pytest.TestReport]) -> list[str]:
    """A line for each folder, slowest first, and one for all: number of tests, minutes with their fixtures."""
    rows = _rows(reports, lambda nodeid: nodeid.split("::")[0].rpartition("/")[0])
    rows.append(("all", sum(count for _, count, _ in rows), sum(spent for *_, spent in rows)))
    return [f"{name:<24} {count:>5} tests {spent / 60:>7.2f} min" for name, count, spent in rows]


def longest(reports: Iterable[pytest.TestReport], shown: int = 25) -> list[str]:
    """A line for each of the files that take longest: number of tests, minutes with their fixtures."""
    rows = _rows(reports, lambda nodeid: nodeid.split("::")[0])[:shown]
    return [f"{name:<44} {count:>5} tests {spent / 60:>7.2f} min" for name, count, spent in rows]


def longest_first(items: list[pytest.Item]) -> None:
    """Put the tests of LONGEST in front; the order within a file, and of all other files, stays."""
    rank = {f"tests/{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.nodeid.split("::")[0], len(rank)))


def _rows(reports: Iterable[pytest.TestReport], group: Callable[[str], str]) -> list[tuple[str, int, float]]:
    """Group, tests and seconds, slowest first."""
    seconds: defaultdict[str, float] = defaultdict(float)
    tests: defaultdict[str, set[str]] = defaultdict(set)
    for report in reports:
        seconds[group(report.nodeid)] += report.duration
        tests[group(report.nodeid)].add(report.nodeid)
    return sorted(((name, len(tests[name]), seconds[name]) for name in seconds), key=lambda row: -row[2])
