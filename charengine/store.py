"""Content-addressed store over fsspec: blobs under their SHA-256, written whole, verified on read."""

from __future__ import annotations

import hashlib
import logging
import mimetypes
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from charengine.elsewhere import Elsewhere
from charengine.errors import BadInput, MissingDependency, StoreCorrupt
from charengine.mistakes import explain
from charengine.records import Record, Ref
from charengine.writing import remove_leftovers, write_atomically

R = TypeVar("R", bound=Record)
log = logging.getLogger(__name__)

LOOK_AGAIN = 0.02  # seconds after which a missing file is looked for once more
YOUNG = (
    12 * 3600.0
)  # seconds for which a file elsewhere counts as just wanted: half of the time that `prune` leaves it alone
CLOCK_EVERY = 600.0  # seconds after which a store elsewhere is asked for its time again
WRITTEN = ("LastModified", "last_modified", "updated", "mtime", "created")  # what file systems call a file's time


def _no_wait() -> None:
    """Nobody else removes files of a store that is not shared."""


class Store:
    """Blobs by digest in a folder or any fsspec URL.

    Args:
        url: a folder path or an fsspec URL (`s3://bucket/prefix`, `memory://x`).
        options: of fsspec's file system; what is not named is taken from the environment.

    Raises:
        BadInput: the place cannot be created or written.
        MissingDependency: a package for URLs of this kind is not installed.
    """

    def __init__(self, url: str | Path, **options: Any) -> None:
        import fsspec

        self.url = str(url)
        try:
            self.fs, self.root = fsspec.core.url_to_fs(self.url, use_listings_cache=False, **options)
        except (ImportError, ValueError) as error:
            raise MissingDependency(
                f"store {self.url!r} cannot be reached ({error}); a folder and s3://BUCKET/PREFIX are allowed, the latter with "
                'pip install "charengine[machines]"'
            ) from error
        self.local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))
        if not self.local:
            self.fs = Elsewhere(self.fs, self.url)
        self.after_prune: Callable[[], None] = _no_wait  # waits while a machine that shares it removes files
        self._clock = (-CLOCK_EVERY, 0.0)  # when it was asked for its time, by this process's clock, and what it said
        try:
            self.fs.makedirs(f"{self.root}/sha256", exist_ok=True)
            self.fs.makedirs(f"{self.root}/results", exist_ok=True)
        except OSError as error:
            remedy = (
                "choose a writable folder with --out or CHARENGINE_HOME"
                if self.local
                else "look at AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, and at the bucket's name"
            )
            raise BadInput(f"store {self.url!r} cannot be created ({error}); {remedy}") from error

    def put(self, data: bytes, name: str, media_type: str | None = None) -> Ref:
        """Store `data`, returning its ref; storing the same bytes again is free."""
        digest = hashlib.sha256(data).hexdigest()
        target = self._where(digest)
        if not self._is_wanted_already(target, len(data)):
            self._write(target, data)
        elif self.local:
            remove_leftovers(Path(target))
        return Ref(sha256=digest, size=len(data), media_type=media_type or guess_media_type(name), name=name)

    def put_file(self, path: Path, name: str | None = None) -> Ref:
        """Store a file's content."""
        return self.put(path.read_bytes(), name or path.name)

    def get(self, ref: Ref) -> bytes:
        """The blob's bytes.

        Raises:
            StoreCorrupt: it is gone, or its bytes do not hash to its name.
        """
        try:
            data = self._read(self._where(ref.sha256))
        except FileNotFoundError as error:
            raise self._gone(ref) from error
        if hashlib.sha256(data).hexdigest() != ref.sha256:
            raise StoreCorrupt(f"{ref.name} ({ref.sha256[:12]}) in {self.url} changed on disk; run its stage again")
        return data

    def has(self, ref: Ref) -> bool:
        """Whether the blob is there with the right content (it is read and hashed)."""
        try:
            self.get(ref)
        except StoreCorrupt:
            return False
        return True

    def must_have(self, refs: Iterable[Ref]) -> None:
        """Ask for files by their names alone, which is done in no time.

        Raises:
            StoreCorrupt: one is gone.
        """
        for ref in refs:
            if not self.fs.exists(self._where(ref.sha256)):
                raise self._gone(ref)

    def _gone(self, ref: Ref) -> StoreCorrupt:
        return StoreCorrupt(f"{ref.name} ({ref.sha256[:12]}) is no longer in {self.url}; run its stage again")

    def drop(self, ref: Ref) -> None:
        """Forget a blob, so that a changed one can be stored again."""
        if self.fs.exists(self._where(ref.sha256)):
            self.fs.rm_file(self._where(ref.sha256))

    def put_result(self, key: str, record: Record) -> None:
        """Keep what a stage made under its key, or part of it below that ("KEY/PART"): a few hundred bytes that refer to blobs."""
        self._write(self._result(key), record.model_dump_json().encode())

    def result(self, key: str, kind: type[R]) -> R | None:
        """What a stage made under this key; None when there is nothing, or nothing that can be read as this kind."""
        try:
            return kind.model_validate_json(self.fs.cat_file(self._result(key)))
        except FileNotFoundError:
            return None
        except ValueError as error:  # written by another version, or damaged: made again
            why = explain(error, kind)[0] if isinstance(error, ValidationError) else error
            log.warning("%s: the kept result cannot be read (%s)", key, why)
            return None

    def use(self, *keys: str) -> None:
        """Say that the results under these keys are in use now: `charengine prune` counts from here."""
        for key in keys:
            self._use(self._result(key))

    def drop_parts(self, key: str) -> None:
        """Forget the results below a key ("KEY/PART"): those of parts of a work whose whole is kept, or begun anew."""
        folder = f"{self.root}/results/{key}"
        if not self.local:
            self.drop_files(self._below(folder))
        elif self.fs.isdir(folder):
            self.fs.rm(folder, recursive=True)

    def has_parts(self, key: str) -> bool:
        """Whether results of parts of a work are kept below its key."""
        return bool(self.fs.exists(f"{self.root}/results/{key}"))

    def has_result(self, key: str) -> bool:
        """Whether anything is kept under this key."""
        return bool(self.fs.exists(self._result(key)))

    def now(self) -> float:
        """The time in seconds since 1970 that the store writes on its files; elsewhere that is another machine's clock.

        A machine's own clock says nothing about the age of a file elsewhere, for either may be wrong.
        """
        if self.local:
            return time.time()
        asked, said = self._clock
        if time.monotonic() - asked >= CLOCK_EVERY:
            place = f"{self.root}/clock"
            self.fs.pipe_file(place, b"")
            asked, said = self._clock = (time.monotonic(), written(self.fs.info(place)))
        return said + time.monotonic() - asked

    # --- the state of unfinished work: a folder of this machine, and in a store elsewhere a copy that other machines take up ---

    def write_state(self, folder: Path, name: str, data: bytes) -> None:
        """Write a file of a state, whole or not at all.

        Args:
            folder: of this machine; its name is the state's.
            name: of the file.
            data: its content.

        Raises:
            BadInput: it cannot be written.
        """
        write_atomically(folder / name, data)
        if not self.local:
            self.fs.pipe_file(f"{self._state(folder)}/{name}", data)

    def take_state(self, folder: Path) -> None:
        """Have in a folder of this machine what was written last, wherever that was; nothing when nothing was."""
        if self.local:
            return
        place = self._state(folder)
        there = self._below(place)
        for path in sorted(folder.glob("*")) if folder.is_dir() else []:
            if f"{place}/{path.name}" not in there:
                path.unlink()
        for name in there:
            write_atomically(folder / name.rpartition("/")[2], self._read(name))

    def drop_state(self, folder: Path) -> None:
        """Forget a state, here and in the store."""
        shutil.rmtree(folder, ignore_errors=True)
        if not self.local:
            self.drop_files(self._below(self._state(folder)))

    def drop_files(self, paths: list[str]) -> None:
        """Remove files by their paths in the store, all at once; those that have gone meanwhile count as removed."""
        with suppress(FileNotFoundError):
            if paths:
                self.fs.rm(paths)
            return
        for path in paths:  # not every file system goes on after one that has gone
            with suppress(FileNotFoundError):
                self.fs.rm_file(path)

    def export(self, ref: Ref, path: Path) -> Path:
        """Write the blob to `path` atomically and return the absolute path."""
        write_atomically(path, self.get(ref))
        return path.resolve()

    def path(self, ref: Ref) -> Path | None:
        """Where the blob lies as a file of this machine; None in a store elsewhere."""
        return Path(self._where(ref.sha256)) if self.local else None

    def _result(self, key: str) -> str:
        return f"{self.root}/results/{key}.json"

    def _below(self, place: str) -> list[str]:
        """The files below a path; some servers name the path itself when nothing is left below it."""
        return [path for path in self.fs.find(place) if path.startswith(f"{place}/")]

    def _state(self, folder: Path) -> str:
        return f"{self.root}/state/{folder.name}"

    def _where(self, digest: str) -> str:
        return f"{self.root}/sha256/{digest[:2]}/{digest}"

    def _is_wanted_already(self, target: str, size: int) -> bool:
        """Whether a file of this size is there, and `prune` knows that it is wanted."""
        if self.local:
            return bool(self.fs.exists(target)) and self.fs.size(target) == size and self._use(target)
        try:
            facts = self.fs.info(target)
        except FileNotFoundError:
            return False
        return facts["size"] == size and self._is_young(facts)

    def _is_young(self, facts: Mapping[str, Any]) -> bool:
        return self.now() - written(facts) < YOUNG

    def _use(self, target: str) -> bool:
        """Mark a file as wanted now, so that `prune` leaves it; False when it has gone meanwhile."""
        if not self.local:
            return self._use_elsewhere(target)
        try:
            os.utime(target)
        except FileNotFoundError:
            return False
        except OSError:  # another user's: whose it is may prune it
            pass
        return True

    def _use_elsewhere(self, target: str) -> bool:
        """The same where times cannot be set: a file is written again, twice a day at most."""
        with suppress(FileNotFoundError):
            if not self._is_young(self.fs.info(target)):
                self._write(target, bytes(self.fs.cat_file(target)))
            return True
        return False

    def _read(self, target: str) -> bytes:
        """A file's bytes; one that is missing is looked for once more, since `prune` puts back what it finds in use."""
        try:
            return bytes(self.fs.cat_file(target))
        except FileNotFoundError:
            time.sleep(LOOK_AGAIN)
            return bytes(self.fs.cat_file(target))

    def _write(self, target: str, data: bytes) -> None:
        if self.local:
            write_atomically(Path(target), data)
            return
        while True:  # object stores put whole objects atomically
            self.fs.pipe_file(target, data)
            # a `prune` that had found an older file here may take this one for it; one that begins now finds it young
            self.after_prune()
            if self.fs.exists(target):
                return


def written(facts: Mapping[str, Any]) -> float:
    """When a file was written last, in seconds since 1970 by the clock of its file system, of what that says about a file.

    0 where it does not say: such a file counts as old for who wants it, who then writes it again.
    """
    said = next((facts[name] for name in WRITTEN if facts.get(name)), 0.0)
    return float(said.timestamp() if hasattr(said, "timestamp") else said)


def refs_in(value: Any) -> list[Ref]:
    """Every ref inside a record, however deep."""
    if isinstance(value, Ref):
        return [value]
    if isinstance(value, dict):
        return [ref for item in value.values() for ref in refs_in(item)]
    if isinstance(value, list | tuple):
        return [ref for item in value for ref in refs_in(item)]
    fields = getattr(type(value), "model_fields", None)
    return [ref for name in fields for ref in refs_in(getattr(value, name))] if fields else []


def guess_media_type(name: str) -> str:
    """Media type from a file name."""
    if name.endswith(".safetensors"):
        return "application/x-safetensors"
    return mimetypes.guess_type(name)[0] or "application/octet-stream"
