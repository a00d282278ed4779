"""What a store that machines share no longer needs (`CHARENGINE_STORE`): as `prune`, where no file can be touched or moved aside.

The same goes and the same stays. What differs is how other machines are kept safe:

- All ages are read off the store's own clock.
- Each machine notes in the store what its runs' folders refer to (`machine/known_runs.py`); a folder that was deleted counts until its
  own machine prunes.
- Whatever lies under a stage's key is removed under that key's lease. Old results and states go only while no stage holds one.
- Objects belong to no stage. Who wants one that is half a day old writes it again, so that it is young, then waits while a machine
  holds the lease `prune.lock`, and looks whether the object is still there (`Store._write`). Here objects are looked at and removed
  a folder at a time under that lease. So each is seen young by the one, or seen missing by the other, and written once more.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from charengine.machine.home import Home
from charengine.machine.known_runs import (
    DIGEST,
    KEY,
    known_runs,
    named_in,
    note_for_others,
    place_for_others,
    records_of,
)
from charengine.machine.leases import EXPIRY, InStore, is_given_back, lease, lease_if_free
from charengine.machine.shared import PRUNING, REMOVING
from charengine.services.prune import DAY, GRACE, LOCKS, OBJECTS, PROGRESS, RESULTS, SMALLER, STATES
from charengine.store import Store, written

log = logging.getLogger(__name__)

AT_ONCE = 500  # files that are read by one request
SILENT = 10 * EXPIRY  # seconds after which a lease is not held, whatever it says
SIXTEENTHS = "0123456789abcdef"  # of the objects, by which they are listed: neither all at once nor a folder at a time
MOST_HEADER = 64 * 2**20  # bytes of a state's header; more is no state of ours


@dataclass(frozen=True)
class SharedLeftover:
    """A file of the store that is not needed, or all files of a state, of parts of a result, or of a lease.

    Args:
        kind: what it is, in the plural, for the table.
        path: in the store; of several files the folder.
        bytes: what its going frees.
        used: when it was last wanted, by the store's clock.
        key: of the stage whose lease is taken first; "" for none.
        files: every file's path.
    """

    kind: str
    path: str
    bytes: int
    used: float
    key: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class File:
    """A file of the store: its path there, its size, and when it was written by the store's clock (0: it does not say)."""

    path: str
    bytes: int
    written: float


def leftovers(store: Store, home: Home, older_than: float | None = None) -> list[SharedLeftover]:
    """What can go from a store that machines share; nothing that a run made is changed.

    Args:
        store: that is elsewhere.
        home: of this machine, whose runs' folders count as they are now.
        older_than: days; results and states of runs without a folder that nobody used for so long go too. None: they stay.
    """
    now = store.now()
    old = [] if older_than is None else list(_unused(store, home, now - older_than * DAY))
    gone = {path for item in old for path in item.files}
    return [*old, *_progress(store, gone), *_objects(store, home, now, gone), *_locks(store, now)]


def remove(store: Store, home: Home, older_than: float | None = None) -> list[SharedLeftover]:
    """Remove what can go and return what went; results first, then what only they referred to, as it is found anew then."""
    for run in known_runs(home):
        if run.deleted:
            store.drop_files([place_for_others(run, store)])
        elif run.finished:
            note_for_others(run, store)
    now = store.now()
    old = [] if older_than is None else list(_unused(store, home, now - older_than * DAY))
    of_stages = [*old, *_progress(store, {path for item in old for path in item.files})]
    done = [item for item in of_stages if _removed_under_its_lease(store, item)]
    done += _objects_removed(store, home)
    done += [item for item in _locks(store, now) if _lease_removed(store, item)]
    return done


def being_made(store: Store) -> bool:
    """Whether a stage is being made with this store now, on any machine."""
    now = store.now()
    for key, files in _leases(store):
        if KEY.match(key) and now - files[-1].written < SILENT and not is_given_back(_read(store, files[-1].path)):
            return True
    return False


# --- what there is -----------------------------------------------------------------------------------------------------


