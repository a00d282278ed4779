"""A cast that was sent as a file: its rows checked and shown first, then started."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from charengine.errors import BadInput, ConfigError
from charengine.files import MOST_TEXT
from charengine.machine.home import Home
from charengine.records import Ref
from charengine.run.cast import CASTS, MAX_CAST, Entry, read_entries
from charengine.run.claim import free_folder
from charengine.run.request import CheckedRun, RunRequest
from charengine.services.gallery.characters import Character
from charengine.services.gallery.settings_form import SHOWN
from charengine.services.gallery.starting import Checked, check_request
from charengine.services.gallery.uploads import Upload
from charengine.store import Store

MOST_ROWS = 200  # that are started from the page at once; `charengine batch --workers` takes a thousand


@dataclass(frozen=True)
class Row:
    """One character of a cast: where it stands, as it was asked for, what can start, or what is wrong with it."""

    place: str
    request: RunRequest
    run: CheckedRun | None
    problems: tuple[str, ...]


@dataclass
class CheckedCast:
    """A cast that was looked at; it can start when there is neither a problem of its own nor one of a row."""

    name: str
    digest: str = ""
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def can_start(self) -> bool:
        """Whether every row can."""
        return bool(self.rows) and not self.problems and not any(row.problems for row in self.rows)


def check_cast_upload(
    upload: Upload, profile: str, home: Home, store: Store, characters: Iterable[Character]
) -> CheckedCast:
    """Every row as its run will check it; the file is kept in the store.

    Args:
        upload: a CSV or YAML file.
        profile: of rows that name none.
        home: of the runs.
        store: where the file goes.
        characters: all there are; none that is being made is started again.
    """
    cast = CheckedCast(upload.plain_name)
    if not cast.name.endswith(CASTS):
        cast.problems.append(f"{cast.name}: a cast is a .csv, .tsv, .yaml or .yml file")
        return cast
    if len(upload.data) > MOST_TEXT:
        cast.problems.append(
            f"{cast.name} has {len(upload.data) / 1e6:.1f} MB; at most {MOST_TEXT / 1e6:.0f} MB are read"
        )
        return cast
    try:
        entries, cast.problems = _read(upload, profile)
    except ConfigError as error:
        cast.problems += error.problems
        return cast
    except BadInput as error:
        cast.problems.append(str(error))
        return cast
    if len(entries) > MOST_ROWS:
        cast.problems.append(
            f"{cast.name} has {len(entries)} characters; the page starts at most {MOST_ROWS} at once: divide the file, or use "
            f"`charengine batch --workers`, which takes {MAX_CAST}"
        )
        return cast
    cast.digest = store.put(upload.data, upload.plain_name).sha256
    known = list(characters)
    taken = {character.path for character in known if character.active}
    cast.rows = [_row(entry, home, known, taken) for entry in entries]
    return cast


def kept_cast(digest: str, name: str, store: Store) -> Upload:
    """The file of a cast that was shown.

    Raises:
        EngineError: it is not in the store any more.
        BadInput: that is no digest.
    """
    try:
        ref = Ref(sha256=digest, size=0, media_type="", name=name)
    except ValueError as error:
        raise BadInput("the cast that was shown cannot be found: send the file again") from error
    return Upload(name, store.get(ref))


def _read(upload: Upload, profile: str) -> tuple[list[Entry], list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / upload.plain_name
        path.write_bytes(upload.data)
        try:
            return read_entries(path, profile)
        except ConfigError as error:
            raise ConfigError([problem.replace(str(path), path.name) for problem in error.problems]) from error
        except BadInput as error:
            raise BadInput(str(error).replace(str(path), path.name)) from error


def _row(entry: Entry, home: Home, characters: list[Character], taken: set[Path]) -> Row:
    request = entry.request
    if Path(request.out) in taken:
        request = replace(request, out=str(free_folder(Path(request.out), request.name, request.prompt, taken)))
    checked = Checked()
    run = check_request(request, home, characters, checked)
    problems = (
        f"{name}: {text}" if name in SHOWN else text
        for name, found in checked.problems.items()
        if not entry.says(name)
        for text in found
    )
    return Row(entry.place, request, run, (*entry.clashes, *entry.problems, *problems))
