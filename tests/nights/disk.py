"""A disk in memory below the real product code: every call can fail, a killed process loses what it had not flushed, and when the
machine dies, what was not synced is lost the way ext4 loses it.

Names are journaled: when the machine dies, the names as they were at some moment since the last fsync are there, in order. Content
is not: a file that was written since its last fsync is what it was then, empty, a torn piece, or whole. One that was only appended to
keeps what was synced: an append changes no byte below the old end, and a journal of synced lines could be built on no other disk. An
fsync of a file or folder commits all names, and the content of that file.
"""

from __future__ import annotations

import errno
import io
import os
import random
from collections.abc import Callable
from typing import Any

from nights.schedule import Schedule

ROOT = "/night"  # what lies below it is simulated; everything else is the real disk
FIRST_FD = 1_000_000


class Node:
    """A file's content: as it is read now, and as it is on the platter."""

    __slots__ = ("cut", "data", "lock", "synced")

    def __init__(self) -> None:
        self.data = b""
        self.synced: bytes | None = None  # None: never
        self.cut = False  # truncated since: what was synced may be gone
        self.lock: object | None = None  # the open file that holds its flock


class Disk:
    """Files and folders of one night.

    Args:
        schedule: whose steps the calls are.
        dice: decides what is lost.
        fault: asked before each call with its name and path; an error number to fail with, or 0.
    """

    def __init__(self, schedule: Schedule, dice: random.Random, fault: Callable[[str, str], int]) -> None:
        self.schedule, self.dice, self.fault = schedule, dice, fault
        self.files: dict[str, Node] = {}
        self.folders: set[str] = {ROOT}
        self.handles: dict[int, Handle] = {}
        self._next = FIRST_FD
        self._committed: tuple[dict[str, Node], set[str]] = ({}, {ROOT})
        self._since: list[Callable[[dict[str, Node], set[str]], None]] = []  # changes of names not committed yet

    # --- what the calls do ---

    def call(self, name: str, path: str) -> None:
        """One call: a step of the process, which may be killed in it, or the call may fail."""
        self.schedule.step()
        number = self.fault(name, path)
        if number:
            raise OSError(number, os.strerror(number), path)

    def change(self, change: Callable[[dict[str, Node], set[str]], None]) -> None:
        """Change names, now and in the journal."""
        change(self.files, self.folders)
        self._since.append(change)

    def commit(self) -> None:
        """All names are on the platter."""
        for change in self._since:
            change(*self._committed)
        self._since.clear()

    def sync(self, node: Node) -> None:
        """Its content, and all names."""
        node.synced, node.cut = node.data, False
        self.commit()

    def lose_power(self) -> None:
        """What was not synced is lost; nobody holds anything any more."""
        names, folders = self._committed
        for change in self._since[: self.dice.randint(0, len(self._since))]:
            change(names, folders)
        self._since.clear()
        self.files, self.folders = dict(names), set(folders)
        self.handles.clear()
        for node in {id(node): node for node in self.files.values()}.values():
            node.lock = None
            if node.synced is not node.data:
                before = node.synced or b""
                kept = 0 if node.cut else len(before)
                torn = node.data[: self.dice.randint(kept, len(node.data))]
                node.data = self.dice.choice(
                    [before, node.data[:kept], torn, torn.ljust(len(node.data), b"\0"), node.data]
                )
                node.synced, node.cut = node.data, False

    def close_of(self, process: object) -> None:
        """A process has ended: the kernel closes its files."""
        for number, handle in list(self.handles.items()):
            if handle.process is process:
                handle.release()
                del self.handles[number]

    def parent(self, path: str) -> None:
        folder = os.path.dirname(path)
        if folder not in self.folders:
            raise OSError(errno.ENOTDIR if folder in self.files else errno.ENOENT, os.strerror(errno.ENOENT), path)

    def node(self, path: str) -> Node:
        if path not in self.files:
            number = errno.EISDIR if path in self.folders else errno.ENOENT
            raise OSError(number, os.strerror(number), path)
        return self.files[path]

    def handle(self, path: str, node: Node | None) -> Handle:
        self._next += 1
        handle = Handle(self, self._next, path, node, self.schedule.current())
        self.handles[self._next] = handle
        return handle

    def of(self, fd: int) -> Handle:
        if fd not in self.handles:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self.handles[fd]


class Handle:
    """A file descriptor."""

    def __init__(self, disk: Disk, fd: int, path: str, node: Node | None, process: object) -> None:
        self.disk, self.fd, self.path, self.node, self.process = disk, fd, path, node, process

    def release(self) -> None:
        """Give up the lock."""
        if self.node and self.node.lock is self:
            self.node.lock = None


class Writer:
    """A file opened for writing: what is not flushed dies with its process."""

    def __init__(self, disk: Disk, path: str, node: Node, text: bool, lines: bool) -> None:
        self._disk, self._node, self._text, self._lines = disk, node, text, lines
        self._handle = disk.handle(path, node)
        self._pending = b""
        self.closed = False
        self.name = path

    def write(self, data: Any) -> int:
        """Into the buffer; a line-buffered file passes lines on."""
        self._pending += data.encode() if self._text else bytes(data)
        if self._lines and b"\n" in self._pending or len(self._pending) > io.DEFAULT_BUFFER_SIZE:
            self.flush()
        return len(data)

    def flush(self) -> None:
        """To the kernel; a killed process may have passed on a part."""
        if not self._pending:
            return
        data, self._pending = self._pending, b""
        self._disk.schedule.step()
        half = len(data) // 2
        if half and self._disk.dice.random() < 0.5:
            self._disk.call("write", self.name)
            self._node.data += data[:half]
            data = data[half:]
        self._disk.call("write", self.name)
        self._node.data += data

    def fileno(self) -> int:
        """The descriptor."""
        return self._handle.fd

    def close(self) -> None:
        """Flush and close."""
        if not self.closed:
            self.closed = True
            try:
                self.flush()
            finally:
                self._handle.release()
                self._disk.handles.pop(self._handle.fd, None)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
