"""Pages that code and errors send their reader to are there, and the errors are in the manual."""

from __future__ import annotations

import re
from pathlib import Path

from manual import ROOT

from charengine import errors

PAGE = re.compile(r"\bdocs/[\w./-]+\.md")


def sources() -> list[Path]:
    folders = ("charengine", "tasks", "flows", "deployments", "benchmarks")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml")]
    return [*found, ROOT / "pyproject.toml", ROOT / "Makefile"]


def test_pages_that_code_names_exist() -> None:
    named = {(path.relative_to(ROOT).as_posix(), page) for path in sources() for page in PAGE.findall(path.read_text())}
    assert len(named) > 5
    assert sorted((path, page) for path, page in named if not (ROOT / page).is_file()) == []


def test_no_message_sends_its_reader_to_the_docs_without_a_page() -> None:
    vague = re.compile(r"\(see (the )?(docs|documentation|manual)\)|\bDESIGN\.md")
    assert [path.relative_to(ROOT).as_posix() for path in sources() if vague.search(path.read_text())] == []


def test_every_kind_of_error_is_in_troubleshooting() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    kinds = [
        name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.EngineError)
    ]
    assert [name for name in kinds if name != "EngineError" and name not in page] == []
