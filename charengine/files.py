"""What lies at a path that somebody gave, asked kindly: a path that cannot be asked is one sentence, never a traceback.

`Path.exists`, `is_file`, `is_dir` and `stat` raise for a folder that may not be entered, a name that is too long, a NUL byte; a
glob passes silently over what it may not read. Everything that reads a user's path asks here (tests/test_files_are_asked.py).
"""

from __future__ import annotations

import json
import os
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from charengine.errors import BadInput

T = TypeVar("T")

EMPTY = "an empty path, '', names nothing: give a path, '.' for the current folder, or leave it out"
MOST_TEXT = 4_000_000  # bytes of a text file that is read
MOST_KEPT = 100_000_000  # of one that the engine keeps


def exists(path: Path) -> bool:
    """Whether something is there.

    Raises:
        BadInput: it cannot be told.
    """
    return _mode(path) is not None


def is_file(path: Path) -> bool:
    """Whether a plain file is there (through links).

    Raises:
        BadInput: it cannot be told.
    """
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def is_dir(path: Path) -> bool:
    """Whether a folder is there (through links).

    Raises:
        BadInput: it cannot be told.
    """
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def real(path: Path) -> Path:
    """The path without links and dots.

    Raises:
        BadInput: it cannot be told.
    """
    return asked(path, lambda: Path(os.path.realpath(path)))


def is_link(path: Path) -> bool:
    """Whether the path itself is a symbolic link."""
    return asked(path, lambda: path.is_symlink())


def size(path: Path) -> int:
    """Bytes of a file.

    Raises:
        BadInput: there is none, or it cannot be told.
    """
    return asked(path, lambda: os.stat(path).st_size)


def stamp(path: Path) -> tuple[int, int, int]:
    """Of the path itself, not of what it links to: bytes, when they changed, and when it or its name did (ns since 1970).

    Raises:
        BadInput: nothing is there, or it cannot be told.
    """
    found = asked(path, lambda: os.lstat(path))
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def entries(folder: Path) -> list[Path]:
    """What stands in a folder, by name.

    Raises:
        BadInput: it cannot be read.
    """
    return asked(folder, lambda: sorted(Path(entry.path) for entry in os.scandir(folder)))


def shown(folder: Path) -> list[Path]:
    """What stands in a folder, by name, without what is hidden.

    Raises:
        BadInput: it cannot be read.
    """
    return [path for path in entries(folder) if not path.name.startswith(".") and path.name != "__MACOSX"]


def below(folder: Path) -> Iterator[Path]:
    """Every file in a folder and the folders inside it, by name; links to folders are not followed, nor what is hidden.

    Hidden are names with a dot in front, among them the `._front.png` that macOS leaves beside `front.png` on foreign disks.

    Raises:
        BadInput: a folder cannot be read.
    """
    for path in shown(folder):
        if is_dir(path):
            if not is_link(path):
                yield from below(path)
        else:
            yield path


def by_name(paths: Iterable[Path]) -> dict[str, Path]:
    """The paths by themselves in lower case: who looks up `front.txt` finds the `Front.TXT` that Windows' users have."""
    return {str(path).lower(): path for path in paths}


def expanded(path: str | Path) -> Path:
    """The path with `~` written out.

    Raises:
        BadInput: nobody of that name has a home folder; or it is empty, which `Path` would take for the current folder.
    """
    if path == "":
        raise BadInput(EMPTY)
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError) as error:  # the latter of a name with a NUL or half a letter
        raise BadInput(f"{_shown(Path(path))}: no home folder is known for it; write the path out") from error


def as_it_lies(path: Path) -> Path:
    """The path; where nothing is there, with each name that is there in Unicode's other form: é as one character, or as Macs write it, as two."""
    if str(path).isascii() or not str(path).isprintable():
        return path
    place = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        forms = dict.fromkeys((part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD"))))
        place /= next((name for name in forms if _lies(place / name)), part)
    return place


def _lies(path: Path) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # half a letter: whoever asks for it is told
        return False


def read_text(path: Path, label: str = "", most: int = MOST_TEXT) -> str:
    """A text file, UTF-8 with or without a byte order mark, line ends as they are.

    Args:
        path: the file.
        label: what it is to the user, before its path in messages.
        most: bytes; a larger file is refused before it is read.

    Raises:
        BadInput: it is missing, not a plain file, too large, not UTF-8, or cannot be read.
    """
    name = f"{label} {path}".strip()
    if not exists(path):
        raise BadInput(f"{name}: no such file")
    if not is_file(path):
        raise BadInput(f"{name} is not a file; give a text file")
    if (found := size(path)) > most:
        raise BadInput(f"{name} has {found / 1e6:.1f} MB; at most {most / 1e6:.1f} MB are read")
    data = asked(path, path.read_bytes)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise BadInput(f"{name} is not UTF-8 text (line {line}): save it as plain text in UTF-8") from error


def json_in(text: str | bytes) -> Any:
    """The values that JSON stands for; None where it is none: torn, not UTF-8, or nested deeper than can be followed."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def kept_json(path: Path, most: int = MOST_KEPT) -> Any:
    """The same of a file that the engine keeps and could do without; None also where there is none, or a folder or a pipe, or more bytes."""
    with suppress(BadInput):
        if is_file(path) and size(path) <= most:
            return json_in(asked(path, path.read_bytes))
    return None


def kept_object(path: Path, most: int = MOST_KEPT) -> dict[str, Any]:
    """The names and values in such a file; empty where it holds none."""
    found = kept_json(path, most)
    return found if isinstance(found, dict) else {}


def asked(path: Path, ask: Callable[[], T]) -> T:
    """The answer of the file system.

    Raises:
        BadInput: it gives none.
    """
    try:
        return ask()
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{_shown(path)}: cannot be read ({reason(error)}); give another path, or the right to read it"
        ) from error


def reason(error: OSError | ValueError) -> str:
    """Why the file system gave no answer, in its words."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _mode(path: Path) -> int | None:
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{_shown(path)}: cannot be read ({reason(error)}); give another path, or the right to read it"
        ) from error


def _shown(path: Path) -> str:
    """A path as it may be printed: short, and without control characters."""
    text = str(path)
    return ascii(text[:200])[1:-1] + "…" if len(text) > 200 or not text.isprintable() else text
