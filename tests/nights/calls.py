"""The simulated disk as product code reaches it: its functions in the place of `os`, `io` and `fcntl`."""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nights.disk import FIRST_FD, ROOT, Disk, Node, Writer


class Calls:
    """The functions of `os`, `io` and `fcntl` that product code uses, for paths of the simulated disk.

    Args:
        disk: of the night that runs; set anew for each.
    """

    def __init__(self) -> None:
        self.disk: Disk | None = None
        self.real: dict[str, Any] = {}

    def open(
        self, file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, *rest: Any, **more: Any
    ) -> Any:
        path = ours(file)
        if path is None:
            return self.real["open"](file, mode, buffering, encoding, *rest, **more)
        disk, text = self._disk, "b" not in mode
        if "r" in mode and "+" not in mode:
            disk.call("read", path)
            data = disk.node(path).data
            if text:
                return io.StringIO(data.decode(encoding or "utf-8", more.get("errors") or "strict"))
            return io.BytesIO(data)
        disk.call("create", path)
        disk.parent(path)
        if path in disk.folders:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if "x" in mode and path in disk.files:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        node = disk.files.get(path)
        if node is None:
            node = fresh = Node()
            disk.change(lambda files, folders: files.__setitem__(path, fresh))
        elif "w" in mode:
            node.data, node.cut = b"", True
        return Writer(disk, path, node, text, buffering == 1)

    def os_open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: Any = None) -> int:
        place = ours(path)
        if place is None:
            return int(self.real["os_open"](path, flags, mode, dir_fd=dir_fd))
        disk = self._disk
        disk.call("create" if flags & os.O_CREAT else "read", place)
        if place in disk.folders:
            return disk.handle(place, None).fd
        if place not in disk.files:
            if not flags & os.O_CREAT:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), place)
            disk.parent(place)
            fresh = Node()
            disk.change(lambda files, folders: files.__setitem__(place, fresh))
        elif flags & os.O_EXCL and flags & os.O_CREAT:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), place)
        return disk.handle(place, disk.files[place]).fd

    def os_close(self, fd: int) -> None:
        if fd < FIRST_FD:
            self.real["os_close"](fd)
            return
        self._disk.schedule.step()
        self._disk.of(fd).release()
        del self._disk.handles[fd]

    def os_fstat(self, fd: int) -> Any:
        if fd < FIRST_FD:
            return self.real["os_fstat"](fd)
        self._disk.schedule.step()
        handle = self._disk.of(fd)
        return self._stat_of(handle.node) if handle.node else FOLDER

    def os_write(self, fd: int, data: Any) -> int:
        if fd < FIRST_FD:
            return int(self.real["os_write"](fd, data))
        handle = self._disk.of(fd)
        self._disk.call("write", handle.path)
        assert handle.node
        handle.node.data += bytes(data)
        return len(data)

    def os_fsync(self, fd: int) -> None:
        if fd < FIRST_FD:
            self.real["os_fsync"](fd)
            return
        handle = self._disk.of(fd)
        self._disk.call("fsync", handle.path)
        self._disk.sync(handle.node) if handle.node else self._disk.commit()

    def flock(self, fd: int, operation: int) -> None:
        if fd < FIRST_FD:
            self.real["flock"](fd, operation)
            return
        disk = self._disk
        disk.schedule.step()
        handle = disk.of(fd)
        node = handle.node
        assert node
        if operation & fcntl.LOCK_UN:
            handle.release()
            return
        while node.lock not in (None, handle):
            if operation & fcntl.LOCK_NB:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            disk.schedule.wait(None, lambda: node.lock is None)
        node.lock = handle

    def os_replace(self, source: Any, target: Any, **more: Any) -> None:
        old, new = ours(source), ours(target)
        if old is None or new is None:
            self.real["os_replace"](source, target, **more)
            return
        disk = self._disk
        disk.call("rename", new)
        disk.parent(new)
        if old in disk.folders:
            self._rename_folder(old, new)
            return
        node = disk.node(old)

        def change(files: dict[str, Node], folders: set[str]) -> None:
            files.pop(old, None)
            files[new] = node

        disk.change(change)

    def _rename_folder(self, old: str, new: str) -> None:
        if new in self._disk.folders or new in self._disk.files:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)

        def change(files: dict[str, Node], folders: set[str]) -> None:
            for path in [path for path in files if path.startswith(f"{old}/")]:
                files[new + path[len(old) :]] = files.pop(path)
            for path in [path for path in folders if path == old or path.startswith(f"{old}/")]:
                folders.discard(path)
                folders.add(new + path[len(old) :])

        self._disk.change(change)

    def os_link(self, source: Any, target: Any, **more: Any) -> None:
        old, new = ours(source), ours(target)
        if old is None or new is None:
            self.real["os_link"](source, target, **more)
            return
        disk = self._disk
        disk.call("link", new)
        disk.parent(new)
        if new in disk.files:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
        node = disk.node(old)
        disk.change(lambda files, folders: files.__setitem__(new, node))

    def os_unlink(self, path: Any, **more: Any) -> None:
        place = ours(path)
        if place is None:
            self.real["os_unlink"](path, **more)
            return
        self._disk.call("unlink", place)
        self._disk.node(place)
        self._disk.change(lambda files, folders: files.pop(place, None) and None)

    def os_mkdir(self, path: Any, mode: int = 0o777, **more: Any) -> None:
        place = ours(path)
        if place is None:
            self.real["os_mkdir"](path, mode, **more)
            return
        disk = self._disk
        disk.call("mkdir", place)
        if place in disk.folders or place in disk.files:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), place)
        disk.parent(place)
        disk.change(lambda files, folders: folders.add(place))

    def os_rmdir(self, path: Any, **more: Any) -> None:
        place = ours(path)
        if place is None:
            self.real["os_rmdir"](path, **more)
            return
        disk = self._disk
        disk.call("rmdir", place)
        if place not in disk.folders:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place)
        if any(os.path.dirname(other) == place for other in (*disk.files, *disk.folders)):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), place)
        disk.change(lambda files, folders: folders.discard(place))

    def rmtree(self, path: Any, ignore_errors: bool = False, **more: Any) -> None:
        place = ours(path)
        if place is None:
            self.real["rmtree"](path, ignore_errors, **more)
            return
        try:
            inside = f"{place}/"
            for file in sorted(path for path in self._disk.files if path.startswith(inside)):
                self.os_unlink(file)
            for folder in sorted((path for path in self._disk.folders if path.startswith(inside)), reverse=True):
                self.os_rmdir(folder)
            self.os_rmdir(place)
        except OSError:
            if not ignore_errors:
                raise

    def os_stat(self, path: Any, **more: Any) -> Any:
        place = ours(path)
        if place is None:
            return self.real["os_stat"](path, **more)
        disk = self._disk
        disk.call("stat", place)
        if place in disk.folders:
            return FOLDER
        if place not in disk.files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place)
        return self._stat_of(disk.files[place])

    def os_lstat(self, path: Any, **more: Any) -> Any:
        return self.real["os_lstat"](path, **more) if ours(path) is None else self.os_stat(path)

    def os_access(self, path: Any, mode: int, **more: Any) -> bool:
        place = ours(path)
        return bool(self.real["os_access"](path, mode, **more)) if place is None else True

    def os_listdir(self, path: Any = ".") -> list[str]:
        place = ours(path)
        if place is None:
            return list(self.real["os_listdir"](path))
        return [entry.name for entry in self.os_scandir(path)]

    def os_scandir(self, path: Any = ".") -> Any:
        place = ours(path)
        if place is None:
            return self.real["os_scandir"](path)
        disk = self._disk
        disk.call("read", place)
        if place not in disk.folders:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place)
        names = {
            os.path.basename(other): other in disk.folders
            for other in (*disk.files, *disk.folders)
            if os.path.dirname(other) == place
        }
        return Entries([Entry(place, name, names[name]) for name in sorted(names)])

    @property
    def _disk(self) -> Disk:
        assert self.disk
        return self.disk

    def _stat_of(self, node: Node) -> os.stat_result:
        return os.stat_result((stat.S_IFREG | 0o644, id(node), 1, 1, 0, 0, len(node.data), 0, 0, 0))


