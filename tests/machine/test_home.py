"""The home folder: what an earlier version left there is said once and stays."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from charengine.machine.home import Home


def test_a_home_of_an_earlier_version_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    home = Home(tmp_path / "home")
    (home.store / "sha256").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        home.create()
        home.create()
    assert [record.message.count("earlier version") for record in caplog.records] == [1]


def test_a_new_home_has_nothing_to_say(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Home(tmp_path / "home").create()
    assert caplog.records == []
