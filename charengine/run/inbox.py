"""The inbox: what is put into this folder is taken once, made, and then lies in `done`, or in `failed` beside a text that says why.

What is being made lies in `taken`; what a batch left there that died, or whose budget was spent, the next one takes first.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from charengine import files
from charengine.errors import BadInput, ConfigError, EngineError
from charengine.machine.home import Home, in_work_folder
from charengine.machine.locks import single_flight_at_home
from charengine.machine.shared import open_store
from charengine.pictures import SUFFIXES, picture_problems
from charengine.run.cast import CASTS, MAX_CAST, alike, check_cast, nested, read_cast
from charengine.run.claim import numbered
from charengine.run.handing_over import found, keep_picture, lent_as
from charengine.run.request import RunRequest, check, usual_name
from charengine.wording import file_stem, slug
from charengine.writing import write_atomically

log = logging.getLogger(__name__)

SENTENCES = (".txt",)
UNFINISHED = (".part", ".partial", ".filepart", ".crdownload", ".tmp", "~")  # of programs that rename at the end
QUIET = 10.0  # seconds in which a file must not change
LONGEST_NAME = 200  # bytes, before the ending of the text beside it
AGAIN = "Mend it and put it into the inbox again: what is made is taken from the store."

Stamp = tuple[int, int, int]


class Inbox:
    """What lay in the folder: `requests` are the characters of the files that can be made, `refused` are other files, and why.

    Args:
        home: whose inbox it is.
        profile: of what names none.
        overrides: settings of all.

    Raises:
        BadInput: its folders cannot be used, or what holds for all files is wrong: none is touched then.
    """

    def __init__(self, home: Home, profile: str, overrides: tuple[str, ...]) -> None:
        check(RunRequest("a robot", profile=profile, overrides=overrides), home)
        self.requests: list[RunRequest] = []
        self.refused: list[tuple[str, str]] = []
        self._home, self._how, self._taken = home, (profile, overrides), home.inbox / "taken"
        self._parts: list[tuple[Path, Stamp, range]] = []
        for folder in (self._taken, home.inbox / "done", home.inbox / "failed"):
            if files.is_link(folder):
                raise BadInput(f"{folder} is a link, and files would be moved elsewhere: delete it")
            files.asked(folder, lambda folder=folder: folder.mkdir(parents=True, exist_ok=True))  # type: ignore[misc]
        for path in _whole(home.inbox):
            if not os.path.lexists(self._taken / path.name):
                with suppress(FileNotFoundError):
                    os.rename(path, self._taken / path.name)
        for path in files.entries(self._taken):
            self._read(path)

    def settle(self, errors: Mapping[int, str]) -> None:
        """Put away each file whose characters have all ended: `errors` are by place in `requests`, empty for those made."""
        for path, stamp, places in self._parts:
            if all(place in errors for place in places):
                told = [f"{self.requests[place].name}: {errors[place]}" for place in places if errors[place]]
                changed = not os.path.lexists(path) or files.stamp(path)[:2] != stamp[:2]
                self._put_away(path, "\n".join([*told, *(["it was changed after it was taken"] if changed else [])]))

    def _read(self, path: Path) -> None:
        try:
            stamp, mine = files.stamp(path), self._requests(path)
            if len(self.requests) + len(mine) > MAX_CAST:
                return  # the next batch takes it
            _check_apart(mine, self.requests)
        except EngineError as error:
            self.refused.append((file_stem(path.name, "file"), str(error)))
            self._put_away(path, str(error))
            return
        self._parts.append((path, stamp, range(len(self.requests), len(self.requests) + len(mine))))
        self.requests += mine

    def _requests(self, path: Path) -> list[RunRequest]:
        ending = path.suffix.lower()
        if files.is_link(path) or not files.is_file(path):
            raise BadInput("not a plain file: put the file itself into the inbox")
        if ending in CASTS:
            return read_cast(path, *self._how, home=self._home)
        if ending in SUFFIXES:
            if problems := picture_problems(path, "picture"):
                raise ConfigError(problems)
            store = open_store(self._home)  # the run may look at it when the file is put away
            ref = keep_picture(files.asked(path, path.read_bytes), file_stem(path.stem, "picture") + ending, store)
            reference = str(store.path(ref) or found(lent_as(ref), store))
            entry = {"name": usual_name("", reference, file_name=path.name), "reference": reference}
            return check_cast([entry], path.name, *self._how, home=self._home)
        if ending in SENTENCES:
            lines = {at: text for at, text in enumerate(files.read_text(path).splitlines(), 1) if text.strip()}
            entries = [{"prompt": text} for text in lines.values()]
            return check_cast(entries, path.name, *self._how, home=self._home, lines=[*lines])
        allowed = ", ".join((*CASTS, *SUFFIXES, *SENTENCES))
        raise BadInput(f"got {ending or 'a name without ending'}; allowed are {allowed}")

    def _put_away(self, path: Path, told: str) -> None:
        day = self._home.inbox / ("failed" if told else "done") / time.strftime("%Y-%m-%d")
        folder = next(one for one in numbered(day) if not os.path.lexists(one / path.name))
        try:
            folder.mkdir(exist_ok=True)
            if told:
                beside = os.fsdecode(os.fsencode(path.name)[:LONGEST_NAME]) + ".txt"
                write_atomically(folder / beside, f"{told}\n\n{AGAIN}\n".encode(errors="backslashreplace"))
            os.rename(path, folder / path.name)
        except (OSError, EngineError) as error:
            log.warning("%s stays where it is: %s", file_stem(path.name, "file"), error)


@contextmanager
def opened(home: Home, profile: str, overrides: tuple[str, ...]) -> Iterator[Inbox]:
    """The inbox, which one batch at a time has.

    Raises:
        BadInput: its folders cannot be used.
    """
    with single_flight_at_home(home.locks / "inbox.lock", "another batch has the inbox"):
        yield Inbox(home, profile, overrides)


def _check_apart(requests: list[RunRequest], before: list[RunRequest]) -> None:
    names, earlier, mine = {slug(one.name) for one in before}, _folders(before), _folders(requests)
    taken = {alike(out) for _, out in earlier}
    for request, (_, out) in zip(requests, mine, strict=True):
        if slug(request.name) in names:
            raise BadInput(f"another file of the inbox has the name {request.name!r}: give each character its own")
        if alike(out) in taken:
            raise BadInput(
                f"another file of the inbox has the out {request.out!r}: give each character a folder of its own"
            )
    if inner := nested(mine, earlier):
        raise BadInput(f"beside another file of the inbox: {inner[0][0]}")


def _folders(requests: list[RunRequest]) -> list[tuple[str, str]]:
    """Each character's name and folder."""
    return [(one.name, str(files.real(in_work_folder(one.out)))) for one in requests]


def _whole(folder: Path) -> list[Path]:
    """What nobody writes to any more."""
    before = _stamps(folder)
    if any(time.time() - max(stamp[1:]) / 1e9 < QUIET for stamp in before.values()):
        time.sleep(QUIET)
    return [path for path, stamp in _stamps(folder).items() if before.get(path) == stamp]


def _stamps(folder: Path) -> dict[Path, Stamp]:
    """Of all that stands there; folders and what is hidden are left alone."""
    stamps: dict[Path, Stamp] = {}
    for path in files.shown(folder):
        with suppress(BadInput):  # it is gone, or on its way
            if not path.name.endswith(UNFINISHED) and (files.is_link(path) or not files.is_dir(path)):
                stamps[path] = files.stamp(path)
    return stamps
