"""A task whose last event was lost is ended as its run was, once and for all; what is at work is let alone."""

from __future__ import annotations

import sys
import threading
import time
import uuid
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from nights.open_tasks import PrefectApi as OfTheNights
from nights.open_tasks import Studio, told
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists

from charengine.services import unheard
from charengine.services.prefect_api import PrefectApi
from charengine.services.unheard import Unheard
from deployments import worker
from deployments.worker import ProcessWorker, QuickWorker


def test_tasks_left_open_are_ended_as_their_run_was_and_a_late_event_does_not_open_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unheard, "FLOWS", ["ours"])
    *_, before, now, later, ours, others, again = told(OfTheNights(), "ours")
    assert (before, now, later, again) == (0, 0, 2, 0)
    assert ours == {
        "sheet": "COMPLETED",
        "crop": "COMPLETED",
        "left": "CRASHED",
        "submitted": "RUNNING",
        "train": "RUNNING",
        "after": "PENDING",
    }
    assert others == {"other": "RUNNING"}


class Patient(PrefectApi):
    """Asks again while the suite's server is busy."""

    def post(self, path: str, body: Any) -> Any:
        for _ in range(40):
            with suppress(OSError):
                return super().post(path, body)
            time.sleep(0.5)
        return super().post(path, body)


def test_prefect_itself_answers_as_the_one_of_the_nights(prefect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = f"ours-{uuid.uuid4()}"
    monkeypatch.setattr(unheard, "FLOWS", [flow])
    assert told(Patient(prefect), flow) == told(OfTheNights(), flow)


@pytest.mark.parametrize(
    ("run", "tries", "attempt", "ended"),
    [
        ("COMPLETED", 1, 0, "COMPLETED"),  # pending: not counted yet
        ("COMPLETED", 2, 2, "COMPLETED"),
        ("COMPLETED", 2, 1, "CRASHED"),
        ("CANCELLED", 1, 1, "CANCELLED"),
        ("FAILED", 1, 1, "CRASHED"),
    ],
)
def test_only_the_try_that_completed_a_run_completed_its_tasks(run: str, tries: int, attempt: int, ended: str) -> None:
    told = unheard._ended_as({"state_type": run, "run_count": tries}, {"flow_run_run_count": attempt})
    assert told["type"] == ended and f"ended as {run}" in told["message"]


def test_the_time_counts_anew_after_the_server_was_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(unheard, "FLOWS", ["ours"])
    away: list[OSError] = []

    def request(path: str) -> bool:
        if away:
            raise away.pop()
        return False

    studio = Studio(OfTheNights(request), "ours")
    studio.tell(studio.run("CRASHED"), "train", "RUNNING", 1)
    ends = Unheard(studio.api)
    for now, error in ((0.0, None), (60.0, OSError("no route")), (100.0, None), (200.0, None)):
        away[:] = [error] if error else []
        monkeypatch.setattr(unheard.time, "monotonic", lambda now=now: now)
        ends._try()
        assert ("no route" in caplog.text, "1 tasks" in caplog.text) == (now >= 60, now == 200)
    monkeypatch.undo()
    assert studio.states(1) == {"train": "CRASHED"}


def test_the_worker_of_casts_looks_and_does_not_wait_for_a_server_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    hangs, asked = threading.Event(), []

    def post(path: str, body: Any) -> list[Any]:
        asked.append(path)
        hangs.wait(30)
        return []

    async def synchronised(self: Any) -> None:
        raise OSError("away")

    monkeypatch.setattr(ProcessWorker, "sync_with_backend", synchronised)
    own: Any = QuickWorker.__new__(QuickWorker)
    own._unheard = Unheard(SimpleNamespace(post=post))  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(OSError, match="away"):
            anyio.run(own.sync_with_backend)
    assert asked == ["task_runs/filter"]
    hangs.set()


def test_of_the_workers_that_of_casts_looks(prefect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    monkeypatch.setattr(worker, "STANDBY", [sys.executable, "-c", ""])
    monkeypatch.setattr(worker, "CAN_FORK", False)
    monkeypatch.setattr(Unheard, "look", lambda self: looked.append(self.api._url))

    async def begin() -> None:
        async with get_client() as client:
            for pool in ("characters", "orchestrate"):
                with suppress(ObjectAlreadyExists):
                    await client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
                async with QuickWorker(work_pool_name=pool, name="m1") as own:
                    await own.sync_with_backend()
                looked.append(pool)

    anyio.run(begin)
    assert looked[0] == "characters" and set(looked[1:-1]) == {prefect} and looked[-1] == "orchestrate"
