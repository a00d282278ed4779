"""A text in Prefect's page that is written again as things go on; whatever Prefect does, the run goes on."""

from __future__ import annotations

import logging
import threading
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


class LiveTraining:
    """Progress of a training: an artifact and log lines, sent by a thread of its own at most every `EVERY` seconds.

    Args:
        key: of the artifact.
        name: of the character.
        also: told each time as well, on that thread.
    """

    def __init__(self, key: str, name: str, also: Callable[[str], None] = lambda line: None) -> None:
        self._key, self._name, self._also = key, name, also
        self._latest: Progress | None = None
        self._sent: Progress | None = None
        self._id: UUID | None = None
        self._ended = threading.Event()
        self._warned = False

    def on_step(self, progress: Progress) -> None:
        """Remember how far it is; costs the training nothing."""
        self._latest = progress

    @contextmanager
    def following(self) -> Iterator[None]:
        """Send until left, and once more then."""
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
            self._send()
        self._send()

    def _send(self) -> None:
        progress = self._latest
        if progress is None or progress is self._sent:
            return
        self._sent = progress
        line = told(progress)
        log.info("%s: training, %s", self._name, line, extra={"progress": True})
        try:
            self._also(line)
            share = 100 * progress.step / max(1, progress.steps)
            if self._id is None:
                made = create_progress_artifact(progress=share, key=self._key, description=line)
                self._id = made if isinstance(made, UUID) else None
            else:
                with get_client(sync_client=True) as client:
                    client.update_artifact(self._id, ArtifactUpdate(data=share, description=line))
        except Exception as error:  # training goes on, whatever becomes of its page
            self._warned = _warn_once(self._warned, error)


def told(progress: Progress) -> str:
    """Step, loss and time left in one line."""
    minutes, seconds = divmod(round(progress.seconds_left), 60)
    left = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    return f"step {progress.step} of {progress.steps}, loss {progress.smoothed:.4f}, {left} left"


def _warn_once(warned: bool, error: Exception) -> bool:
    if not warned:
        log.warning("Prefect's page is not kept up to date (%s)", (str(error).splitlines() or [""])[0][:200])
    return True
