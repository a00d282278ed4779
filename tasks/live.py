"""A text in Prefect's page that is written again as things go on; whatever Prefect does, the run goes on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_progress_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.logging.handlers import APILogHandler

from charengine.machine.full_disks import warn
from charengine.machine.home import find_home
from charengine.stage import Progress

log = logging.getLogger("charengine.flows")

EVERY = 1.0  # seconds between two updates of how far long work is: with the gallery's look every 1.5 s, news within two
SAID_EVERY = 2.0  # seconds between two log lines about it, and two of the run's page
STILL = 1.5  # seconds after which what goes on between two steps is news itself
LAST_SECONDS = 10.0  # that the end of a run waits for its page


def _goes_on(record: logging.LogRecord | None = None) -> bool:
    """Whether this process is not ending: then Prefect takes no lines any more, and each of a late thread was a traceback."""
    return not getattr(threading, "_SHUTTING_DOWN", False)


class LiveArtifact:
    """An artifact that is made once and then changed over one connection: a new client costs ten times what a call does."""

    def __init__(self) -> None:
        for handler in logging.getLogger("charengine").handlers:
            if isinstance(handler, APILogHandler):
                handler.addFilter(_goes_on)
        self._id: UUID | None = None
        self._client: SyncPrefectClient | None = None

    def write(self, make: Callable[[], object], change: ArtifactUpdate) -> None:
        """Make it the first time, change it afterwards."""
        if self._id is None:
            made = make()
            self._id = made if isinstance(made, UUID) else None
            return
        if self._client is None:
            client = get_client(sync_client=True)
            client.__enter__()
            self._client = client
        self._client.update_artifact(self._id, change)

    def close(self) -> None:
        """End the connection; a later change opens another."""
        client, self._client = self._client, None
        if client is not None:
            client.__exit__(None, None, None)


class LiveText:
    """One Markdown artifact, made at the first `show` and written again by each later one.

    Args:
        key: of the artifact.
        description: of it.
    """

    def __init__(self, key: str, description: str) -> None:
        self._key, self._description = key, description
        self._artifact = LiveArtifact()
        self._text = ""
        self._warned = False

    def show(self, text: str) -> None:
        """Show this text; never raises."""
        if text == self._text:
            return
        try:
            self._artifact.write(
                lambda: create_markdown_artifact(markdown=text, key=self._key, description=self._description),
                ArtifactUpdate(data=text),
            )
            self._text = text
        except Exception as error:  # a page is worth a warning, not a run
            self._warned = _warn_once(self._warned, error)

    def close(self) -> None:
        """Nothing more will be shown for now."""
        self._artifact.close()


class Aside:
    """A live text that is sent by a thread of its own: neither a stage nor its end waits for Prefect, however slow or away it is.

    Args:
        live: the text.
    """

    def __init__(self, live: LiveText) -> None:
        self._live = live
        self._text = ""
        self._changed = threading.Event()
        self._closed = False
        context = copy_context()  # Prefect files artifacts under the run of the context
        self._thread = threading.Thread(target=lambda: context.run(self._send), name="page", daemon=True)
        self._thread.start()

    def show(self, text: str) -> None:
        """Show this text as soon as may be; one that was not sent yet is passed over."""
        self._text = text
        self._changed.set()

    def close(self, seconds: float = LAST_SECONDS) -> None:
        """Send the last text, and wait for that, at most so long."""
        self._closed = True
        self._changed.set()
        self._thread.join(seconds)

    def _send(self) -> None:
        closed = False
        while not closed:
            self._changed.wait()
            self._changed.clear()
            closed = self._closed  # read first: a text that is set before closing is sent
            self._live.show(self._text)
        self._live.close()


@dataclass(frozen=True)
class _Latest:
    """What was told last: percent, a line, what goes on until the next is told, when it was told, and what stays when it was the last."""

    share: float
    line: str
    doing: str
    when: float
    made: str


class LiveProgress:
    """How far long work is: an artifact and log lines, sent by a thread of its own at most every `EVERY` seconds.

    Args:
        key: of the artifact.
        name: of the character.
        doing: what is being done.
        also: told as well, every `SAID_EVERY` seconds, on that thread.
    """

    def __init__(self, key: str, name: str, doing: str, also: Callable[[str], None] = lambda line: None) -> None:
        self._key, self._name, self._doing, self._also = key, name, doing, also
        self._latest: _Latest | None = None
        self._sent: tuple[float, str] | None = None
        self._said, self._said_at = "", float("-inf")
        self._logged = ""
        self._artifact = LiveArtifact()
        self._ended = threading.Event()
        self._made = False
        self._warned = False
        self._began = time.monotonic()

    def on_step(self, progress: Progress) -> None:
        """Remember how far training is; costs it nothing."""
        if not progress.step:  # on the way to the first one
            self._latest = _Latest(0.0, progress.doing, "at the next part", time.monotonic(), progress.doing)
            return
        share = 100 * progress.step / max(1, progress.steps)
        made = f"{progress.step} steps, loss {progress.smoothed:.4f}"
        self._latest = _Latest(share, told(progress), progress.doing or "at the next step", time.monotonic(), made)

    def on_drawn(self, drawn: int, most: int) -> None:
        """Remember how many pictures are drawn; a race may end before the most there may be."""
        now = time.monotonic()
        left = _duration((now - self._began) * (most - drawn) / max(1, drawn))
        line = f"{drawn} pictures of at most {most}, at most {left} left" if drawn < most else f"{drawn} pictures drawn"
        doing = "at the next picture" if drawn < most else "choosing the pick and its words"
        self._latest = _Latest(100 * drawn / max(1, most), line, doing, now, f"{drawn} pictures drawn")

    @contextmanager
    def following(self) -> Iterator[None]:
        """Send until left, and once more then: what is made has no time left, what was stopped stays where it was."""
        self._began = time.monotonic()
        context = copy_context()  # Prefect files log lines and artifacts under the run of the context
        thread = threading.Thread(target=lambda: context.run(self._follow), name="progress", daemon=True)
        thread.start()
        try:
            yield
            self._made = True
        finally:
            self._ended.set()
            thread.join(timeout=10)

    def _follow(self) -> None:
        due = time.monotonic() + EVERY
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            due = max(due, time.monotonic() - EVERY) + EVERY  # sending takes time too
            self._send()
        self._send(ended=True)
        self._artifact.close()

    def _send(self, ended: bool = False) -> None:
        latest, now = self._latest, time.monotonic()
        if latest is None:
            if ended:  # it was taken from the cache
                return
            share, line = 0.0, f"is being prepared, {now - self._began:.0f} s so far"
        else:
            share, line = latest.share, latest.line
            if not ended and now - latest.when >= STILL:
                line += f"; {latest.doing} for {now - latest.when:.0f} s"
        if ended or now - self._said_at >= SAID_EVERY - EVERY / 2:  # at every second update
            self._say(line, latest, now)
        if ended and self._made and latest:  # the artifact stays when the run has ended
            share, line = 100.0, latest.made
        if (share, line) != self._sent:
            self._sent = share, line
            self._safely(lambda: self._write(share, line))

    def _say(self, line: str, latest: _Latest | None, now: float) -> None:
        if latest and latest.line != self._logged:
            self._logged = latest.line
            log.info("%s: %s, %s", self._name, self._doing, latest.line, extra={"progress": True})
        if line != self._said:
            self._said, self._said_at = line, now
            self._safely(lambda: self._also(line))

    def _write(self, share: float, line: str) -> None:
        self._artifact.write(
            lambda: create_progress_artifact(progress=share, key=self._key, description=line),
            ArtifactUpdate(data=share, description=line),
        )

    def _safely(self, send: Callable[[], None]) -> None:
        try:
            send()
        except Exception as error:  # the work goes on, whatever becomes of its page
            self._warned = _warn_once(self._warned, error)


def told(progress: Progress) -> str:
    """Step, loss and time left in one line."""
    left = _duration(progress.seconds_left)
    return f"step {progress.step} of {progress.steps}, loss {progress.smoothed:.4f}, {left} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _warn_once(warned: bool, error: Exception) -> bool:
    if not warned and _goes_on():
        why = (str(error).splitlines() or [""])[0][:200]
        warn(log, find_home().root, "Prefect's page is not kept up to date (%s)", why)
    return True
