"""The table of minutes that a run of the tests ends with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from minutes import FILES, LONGEST, TITLE, longest, longest_first, table

ROOT = Path(__file__).parent.parent


def report(nodeid: str, duration: float) -> Any:
    return SimpleNamespace(nodeid=nodeid, duration=duration)


def test_setup_and_call_of_a_test_are_one_test_and_both_their_seconds() -> None:
    lines = table(
        [
            report("tests/run/test_keys.py::test_a[1]", 30.0),
            report("tests/run/test_keys.py::test_a[1]", 60.0),
            report("tests/run/test_folder.py::test_b", 30.0),
            report("tests/stages/train/test_loop.py::test_c", 240.0),
            report("tests/test_minutes.py::test_d", 6.0),
        ]
    )
    assert [line.split() for line in lines] == [
        ["tests/stages/train", "1", "tests", "4.00", "min"],
        ["tests/run", "2", "tests", "2.00", "min"],
        ["tests", "1", "tests", "0.10", "min"],
        ["all", "4", "tests", "6.10", "min"],
    ]


def test_the_files_that_take_longest_are_told_by_name() -> None:
    spent = {"run/test_keys.py::test_a[1]": 30.0, "run/test_folder.py::test_b": 60.0, "run/test_keys.py::test_c": 3.0}
    lines = longest([report(f"tests/{name}", seconds) for name, seconds in spent.items()], shown=2)
    assert [line.split() for line in lines] == [
        ["tests/run/test_folder.py", "1", "tests", "1.00", "min"],
        ["tests/run/test_keys.py", "2", "tests", "0.55", "min"],
    ]


def test_a_run_begins_with_the_files_that_take_longest_and_all_of_them_exist() -> None:
    assert [name for name in LONGEST if not (ROOT / "tests" / name).is_file()] == []
    first, second = (f"tests/{name}" for name in LONGEST[:2])
    given = ["tests/a.py::1", f"{second}::1", f"{first}::2", "tests/b.py::1", f"{first}::1"]
    items: list[Any] = [SimpleNamespace(nodeid=nodeid) for nodeid in given]
    longest_first(items)
    assert [item.nodeid for item in items] == [given[2], given[4], given[1], given[0], given[3]]


def test_a_run_with_minutes_ends_with_the_table_and_one_without_does_not() -> None:
    test = "tests/test_minutes.py::test_setup_and_call_of_a_test_are_one_test_and_both_their_seconds"
    command = [sys.executable, "-m", "pytest", test]
    done = subprocess.run([*command, "--minutes"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    _, found, after = done.stdout.partition(TITLE)
    assert found and [line.split()[:2] for line in after.splitlines()[1:3]] == [["tests", "1"], ["all", "1"]]
    assert after.partition(FILES)[2].splitlines()[1].split()[:2] == ["tests/test_minutes.py", "1"]
    assert TITLE not in subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
