"""A cast on the work pool: an outage is waited for, a crash is tried again, a failure is one character's own."""

from __future__ import annotations

import asyncio
import uuid
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Cancelled, Completed, Crashed, Failed, Pending, Running, Scheduled

from charengine.errors import BadInput
from charengine.run.budget import Budget, queue_of
from deployments import set_up
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

    def run_deployment(self, name: str, parameters: dict[str, Any], idempotency_key: str, **how: Any) -> Any:
        self.queue = how["work_queue_name"]
        if self.errors:
            raise self.errors.pop(0)
        self.keys.append(idempotency_key)
        self.open += 1
        self.most = max(self.most, self.open)
        return SimpleNamespace(id=uuid.uuid4(), name=parameters["name"], state=Scheduled())

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


def test_once_the_budget_is_spent_what_no_worker_took_is_taken_back_and_what_runs_ends(
    prefect_with: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefect, clock = prefect_with(), [0.0]
    budget = Budget(max_hours=1, began=1.0, now=lambda: clock[0])

    def read(run: Any) -> Any:
        clock[0] += 1000
        assert clock[0] < 1e6
        state = Scheduled() if run.name != "Who 0" else Running() if clock[0] < 7000 else Completed()
        return SimpleNamespace(id=run.id, name=run.name, state=state)

    monkeypatch.setattr(pool, "read", read)
    monkeypatch.setattr(pool, "withdrawn", lambda run: run.state.is_scheduled())
    assert [one.index for one in pool.made_on_pool(CAST, "night", budget)] == [0]
    assert len(prefect.keys) <= pool.AHEAD + 1


def test_with_a_number_no_more_are_under_way_than_may_be_made(prefect_with: Any) -> None:
    prefect, budget = prefect_with(Who_0=[Failed()]), Budget(max_characters=3)
    ended = []
    for one in pool.made_on_pool(CAST, "night", budget):
        ended.append(one.index)
        budget.made += bool(one.run and one.run.state.is_completed())
    assert ended == [0, 1, 2, 3] and prefect.most == 3


def test_what_an_earlier_try_took_back_is_made_under_another_key(prefect_with: Any) -> None:
    prefect = prefect_with(Who_1=[Cancelled(name=pool.WITHDRAWN), Completed()])
    assert sorted(one.index for one in pool.made_on_pool(CAST[:2], "night")) == [0, 1]
    assert [key.rpartition(":")[2] for key in prefect.keys if ":who-1:" in key][1:] == ["again-1"]


def test_prefect_takes_a_waiting_run_back_for_good_and_leaves_one_that_runs(prefect: str) -> None:
    @flow
    def nothing() -> None: ...

    with get_client(sync_client=True) as client:
        waits, runs = (client.create_flow_run(nothing, state=state) for state in (Scheduled(), Running()))
        assert pool.withdrawn(client.read_flow_run(waits.id)) and not pool.withdrawn(client.read_flow_run(runs.id))
        client.set_flow_run_state(waits.id, Pending())  # a worker that has just found it
        assert client.read_flow_run(waits.id).state.name == pool.WITHDRAWN
        assert client.read_flow_run(runs.id).state.is_running()


def test_a_single_character_goes_before_all_casts_and_these_by_their_priority(prefect: str, prefect_with: Any) -> None:
    assert [queue_of(name) for name in ("low", "normal", "high")] == ["batch-low", "batch", "batch-high"]
    with pytest.raises(BadInput, match="priority: got 'urgent'; allowed are low, normal, high"):
        queue_of("urgent")
    fake = prefect_with()
    assert list(pool.made_on_pool(CAST[:1], "night", None, "batch-low")) and fake.queue == "batch-low"

    @flow
    def nothing() -> None: ...

    async def taken() -> list[str]:
        async with get_client() as client:
            await set_up._make_pool(client, set_up.POOLS[0])
            for name, priority in set_up.QUEUES.items():
                await set_up._make_queue(client, name, priority)
            made = await client.create_deployment(
                await client.create_flow(nothing), "one", work_pool_name=set_up.POOLS[0]
            )
            for queue in ("batch-low", "batch", "batch-high", "interactive"):
                await client.create_flow_run_from_deployment(made, name=queue, work_queue_name=queue)
            answer = await client.get_scheduled_flow_runs_for_work_pool(set_up.POOLS[0])
            return [one.flow_run.name for one in answer]

    assert asyncio.run(taken()) == ["interactive", "batch-high", "batch", "batch-low"]
