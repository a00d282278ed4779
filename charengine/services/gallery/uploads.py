"""What is sent to the gallery: never more than fits, checked before it is decoded, kept in the store."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from starlette.exceptions import HTTPException

from charengine.config import CropSettings
from charengine.errors import BadInput, SheetRejected
from charengine.pictures import picture_problems
from charengine.records import Ref
from charengine.run.handing_over import keep_picture
from charengine.services.local_only import App, Message, Receive, Scope, Send
from charengine.store import Store, guess_media_type
from charengine.wording import file_stem, unaccented

MOST_BYTES = 64_000_000  # of everything that one form sends
MOST_DRAINED = 1_000_000_000  # read and thrown away, so that a browser hears the refusal instead of a broken connection
TOO_LARGE = 413
LONGEST_NAME = 255


class BodyLimit:
    """Refuses a request that sends too much; nothing of it is kept, and a length that is not said, or is a lie, is counted.

    Args:
        app: what is protected.
        most: bytes.
    """

    def __init__(self, app: App, most: int = MOST_BYTES) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        said = headers.get(b"content-length", b"0")
        too_large = not said.isdigit() or int(said) > self._most
        read = 0

        async def counted() -> Message:
            nonlocal read
            if too_large:
                await _drain(receive)
                raise HTTPException(TOO_LARGE, self._words)
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most:
                if message.get("more_body"):
                    await _drain(receive)
                raise HTTPException(TOO_LARGE, self._words)
            return message

        await self._app(scope, counted, send)

    @property
    def _words(self) -> str:
        return f"That is more than {self._most / 1e6:.0f} MB, the most that is taken at once: send a smaller picture."


async def _drain(receive: Receive) -> None:
    read = 0
    while read < MOST_DRAINED:
        message = await receive()
        read += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return


@dataclass(frozen=True)
class Upload:
    """A file as it was sent; `name` is the sender's word for it and never part of a path."""

    name: str
    data: bytes

    @property
    def last_name(self) -> str:
        """The name without folders; of a long one the beginning and the ending."""
        last = PurePosixPath(PureWindowsPath(self.name).name)
        ending = last.suffix[: LONGEST_NAME // 2]
        return last.stem[: LONGEST_NAME - len(ending)] + ending

    @property
    def plain_name(self) -> str:
        """The same without what file systems or pages could trip over."""
        last = PurePosixPath(unaccented(self.last_name))
        ending = file_stem(last.suffix.lstrip(".").lower(), "") if last.suffix else ""
        return file_stem(last.stem, "upload") + (f".{ending}" if ending else "")


@dataclass(frozen=True)
class PictureCheck:
    """An upload that was looked at: as it is kept, or what is wrong with it and the picture that shows it."""

    kept: Ref | None
    problems: tuple[str, ...] = ()
    shown: Ref | None = None


def take_sheet_upload(upload: Upload, store: Store, crop: CropSettings | None = None) -> PictureCheck:
    """Keep an uploaded sheet in the store when it is one: a readable picture with a front, a side and a back figure.

    Args:
        upload: the file.
        store: where it goes.
        crop: how figures are found; None: as ever.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / upload.plain_name
        path.write_bytes(upload.data)
        if problems := picture_problems(path, "picture"):
            return PictureCheck(None, tuple(_without(path, problem) for problem in problems))
        from charengine.stages.crop import crop_views
        from charengine.stages.sheet.given import take_sheet

        try:
            crop_views(take_sheet(path, store), crop or CropSettings(), store)
        except SheetRejected as error:
            said = str(error).split(" (see ")[0]
            words = f"no sheet with three figures: {said}. A sheet shows the character from the front, the side and the back"
            return PictureCheck(None, (words,), _kept_picture(error, store))
        except BadInput as error:
            return PictureCheck(None, (_without(path, str(error)),))
    return PictureCheck(keep_picture(upload.data, upload.plain_name, store))


def take_reference_upload(upload: Upload, store: Store) -> PictureCheck:
    """Keep an uploaded picture of a character in the store, unless no sheet can be drawn from it, as far as that is seen without a model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / upload.plain_name
        path.write_bytes(upload.data)
        from charengine.stages.sheet.reference import reference_problems

        problems = picture_problems(path, "picture") or reference_problems(path)
        if problems:
            return PictureCheck(None, tuple(_without(path, problem) for problem in problems))
    return PictureCheck(keep_picture(upload.data, upload.plain_name, store))


def _kept_picture(error: SheetRejected, store: Store) -> Ref | None:
    if not error.picture:
        return None
    return store.put(error.picture.read_bytes(), "rejected.png", guess_media_type("rejected.png"))


def _without(path: Path, text: str) -> str:
    """A message with the name of the upload instead of the place where it was looked at."""
    return text.replace(str(path), repr(path.name))
