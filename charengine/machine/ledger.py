"""What Character Engine wrote where, so that it never overwrites what is somebody's (docs/decisions/0072).

A hidden file in a folder names each file that is written below it, with the digests of what was written; it is noted before the files
are, so that a killed process has noted what it left. A file is the engine's own as long as its bytes are noted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from charengine import files
from charengine.errors import BadInput
from charengine.machine.known_runs import CLAIM, DIGEST, RECORDS
from charengine.writing import create_atomically, write_atomically

if TYPE_CHECKING:
    from charengine.records import Ref
    from charengine.store import Store

LEDGER = ".charengine-files.json"
LARGEST = 20_000_000  # bytes of one, or of a record
EMPTY = "{}"
VERSIONS = 4  # of one file: a process that was killed between noting and writing left an earlier one
ABOVE = 3  # folders above a file's own that may note it
NAMED = 3  # files in a message
NOTHING: Mapping[Path, str] = MappingProxyType({})

OWN_FOLDERS = ("views", "extra_views", "dataset", "adapters")  # of a run, in its own
# what a version without ledgers wrote into a folder, and may write again
EXPANSION = "expansion.json"  # which pictures are more views, and what became of each
SWEPT = ("contact_sheet.png", "trade_off.png", "sweep.json")
RECORDED = {  # records, by what says that they are ours
    "run.json": ("prompt", str),
    "sweep.json": ("pick", dict),
    EXPANSION: ("views", list),
}
OWN_FILES = ("sheet.png", "reference.png", "report.html", "compare.html", "run.json", "result.json", EXPANSION, *SWEPT)
TOLD = (".png", ".webp", ".safetensors")  # kinds of files whose digests stand in records
UNTOLD = ".preview.png"  # of adapters


def begin(folder: Path) -> None:
    """Say that nothing in a folder is the engine's, unless a ledger or an earlier version's run says what is.

    Raises:
        BadInput: it cannot be written.
    """
    ledger = folder / LEDGER
    if _is_cut_off(ledger):
        write_atomically(ledger, EMPTY.encode())
    elif not files.exists(ledger) and not _is_run(folder):
        create_atomically(ledger, EMPTY.encode())


def _is_cut_off(ledger: Path) -> bool:
    """Whether it is the beginning of an empty one, which a kill leaves where a file system has no hard links."""
    try:
        return EMPTY.startswith(files.read_text(ledger, most=len(EMPTY) - 1))
    except BadInput:  # there is none, or it is longer
        return False


def write_own(
    folder: Path,
    content: Mapping[Path, Ref | bytes],
    store: Store | None = None,
    kept: Container[Path] = (),
    gone: Iterable[Path] = (),
) -> list[Path]:
    """Write files, each whole or not at all; none of them when one would replace what is somebody's.

    Args:
        folder: that they are noted in, unless they lie in a run's.
        content: by path.
        store: that the refs are taken from.
        kept: files that may be replaced whatever they are, since what they say is in what is written.
        gone: files that are removed before, once nothing is in the way.

    Returns:
        Absolute paths.

    Raises:
        BadInput: there is a file that was not written by the engine, or was changed since; or nothing can be written there.
    """
    own(folder, {path: digest_of_content(data) for path, data in content.items()}, kept)
    for path in gone:
        files.asked(path, path.unlink)
    for path, data in content.items():
        if isinstance(data, bytes):
            write_atomically(path, data)
        elif store:
            store.export(data, path)
    return [path.resolve() for path in content]


def own(folder: Path, wanted: Mapping[Path, str], kept: Container[Path] = ()) -> None:
    """Note files that are about to be written, by the SHA-256 of what is to be written; see `write_own`."""
    must_be_own(folder, [path for path in wanted if path not in kept], wanted)
    grouped: dict[Path, dict[str, str]] = {}
    for path, digest in wanted.items():
        root = _root(place := _plain(path), files.real(folder))
        grouped.setdefault(root, {})[place.relative_to(root).as_posix()] = digest
    for root, named in grouped.items():
        known = noted(root)
        for name, digest in named.items():
            known[name] = [*(one for one in known.get(name, []) if one != digest), digest][-VERSIONS:]
        write_atomically(root / LEDGER, json.dumps(known).encode())


def must_be_own(folder: Path, paths: Iterable[Path], wanted: Mapping[Path, str] = NOTHING) -> None:
    """Before files are replaced or removed.

    Raises:
        BadInput: one was not written by the engine, or was changed since, and is not what is wanted.
    """
    if lost := foreign(paths, wanted):
        raise BadInput(f"{_said(lost, '', folder)}; what was made until now is kept, and taken by the same command")


def digest_of_content(data: Ref | bytes) -> str:
    """SHA-256 of what a file will hold."""
    return hashlib.sha256(data).hexdigest() if isinstance(data, bytes) else data.sha256


def overwriting(
    paths: Iterable[Path], label: str, folder: Path, inputs: Iterable[Path] = (), wanted: Mapping[Path, str] = NOTHING
) -> list[str]:
    """Why files may not be written: one would replace what is not the engine's, or was changed, or is read by the command itself.

    Args:
        paths: of all files that will be written.
        label: what the folder is to the user: an option, or nothing.
        folder: that they lie in, for messages.
        inputs: files that the command reads.
        wanted: SHA-256 of what will be written, where that is known; a file of the same bytes is in nobody's way.
    """
    paths = [*paths]
    read = {files.real(path) for path in inputs}
    eaten = [path for path in paths if files.real(path) in read and not _same(path, wanted.get(path))]
    problems = [_said(eaten, label, folder, "what this command starts from")] if eaten else []
    lost = [path for path in foreign(paths, wanted) if path not in eaten]
    if files.exists(folder / LEDGER) and not files.is_file(folder / LEDGER):
        problems.append(f"{folder / LEDGER} is no file; Character Engine notes there what it writes: move it away")
    return problems + ([_said(lost, label, folder)] if lost else [])


def foreign(paths: Iterable[Path], wanted: Mapping[Path, str]) -> list[Path]:
    """Those where something lies that the engine did not write, or that was changed since; not what is the same as is wanted.

    Raises:
        BadInput: it cannot be told.
    """
    there = [path for path in paths if files.exists(path) or files.is_link(path)]
    books: dict[Path, dict[str, list[str]]] = {}
    return [path for path in there if not _same(path, wanted.get(path)) and not _is_own(path, books)]


def digest_of(path: Path) -> str:
    """SHA-256 of a plain file; empty where there is none.

    Raises:
        BadInput: it cannot be read.
    """
    if not files.is_file(path):
        return ""

    def hashed() -> str:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return files.asked(path, hashed)


def noted(folder: Path) -> dict[str, list[str]]:
    """Digests of what was written below a folder, by path; without a ledger, or with a damaged one, what an earlier version's records say."""
    told = files.kept_json(folder / LEDGER, LARGEST)
    if not isinstance(told, dict):
        return _left_by_an_earlier_version(folder)
    return {name: [*map(str, found)] for name, found in told.items() if isinstance(found, list)}


