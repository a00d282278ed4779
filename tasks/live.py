"""A text in Prefect's page that is written again as things go on; whatever Prefect does, the run goes on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate

from charengine.stage import Progress

log = logging.getLogger("charengine.flows")

EVERY = 2.0  # seconds between two updates while an adapter trains
LAST_SECONDS = 10.0  # that the end of a run waits for its page


class LiveText:
    """One Markdown artifact, made at the first `show` and written again by each later one.

    Args:
        key: of the artifact.
        description: of it.
    """

    def __init__(self, key: str, description: str) -> None:
        self._key, self._description = key, description
        self._id: UUID | None = None
        self._text = ""
        self._warned = False

    def show(self, text: str) -> None:
        """Show this text; never raises."""
        if text == self._text:
            return
        try:
            if self._id is None:
                made = create_markdown_artifact(markdown=text, key=self._key, description=self._description)
                self._id = made if isinstance(made, UUID) else None
            else:
                with get_client(sync_client=True) as client:
                    client.update_artifact(self._id, ArtifactUpdate(data=text))
            self._text = text
        except Exception as error:  # a page is worth a warning, not a run
            self._warned = _warn_once(self._warned, error)


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


class LiveProgress:
    """How far long work is: an artifact and log lines, sent by a thread of its own at most every `EVERY` seconds.

    Args:
        key: of the artifact.
        name: of the character.
        doing: what is being done.
        also: told each time as well, on that thread.
    """

    def __init__(self, key: str, name: str, doing: str, also: Callable[[str], None] = lambda line: None) -> None:
        self._key, self._name, self._doing, self._also = key, name, doing, also
        self._latest: tuple[float, str] | None = None
        self._sent: tuple[float, str] | None = None
        self._id: UUID | None = None
        self._ended = threading.Event()
        self._warned = False
        self._began = time.monotonic()

    def on_step(self, progress: Progress) -> None:
        """Remember how far training is; costs it nothing."""
        self._latest = 100 * progress.step / max(1, progress.steps), told(progress)

    def on_drawn(self, drawn: int, most: int) -> None:
        """Remember how many pictures are drawn; a race may end before the most there may be."""
        left = (time.monotonic() - self._began) * (most - drawn) / max(1, drawn)
        self._latest = 100 * drawn / max(1, most), f"{drawn} pictures of at most {most}, at most {_duration(left)} left"

    @contextmanager
    def following(self) -> Iterator[None]:
        """Send until left, and once more then."""
        self._began = time.monotonic()
        context = copy_context()  # Prefect files log lines and artifacts under the run of the context
        thread = threading.Thread(target=lambda: context.run(self._follow), name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join(timeout=10)

    def _follow(self) -> None:
        while not self._ended.wait(EVERY):
            if self._latest is None:
                self._also(f"is being prepared, {time.monotonic() - self._began:.0f} s so far")
            self._send()
        self._send()

    def _send(self) -> None:
        latest = self._latest
        if latest is None or latest == self._sent:
            return
        self._sent = latest
        share, line = latest
        log.info("%s: %s, %s", self._name, self._doing, line, extra={"progress": True})
        try:
            self._also(line)
            if self._id is None:
                made = create_progress_artifact(progress=share, key=self._key, description=line)
                self._id = made if isinstance(made, UUID) else None
            else:
                with get_client(sync_client=True) as client:
                    client.update_artifact(self._id, ArtifactUpdate(data=share, description=line))
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
    if not warned:
        log.warning("Prefect's page is not kept up to date (%s)", (str(error).splitlines() or [""])[0][:200])
    return True
