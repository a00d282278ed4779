"""What a character is taken away with: the adapters and everything beside them, as one zip that is written while it is sent."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

from charengine.services.gallery.folders import RunFolder

PIECE = 1 << 20  # bytes read at once


def zipped(folder: RunFolder, name: str) -> Iterator[bytes]:
    """The zip in pieces; adapters do not get smaller by packing, so nothing is packed.

    Args:
        folder: of the run.
        name: of the folder inside the zip.
    """
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for path in folder.downloads:
            yield from _pieces(archive, sink, path, f"{name}/{path.name}")
    yield sink.taken()


def _pieces(archive: zipfile.ZipFile, sink: _Sink, path: Path, name: str) -> Iterator[bytes]:
    entry = zipfile.ZipInfo.from_file(path, name, strict_timestamps=False)
    with path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as target:
        while piece := source.read(PIECE):
            target.write(piece)
            yield sink.taken()


class _Sink(io.RawIOBase):
    """Collects what the zip writes until it is sent; it cannot be gone back in."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        piece = bytes(data)  # type: ignore[call-overload]
        self._pieces.append(piece)
        return len(piece)

    def taken(self) -> bytes:
        """What was written since the last time."""
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data
