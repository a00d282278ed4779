"""The tree of the repository that docs/design.md shows is the one on the disk."""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict

from manual import ROOT, blocks
from test_architecture import ROWS

LINE = re.compile(r"^(?P<indent> *)(?P<name>\S+)\s{2,}(?P<comment>\S.*)$")
UNTOLD = re.compile(
    r"^(\.git.*|\.pre-commit-config\.yaml|__init__\.py|__main__\.py)$"
)  # says itself what it is, or nothing


def shown() -> dict[str, list[str]]:
    """Folder to the names shown in it, the top being ''; a folder that is not opened is no key."""
    tree = next(b.text for b in blocks(ROOT / "docs" / "design.md") if b.text.startswith("charengine/"))
    found: dict[str, list[str]] = defaultdict(list)
    path: list[str] = []
    for line in tree.splitlines():
        read = LINE.match(line)
        assert read, f"a line of the tree without a comment: {line!r}"
        path = [*path[: len(read["indent"]) // 2], read["name"]]
        found["".join(path[:-1])].append(read["name"])
    return found


def on_disk() -> dict[str, set[str]]:
    """Folder to what git would keep of it: files by name, folders with a slash."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, set[str]] = defaultdict(set)
    for path in listed.stdout.splitlines():
        if (ROOT / path).exists():
            parts = path.split("/")
            for depth in range(len(parts)):
                folder = "".join(f"{part}/" for part in parts[:depth])
                found[folder].add(parts[depth] + ("/" if depth < len(parts) - 1 else ""))
    return found


def test_every_opened_folder_shows_what_lies_in_it() -> None:
    disk = on_disk()
    wrong = {}
    for folder, names in shown().items():
        there = {name for name in disk[folder] if not UNTOLD.match(name) or name in names}
        if there != set(names):
            wrong[folder or "(top)"] = {
                "not shown": sorted(there - set(names)),
                "not there": sorted(set(names) - there),
            }
    assert wrong == {}, "mend the tree in docs/design.md"


def test_nothing_is_shown_twice() -> None:
    assert all(len(names) == len(set(names)) for names in shown().values())


def test_the_import_directions_shown_are_those_that_are_held() -> None:
    text = next(b.text for b in blocks(ROOT / "docs" / "design.md") if b.text.startswith("cli | studio"))
    rows = [re.split(r"\s{2,}", line)[0].split(" | ") for line in text.splitlines()]
    assert rows == [row.split() for row in ROWS]
