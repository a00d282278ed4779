"""A Prefect server that does not come up is told apart: it ended, or it is only late."""

from __future__ import annotations

import os
from email.message import Message
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError

import pytest

from charengine.cli import run
from charengine.errors import BadInput, MissingDependency, StageFailed
from charengine.machine import places
from charengine.machine.environment import DEFAULTS
from charengine.machine.home import Home
from charengine.machine.variables import read_by_prefect
from charengine.run.request import RunRequest
from charengine.services import prefect_server


@pytest.fixture(autouse=True)
def _nothing_is_set_for_prefect(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PREFECT_") and name not in DEFAULTS]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(home.prefect))


@pytest.fixture
def ended_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that ends as soon as it begins."""
    monkeypatch.setattr(prefect_server, "spawn", lambda *_: SimpleNamespace(poll=lambda: 3))
    monkeypatch.setattr(prefect_server.atexit, "register", lambda *_: None)


@pytest.mark.parametrize(
    ("status", "told"),
    [(3, "it ended with status 3"), (None, "it does not answer after 0.2 s, as on a machine that is busy")],
)
def test_why_a_server_did_not_start_is_said_with_its_log(
    home: Home, monkeypatch: pytest.MonkeyPatch, status: int | None, told: str
) -> None:
    def spawned(*_: Any) -> Any:
        return SimpleNamespace(poll=lambda: status)

    monkeypatch.setattr(prefect_server, "spawn", spawned)
    monkeypatch.setattr(prefect_server.atexit, "register", lambda *_: None)
    monkeypatch.setattr(prefect_server, "START_SECONDS", 0.2)
    home.logs.mkdir(parents=True, exist_ok=True)
    wait = prefect_server.start_prefect(home)
    with pytest.raises(StageFailed) as caught:
        wait()
    assert told in str(caught.value) and str(home.logs / "prefect-server.log") in str(caught.value)


def test_a_server_that_the_disk_or_the_users_settings_end_is_told_as_that(
    home: Home, monkeypatch: pytest.MonkeyPatch, ended_server: None
) -> None:
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "postgresql+asyncpg://me:secret@127.0.0.1:9/x")
    with pytest.raises(BadInput, match="correct or unset PREFECT_SERVER_DATABASE_CONNECTION_URL") as caught:
        prefect_server.start_prefect(home)()
    assert "secret" not in str(caught.value)
    monkeypatch.setattr(places.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    with pytest.raises(BadInput, match="0.00 GiB free; a run needs 0.5: free some space"):
        prefect_server.start_prefect(home)()


def test_a_server_that_a_level_or_a_torn_file_of_its_own_ends_is_told_as_that(
    home: Home, monkeypatch: pytest.MonkeyPatch, ended_server: None
) -> None:
    profiles = home.prefect / "profiles.toml"
    profiles.write_bytes(b"\xff = [")
    with pytest.raises(BadInput, match=f"Prefect cannot read its settings .*: correct {profiles}, or move it away"):
        prefect_server.start_prefect(home)()
    profiles.unlink()
    database = home.prefect / "prefect.db"
    database.write_bytes(b"no database" * 1000)
    with pytest.raises(BadInput, match=f"database {database}: .*move it away, and a new one is made"):
        prefect_server.start_prefect(home)()
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "nope")
    with pytest.raises(BadInput, match="PREFECT_LOGGING_LEVEL=nope: Prefect cannot read it .*'DEBUG', 'INFO'"):
        prefect_server.start_prefect(home)()


def test_libraries_are_loaded_while_the_server_starts(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def told(name: str, result: Any = None) -> Any:
        return lambda *_, **__: [order.append(name), result][1]

    monkeypatch.setattr(prefect_server, "reach_prefect", told("begins", told("is waited for")))
    monkeypatch.setattr("charengine.run.opening.open_workspace", told("models are found"))
    monkeypatch.setattr("charengine.tracking.database.load_libraries", told("MLflow is loaded"))
    monkeypatch.setattr("flows.character.start", told("flow"))
    monkeypatch.setattr(run, "listen", lambda **_: None)
    monkeypatch.setattr(run, "say_result", lambda *_: None)
    run.start(RunRequest("an orc", "Aya"), as_json=True)
    assert order == ["begins", "models are found", "MLflow is loaded", "is waited for", "flow"]


def test_what_cannot_be_loaded_early_is_told_where_it_is_needed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Home) -> None:
        raise ImportError("MLflow is broken")

    def waited() -> None:
        raise StageFailed("the server says why")

    monkeypatch.setattr(run, "listen", lambda **_: None)
    monkeypatch.setattr(prefect_server, "reach_prefect", lambda _: waited)
    monkeypatch.setattr("charengine.run.opening.open_workspace", lambda *_: None)
    monkeypatch.setattr("charengine.tracking.database.load_libraries", fails)
    with pytest.raises(StageFailed, match="the server says why"):
        run.start(RunRequest("an orc", "Aya"), as_json=True)


def test_a_variable_that_prefect_cannot_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import Settings

    monkeypatch.setenv("PREFECT_API_REQUEST_TIMEOUT", "soon")
    told = "PREFECT_API_REQUEST_TIMEOUT=soon: Prefect cannot read it .*valid number.*unset it"
    with pytest.raises(BadInput, match=told), read_by_prefect():
        Settings()


def test_a_server_without_our_deployment_takes_no_cast(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise HTTPError("http://127.0.0.1:9", 404, "no", Message(), None)

    monkeypatch.setattr(prefect_server.PrefectApi, "get", refused)
    with pytest.raises(MissingDependency, match="has no deployment character/character.*deployments.set_up"):
        prefect_server._must_have_pool("http://127.0.0.1:9/api")
