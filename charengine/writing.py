"""Files are written whole or not at all; what a killed process left beside one is removed by whoever writes it next."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from charengine.errors import BadInput

FULL = (errno.ENOSPC, errno.EDQUOT)  # a disk, or what a user may have of it
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # of file systems without hard links
LEFT = re.compile(r"\.(?P<host>[0-9a-f]{6})-(?P<pid>[0-9]+)-[0-9a-f]{8}\.tmp")  # after a dot and the file's name


def write_atomically(path: Path, data: bytes) -> None:
    """Write through a temporary sibling, fsync and rename, so that a reader sees all of it or nothing, also after a power cut.

    Raises:
        BadInput: it cannot be written.
    """
    with _written_beside(path, data) as temporary:
        os.replace(temporary, path)
        sync_folder(path.parent)


def create_atomically(path: Path, data: bytes) -> None:
    """The same, unless there is such a file, whoever made it: then that stays.

    Raises:
        BadInput: it cannot be written.
    """
    with _written_beside(path, data) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            with suppress(FileExistsError), open(path, "xb") as file:
                _write(file, data)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


@contextmanager
def _written_beside(path: Path, data: bytes) -> Iterator[Path]:
    """A whole temporary sibling; what fails meanwhile is told kindly. A rename would replace a device or a pipe: never."""
    if os.path.lexists(path) and not (path.is_symlink() or path.is_file() or path.is_dir()):
        raise BadInput(f"cannot write {path}: it is a device, a pipe or a socket; choose another name")
    temporary = path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        with open(temporary, "wb") as file:
            _write(file, data)
        yield temporary
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        again = " and give the same command again," if error.errno in FULL else ""
        raise BadInput(
            f"cannot write {path}: {error.strerror or error}; free some space{again} or choose another folder"
        ) from error


def _write(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk; what comes after, in a database or on another machine, may rely on them."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(path: Path) -> None:
    """Remove what processes of this machine that were killed had begun to write of a file."""
    for entry in list(os.scandir(path.parent)):
        left = LEFT.fullmatch(entry.name.removeprefix(f".{path.name}")) if entry.name.startswith(".") else None
        if left and left["host"] == _host() and not is_running(int(left["pid"])):
            with suppress(OSError):
                os.unlink(entry.path)


def is_running(pid: int) -> bool:
    """Whether a process with this id runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def begun(pid: int) -> str:
    """When a process of this number began, as the machine counts; a number comes again, on a machine or container that was started again
    within minutes. Empty where the system does not say, or there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _host() -> str:
    """This machine, in a file's name."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]
