"""Our Prefect server: schedules that fire, what a user set in the page, which stays, and callers that are turned away."""

from __future__ import annotations

import http.client
import json
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import pytest
from prefect_samples import Server, prefect_server

PLANNED_WITHIN = 55.0  # seconds; the scheduler looks every five


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with prefect_server(tmp_path_factory.mktemp("prefect")) as running:
        running.set_up()
        yield running


def planned_runs(server: Server, deployment: str) -> list[str]:
    wanted = {"flow_runs": {"deployment_id": {"any_": [deployment]}, "state": {"type": {"any_": ["SCHEDULED"]}}}}
    return [run["id"] for run in server.post("flow_runs/filter", wanted)]


@pytest.mark.slow
def test_how_far_a_run_is_changes_its_own_row_and_looks_at_no_other(server: Server) -> None:
    change = "UPDATE artifact_collection SET data=1 WHERE artifact_collection.latest_id = 'x'"  # as Prefect changes it
    with closing(sqlite3.connect(server.home.prefect / "prefect.db")) as database:
        (plan,) = [row[-1] for row in database.execute(f"EXPLAIN QUERY PLAN {change}")]
    assert plan.startswith("SEARCH artifact_collection USING INDEX charengine_artifact_collection_latest_id")


@pytest.mark.slow
def test_the_nightly_schedule_plans_runs_once_it_is_switched_on(server: Server) -> None:
    batch = server.deployment("batch")
    [nightly] = batch["schedules"]
    assert not nightly["active"] and planned_runs(server, batch["id"]) == []

    server.patch(f"deployments/{batch['id']}/schedules/{nightly['id']}", {"active": True})
    deadline = time.monotonic() + PLANNED_WITHIN
    while not planned_runs(server, batch["id"]):
        assert time.monotonic() < deadline, "an active schedule has no upcoming runs"
        time.sleep(0.5)


@pytest.mark.slow
def test_what_a_user_set_in_the_page_stays_when_everything_is_set_up_again(server: Server) -> None:
    batch = server.deployment("batch")
    [nightly] = batch["schedules"]
    at_six = {"cron": "0 6 * * *", "timezone": "Europe/Berlin"}
    server.patch(f"deployments/{batch['id']}/schedules/{nightly['id']}", {"active": True, "schedule": at_six})
    kept = {
        "parameters": {"file": "/casts/mine.yaml", "workers": False},
        "paused": True,
        "concurrency_limit": 3,
        "tags": ["charengine", "mine"],
    }
    server.patch(f"deployments/{batch['id']}", kept)
    # and what is ours is as an earlier version left it
    server.patch(f"deployments/{batch['id']}", {"entrypoint": "flows.earlier.batch", "description": "an earlier one"})

    server.set_up()

    again = server.deployment("batch")
    assert again["id"] == batch["id"]
    assert (again["entrypoint"], again["description"]) == (batch["entrypoint"], batch["description"])
    [schedule] = again["schedules"]
    assert schedule["id"] == nightly["id"] and schedule["active"]
    assert {key: schedule["schedule"][key] for key in at_six} == at_six
    assert {key: again[key] for key in ("parameters", "paused", "tags")} == {
        key: kept[key] for key in ("parameters", "paused", "tags")
    }
    assert again["global_concurrency_limit"]["limit"] == 3
    assert again["parameter_openapi_schema"] == batch["parameter_openapi_schema"]


@pytest.mark.slow
def test_a_deployment_that_is_missing_is_made_again_and_the_others_are_left_alone(server: Server) -> None:
    before = {name: server.deployment(name)["id"] for name in ("character", "batch", "sweep")}
    server.delete(f"deployments/{before['sweep']}")
    server.set_up()
    after = {name: server.deployment(name)["id"] for name in before}
    assert after["sweep"] != before.pop("sweep")
    assert {name: after[name] for name in before} == before


def call(server: Server, method: str, path: str, body: dict[str, Any] | None = None, **headers: str) -> tuple[int, str]:
    """One request with exactly these headers; status and body."""
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json", **named})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def port_of(server: Server) -> int:
    return urlsplit(server.url).port or 0


@pytest.mark.slow
def test_a_foreign_page_cannot_start_a_run_and_our_own_client_can(server: Server) -> None:
    create = f"/api/deployments/{server.deployment('character')['id']}/create_flow_run"
    body = {"parameters": {"prompt": "an orc"}, "job_variables": {"command": "touch /tmp/owned"}}
    status, told = call(server, "POST", create, body, Origin="https://evil.example")
    assert status == 403 and "evil.example" in told
    # a page that sends no Origin has no token either
    assert call(server, "POST", create, body)[0] == 403
    # and cannot read one: neither with its own name nor from a sandboxed frame
    for origin in ("https://evil.example", "null", f"http://evil.example:{port_of(server)}"):
        status, told = call(server, "GET", "/api/csrf-token?client=evil", Origin=origin)
        assert status == 403 and "token" not in told
    assert server.post("flow_runs/filter", {"flow_runs": {"name": {"any_": ["ours"]}}}) == []
    created = server.post(create.removeprefix("/api/"), {"parameters": {"prompt": "an orc"}, "name": "ours"})
    assert [run["id"] for run in server.post("flow_runs/filter", {"flow_runs": {"name": {"any_": ["ours"]}}})] == [
        created["id"]
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:4200", "127.0.0.1.evil.example", "localhost@evil:1", ""]
)
def test_a_foreign_name_for_this_machine_is_refused(server: Server, host: str) -> None:
    assert call(server, "GET", "/api/health", Host=host)[0] == 403
    assert call(server, "GET", "/", Host=host)[0] == 403


@pytest.mark.slow
def test_a_foreign_page_gets_no_web_socket(server: Server) -> None:
    def open_socket(origin: str) -> str:
        lines = (
            "GET /api/events/out HTTP/1.1",
            f"Host: 127.0.0.1:{port_of(server)}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Protocol: prefect",
            f"Origin: {origin}",
        )
        with socket.create_connection(("127.0.0.1", port_of(server)), timeout=20) as connection:
            connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
            return connection.recv(200).decode("latin-1").splitlines()[0]

    assert " 403 " in open_socket("https://evil.example")
    assert " 101 " in open_socket(f"http://127.0.0.1:{port_of(server)}")


@pytest.mark.slow
def test_the_page_works_by_both_of_its_names(server: Server) -> None:
    for name in ("127.0.0.1", "localhost"):
        origin = f"http://{name}:{port_of(server)}"
        status, page = call(server, "GET", "/", Host=f"{name}:{port_of(server)}", Accept="text/html")
        assert status == 200 and "<title>Prefect Server</title>" in page
        settings = json.loads(call(server, "GET", "/ui-settings")[1])
        assert settings["csrf_enabled"] and settings["default_ui"] == "v1"
        _, answer = call(server, "GET", "/api/csrf-token?client=page", Origin=origin)
        token = {"Prefect_Csrf_Client": "page", "Prefect_Csrf_Token": json.loads(answer)["token"]}
        assert call(server, "POST", "/api/flow_runs/count", {}, Origin=origin, **token)[0] == 200
