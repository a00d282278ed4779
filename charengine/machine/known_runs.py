"""Which folders hold runs: noted in the home, so that what they refer to is never taken for rubbish.

Machines that share a store do not see each other's folders. So each notes in the store, too, what its folders refer to.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from charengine import files
from charengine.machine.home import Home, work_folder
from charengine.machine.shared import shared_store
from charengine.writing import write_atomically

if TYPE_CHECKING:
    from charengine.store import Store

RECORDS = ("run.json", "sweep.json")  # either makes a folder a run's
CLAIM = ".charengine-run.json"  # of one that is being made, or was (charengine/run/claim.py)
DIGEST = re.compile(r"\b[0-9a-f]{64}\b")
KEY = re.compile(r"\b[a-z]+-[0-9a-f]{40}\b")


@dataclass(frozen=True)
class KnownRun:
    """A run's folder.

    Args:
        folder: absolute.
        keys: of its stages, as noted; also known when its disk is away.
        note: the file that says so; None for a folder that was found and not noted.
    """

    folder: Path
    keys: tuple[str, ...] = ()
    note: Path | None = None

    @property
    def finished(self) -> bool:
        """Whether its record is there."""
        return any(files.is_file(self.folder / name) for name in RECORDS)

    @property
    def deleted(self) -> bool:
        """Whether the folder is gone while the one it was in is there; with both gone, its disk may be away."""
        return not files.is_dir(self.folder) and files.is_dir(self.folder.parent)


def note_run(home: Home, folder: Path, keys: Iterable[str] = ()) -> None:
    """Note a run's folder, again with the keys of its stages once they are known; for other machines with what it refers to."""
    run = KnownRun(folder.absolute(), (*keys,))
    told = {"folder": str(run.folder), "keys": [*run.keys]}
    write_atomically(home.known_runs / f"{_name(run)}.json", json.dumps(told).encode())
    if store := shared_store():
        note_for_others(run, store)


def note_for_others(run: KnownRun, store: Store) -> None:
    """Note in a store that machines share what a folder of this one refers to."""
    texts = [*records_of(run)]
    told = {
        "machine": platform.node(),
        "folder": str(run.folder),
        "keys": sorted({*run.keys, *named_in(texts, KEY)}),
        "digests": sorted(named_in(texts, DIGEST)),
    }
    store.fs.pipe_file(place_for_others(run, store), json.dumps(told).encode())


def place_for_others(run: KnownRun, store: Store) -> str:
    """Where `note_for_others` keeps its note: one for each folder of each machine, told apart by the machines' names."""
    return f"{store.root}/known-runs/{re.sub(r'[^A-Za-z0-9._-]', '_', platform.node())}-{_name(run)}.json"


def records_of(run: KnownRun) -> Iterator[bytes]:
    """The records in a run's folder."""
    for name in RECORDS:
        with suppress(FileNotFoundError):
            if files.is_file(run.folder / name):  # nobody waits at a pipe
                yield (run.folder / name).read_bytes()


def named_in(texts: Iterable[bytes], what: re.Pattern[str]) -> set[str]:
    """The keys (`KEY`) or digests (`DIGEST`) that records name; whatever looks like one counts as one."""
    return {name for text in texts for name in what.findall(text.decode("utf-8", "replace"))}


def known_runs(home: Home) -> list[KnownRun]:
    """Every folder that was noted, and those in `runs` of the home and of the work folder."""
    noted = list(_noted(home))
    seen = {run.folder for run in noted}
    for place in (home.root / "runs", work_folder() / "runs"):
        for folder in files.entries(place) if files.is_dir(place) else ():
            found = KnownRun(folder.absolute())
            if found.folder not in seen and found.finished:
                seen.add(found.folder)
                noted.append(found)
    return noted


def _noted(home: Home) -> Iterator[KnownRun]:
    for note in files.entries(home.known_runs) if files.is_dir(home.known_runs) else ():
        if note.suffix != ".json":
            continue
        told = files.kept_object(note)
        folder, keys = told.get("folder"), told.get("keys")
        if isinstance(folder, str) and _can_be_a_folder(folder):
            yield KnownRun(Path(folder), tuple(map(str, keys)) if isinstance(keys, list) else (), note)


def _can_be_a_folder(path: str) -> bool:
    """Whether the system can be asked about a path at all: a damaged note names none, and stands in no other run's way."""
    try:
        os.lstat(path)
    except ValueError:  # a NUL, half a letter
        return False
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG and os.path.isabs(path)
    return os.path.isabs(path)


def _name(run: KnownRun) -> str:
    """Of the note of a folder."""
    return hashlib.sha256(str(run.folder).encode("utf-8", "surrogateescape")).hexdigest()[:32]