def _unused(store: Store, home: Home, before: float) -> Iterator[SharedLeftover]:
    """Results and states that no run's folder names and nobody used since; none while something is being made."""
    if being_made(store):
        log.warning("something is being made now: old results and states are left for another time")
        return
    kept = _named_by_runs(store, home, KEY)
    for file in _results(store):
        key = _key_of(store, file.path)
        if KEY.fullmatch(key) and key not in kept and 0 < file.written < before:
            yield SharedLeftover(RESULTS, file.path, file.bytes, file.written, key, (file.path,))
    for name, files in _by_folder(store, "state"):
        key = name.removesuffix(SMALLER)
        if KEY.fullmatch(key) and key not in kept and _all_before(files, before):
            yield _several(STATES, store, f"state/{name}", files, key)


def _progress(store: Store, gone: set[str]) -> Iterator[SharedLeftover]:
    """States and parts whose stage has its result: killed just before they were dropped."""
    whole = {_key_of(store, file.path) for file in _results(store) if file.path.count("/") == store.root.count("/") + 2}
    for place in ("state", "results"):
        for name, files in _by_folder(store, place):
            left = [file for file in files if file.path not in gone]
            if left and name.removesuffix(SMALLER) in whole:
                yield _several(PROGRESS, store, f"{place}/{name}", left, name.removesuffix(SMALLER))


def _objects(store: Store, home: Home, now: float, gone: set[str]) -> Iterator[SharedLeftover]:
    """Objects that nothing refers to."""
    wanted = _digests_wanted(store, home, gone)
    for sixteenth in SIXTEENTHS:
        yield from _of_objects(objects_beginning(store, sixteenth), wanted, now - GRACE)


def objects_beginning(store: Store, digits: str) -> list[File]:
    """The objects whose digest begins so."""
    place = f"{store.root}/sha256"
    found = files_below(store, f"sha256/{digits[:2]}") if len(digits) > 1 else files_below(store, "sha256", digits)
    # not every file system knows of beginnings
    return [file for file in found if file.path.startswith(f"{place}/{digits[:2]}")]


def _of_objects(files: list[File], wanted: set[str], before: float) -> Iterator[SharedLeftover]:
    for file in files:
        name = file.path.rpartition("/")[2]
        if DIGEST.fullmatch(name) and name not in wanted and 0 < file.written < before:
            yield SharedLeftover(OBJECTS, file.path, file.bytes, file.written, "", (file.path,))


def _locks(store: Store, now: float) -> Iterator[SharedLeftover]:
    """Leases of stages that nobody held for a day."""
    for name, files in _leases(store):
        if KEY.match(name) and _all_before(files, now - GRACE):
            yield _several(LOCKS, store, f"locks/{name}", files, "")


def _digests_wanted(store: Store, home: Home, gone: set[str]) -> set[str]:
    """Digests that any record names: results, states and the folders of runs. Whatever looks like a digest counts as one."""
    texts = _read_all(store, [file.path for file in _results(store) if file.path not in gone])
    states = (file.path for file in files_below(store, "state") if file.path not in gone)
    headers = (_header(store, path) for path in states)
    return named_in(texts, DIGEST) | named_in(headers, DIGEST) | _named_by_runs(store, home, DIGEST)


def _named_by_runs(store: Store, home: Home, what: re.Pattern[str]) -> set[str]:
    """Keys or digests that the folders of runs name: of this machine as they are now, of others as they noted it."""
    here = known_runs(home)
    deleted = {place_for_others(run, store) for run in here if run.deleted}
    notes = [file.path for file in files_below(store, "known-runs") if file.path not in deleted]
    texts = [*_read_all(store, notes), *(text for run in here for text in records_of(run))]
    return named_in(texts, what) | {key for run in here if not run.deleted for key in run.keys if what is KEY}


def _results(store: Store) -> list[File]:
    return [file for file in files_below(store, "results") if file.path.endswith(".json")]


def _key_of(store: Store, path: str) -> str:
    """The key that a result, or a part's, lies under."""
    return path.removeprefix(f"{store.root}/results/").partition("/")[0].removesuffix(".json")


def _leases(store: Store) -> Iterator[tuple[str, list[File]]]:
    """Every lease's name with its numbered files, the highest last."""
    for name, files in _by_folder(store, "locks"):
        yield name, sorted(files, key=lambda file: file.path)


