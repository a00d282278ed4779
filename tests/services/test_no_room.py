"""A server whose disk is full says so, and is not asked again by Prefect's client, which asks a defect for minutes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from command_line import python
from prefect.client.base import PrefectHttpxSyncClient
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from charengine.machine.environment import DEFAULTS
from charengine.services import no_room
from charengine.services.no_room import ToldWhenFull


def asked(status: int) -> int:
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("said", status)

    app: Any = ToldWhenFull(Starlette(routes=[Route("/", endpoint)]), Path())
    answer = TestClient(app).get("/")
    assert answer.text == "said"
    return answer.status_code


def test_only_a_defect_at_a_full_disk_is_told_as_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(no_room, "full_disk", lambda place: "")
    assert [asked(status) for status in (200, 404, 500, 503)] == [200, 404, 500, 503]
    monkeypatch.setattr(no_room, "full_disk", lambda place: "the disk is full")
    assert [asked(status) for status in (200, 404, 500, 503)] == [200, 404, 507, 503]


def test_prefects_client_hears_of_a_full_disk_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_CLIENT_RETRY_EXTRA_CODES", DEFAULTS["PREFECT_CLIENT_RETRY_EXTRA_CODES"])
    seen: list[httpx.Request] = []

    def answering(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(no_room.NO_ROOM)

    began = time.monotonic()
    with (
        PrefectHttpxSyncClient(base_url="http://x", transport=httpx.MockTransport(answering)) as client,
        pytest.raises(httpx.HTTPStatusError, match="507"),
    ):
        client.get("/")
    assert len(seen) == 1 and time.monotonic() - began < 1


def test_prefects_server_is_one_of_these(tmp_path: Path) -> None:
    code = (
        "import uvicorn; uvicorn.run = lambda app, **how: print(type(app._app).__name__, app._app._place);"
        "from deployments.server import serve; serve(1)"
    )
    told = python(code, tmp_path, CHARENGINE_HOME=str(tmp_path / "home")).stdout
    assert told == f"ToldWhenFull {tmp_path / 'home' / 'prefect'}\n"
