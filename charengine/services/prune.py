"""What the home no longer needs, found first and removed only when asked to.

Nothing that may still be wanted goes. What a result, a training's state, a finished cell or a run's folder refers to stays; so does what
is younger than a day, since a run stores a file before it writes down what refers to it. A run that wants an old file again touches
it (`Store.put`, `Store.use`), and a file is moved aside before it is removed, looked at once more, and put back if it was touched: so
this is safe beside running trainings. Old results and states go by age, and only while nothing is being made.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charengine import files
from charengine.errors import BadInput
from charengine.machine.home import Home
from charengine.machine.known_runs import DIGEST, KEY, known_runs, named_in, records_of
from charengine.machine.locks import if_free
from charengine.machine.shared import shared_store

if TYPE_CHECKING:
    from charengine.services.prune_shared import SharedLeftover

log = logging.getLogger(__name__)

DAY = 86400.0
GRACE = DAY  # a younger file may be part of something that is not written down yet
LEAST_LINKED = 64 * 1024  # bytes; linking smaller files gains nothing
PARTIAL = re.compile(r"\..+\.(tmp|pruned)")
SMALLER = "-smaller"  # at the end of the name of a state


@dataclass(frozen=True)
class Leftover:
    """A file or folder that is not needed.

    Args:
        kind: what it is, in the plural, for the table.
        path: where it lies.
        bytes: what its going frees.
        used: when it was last wanted (modification time).
        key: of the stage whose lock is taken first; "" for none.
        same_as: for a copy: the object that it is made a link to.
    """

    kind: str
    path: Path
    bytes: int
    used: float
    key: str = ""
    same_as: Path | None = None


def leftovers(home: Home, older_than: float | None = None) -> list[Leftover]:
    """What can go; nothing is changed.

    Args:
        home: whose store, states, logs and copies are looked at.
        older_than: days; results and states of runs without a folder that nobody used for so long go too. None: they stay.

    Raises:
        BadInput: it cannot be told what runs refer to.
    """
    _check_notes(home)
    now = time.time()
    old = [] if older_than is None else list(_unused(home, now - older_than * DAY))
    gone = {item.path for item in old}
    return [
        *old,
        *_progress(home, gone),
        *_partial(home, now),
        *_objects(home, now, gone),
        *_copies(home),
        *_locks(home, now),
    ]


def remove(home: Home, older_than: float | None = None) -> list[Leftover]:
    """Remove what can go and return what went; results first, then what only they referred to, as it is found anew then."""
    done = [item for item in leftovers(home, older_than) if item.kind != OBJECTS and _removed(home, item)]
    done += [item for item in _objects(home, time.time(), set()) if _removed(home, item)]
    for run in known_runs(home):
        if run.deleted and run.note:
            run.note.unlink(missing_ok=True)
    return done


def being_made(home: Home) -> bool:
    """Whether a stage is being made with this home now."""
    for key in {found[0] for path, _ in _files(home.locks) if (found := KEY.match(path.name))}:
        with if_free(home.locks / f"{key}.lock") as free:
            if not free:
                return True
    return False


# --- what there is -----------------------------------------------------------------------------------------------------

RESULTS, STATES, PROGRESS = "old results", "old states of trainings", "progress of finished stages"
OBJECTS, COPIES, PARTIALS, LOCKS = (
    "objects nothing refers to",
    "copies, made links",
    "halves of killed writes",
    "free locks",
)


def _unused(home: Home, before: float) -> Iterator[Leftover]:
    """Results and states that no run's folder names and nobody used since; none while something is being made."""
    if being_made(home):
        log.warning("something is being made now: old results and states are left for another time")
        return
    kept = _keys_of_runs(home)
    for path, facts in _results(home):
        key = _key_of(home, path)
        if KEY.fullmatch(key) and key not in kept and facts.st_mtime < before:
            yield Leftover(RESULTS, path, facts.st_size, facts.st_mtime, key)
    for folder, key in _of_keys(home.state):
        if key not in kept and (used := _newest(folder)) < before:
            yield Leftover(STATES, folder, _size(folder), used, key)


def _progress(home: Home, gone: set[Path]) -> Iterator[Leftover]:
    """States and cells whose stage has its result: killed just before they were dropped."""
    places = [*_of_keys(home.state), *_of_keys(home.store / "results")]
    elsewhere = shared_store()
    for folder, key in places:
        made = (home.store / "results" / f"{key}.json").exists() or bool(elsewhere and elsewhere.has_result(key))
        if folder not in gone and made:
            yield Leftover(PROGRESS, folder, _size(folder), _newest(folder), key)


def _partial(home: Home, now: float) -> Iterator[Leftover]:
    """Files of writes that were killed half-way."""
    for place in (home.store, home.state, home.known_runs):
        for path, facts in _files(place):
            if PARTIAL.fullmatch(path.name) and facts.st_mtime < now - GRACE:
                yield Leftover(PARTIALS, path, facts.st_size, facts.st_mtime)


def _objects(home: Home, now: float, gone: set[Path]) -> Iterator[Leftover]:
    """Objects of the store that nothing refers to."""
    wanted = _digests_wanted(home, gone)
    for path, facts in _files(home.store / "sha256"):
        if DIGEST.fullmatch(path.name) and path.name not in wanted and facts.st_mtime < now - GRACE:
            yield Leftover(OBJECTS, path, facts.st_size, facts.st_mtime)