def _by_folder(store: Store, place: str) -> Iterator[tuple[str, list[File]]]:
    """The folders in a place of the store, each with all files below it."""
    begin = f"{store.root}/{place}/"
    below = [file for file in files_below(store, place) if "/" in file.path.removeprefix(begin)]
    for name, files in groupby(below, lambda file: file.path.removeprefix(begin).partition("/")[0]):
        yield name, list(files)


def _several(kind: str, store: Store, place: str, files: list[File], key: str) -> SharedLeftover:
    used = max(file.written for file in files)
    paths = tuple(file.path for file in files)
    return SharedLeftover(kind, f"{store.root}/{place}", sum(file.bytes for file in files), used, key, paths)


def _all_before(files: list[File], when: float) -> bool:
    return all(0 < file.written < when for file in files)


# --- reading and removing ----------------------------------------------------------------------------------------------


def files_below(store: Store, place: str, beginning: str = "") -> list[File]:
    """Every file below a place of the store, by path; of a server that knows of them, those whose path in it begins so."""
    begin = f"{store.root}/{place}"
    found = store.fs.find(begin, detail=True, prefix=beginning)
    files = [File(path, int(facts["size"] or 0), written(facts)) for path, facts in found.items()]
    return sorted((file for file in files if file.path.startswith(f"{begin}/")), key=lambda file: file.path)


def _read_all(store: Store, paths: list[str]) -> Iterator[bytes]:
    """What files say, many at a time; of those that have gone meanwhile nothing."""
    for begin in range(0, len(paths), AT_ONCE):
        found: dict[str, Any] = store.fs.cat(paths[begin : begin + AT_ONCE], on_error="return")
        for path, said in found.items():
            # one that failed is asked for alone: that waits while the server is away
            yield _read(store, path) if isinstance(said, Exception) else bytes(said)


def _read(store: Store, path: str) -> bytes:
    try:
        return bytes(store.fs.cat_file(path))
    except FileNotFoundError:
        return b"{}"


def _header(store: Store, path: str) -> bytes:
    """The header of a safetensors file; no tensor is read."""
    try:
        size = int.from_bytes(store.fs.cat_file(path, start=0, end=8), "little")
        return bytes(store.fs.cat_file(path, start=8, end=8 + size)) if size < MOST_HEADER else b""
    except FileNotFoundError:
        return b""


def _removed_under_its_lease(store: Store, item: SharedLeftover) -> bool:
    """Whether it went: not if its stage is being made, or it was wanted meanwhile."""
    with ExitStack() as stack:
        of_stage = KEY.fullmatch(item.key)  # a folder that was handed over is nobody's work
        if of_stage and not stack.enter_context(lease_if_free(InStore(store, f"{item.key}.lock"), make=True)):
            return False
        stack.enter_context(_alone(store))
        if item.kind != PROGRESS and any(_written_now(store, path) > item.used for path in item.files):
            return False
        store.drop_files(list(item.files))
        return True


def _objects_removed(store: Store, home: Home) -> Iterator[SharedLeftover]:
    """Remove objects that nothing refers to, and say which: each lot is listed again under the lease."""
    wanted = _digests_wanted(store, home, set())
    for sixteenth in SIXTEENTHS:
        found = list(_of_objects(objects_beginning(store, sixteenth), wanted, store.now() - GRACE))
        for folder in sorted({item.path.split("/")[-2] for item in found}):
            with _alone(store):
                lot = list(_of_objects(objects_beginning(store, folder), wanted, store.now() - GRACE))
                store.drop_files([item.path for item in lot])
            yield from lot


def _lease_removed(store: Store, item: SharedLeftover) -> bool:
    """Whether a lease went: not if somebody took it meanwhile, who then holds a number that is not among these."""
    highest = max(item.files)
    if not is_given_back(_read(store, highest)) and store.now() - item.used < SILENT:
        return False
    store.drop_files(sorted(item.files))
    return True


def _written_now(store: Store, path: str) -> float:
    try:
        return written(store.fs.info(path))
    except FileNotFoundError:
        return 0.0


def _alone(store: Store) -> Any:
    """The lease that who writes an old file again waits for."""
    return lease(InStore(store, PRUNING), REMOVING)
