"""A cast on the work pool: submitted in a window, waited for through outages, a crashed character tried again."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import httpx
from prefect.client.schemas import OrchestrationResult
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import get_current_settings
from prefect.states import Cancelled

from charengine.machine.home import find_home
from charengine.run.budget import QUEUES, Budget
from charengine.services.prefect_server import DEPLOYMENT
from charengine.wording import slug

WINDOW = 24  # runs that are submitted and not finished: Prefect's page and database stay quick with thousands to come
AHEAD = 4  # of them not begun, where there is a budget: they go on when the cast's process dies
WITHDRAWN = "Not begun"  # state of a run that was taken back
TRIES = 3  # of a character whose process died; one that failed by itself would fail again
POLL_SECONDS = 5.0
PATIENCE = 900.0  # seconds that Prefect may be away before a character is given up
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0

T = TypeVar("T")
log = logging.getLogger("charengine.flows")


class PrefectAway(Exception):
    """Prefect did not answer for too long."""


@dataclass
class _Waiting:
    """A character that is submitted."""

    index: int
    tries: int
    run: FlowRun


@dataclass(frozen=True)
class Ended:
    """How a character's run ended: `run` in a final state, or why there is none."""

    index: int
    run: FlowRun | None
    error: str = ""


def made_on_pool(
    entries: list[dict[str, Any]], batch_id: str, budget: Budget | None = None, queue: str = QUEUES["normal"]
) -> Iterator[Ended]:
    """Each character as it ends, whatever becomes of the others; the same batch id never starts one twice.

    Once the budget is spent, those that run end, and those that no worker has taken are taken back: they never come.

    Args:
        entries: the flow's parameters, one a character.
        batch_id: begins every run's idempotency key.
        budget: whoever asks counts in it what has ended; None: all are made.
        queue: of the work pool.
    """
    to_come = deque((index, 1) for index in range(len(entries)))
    waiting: list[_Waiting] = []
    while to_come or waiting:
        if budget and budget.spent:
            to_come.clear()
            waiting = [one for one in waiting if not withdrawn(one.run)]
        while to_come and len(waiting) < WINDOW and _may_begin(waiting, budget):
            index, tries = to_come.popleft()
            try:
                waiting.append(_Waiting(index, tries, submit(entries[index], batch_id, tries, queue)))
            except PrefectAway as error:
                yield Ended(index, None, str(error))
        for one in list(waiting):
            try:
                one.run = read(one.run)
            except PrefectAway as error:
                waiting.remove(one)
                yield Ended(one.index, None, str(error))
                continue
            if one.run.state is None or not one.run.state.is_final():
                continue
            waiting.remove(one)
            if one.run.state.name == WITHDRAWN:  # by an earlier try of this batch, and its key is used up
                to_come.append((one.index, one.tries + 1))
            elif one.run.state.is_crashed() and one.tries < TRIES:
                log.warning("%s: its process died; trying again", entries[one.index]["name"])
                to_come.append((one.index, one.tries + 1))
            else:
                yield Ended(one.index, one.run)
        if waiting:
            time.sleep(POLL_SECONDS)


def _may_begin(waiting: list[_Waiting], budget: Budget | None) -> bool:
    if budget is None or not budget.limits:
        return True
    ahead = sum(one.run.state is None or one.run.state.is_scheduled() for one in waiting)
    return ahead < AHEAD and budget.allows(len(waiting))


def submit(entry: dict[str, Any], batch_id: str, tries: int, queue: str) -> FlowRun:
    """A run of the character's deployment; submitting the same again gives the same run.

    Raises:
        PrefectAway: Prefect did not take it.
    """
    wanted = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:12]
    again = f":again-{tries - 1}" if tries > 1 else ""

    def call() -> FlowRun:
        submitted = run_deployment(
            DEPLOYMENT,
            parameters=entry,
            timeout=0,
            as_subflow=True,
            idempotency_key=f"{batch_id}:{slug(entry['name'])}:{wanted}{again}",
            flow_run_name=entry["name"],
            work_queue_name=queue,
        )
        return cast("FlowRun", submitted)  # awaitable only inside an async flow

    run = patiently(call, f"{entry['name']} could not be submitted")
    log.info("%s is run %s on the work pool", entry["name"], run.id)
    return run


def withdrawn(run: FlowRun) -> bool:
    """Take a run back that no worker has taken; whether it is."""
    from prefect.client.orchestration import get_client

    if run.state is None or not run.state.is_scheduled():
        return False

    def call() -> bool:
        with get_client(sync_client=True) as client:
            why = "the budget of its cast was spent before a worker took it"
            answer: OrchestrationResult[Any] = client.set_flow_run_state(run.id, Cancelled(name=WITHDRAWN, message=why))
            return answer.state is not None and answer.state.is_cancelled()

    try:
        return patiently(call, f"{run.name} could not be taken back")
    except PrefectAway as error:
        log.warning("%s; it is made too", error)
        return False


def read(run: FlowRun) -> FlowRun:
    """The run as it is now.

    Raises:
        PrefectAway: Prefect does not say.
    """
    from prefect.client.orchestration import get_client

    def call() -> FlowRun:
        with get_client(sync_client=True) as client:
            return client.read_flow_run(run.id)

    return patiently(call, f"{run.name} could not be asked for")


def patiently(call: Callable[[], T], failed: str) -> T:
    """What a call to Prefect gives; it is repeated while Prefect is busy or away.

    Raises:
        PrefectAway: for too long.
    """
    deadline, pause = time.monotonic() + PATIENCE, FIRST_PAUSE
    while True:
        try:
            return call()
        except (PrefectHTTPStatusError, httpx.TransportError) as error:
            refused = isinstance(error, PrefectHTTPStatusError) and error.response.status_code < 500
            if refused or time.monotonic() + pause > deadline:
                raise PrefectAway(f"{failed}: {type(error).__name__}: {str(error).splitlines()[0]}") from error
            log.warning("%s (%s); trying again in %.0f s", failed, type(error).__name__, pause)
        time.sleep(pause)
        pause = min(LONGEST_PAUSE, pause * 2)


def without_prefect(error: Exception) -> str:
    """That Prefect's server did not answer for longer than its client waits, for who gave the command; empty for anything else."""
    url = str(get_current_settings().api.url or "")
    if not url or not isinstance(error, (PrefectHTTPStatusError, httpx.TransportError)):
        return ""
    if isinstance(error, PrefectHTTPStatusError) and error.response.status_code < 500:
        return ""
    request = getattr(error, "_request", None)  # asking for one that there is not raises
    if request is not None and not str(request.url).startswith(url):
        return ""
    why = str(error).splitlines()[0] if str(error) else type(error).__name__
    return (
        f"Prefect's server at {url} did not answer ({why}): it is busy, was stopped, or its disk is full; look at "
        f"{find_home().logs / 'prefect-server.log'}, and give the same command again: it continues where this one was"
    )
