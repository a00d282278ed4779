"""Files and pictures that pages show or hand out; a picture that is saved has its character's name."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse

from charengine import files
from charengine.errors import BadInput, EngineError
from charengine.machine.home import in_work_folder
from charengine.records import Ref
from charengine.run.beside import left_behind
from charengine.services.gallery.characters import Character
from charengine.services.gallery.folders import RunFolder, plain_file
from charengine.services.gallery.parts import NOT_FOUND, Gallery
from charengine.services.gallery.reduced import WIDTHS
from charengine.services.gallery.uploads import MOST_BYTES
from charengine.wording import slug

FOR_EVER = {"Cache-Control": "private, max-age=31536000, immutable"}  # a digest's content never changes
FOREIGN = "sandbox allow-scripts allow-downloads allow-popups; default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:; font-src data:"
KINDS = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}
TRACKED_PATH = re.compile(r"images/[A-Za-z0-9._%+-]{1,200}")
BODY = re.compile(rb"<body[^>]*>")
PIECE = 1 << 20  # bytes read at once
VIEW_FILES = ("front", "side", "back")


def adapter_zip(gallery: Gallery, request: Request) -> Response:
    """The adapters with everything that lies beside them, without those of an earlier trigger."""
    character = gallery.character(request)
    if not character.folder or not character.folder.has_downloads:
        raise HTTPException(NOT_FOUND, "There is no adapter of this character on this machine yet.")
    name = character.slug
    headers = {"Content-Disposition": f'attachment; filename="{name}.zip"', "Cache-Control": "no-store"}
    return StreamingResponse(zipped(character.folder, name), media_type="application/zip", headers=headers)


def adapter_file(gallery: Gallery, request: Request) -> Response:
    """One file of those beside the adapter: the report links to them."""
    folder, wanted = gallery.character(request).folder, request.path_params["file"]
    path = next((one for one in (folder.downloads if folder else []) if one.name == wanted), None)
    if not path:
        raise HTTPException(NOT_FOUND, "There is no such file beside the adapter of this character.")
    return FileResponse(path, filename=path.name, headers={"Cache-Control": "no-cache"})


def report(gallery: Gallery, request: Request) -> Response:
    """The report; it is a page of its own, which may not do anything here, below a way back that its file does not have."""
    character = gallery.character(request)
    path = character.folder.report if character.folder else None
    if not path:
        raise HTTPException(NOT_FOUND, "There is no report of this character on this machine yet.")
    back, page = gallery.text("_back.html", character=character).encode(), path.read_bytes()
    body = BODY.search(page)
    place = body.end() if body else len(page)
    headers = {"Content-Security-Policy": FOREIGN, "Cache-Control": "no-cache"}
    return Response(page[:place] + back + page[place:], media_type="text/html", headers=headers)


def run_file(gallery: Gallery, request: Request) -> Response:
    """The sheet, the picture it is drawn from, or a view, from the moment that it is written; or what its run was given."""
    character, what = gallery.character(request), request.path_params["what"]
    folder = character.folder
    path: Path | None = None
    if folder and what in ("sheet", "reference"):
        path = folder.sheet if what == "sheet" else folder.reference
    elif what == "given":
        path = given_file(character)
    elif folder and what in VIEW_FILES:
        path = next((view for view in folder.views if view.stem == what), None)
    if not path:
        raise HTTPException(NOT_FOUND, "There is no such picture of this character.")
    return _picture(gallery, path.read_bytes(), request, {"Cache-Control": "no-cache"}, f"{character.slug}-{what}")


def given_file(character: Character) -> Path | None:
    """The picture that its run was given, when it is a file of this machine."""
    try:
        path = plain_file(in_work_folder(character.given[1])) if character.given[1] else None
        return path if path and files.size(path) <= MOST_BYTES else None
    except BadInput:
        return None


def picture(gallery: Gallery, request: Request) -> Response:
    """A picture of the store, by its digest; what its address ends with is the name of a saved file."""
    try:
        ref = Ref(sha256=request.path_params["digest"], size=0, media_type="", name="picture")
        data = gallery.store.get(ref)
    except (ValueError, EngineError) as error:
        raise HTTPException(NOT_FOUND, "There is no such picture here.") from error
    return _picture(gallery, data, request, FOR_EVER, request.path_params.get("name", ""))


def tracked_picture(gallery: Gallery, request: Request) -> Response:
    """A picture that MLflow keeps: of a character that is made elsewhere, or a sample while it trains."""
    path = request.path_params["path"]
    data = gallery.tracked.picture(request.path_params["run"], path) if TRACKED_PATH.fullmatch(path) else None
    if data is None:
        raise HTTPException(NOT_FOUND, "MLflow has no such picture.")
    return _picture(gallery, data, request, {"Cache-Control": "private, max-age=30"})


def _picture(gallery: Gallery, data: bytes, request: Request, headers: dict[str, str], name: str = "") -> Response:
    kind = next((media for start, media in KINDS.items() if data.startswith(start)), None)
    if kind is None:
        raise HTTPException(NOT_FOUND, "That is no picture.")
    wanted = request.query_params.get("w", "")
    if wanted.isdigit() and int(wanted) in WIDTHS:
        data, kind = gallery.reduced(data, int(wanted)), "image/webp"
    if name:  # a reduced one is no PNG, whatever its address says
        ending = kind.partition("/")[2]
        headers = {**headers, "Content-Disposition": f'inline; filename="{slug(name[:80])}.{ending}"'}
    return Response(data, media_type=kind, headers=headers)


def zipped(folder: RunFolder, name: str) -> Iterator[bytes]:
    """The zip in pieces; adapters do not get smaller by packing, so nothing is packed.

    Args:
        folder: of the run.
        name: of the folder inside the zip.
    """
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        left = left_behind(folder.downloads, folder.record.trigger) if folder.record else []
        for path in [one for one in folder.downloads if one not in left]:
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
