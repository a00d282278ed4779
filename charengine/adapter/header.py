"""The header of a safetensors file, read without trusting it: the one place where an adapter file is opened.

A header is JSON behind an 8-byte length. Nothing of it is believed: the length is looked at before anything is read, every entry must
be one, and its bytes must be there and its own. Entries of model files are checked by the same rules.
"""

from __future__ import annotations

import io
import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, TypeGuard

from charengine.errors import BadInput, UnsafeFile

STRENGTH = "charengine.strength"  # metadata: the strength as trained that is this file's 1.0
CONVERT = ".ckpt and .pt files can run code and are never opened: convert them first"
SAVE_AGAIN = "get it again, or save it anew with the safetensors library"
MAX_HEADER = 100_000_000  # bytes; the safetensors library itself reads no longer one
WIDTHS = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "BOOL": 1},
    **{f"{sign}{bits}": bits // 8 for sign in "IU" for bits in (8, 16, 32, 64)},
}


@dataclass(frozen=True)
class Entry:
    """One tensor as the header has it: element type by the format's own name ("BF16"), shape as torch has it, bytes after the header."""

    dtype: str
    shape: tuple[int, ...]
    place: tuple[int, int]


@dataclass(frozen=True)
class Header:
    """Tensors by key, the metadata (strings alone), and how many bytes of the file the header itself takes."""

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]
    length: int


def read_header(path: Path) -> Header:
    """The header of a safetensors file, checked against the file's size; no tensor is read.

    Raises:
        UnsafeFile: it is not a safetensors file.
        BadInput: there is no such file, it cannot be read, or it is cut short.
    """
    with _opened(path) as (file, size):
        return _read(file, size, str(path))


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of an adapter file, without reading its tensors.

    Raises:
        BadInput: no such file.
        UnsafeFile: it is not a safetensors file.
    """
    return dict(read_header(path).metadata)


def read_tensors(path: Path, header: Header) -> Iterator[tuple[str, bytes]]:
    """Every tensor's key and bytes, one at a time; raises as `read_header` does."""
    with _opened(path) as (file, _):
        for key, entry in header.tensors.items():
            file.seek(header.length + entry.place[0])
            yield key, file.read(entry.place[1] - entry.place[0])


def read_whole(path: Path, check: Callable[[Header], None]) -> bytes:
    """A file's bytes, once its header has passed a check: a checkpoint of gigabytes, named by mistake, is not read. The path is opened
    once, so that what lies there a moment later is not taken for what was checked. Raises as `read_header` does, and what `check` raises."""
    with _opened(path) as (file, size):
        check(_read(file, size, str(path)))
        file.seek(0)
        return file.read()


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """A file that a user named, and its size."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BadInput(f"adapter {str(path)!r} is not a file; give the path of a .safetensors file")
            yield file, status.st_size
    except FileNotFoundError as error:
        raise BadInput(f"adapter file {str(path)!r} does not exist; give the path of a .safetensors file") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte in it
        reason = getattr(error, "strerror", None) or error
        raise BadInput(
            f"adapter file {str(path)[:200]!r} cannot be read ({reason}); give the path of a .safetensors file"
        ) from error


def header_of(data: bytes) -> Header:
    """The header of a safetensors file in memory; raises as `read_header` does."""
    return _read(io.BytesIO(data), len(data), "the adapter")


def with_metadata(data: bytes, changes: Mapping[str, str]) -> bytes:
    """The file with some of its metadata changed, its tensors untouched, and the header's keys in order: safetensors writes
    metadata in hash order, which changes from run to run."""
    size = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + size])
    metadata = header.pop("__metadata__", {}) | dict(changes)
    ordered = {"__metadata__": dict(sorted(metadata.items())), **header} if metadata else header
    text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _open_at_once(path: str, flags: int) -> int:
    """Opening a pipe would wait for a writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _read(file: IO[bytes], size: int, what: str) -> Header:
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= MAX_HEADER:
        raise _not_safetensors(what, "no header")
    if 8 + length > size:
        raise _not_safetensors(what, f"its header would be {length:,} bytes long, the file has {size:,}")
    try:
        fields = json.loads(file.read(length).decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, _Twice) else "its header is not JSON"
        raise _not_safetensors(what, reason, SAVE_AGAIN) from error
    if not isinstance(fields, dict):
        raise _not_safetensors(what, "its header is JSON of another kind")
    metadata = _metadata(fields.pop("__metadata__", {}), what)
    return Header(tensors_of(fields, what, 8 + length, size), metadata, 8 + length)


def tensors_of(fields: Mapping[str, Any], what: str, start: int, size: int) -> dict[str, Entry]:
    """The entries of a header, in its order; as the format has it, each tensor begins where another ends, and the last ends the file.

    Args:
        fields: the header's JSON without its metadata.
        what: the file, for messages.
        start: bytes of the file before the tensors.
        size: bytes of the file.

    Raises:
        UnsafeFile: an entry is none.
        BadInput: tensors share bytes, leave some out, or are not as long as they say; or the file is cut short.
    """
    tensors = {key: _entry(key, field, what) for key, field in fields.items()}
    _refuse_half_characters([*tensors], what)
    end = 0
    for key, entry in sorted(tensors.items(), key=lambda item: item[1].place):
        if entry.place[0] != end:
            raise BadInput(
                f"{what} is damaged: {key[:100]!r} begins at byte {entry.place[0]:,} of the tensors; allowed is {end:,}, "
                "where the one before it ends; get it again"
            )
        end = entry.place[1]
    if start + end != size:
        raise BadInput(
            f"{what} is {'cut short' if start + end > size else 'damaged'}: its header speaks of {start + end:,} bytes, "
            f"the file has {size:,}; get it again"
        )
    return tensors


class _Twice(ValueError):
    """A name that stands twice in a header."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of two values of one name programs take either."""
    found = dict(pairs)
    if len(found) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise _Twice(f"its header says {name[:100]!r} twice")
    return found


def _metadata(value: Any, what: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _not_safetensors(what, "its metadata are no texts by name", SAVE_AGAIN)
    _refuse_half_characters([*value, *value.values()], what)
    return value


def _entry(key: str, field: Any, what: str) -> Entry:
    if not isinstance(field, dict):
        raise _not_safetensors(what, f"{key[:100]!r} is no tensor")
    dtype, shape, place = field.get("dtype"), field.get("shape"), field.get("data_offsets")
    if not (isinstance(dtype, str) and _counts(shape) and _counts(place) and len(place) == 2):
        raise _not_safetensors(what, f"{key[:100]!r} is no tensor")
    width = WIDTHS.get(dtype)
    if place[1] < place[0] or (width is not None and place[1] - place[0] != width * prod(shape)):
        raise BadInput(f"{what} is damaged: {key[:100]!r} has not as many bytes as its shape needs; get it again")
    return Entry(dtype, tuple(shape), (place[0], place[1]))


def _counts(value: Any) -> TypeGuard[list[int]]:
    """Whether it is a list of whole numbers that are not negative."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _refuse_half_characters(texts: list[str], what: str) -> None:
    """JSON can say lone surrogates, which no terminal and no file can show."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise _not_safetensors(what, "its header holds halves of characters") from error


def _not_safetensors(what: str, reason: str, remedy: str = CONVERT) -> UnsafeFile:
    return UnsafeFile(f"{what} is not a safetensors file ({reason}); {remedy}")
