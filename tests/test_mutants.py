"""The script that tries wrong edits: what it calls killed, survived and misplaced, and that it leaves the tree alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mutants import ROOT, misplaced, read_list

SCRIPT = Path(__file__).with_name("mutants.py")
CODE = "def double(x):\n    return 2 * x\n\n\ndef name():\n    return 'double'\n"
TEST = "from charengine import double\n\n\ndef test_two():\n    assert double(2) == 4\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for folder in ("charengine", "tests"):
        (tmp_path / folder).mkdir()
    (tmp_path / "charengine/__init__.py").write_text(CODE)
    (tmp_path / "tests/test_double.py").write_text(TEST)
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')
    return tmp_path


def tried(tree: Path, *edits: tuple[str, str, str]) -> tuple[int, dict[str, str]]:
    """Exit status, and result by mutant."""
    listed = [{"name": name, "old": old, "new": new} for name, old, new in edits]
    (tree / "tests/mutants.yaml").write_text(
        yaml.safe_dump({"charengine/__init__.py": {"tests": ["test_double.py"], "edits": listed}})
    )
    command = [sys.executable, SCRIPT, "--root", tree, "--json", tree / "told.json", "--preload"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    told = json.loads((tree / "told.json").read_text())
    assert f"{sum(one['result'] == 'killed' for one in told)} of {len(told)} mutants killed" in done.stdout, done.stderr
    return done.returncode, {one["name"]: one["result"] for one in told}


def test_a_mutant_that_a_test_fails_on_is_killed_and_the_tree_is_as_it_was(tree: Path) -> None:
    assert tried(tree, ("sum", "2 * x", "3 * x"), ("square", "2 * x", "x * 3")) == (
        0,
        {"sum": "killed", "square": "killed"},
    )
    assert (tree / "charengine/__init__.py").read_text() == CODE


def test_one_that_no_test_fails_on_or_that_breaks_the_tests_themselves_is_an_error(tree: Path) -> None:
    edits = (("another name", "'double'", "'triple'"), ("no code", "def double(x):", "def double(x)"))
    assert tried(tree, *edits) == (1, {"another name": "survived", "no code": "broken"})


def test_text_that_is_not_there_once_is_an_error_before_anything_is_tried(tree: Path) -> None:
    assert tried(tree, ("gone", "4 * x", "x"), ("twice", "double", "x"), ("fine", "2 * x", "x")) == (
        1,
        {"gone": "misplaced", "twice": "misplaced"},
    )


def test_an_edit_that_says_something_twice_is_refused_for_yaml_would_forget_the_first(tmp_path: Path) -> None:
    listed = tmp_path / "mutants.yaml"
    listed.write_text("a.py:\n  edits:\n  - name: two\n    old: 'a'\n    new: 'b'\n    old: 'c'\n    tests: [t]\n")
    with pytest.raises(ValueError, match="line 3: old is said twice"):
        read_list(listed)


def test_tests_that_fail_anyway_tell_nothing(tree: Path) -> None:
    (tree / "tests/test_double.py").write_text(TEST.replace("== 4", "== 5"))
    assert tried(tree, ("sum", "2 * x", "3 * x")) == (1, {"(no mutant)": "fails"})


def test_every_mutant_of_the_list_still_has_its_place_and_its_tests() -> None:
    """Whoever moves or rewords a line that a mutant edits says in mutants.yaml where it is now."""
    listed = read_list(ROOT / "tests/mutants.yaml")
    assert [f"{one.name}: {one.file}: {one.detail}" for one in misplaced(listed, ROOT)] == []
    for mutant in listed:
        for test in mutant.tests:
            path, _, name = test.partition("::")
            assert f"def {name}" in (ROOT / path).read_text(), f"{mutant.name}: {test} is not there"


def test_every_mutant_of_the_list_is_still_python() -> None:
    """What cannot be imported fails any test: it would tell nothing."""
    for mutant in read_list(ROOT / "tests/mutants.yaml"):
        if mutant.file.endswith(".py"):
            text = (ROOT / mutant.file).read_text().replace(mutant.old, mutant.new)
            compile(text, f"{mutant.file} as {mutant.name} has it", "exec")
