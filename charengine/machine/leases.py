"""Locks between machines that share a folder or a store: leases that run out, where no `flock` reaches other machines.

The holder of NAME is whoever made the file with the highest number, NAME.000001, NAME.000002…: a file is made only if there is none of
that name, which a file system grants to one process alone, also over NFS. The holder rewrites its file every `BEAT` seconds. Who waits
makes the next number when the highest one says that it was given back, or has not changed for `EXPIRY` seconds *by the waiter's own
monotonic clock*: no time of one machine is ever compared with another's, so clocks that are wrong cannot hand a held lease over. A
holder on this machine whose process is gone is not waited for.

The last `KEPT` numbers stay: a waiter that read an old listing (NFS keeps one for up to a minute) then tries a number that is taken, and
looks again. A holder that stood still for longer than `EXPIRY` finds a higher number and says so. It may still end its work beside the
new holder; that is harmless, for both make equal bytes, and files are written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from charengine.errors import BadInput
from charengine.files import json_in
from charengine.writing import create_atomically, is_running, write_atomically

if TYPE_CHECKING:
    from charengine.store import Store

log = logging.getLogger(__name__)

BEAT = 5.0  # seconds between two signs of life
EXPIRY = 60.0  # seconds without one, after which a lease is taken over
LOOK_EVERY = 1.0  # seconds between two looks at a lease that is waited for
KEPT = 8  # numbers
PROMPT = 2.0  # seconds within which a look is answered while nothing is away


class Place(Protocol):
    """Where a lease's numbered files lie."""

    name: str

    def numbers(self) -> list[int]:
        """Every number that is there, the highest last."""

    def read(self, number: int) -> bytes:
        """What a file says; FileNotFoundError when it has gone."""

    def create(self, number: int, data: bytes) -> None:
        """Write a file, unless there is one."""

    def write(self, number: int, data: bytes) -> None:
        """Write a file anew."""

    def drop(self, number: int) -> None:
        """Remove a file."""


class InFolder:
    """A folder that the machines share.

    Args:
        path: of the lease; a file's name ends with its number.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name

    def numbers(self) -> list[int]:
        """Every number that is there, the highest last."""
        try:
            return _numbered([entry.name for entry in os.scandir(self.path.parent)], self.name)
        except FileNotFoundError:
            return []

    def read(self, number: int) -> bytes:
        """What a file says."""
        return self._file(number).read_bytes()

    def create(self, number: int, data: bytes) -> None:
        """Write a file, unless there is one."""
        create_atomically(self._file(number), data)

    def write(self, number: int, data: bytes) -> None:
        """Write a file anew."""
        write_atomically(self._file(number), data)

    def drop(self, number: int) -> None:
        """Remove a file."""
        self._file(number).unlink()

    def _file(self, number: int) -> Path:
        return self.path.with_name(f"{self.name}.{number:06d}")


class InStore:
    """A store that the machines share; a file is made by a write that the server refuses when there is one.

    Args:
        store: that is elsewhere.
        name: of the lease.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._fs, self._begin, self.name = store.fs, f"{store.root}/locks/{name}", name

    def numbers(self) -> list[int]:
        """Every number that is there, the highest last."""
        # all of the lease's own files, not of all leases: a night has thousands
        paths = self._fs.find(self._begin)
        return _numbered([path.rpartition("/")[2] for path in paths], self.name)

    def read(self, number: int) -> bytes:
        """What a file says."""
        return bytes(self._fs.cat_file(self._file(number)))

    def create(self, number: int, data: bytes) -> None:
        """Write a file, unless there is one."""
        with suppress(FileExistsError):
            self._fs.create(self._file(number), data)

    def write(self, number: int, data: bytes) -> None:
        """Write a file anew."""
        self._fs.pipe_file(self._file(number), data)

    def drop(self, number: int) -> None:
        """Remove a file."""
        self._fs.rm_file(self._file(number))

    def _file(self, number: int) -> str:
        return f"{self._begin}/{self.name}.{number:06d}"


@dataclass
class Seen:
    """What a waiter knows of the highest number: its content, and since when it has been so, by the waiter's clock."""

    number: int = 0
    content: bytes = b""
    since: float = field(default_factory=time.monotonic)

    def look(self, place: Place) -> None:
        """Look again. While nobody answered, the holder could show no sign of life either: that time does not count."""
        began = time.monotonic()
        number, content = latest(place)
        took = time.monotonic() - began
        if (number, content) != (self.number, self.content):
            self.number, self.content, self.since = number, content, time.monotonic()
        elif took > PROMPT:
            self.since += took

    @property
    def takeable(self) -> bool:
        """Whether nobody holds the lease."""
        told = _told(self.content)
        gone = told.get("host") == this_host() and not is_running(int(told.get("pid", 0)))
        return not self.number or is_given_back(self.content) or gone or time.monotonic() - self.since >= EXPIRY


