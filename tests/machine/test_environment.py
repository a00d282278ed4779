"""The environment handed to child processes, and where relative paths start."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from charengine.cli.console import listen
from charengine.machine import environment
from charengine.machine.environment import CONSOLE_LEVEL, MLFLOW_LEVEL, for_children
from charengine.machine.home import Home
from charengine.services.up import Addresses, Up


@pytest.fixture
def console_level(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As a command starts: no level is set, and none is remembered as ours."""
    monkeypatch.setenv(CONSOLE_LEVEL, "")
    monkeypatch.delenv(CONSOLE_LEVEL)
    monkeypatch.setattr(environment, "_of_this_process", set())
    monkeypatch.setattr(logging, "raiseExceptions", True)
    return monkeypatch


def test_only_the_command_itself_is_quiet_servers_and_workers_are_heard(
    console_level: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listen()
    listen()
    assert os.environ[CONSOLE_LEVEL] == "CRITICAL"
    up = Up(Home(tmp_path).create(), Addresses(1, 2), 0, lambda: True)
    assert CONSOLE_LEVEL not in up._environment()
    code = (
        "from prefect.logging import get_logger; from prefect.logging.configuration import setup_logging;"
        "setup_logging(); get_logger('flow_runs.worker').error('audible')"
    )
    said = subprocess.run([sys.executable, "-c", code], env=up._environment(), capture_output=True, text=True)
    assert "audible" in said.stderr


def test_what_mlflow_says_of_a_full_disk_is_no_traceback_on_a_terminal(console_level: pytest.MonkeyPatch) -> None:
    console_level.delenv(MLFLOW_LEVEL, raising=False)
    listen()
    assert os.environ[MLFLOW_LEVEL] == "CRITICAL" and MLFLOW_LEVEL not in for_children()


def test_log_lines_that_prefect_does_not_take_leave_none_on_a_terminal(
    console_level: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefect.logging.handlers import APILogWorker

    worker = APILogWorker.__new__(APILogWorker)
    worker._client = None  # which fails at each batch
    asyncio.run(worker._handle_batch([{}]))
    assert "Error logging to API" in capsys.readouterr().err
    listen()
    asyncio.run(worker._handle_batch([{}]))
    assert capsys.readouterr().err == ""


def test_a_console_level_that_the_user_set_is_for_children_too(console_level: pytest.MonkeyPatch) -> None:
    console_level.setenv(CONSOLE_LEVEL, "CRITICAL")
    listen()
    assert for_children()[CONSOLE_LEVEL] == "CRITICAL"


def test_a_character_that_waits_for_its_turn_is_not_called_late(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings.models.server.services import ServerServicesLateRunsSettings

    for name, value in environment.DEFAULTS.items():
        if "LATE_RUNS" in name:
            monkeypatch.setenv(name, value)
    assert ServerServicesLateRunsSettings().enabled is False


def test_prefect_s_database_forgets_old_runs_by_its_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings.models.server.services import ServerServicesDBVacuumSettings

    for name, value in environment.DEFAULTS.items():
        if "DB_VACUUM" in name:
            monkeypatch.setenv(name, value)
    found = ServerServicesDBVacuumSettings()
    assert found.enabled == {"events", "flow_runs"}
    assert found.retention_period.days == 90


def test_a_server_whose_database_is_started_again_is_asked_for_longer_than_that_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prefect answers 500 without PostgreSQL, which took 12 s to be back; its client's pauses are 1, 2, 4… seconds."""
    from prefect.settings import Settings

    for name, value in environment.DEFAULTS.items():
        monkeypatch.setenv(name, value)
    client = Settings().client
    assert 500 in client.retry_extra_codes
    assert 25 < sum(2**number for number in range(client.max_retries)) < 60