def _is_own(path: Path, books: dict[Path, dict[str, list[str]]]) -> bool:
    digest = digest_of(_plain(path))
    places = dict.fromkeys((_plain(path), path.absolute()))  # a folder may be moved, and linked from where it was
    for place, folder in [(one, above) for one in places for above in one.parents[: ABOVE + 1]] if digest else ():
        if folder not in books:
            books[folder] = {}
            with suppress(BadInput):  # a folder above that may not be read
                books[folder] = noted(folder)
        if digest in books[folder].get(place.relative_to(folder).as_posix(), ()):
            return True
    return False


def _same(path: Path, digest: str | None) -> bool:
    return bool(digest) and digest_of(path) == digest


def _root(place: Path, folder: Path) -> Path:
    """The folder whose ledger a file is noted in: the run's, which is moved as a whole, else the one that was named."""
    run = next((above for above in place.parents[: ABOVE + 1] if _is_run(above)), folder)
    return run if place.is_relative_to(run) else place.parent


def _plain(path: Path) -> Path:
    """The path without links but the last, which writing replaces."""
    return files.real(path.parent) / path.name


def _is_run(folder: Path) -> bool:
    """Whether a character's run is, or was, made there."""
    return any(_says(folder / name, "prompt", str) for name in (CLAIM, RECORDS[0]))


def _says(path: Path, field: str, kind: type) -> bool:
    return isinstance(files.kept_object(path, LARGEST).get(field), kind)


def _left_by_an_earlier_version(folder: Path) -> dict[str, list[str]]:
    """Files of a run, a sweep or more views from before there were ledgers, with their digests.

    Of pictures and adapters the records say the digests; of what they do not say, the name must do.
    """
    records = [folder / name for name in RECORDED if _says(folder / name, *RECORDED[name])]
    is_run = _is_run(folder)
    if not records and not is_run:
        return {}
    told: set[str] = set()
    for path in records:
        told |= set(DIGEST.findall(files.asked(path, path.read_bytes).decode("utf-8", "replace")))
    found = {folder / name: digest_of(folder / name) for name in OWN_FILES}
    for path in files.below(folder) if (folder / EXPANSION) in records and not is_run else ():
        found[path] = digest_of(path) if path.suffix == ".png" else ""
    for name in OWN_FOLDERS:
        for path in files.below(folder / name) if files.is_dir(folder / name) else ():
            found[path] = digest_of(path)
    return {
        path.relative_to(folder).as_posix(): [digest]
        for path, digest in found.items()
        if digest and (digest in told or path in records or (is_run and not (told and _is_told(path))))
    }


def _is_told(path: Path) -> bool:
    """Whether records say the digest of files of this kind."""
    return path.suffix in TOLD and not path.name.endswith(UNTOLD)


def _said(lost: list[Path], label: str, folder: Path, what: str = "") -> str:
    """That files are in the way, and what to do."""
    shown = [str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path) for path in lost[:NAMED]]
    more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
    one = len(lost) == 1
    why = (
        f"{'is' if one else 'are'} {what}"
        if what
        else f"{'is' if one else 'are'} not as Character Engine wrote {'it' if one else 'them'} there"
    )
    return (
        f"{f'{label} {folder}'.strip()}: {', '.join(shown)}{more} {why}, and would be overwritten{'' if what else _unnoted(folder)}: "
        f"give another folder or name, or move {'it' if one else 'them'} away"
    )


def _unnoted(folder: Path) -> str:
    """Why nothing in a folder counts as the engine's, where that is not the files' own doing."""
    places = (files.real(folder), *files.real(folder).parents[:ABOVE])
    if not any(files.exists(place / LEDGER) or _is_run(place) for place in places):
        return f" (no {LEDGER} says that Character Engine wrote anything there)"
    damaged = files.exists(folder / LEDGER) and not isinstance(files.kept_json(folder / LEDGER, LARGEST), dict)
    return f" (the {LEDGER} that says what Character Engine wrote there is damaged)" if damaged else ""
