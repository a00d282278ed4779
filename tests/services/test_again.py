"""A busy server is asked again before its caller hears of it; everything else goes through as it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prefect_samples import prefect_server
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from charengine.services import again
from charengine.services.again import AgainWhenBusy
from charengine.services.prefect_api import PrefectApi

Endpoint = Callable[[Request], Awaitable[Response]]


def asked(endpoint: Endpoint, pauses: tuple[float, ...] = (0.0, 0.0, 0.0)) -> TestClient:
    app: Any = AgainWhenBusy(Starlette(routes=[Route("/", endpoint, methods=["GET", "POST"])]), pauses)
    return TestClient(app, raise_server_exceptions=False)


def busy(times: int, seen: list[bytes]) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        seen.append(await request.body())
        return PlainTextResponse("locked" if len(seen) <= times else "done", 503 if len(seen) <= times else 201)

    return endpoint


def test_a_request_that_finds_the_server_busy_is_sent_again_whole() -> None:
    seen: list[bytes] = []
    answer = asked(busy(2, seen)).post("/", content=b"a form")
    assert (answer.status_code, answer.text) == (201, "done")
    assert seen == [b"a form"] * 3


def test_a_server_that_stays_busy_says_so_after_a_while() -> None:
    seen: list[bytes] = []
    answer = asked(busy(99, seen)).post("/", content=b"a form")
    assert (answer.status_code, answer.text, len(seen)) == (503, "locked", 4)


def test_a_request_that_took_long_is_not_tried_until_its_caller_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again, "LONGEST", 0.1)
    seen: list[float] = []

    async def endpoint(request: Request) -> Response:
        seen.append(0.2)
        await asyncio.sleep(0.2)  # SQLite waits for the lock before it gives up
        return PlainTextResponse("locked", 503)

    assert asked(endpoint).get("/").status_code == 503 and len(seen) == 1


@pytest.mark.parametrize("status", [200, 404, 409, 500])
def test_any_other_answer_is_given_at_once(status: int) -> None:
    seen: list[str] = []

    async def endpoint(request: Request) -> Response:
        seen.append(request.method)
        return PlainTextResponse("so", status)

    assert asked(endpoint).get("/").status_code == status and seen == ["GET"]


def test_what_is_too_large_to_keep_is_handed_on_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again, "LARGEST", 100)
    parts = [b"a" * 80, b"b" * 80, b"c" * 80]
    coming = [{"type": "http.request", "body": part, "more_body": part is not parts[-1]} for part in parts]
    seen: list[bytes] = []
    said: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            seen.append(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 503, "headers": []})

    async def receive() -> Any:
        return coming.pop(0)

    async def send(message: Any) -> None:
        said.append(message["status"])

    asyncio.run(AgainWhenBusy(app)({"type": "http"}, receive, send))
    assert b"".join(seen) == b"".join(parts) and len(seen) == 2 and said == [503]


def test_what_a_server_raises_after_it_said_that_it_is_busy_is_no_answer() -> None:
    seen: list[bytes] = []

    async def endpoint(request: Request) -> Response:
        seen.append(await request.body())
        if len(seen) < 3:
            raise OSError("database is locked")
        return PlainTextResponse("done")

    async def said(request: Request, error: Exception) -> Response:
        return PlainTextResponse("locked", 503)

    inner = Starlette(routes=[Route("/", endpoint, methods=["POST"])], exception_handlers={Exception: said})
    app: Any = AgainWhenBusy(inner, (0.0, 0.0))
    answer = TestClient(app).post("/", content=b"a form")  # it raises what the application lets through
    assert (answer.status_code, answer.text, seen) == (200, "done", [b"a form"] * 3)


def test_requests_that_are_tried_again_wait_for_each_other() -> None:
    together, most, first = 0, 0, True

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal together, most, first
        together += 1
        most = max(most, together)
        await asyncio.sleep(0.01)
        status, first = (503 if together > 1 else 200), False
        together -= 1
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask(whole: AgainWhenBusy) -> int:
        statuses: list[int] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            statuses.append(message.get("status", 0))

        await whole({"type": "http"}, receive, send)
        return statuses[0]

    async def all_of_them() -> list[int]:
        whole = AgainWhenBusy(app, (0.0, 0.0))
        return await asyncio.gather(*(ask(whole) for _ in range(8)))

    assert asyncio.run(all_of_them()) == [200] * 8 and most == 8


@pytest.mark.slow
def test_forms_that_are_sent_together_are_all_taken_by_prefects_own_server(tmp_path: Path) -> None:
    with prefect_server(tmp_path) as server:
        server.set_up()
        sweep = server.deployment("sweep")["id"]
        later = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2100-01-01T00:00:00Z"}}
        forms = [PrefectApi(server.url) for _ in range(8)]  # as eight open pages, none of which asks again

        def send(form: PrefectApi) -> str:
            path = f"deployments/{sweep}/create_flow_run"
            return str(
                form.post(path, {"name": "together", "parameters": {"source": "/nowhere"}, "state": later})["id"]
            )

        for form in forms:
            form.get("health")
        with ThreadPoolExecutor(len(forms)) as pool:
            made = list(pool.map(send, forms))
        assert len(set(made)) == 8
