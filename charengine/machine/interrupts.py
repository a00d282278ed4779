"""Ctrl-C and SIGTERM let work finish its step."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from contextvars import copy_context
from types import FrameType

from charengine.machine.locks import T, log
from charengine.machine.threads import release_team


def run_stoppable(work: Callable[[Callable[[], bool]], T]) -> T:
    """Run `work(should_stop)` so that an interrupt of the calling thread lets it finish its step and save its state.

    The work runs in a thread of its own while the calling one waits. Ctrl-C and Prefect's cancellation are raised in the
    waiting thread, here: they set the flag, and go on once the work has stopped. (A signal handler of ours would do
    without the thread, but Prefect takes a run for crashed, not cancelled, when it does not find its own in place.)
    """
    stop = threading.Event()
    outcome: Future[T] = Future()
    context = copy_context()

    def run() -> None:
        try:
            outcome.set_result(context.run(work, stop.is_set))
        except BaseException as error:
            outcome.set_exception(error)

    release_team()
    thread = threading.Thread(target=run, name="stage")
    try:
        thread.start()
        return outcome.result()
    except Exception:
        raise
    except BaseException:
        log.warning("stopping at the next step")
        stop.set()
        time.sleep(0.1)  # an interrupt of start() itself: the thread may be about to begin
        if thread.ident is not None:
            wait([outcome])
        raise


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Until left, SIGTERM and SIGINT interrupt the main thread once and are remembered; both then count as handled."""
    asked = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        asked.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
