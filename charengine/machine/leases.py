"""Locks between machines that share a folder: leases that run out, for file systems whose `flock` does not reach other machines.

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
from typing import Any

from charengine.errors import BadInput
from charengine.writing import create_atomically, is_running, write_atomically

log = logging.getLogger(__name__)

BEAT = 5.0  # seconds between two signs of life
EXPIRY = 60.0  # seconds without one, after which a lease is taken over
LOOK_EVERY = 1.0  # seconds between two looks at a lease that is waited for
KEPT = 8  # numbers


@dataclass
class Seen:
    """What a waiter knows of the highest number: its content, and since when it has been so, by the waiter's clock."""

    number: int = 0
    content: bytes = b""
    since: float = field(default_factory=time.monotonic)

    def look(self, path: Path) -> None:
        """Look again."""
        number, content = latest(path)
        if (number, content) != (self.number, self.content):
            self.number, self.content, self.since = number, content, time.monotonic()

    @property
    def takeable(self) -> bool:
        """Whether nobody holds the lease."""
        told = _told(self.content)
        gone = told.get("host") == this_host() and not is_running(int(told.get("pid", 0)))
        return not self.number or bool(told.get("free")) or gone or time.monotonic() - self.since >= EXPIRY


@contextmanager
def lease(path: Path, waiting_for: str) -> Iterator[bool]:
    """Hold the lease of this name; says whether another process had to be waited for.

    Raises:
        BadInput: the folder cannot be written.
    """
    seen, waited = Seen(), False
    while True:
        seen.look(path)
        number = _taken(path, seen.number + 1) if seen.takeable else 0
        if number:
            break
        if not waited:
            log.info("waiting for another process: %s", waiting_for)
        waited = True
        time.sleep(LOOK_EVERY)
    with _kept_alive(path, number):
        yield waited


@contextmanager
def lease_if_free(path: Path, make: bool = False) -> Iterator[bool]:
    """Hold the lease if it is free now; says whether it is held. One that nobody ever held is free, and held only with `make`."""
    seen = Seen()
    if path.parent.is_dir():
        seen.look(path)
    if not seen.number and not make:
        yield True
        return
    number = _taken(path, seen.number + 1) if seen.takeable else 0
    if not number:
        yield False
        return
    with _kept_alive(path, number):
        yield True


def latest(path: Path) -> tuple[int, bytes]:
    """The highest number of a lease and what its file says; 0 when there is none."""
    numbers = _numbers(path)
    if not numbers:
        return 0, b""
    try:
        return numbers[-1], _file(path, numbers[-1]).read_bytes()
    except FileNotFoundError:  # a listing of before
        return numbers[-1], b""


def _taken(path: Path, number: int) -> int:
    """The number when this process made it and it is the highest; else 0."""
    file, mine = _file(path, number), _content(free=False)
    create_atomically(file, mine)
    with suppress(FileNotFoundError):
        if file.read_bytes() != mine:
            return 0
        if _numbers(path)[-1] == number:
            return number
        file.unlink()  # made long after it had been used up
    return 0


@contextmanager
def _kept_alive(path: Path, number: int) -> Iterator[None]:
    """Show signs of life until left, then give the lease back."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            if not _is_mine(path, number):
                log.warning("%s was taken over: this process stood still for longer than %.0f s", path.name, EXPIRY)
                return
            with suppress(BadInput):  # the next one may get through
                write_atomically(_file(path, number), _content(free=False))

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if _is_mine(path, number):
            write_atomically(_file(path, number), _content(free=True))
        for old in _numbers(path)[:-KEPT]:
            with suppress(OSError):
                _file(path, old).unlink()


def _is_mine(path: Path, number: int) -> bool:
    numbers = _numbers(path)
    return bool(numbers) and numbers[-1] == number


def _numbers(path: Path) -> list[int]:
    """Every number of a lease that is there, the highest last."""
    begin = f"{path.name}."
    try:
        names = [entry.name for entry in os.scandir(path.parent) if entry.name.startswith(begin)]
    except FileNotFoundError:
        return []
    return sorted(int(end) for name in names if (end := name.removeprefix(begin)).isdigit())


def _file(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number:06d}")


def _content(*, free: bool) -> bytes:
    """Never the same twice."""
    told = {"host": this_host(), "pid": os.getpid(), "free": free, "sign": uuid.uuid4().hex}
    return json.dumps(told).encode()


def _told(content: bytes) -> dict[str, Any]:
    """What a lease's file says; nothing for one that cannot be read, which then runs out."""
    try:
        told = json.loads(content)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def this_host() -> str:
    """This machine since it was started, and the container that this process is in: only there do process ids say anything."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with suppress(OSError):
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]
