"""Whose a run's folder is: it stays with the first character and prompt that were made there.

A small file, made in one step that only one process can win, says so from the first second; `run.json` says it of finished runs,
also of those made before there was such a file.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from charengine import files
from charengine.errors import BadInput, EngineError
from charengine.machine.known_runs import CLAIM
from charengine.machine.ledger import LEDGER, begin
from charengine.wording import composed, slug
from charengine.writing import create_atomically, remove_leftovers, write_atomically

if TYPE_CHECKING:
    from charengine.config import Character
    from charengine.run.request import CheckedRun

log = logging.getLogger(__name__)

RECORDS = (CLAIM, "run.json")
MOST_FOLDERS = 1000  # of one name


@contextmanager
def claimed(run: CheckedRun) -> Iterator[CheckedRun]:
    """Take the run's folder, or the next free one when the user named none; an empty one is given back when the run fails.

    Raises:
        BadInput: the folder that the user named holds another character's run, or cannot be written.
    """
    run = claim(run)
    try:
        yield run
    except BaseException:
        with suppress(OSError, EngineError):
            if {path.name for path in files.entries(run.out)} <= {CLAIM, LEDGER}:
                for name in (CLAIM, LEDGER):
                    (run.out / name).unlink(missing_ok=True)
                run.out.rmdir()
        raise


def claim(run: CheckedRun) -> CheckedRun:
    """The run in a folder that is its own from now on, whatever other processes do.

    Raises:
        BadInput: the folder that the user named holds another character's run, or cannot be written.
    """
    for out in [run.out] if run.out_is_given else numbered(run.out):
        if _taken(out, run.character):
            return run if out == run.out else _moved(run, out)
    raise BadInput(others_run(run.out, run.character) or f"{run.out}: no free folder beside it; give --out")


def free_folder(out: Path, name: str, prompt: str, taken: Container[Path] = ()) -> Path:
    """The folder, or the first of `out-2`, `out-3`… that is no other character's and not taken; nothing is written."""
    mine = identity_of(name, prompt)
    return next((place for place in numbered(out) if place not in taken and owner_of(place) in (None, mine)), out)


def others_run(out: Path, character: Character) -> str:
    """Why a run may not write into a folder: another character's, or another prompt's, is there; empty when it may."""
    owner = owner_of(out)
    if owner in (None, identity_of(character.name, character.prompt)):
        return ""
    assert owner
    return f"--out {out}: holds the run of {owner[0]!r}, {owner[1][:80]!r}; give another folder, or leave --out away to get one"


def numbered(out: Path) -> Iterator[Path]:
    """The folder, and those tried after it."""
    yield out
    for number in range(2, MOST_FOLDERS):
        yield out.with_name(f"{out.name}-{number}")


def _moved(run: CheckedRun, out: Path) -> CheckedRun:
    log.warning("%s holds another prompt's run; this one goes to %s", run.out, out)
    return replace(run, out=out)


def identity_of(name: str, prompt: str) -> tuple[str, str]:
    """Spelling that makes no other folder makes no other character, nor does another way to write the same letters."""
    return slug(name), composed(" ".join(prompt.split()))


def _taken(out: Path, character: Character) -> bool:
    """Whether the folder is this character's, claimed now or before."""
    mine = identity_of(character.name, character.prompt)
    owner = owner_of(out)
    if owner is None:
        begin(out)
        record = json.dumps({"name": character.name, "prompt": character.prompt}).encode()
        create_atomically(out / CLAIM, record)
        if owner_of(out) is None:  # cut off by a kill, where a file system has no hard links
            write_atomically(out / CLAIM, record)
        owner = owner_of(out)
    if owner == mine:
        # power that failed once they were there brings back what they were written beside, and they may never be written again
        for name in (CLAIM, LEDGER):
            with suppress(OSError):
                remove_leftovers(out / name)
    return owner == mine


def owner_of(out: Path) -> tuple[str, str] | None:
    """Name and prompt of whose run a folder holds; None when it holds none that can be read."""
    for name in RECORDS:
        found = files.kept_object(out / name)
        if isinstance(found.get("prompt"), str):
            return identity_of(str(found.get("name", "")), found["prompt"])
    return None
