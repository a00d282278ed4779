"""Which folders hold runs: noted in the home, so that what they refer to is never taken for rubbish."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charengine import files
from charengine.errors import BadInput
from charengine.machine.home import Home, work_folder
from charengine.writing import write_atomically

RECORDS = ("run.json", "sweep.json")  # either makes a folder a run's


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
    """Note a run's folder, again with the keys of its stages once they are known."""
    place = str(folder.absolute())
    name = hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    write_atomically(home.known_runs / f"{name}.json", json.dumps({"folder": place, "keys": [*keys]}).encode())


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
        told: Any = None
        with suppress(BadInput, ValueError):
            told = json.loads(files.read_text(note))
        if isinstance(told, dict) and isinstance(told.get("folder"), str):
            yield KnownRun(Path(told["folder"]), tuple(map(str, told.get("keys", ()))), note)
