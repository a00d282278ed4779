"""What a terminal hears: the engine's messages, and not the lines that follow training on Prefect's page."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from charengine.cli import console


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
