"""What the commands say while they work: log lines, a progress bar on a terminal, nothing else on stdout."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from charengine.errors import printable
from charengine.machine.environment import quieten_console, quieten_libraries

if TYPE_CHECKING:
    from charengine.stage import Progress


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what stderr is at that moment: a progress bar or a notebook puts its own in place, and takes it away."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def listen(quiet: bool = False) -> None:
    """Engine messages to stderr; Prefect's and MLflow's own chatter is kept off the terminal."""
    quieten_console()
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(message)s"))
    # a line every two seconds is for Prefect's page; a terminal has the bar
    handler.addFilter(lambda record: not getattr(record, "progress", False))
    engine = logging.getLogger("charengine")
    engine.handlers = [handler]
    engine.setLevel(logging.WARNING if quiet else logging.INFO)
    quieten_libraries()


@contextmanager
def training_bar(quiet: bool = False) -> Iterator[None]:
    """A bar with loss and time left while an adapter trains, and at no other time; nothing when stderr is not a terminal."""
    from charengine.run.watching import watching

    if quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}"))
    with Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("train", total=None, visible=False, said="")

        def on_step(progress: Progress) -> None:
            ended = progress.step == progress.steps
            said = f"loss {progress.loss:.4f}" if math.isfinite(progress.loss) else progress.doing
            bar.update(task, completed=progress.step, total=progress.steps, visible=not ended, said=said)

        with watching(on_step):
            yield


def say(text: str = "") -> None:
    """One line of the command's answer."""
    print(printable(text), flush=True)


def say_json(value: Any) -> None:
    """The command's answer as one line of JSON."""
    print(json.dumps(value, ensure_ascii=False), flush=True)
