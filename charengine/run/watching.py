"""Who hears about training steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from charengine.stage import Progress


_watcher: ContextVar[Callable[[Progress], None] | None] = ContextVar("watcher", default=None)


@contextmanager
def watching(on_step: Callable[[Progress], None]) -> Iterator[None]:
    """Let the training of runs started inside report each step (the command line's progress bar)."""
    token = _watcher.set(on_step)
    try:
        yield
    finally:
        _watcher.reset(token)


def current_watcher() -> Callable[[Progress], None] | None:
    """Who wants to hear about training steps, if anybody."""
    return _watcher.get()
