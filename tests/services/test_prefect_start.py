"""A Prefect server that does not come up is told apart: it ended, or it is only late."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from charengine.errors import StageFailed
from charengine.machine.home import Home
from charengine.services import prefect_server


@pytest.mark.parametrize(
    ("status", "told"),
    [(3, "it ended with status 3"), (None, "it does not answer after 0.2 s, as on a machine that is busy")],
)
def test_why_a_server_did_not_start_is_said_with_its_log(
    home: Home, monkeypatch: pytest.MonkeyPatch, status: int | None, told: str
) -> None:
    def spawned(*_: Any) -> Any:
        return SimpleNamespace(poll=lambda: status)

    monkeypatch.setenv("PREFECT_API_URL", os.environ.get("PREFECT_API_URL", ""))  # it is put back afterwards
    monkeypatch.setattr(prefect_server, "spawn", spawned)
    monkeypatch.setattr(prefect_server.atexit, "register", lambda *_: None)
    monkeypatch.setattr(prefect_server, "START_SECONDS", 0.2)
    home.logs.mkdir(parents=True, exist_ok=True)
    wait = prefect_server.start_prefect(home)
    with pytest.raises(StageFailed) as caught:
        wait()
    assert told in str(caught.value) and str(home.logs / "prefect-server.log") in str(caught.value)
