"""A cast on the work pool: an outage is waited for, a crash is tried again, a failure is one character's own."""

from __future__ import annotations

import uuid
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Completed, Crashed, Failed, Running

from flows import pool

CAST = [{"name": f"Who {i}"} for i in range(60)]


def status(code: int) -> PrefectHTTPStatusError:
    response = httpx.Response(code, request=httpx.Request("POST", "http://127.0.0.1/api"))
    return PrefectHTTPStatusError("answer", request=response.request, response=response)


class Prefect:
    """Takes runs and ends them as told: `ends[name]` are the states its runs end in, one a try."""

    def __init__(self, ends: dict[str, list[Any]]) -> None:
        self.ends, self.keys, self.open, self.most = ends, [], 0, 0  # type: ignore[var-annotated]
        self.errors: list[Exception] = []

    def run_deployment(self, name: str, parameters: dict[str, Any], idempotency_key: str, **_: Any) -> Any:
        if self.errors:
            raise self.errors.pop(0)
        self.keys.append(idempotency_key)
        self.open += 1
        self.most = max(self.most, self.open)
        return SimpleNamespace(id=uuid.uuid4(), name=parameters["name"], state=Running())

    def read(self, run: Any) -> Any:
        self.open -= 1
        ends = self.ends.get(run.name, [])
        return SimpleNamespace(id=run.id, name=run.name, state=ends.pop(0) if ends else Completed())


@pytest.fixture
def prefect_with(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(**ends: list[Any]) -> Prefect:
        made = Prefect({name.replace("_", " "): states for name, states in ends.items()})
        monkeypatch.setattr(pool, "run_deployment", made.run_deployment)
        monkeypatch.setattr(pool, "read", made.read)
        monkeypatch.setattr(pool.time, "sleep", lambda seconds: None)
        return made

    return make


def test_every_character_ends_once_and_few_are_submitted_at_a_time(prefect_with: Any) -> None:
    prefect = prefect_with()
    assert sorted(ended.index for ended in pool.made_on_pool(CAST, "night")) == list(range(60))
    assert prefect.most == pool.WINDOW
    assert len(set(prefect.keys)) == 60 and prefect.keys[0].startswith("night:who-0:")


def test_a_crashed_character_is_tried_again_under_another_key_and_a_failed_one_is_not(prefect_with: Any) -> None:
    prefect = prefect_with(Who_1=[Crashed(), Completed()], Who_2=[Failed()], Who_3=[Crashed(), Crashed(), Crashed()])
    ended = {one.index: one.run for one in pool.made_on_pool(CAST[:5], "night")}
    assert {index: run.state.type.value for index, run in ended.items()} == {
        0: "COMPLETED",
        1: "COMPLETED",
        2: "FAILED",
        3: "CRASHED",
        4: "COMPLETED",
    }
    assert [key.count("again") for key in prefect.keys if ":who-3:" in key] == [0, 1, 1]
    assert len(set(prefect.keys)) == len(prefect.keys) == 5 + 1 + 2


def test_a_busy_or_absent_server_is_waited_for(prefect_with: Any) -> None:
    prefect = prefect_with()
    prefect.errors = [status(503), httpx.ConnectError("refused"), status(500)]
    assert [one.error for one in pool.made_on_pool(CAST[:2], "night")] == ["", ""]


def test_what_prefect_refuses_is_that_characters_outcome_alone(prefect_with: Any) -> None:
    prefect = prefect_with()
    prefect.errors = [status(422)]
    ended = sorted(pool.made_on_pool(CAST[:2], "night"), key=lambda one: one.index)
    assert ended[0].run is None and "Who 0 could not be submitted" in ended[0].error
    assert ended[1].run is not None


def test_a_server_that_stays_away_is_said(prefect_with: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prefect = prefect_with()
    monkeypatch.setattr(pool, "PATIENCE", 0.0)
    prefect.errors = [status(503)]
    assert "503" in next(iter(pool.made_on_pool(CAST[:1], "night"))).error or prefect.errors == []
