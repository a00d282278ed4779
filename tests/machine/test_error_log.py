"""A traceback is kept whole, once, under a name that no folder is made of; what cannot be written is a warning."""

from __future__ import annotations

from pathlib import Path

import pytest

from charengine.errors import BadInput
from charengine.machine.error_log import keep_traceback
from charengine.machine.home import Home


def failed() -> BadInput:
    try:
        try:
            raise OSError("no space")
        except OSError as error:
            raise BadInput("choose another folder") from error
    except BadInput as error:
        return error


def test_the_file_has_the_error_its_place_and_its_cause_and_one_error_has_one_file(tmp_path: Path) -> None:
    error = failed()
    path = keep_traceback(error, Home(tmp_path), "../Zor ga")
    assert path and path.parent == tmp_path / "logs" and path.name.endswith("-Zor-ga.log")
    text = path.read_text(encoding="utf-8")
    assert "OSError: no space" in text and "BadInput: choose another folder" in text and "test_error_log.py" in text
    assert keep_traceback(error, Home(tmp_path), "later") == path
    assert list((tmp_path / "logs").iterdir()) == [path]


def test_a_home_that_cannot_be_written_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "logs").write_text("a file")
    assert keep_traceback(failed(), Home(tmp_path)) is None
    assert "cannot be written" in caplog.text
