"""Every code block of the manual is run, page by page, in an empty folder: the quick ones by `make test`, the others by `make test-long`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import child_environment
from manual import QUICK, ROOT, Block, blocks, pages
from quick_settings import by_section

from charengine.machine.home import Home

WORK = ("demo", "run", "batch", "sheet", "expand", "train", "sweep")  # the commands that get the small settings
RUNNABLE = [
    page for page in pages() if any(b.language in ("bash", "python") and not b.parse_only for b in blocks(page))
]

# but for one sheet that is drawn for all of them, none of their commands takes more than five seconds; together half a minute
QUICK_PAGES = (
    "docs/howto/keep-house.md",
    "docs/stages/caption.md",
    "docs/stages/crop.md",
    "docs/stages/sheet.md",
    "docs/troubleshooting.md",
)
LONG = (pytest.mark.long, pytest.mark.timeout(3600))


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Home:
    """One home for all pages, so that a character that several of them make is made once."""
    home = Home(tmp_path_factory.mktemp("manual-home")).create()
    shutil.copytree(empty_mlflow, home.mlflow, dirs_exist_ok=True)
    return home


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Folders with a `charengine` command: as it is, and with the small settings."""
    folders = {}
    for quick in (False, True):
        folder = tmp_path_factory.mktemp("quick" if quick else "plain")
        sets = " ".join(f'--set "{setting}"' for setting in QUICK) if quick else ""
        call = f'exec "{sys.executable}" -m charengine.cli "$@"'
        script = f'#!/bin/bash\ncase "$1" in\n{"|".join(WORK)}) {call} {sets};;\n*) {call};;\nesac\n'
        (folder / "charengine").write_text(script)
        (folder / "charengine").chmod(0o755)
        folders[quick] = folder
    return folders


def test_the_quick_pages_have_blocks_that_are_run() -> None:
    assert set(QUICK_PAGES) <= {name_of(page) for page in RUNNABLE}


def name_of(page: Path) -> str:
    """Its path from the root."""
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=() if name_of(page) in QUICK_PAGES else LONG, id=name_of(page)) for page in RUNNABLE],
)
def test_the_blocks_of_a_page_work_in_order(
    page: Path, tmp_path: Path, shared_home: Home, commands: dict[bool, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHARENGINE_HOME", str(shared_home.root))
    shutil.copytree(ROOT / "deployments" / "samples", tmp_path / "deployments" / "samples")  # as in a checkout
    python: list[Block] = []
    for block in blocks(page):
        for command in block.first:
            _shell(command, block, shared_home, commands[True])
        if block.file:
            Path(block.file).write_text(block.text)
        elif block.language == "bash" and not block.parse_only:
            _shell(block.text, block, shared_home, commands[block.quick])
        elif block.language == "python" and not block.parse_only:
            python.append(block)
    if python:
        _python(python, shared_home)


def _shell(text: str, block: Block, home: Home, commands: Path) -> None:
    environment = child_environment(home)
    environment["PATH"] = f"{commands}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(["bash", "-eu", "-c", text], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (
        f"{block} ended with {done.returncode}:\n{text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    )


def _python(page: list[Block], home: Home) -> None:
    """The Python blocks of a page as one program, in a process of its own: a studio wants to come before torch."""
    program = "\n".join(
        [SMALL_STUDIO.format(small=by_section(QUICK)) if page[0].quick else "", *(b.text for b in page)]
    )
    Path("page.py").write_text(program)
    done = subprocess.run([sys.executable, "page.py"], env=child_environment(home), capture_output=True, text=True)
    assert done.returncode == 0, f"{page[0]}:\n{program}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


SMALL_STUDIO = """
import charengine

_studio = charengine.Studio

def _small_studio(profile="embedded", **settings):
    for section, values in {small!r}.items():
        settings[section] = {{**settings.get(section, {{}}), **values}}
    return _studio(profile, **settings)

charengine.Studio = _small_studio
"""