_asked_for: dict[str, Seen] = {}  # by `lease_if_free`, which does not wait itself


@contextmanager
def lease(place: Place, waiting_for: str) -> Iterator[bool]:
    """Hold the lease of this name; says whether another process had to be waited for.

    Raises:
        BadInput: the folder cannot be written.
    """
    for seen, waited in _looked_at(place, waiting_for):
        number = _taken(place, seen.number + 1) if seen.takeable else 0
        if number:
            with _kept_alive(place, number):
                yield waited
            return


@contextmanager
def lease_if_free(place: Place, make: bool = False) -> Iterator[bool]:
    """Hold the lease if it is free now; says whether it is held. One that nobody ever held is free, and held only with `make`.

    That of a holder which died on another machine is free for who asks again a minute later, from the same process.
    """
    seen = _asked_for.setdefault(place.name, Seen())
    seen.look(place)
    if not seen.number and not make:
        yield True
        return
    number = _taken(place, seen.number + 1) if seen.takeable else 0
    if not number:
        yield False
        return
    with _kept_alive(place, number):
        yield True


def wait_until_free(place: Place, waiting_for: str) -> None:
    """Wait while somebody holds the lease of this name, without holding it afterwards; that of a dead holder is given back."""
    for seen, _ in _looked_at(place, waiting_for):
        if not seen.number or is_given_back(seen.content):
            return
        if seen.takeable:
            with lease(place, waiting_for):
                return


def _looked_at(place: Place, waiting_for: str) -> Iterator[tuple[Seen, bool]]:
    """The lease, looked at again and again, and whether it was waited for already, which is said once."""
    seen, waited = Seen(), False
    while True:
        seen.look(place)
        yield seen, waited
        if not waited:
            log.info("waiting for another process: %s", waiting_for)
        waited = True
        time.sleep(LOOK_EVERY)


def latest(place: Place) -> tuple[int, bytes]:
    """The highest number of a lease and what its file says; 0 when there is none."""
    numbers = place.numbers()
    if not numbers:
        return 0, b""
    try:
        return numbers[-1], place.read(numbers[-1])
    except FileNotFoundError:  # a listing of before
        return numbers[-1], b""


def _taken(place: Place, number: int) -> int:
    """The number when this process made it and it is the highest; else 0."""
    mine = _content(free=False)
    place.create(number, mine)
    with suppress(FileNotFoundError):
        if place.read(number) != mine:
            return 0
        if place.numbers()[-1] == number:
            return number
        place.drop(number)  # made long after it had been used up
    return 0


@contextmanager
def _kept_alive(place: Place, number: int) -> Iterator[None]:
    """Show signs of life until left, then give the lease back."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            with suppress(BadInput, OSError):  # the next one may get through
                if not _is_mine(place, number):
                    log.warning(
                        "%s was taken over: this process stood still for longer than %.0f s", place.name, EXPIRY
                    )
                    return
                place.write(number, _content(free=False))

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if _is_mine(place, number):
            place.write(number, _content(free=True))
        for old in place.numbers()[:-KEPT]:
            with suppress(OSError):
                place.drop(old)


def _is_mine(place: Place, number: int) -> bool:
    numbers = place.numbers()
    return bool(numbers) and numbers[-1] == number


def _numbered(names: list[str], lease_name: str) -> list[int]:
    """The numbers of those files that are a lease's, the highest last."""
    begin = f"{lease_name}."
    return sorted(int(end) for name in names if name.startswith(begin) and (end := name.removeprefix(begin)).isdigit())


def _content(*, free: bool) -> bytes:
    """Never the same twice."""
    told = {"host": this_host(), "pid": os.getpid(), "free": free, "sign": uuid.uuid4().hex}
    return json.dumps(told).encode()


def is_given_back(content: bytes) -> bool:
    """Whether what a lease's highest file says is that nobody holds it any more."""
    return bool(_told(content).get("free"))


def _told(content: bytes) -> dict[str, Any]:
    """What a lease's file says; nothing for one that cannot be read, which then runs out."""
    told = json_in(content)
    return told if isinstance(told, dict) else {}


def this_host() -> str:
    """This machine since it was started, and the container that this process is in: only there do process ids say anything."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with suppress(OSError):
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]
