"""What a terminal hears: the engine's messages, and not the lines that follow training on Prefect's page."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterator

import pytest

from charengine.cli import console
from charengine.run.watching import current_watcher
from charengine.stage import Progress


@pytest.fixture(autouse=True)
def _nothing_else_changes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(console, "quieten_console", lambda: None)
    monkeypatch.setattr(console, "quieten_libraries", lambda: None)
    engine = logging.getLogger("charengine")
    before, level = engine.handlers, engine.level
    yield
    engine.handlers = before
    engine.setLevel(level)


def test_messages_are_heard_and_lines_of_progress_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    console.listen()
    log = logging.getLogger("charengine.flows")
    log.info("train: done in 3.0 s")
    log.info("Aya: training, step 3 of 6", extra={"progress": True})
    assert capsys.readouterr().err == "train: done in 3.0 s\n"


def test_messages_go_to_what_stderr_is_now_also_after_it_was_replaced_and_closed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = io.StringIO()
    with monkeypatch.context() as during:
        during.setattr("sys.stderr", bar)
        console.listen()
        logging.getLogger("charengine").warning("while the bar stands")
    assert bar.getvalue() == "while the bar stands\n"
    bar.close()
    logging.getLogger("charengine").warning("afterwards")
    assert capsys.readouterr().err == "afterwards\n"


class Terminal(io.StringIO):
    """What is written to a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("step", "loss", "doing", "shown", "hidden"),
    [
        (None, 0.0, "", [], ["train", "nan"]),  # a sheet is drawn, or all is taken from the cache
        (0, math.nan, "drawing lessons, 30 % done", ["train", "0/6", "drawing lessons, 30 % done"], ["nan"]),
        (3, 0.05, "validating", ["train", "3/6", "loss 0.0500"], []),
        (6, 0.04, "", [], ["train"]),  # and a sweep follows
    ],
)
def test_the_bar_stands_while_an_adapter_trains_and_at_no_other_time(
    monkeypatch: pytest.MonkeyPatch, step: int | None, loss: float, doing: str, shown: list[str], hidden: list[str]
) -> None:
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with console.training_bar():
        if step is not None:
            watcher = current_watcher()
            assert watcher
            watcher(Progress(step, 6, loss, loss, 1e-3, 100.0, 0.3, 0.0, doing))
    said = terminal.getvalue()
    assert all(text in said for text in shown) and not any(text in said for text in hidden)