def _copies(home: Home) -> Iterator[Leftover]:
    """Adapters in MLflow's folder that the store has too, as files of their own."""
    objects = {path.name: facts for path, facts in _files(home.store / "sha256")}
    sizes = {facts.st_size for facts in objects.values()}
    for path, facts in _files(home.mlflow / "artifacts"):
        if path.suffix != ".safetensors" or facts.st_size < LEAST_LINKED or facts.st_size not in sizes:
            continue
        digest = hashlib.sha256(_read(path)).hexdigest()
        twin = objects.get(digest)
        if twin and twin.st_dev == facts.st_dev and twin.st_ino != facts.st_ino:
            place = home.store / "sha256" / digest[:2] / digest
            yield Leftover(COPIES, path, facts.st_size, facts.st_mtime, same_as=place)


def _locks(home: Home, now: float) -> Iterator[Leftover]:
    """Lock files of stages that nobody holds."""
    for path, facts in _files(home.locks):
        if KEY.match(path.name) and path.suffix == ".lock" and facts.st_mtime < now - GRACE:
            yield Leftover(LOCKS, path, 0, facts.st_mtime, path.stem)


def _digests_wanted(home: Home, gone: set[Path]) -> set[str]:
    """Digests that any record names: results, states and the folders of runs. Whatever looks like a digest counts as one."""
    texts = [_read(path) for path, _ in _results(home) if path not in gone]
    states = [path for path, _ in _files(home.state) if path.suffix == ".safetensors" and path.parent not in gone]
    texts += [*map(_header, states), *_records_of_runs(home)]
    return named_in(texts, DIGEST)


def _check_notes(home: Home) -> None:
    """A note that may not be read says of some run, perhaps another user's, what it refers to."""
    notes = files.entries(home.known_runs) if files.is_dir(home.known_runs) else []
    if hidden := [note for note in notes if not os.access(note, os.R_OK) and not note.is_symlink()]:
        raise BadInput(
            f"{hidden[0]}: cannot be read, and says which results a run needs; give the right to read it, or remove it where that run "
            "is not wanted"
        )


def _keys_of_runs(home: Home) -> set[str]:
    """Keys of stages that a run's folder names, or its note when the folder's disk may be away."""
    keys = {key for run in known_runs(home) if not run.deleted for key in run.keys}
    return keys | named_in(_records_of_runs(home), KEY)


def _records_of_runs(home: Home) -> Iterator[bytes]:
    for run in known_runs(home):
        yield from records_of(run)


def _key_of(home: Home, result: Path) -> str:
    """The key that a result, or a part's, lies under."""
    return result.relative_to(home.store / "results").parts[0].removesuffix(".json")


def _header(path: Path) -> bytes:
    """The header of a safetensors file; no tensor is read."""
    with suppress(OSError), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return file.read(min(int.from_bytes(file.read(8), "little"), size))  # a torn file says any length
    return b""


def _results(home: Home) -> Iterator[tuple[Path, os.stat_result]]:
    for path, facts in _files(home.store / "results"):
        if path.suffix == ".json" and not path.name.startswith("."):
            yield path, facts


# --- removing ----------------------------------------------------------------------------------------------------------


def _removed(home: Home, item: Leftover) -> bool:
    """Whether it went: not if its stage is being made, or it was wanted meanwhile."""
    with ExitStack() as stack:
        if item.key and not stack.enter_context(if_free(home.locks / f"{item.key}.lock")):
            return False
        try:
            if item.same_as:
                return _linked(item.path, item.same_as)
            if item.kind in (PROGRESS, STATES):
                shutil.rmtree(item.path)
                return True
            if item.kind == LOCKS:  # held here, and whoever waits for it looks whether it is still there
                item.path.unlink()
                return True
            return _removed_unless_used(item.path, item.used)
        except OSError as error:
            log.warning("%s stays: %s", item.path, error.strerror or error)
            return False


def _removed_unless_used(path: Path, used: float) -> bool:
    """Move aside, look whether it was touched since, put back or remove: a touch is seen whenever it came."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.pruned")
    os.rename(path, aside)
    if aside.stat().st_mtime > used:
        os.replace(aside, path)  # also over one that was written meanwhile: the content is the same
        return False
    aside.unlink()
    return True


def _linked(path: Path, twin: Path) -> bool:
    """One file under two names, instead of two."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    os.link(twin, aside)
    os.replace(aside, path)
    return True


# --- sizes -------------------------------------------------------------------------------------------------------------


def as_dict(found: Sequence[Leftover | SharedLeftover], *, removed: bool) -> dict[str, Any]:
    """For JSON."""
    return {
        "removed": removed,
        "bytes": sum(item.bytes for item in found),
        "leftovers": [{"kind": item.kind, "path": str(item.path), "bytes": item.bytes} for item in found],
    }


def _size(folder: Path) -> int:
    return sum(facts.st_size for _, facts in _files(folder))


def _newest(folder: Path) -> float:
    """When anything in a folder was last written; now, when it has just gone."""
    try:
        return max([folder.stat().st_mtime, *(facts.st_mtime for _, facts in _files(folder))])
    except FileNotFoundError:
        return time.time()


def _of_keys(place: Path) -> list[tuple[Path, str]]:
    """The folders that stages made, each with its stage's key; another's folder and a link are left alone."""
    found = [(path, path.name.removesuffix(SMALLER)) for path in place.iterdir()] if place.is_dir() else []
    return sorted((path, key) for path, key in found if KEY.fullmatch(key) and path.is_dir() and not path.is_symlink())


def _read(path: Path) -> bytes:
    """A file's bytes; none when it has just gone."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _files(place: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every file below a place, with its facts; what goes while it is looked at is left out."""
    for folder, _, names in os.walk(place):
        for name in sorted(names):
            with suppress(FileNotFoundError):
                facts = os.lstat(path := Path(folder) / name)
                if stat.S_ISREG(facts.st_mode):
                    yield path, facts