FOLDER = os.stat_result((stat.S_IFDIR | 0o755, 1, 1, 1, 0, 0, 0, 0, 0, 0))


class Entry:
    """What `os.scandir` gives."""

    def __init__(self, folder: str, name: str, is_folder: bool) -> None:
        self.name, self.path, self._is_folder = name, f"{folder}/{name}", is_folder

    def is_dir(self, follow_symlinks: bool = True) -> bool:
        return self._is_folder

    def is_file(self, follow_symlinks: bool = True) -> bool:
        return not self._is_folder

    def is_symlink(self) -> bool:
        return False


class Entries(list[Entry]):
    """Closes like the real iterator."""

    def __enter__(self) -> Entries:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def close(self) -> None:
        pass


def ours(path: Any) -> str | None:
    """The path on the simulated disk; None when it is a real one."""
    if isinstance(path, int) or path is None:
        return None
    text = os.fspath(path)
    if isinstance(text, bytes) or not text.startswith(ROOT):
        return None
    return text.rstrip("/") if text != "/" else text


@contextmanager
def simulated_calls() -> Iterator[Calls]:
    """Until left, product code works on the simulated disk below `ROOT`."""
    calls = Calls()
    places: list[tuple[Any, str, str]] = [
        (builtins, "open", "open"),
        (io, "open", "open"),
        (fcntl, "flock", "flock"),
        (shutil, "rmtree", "rmtree"),
        *(
            (os, name, f"os_{name}")
            for name in ("open", "close", "fstat", "write", "fsync", "replace", "link", "unlink", "mkdir")
        ),
        *((os, name, f"os_{name}") for name in ("rmdir", "stat", "lstat", "access", "listdir", "scandir")),
        (os, "rename", "os_replace"),
        (os, "remove", "os_unlink"),
    ]
    kept = [(place, name, getattr(place, name)) for place, name, _ in places]
    for place, name, ours_name in places:
        calls.real.setdefault(ours_name, getattr(place, name))
        setattr(place, name, getattr(calls, ours_name))
    try:
        yield calls
    finally:
        for place, name, real in kept:
            setattr(place, name, real)
