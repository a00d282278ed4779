"""The worker's process in waiting: it becomes the engine of the run it is told, only where it fits, and goes when nobody needs it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import anyio
import pytest
from command_line import ROOT, child_environment
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists
from prefect.states import Pending, Scheduled

from charengine.machine.home import Home
from charengine.services.stopping import is_stopping, stopping
from deployments import worker
from deployments.worker import ENGINE, DirectConfiguration, Standby

ECHO = "import sys, json; told = json.loads(sys.stdin.readline()); print(told['environment']['PREFECT__FLOW_RUN_ID'])"


@flow
def nothing() -> None:
    """Whose runs are taken."""


@pytest.fixture
def echoing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in waiting that says which run it is told, instead of running it; started as where nothing is forked."""
    monkeypatch.setattr(worker, "CAN_FORK", False)
    monkeypatch.setattr(worker, "STANDBY", [sys.executable, "-c", ECHO])


def environment(standby: Standby, **more: str) -> dict[str, str]:
    return {**standby._environment, "PREFECT__FLOW_RUN_ID": "a-run", **more}


def test_a_run_is_handed_to_the_process_that_waits_and_another_is_made_when_it_has_ended(echoing: None) -> None:
    async def two_runs() -> tuple[list[str], set[int]]:
        standby, said, pids = Standby(), Said(), set()
        await standby.prepare()
        for number in ("first", "second"):
            assert standby._waiting is not None
            pids.add(standby._waiting.pid)
            told = environment(standby, PREFECT__FLOW_RUN_ID=number)
            process = await standby.run_process(ENGINE, stream_output=(said, said), env=told, cwd=str(ROOT))
            assert process.returncode == 0 and process.pid in pids
        await standby.close()
        return said.lines, pids

    lines, pids = anyio.run(two_runs)
    assert lines == ["first", "second"] and len(pids) == 2


class Said:
    """Where output goes."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, text: str) -> int:
        self.lines += text.split()
        return len(text)

    def flush(self) -> None:
        """As a stream has it."""


@pytest.mark.parametrize(
    ("command", "more", "fits"),
    [
        (ENGINE, {}, True),
        (ENGINE, {"PREFECT__DEPLOYMENT_NAME": "character"}, True),
        (ENGINE, {"OMP_NUM_THREADS": "3"}, False),  # read when torch was imported
        (["other", "command"], {}, False),
    ],
)
def test_it_fits_only_a_run_whose_own_process_would_be_the_same(
    echoing: None, command: list[str], more: dict[str, str], fits: bool
) -> None:
    async def asked() -> bool:
        standby = Standby()
        await standby.prepare()
        try:
            return standby.fits(command, environment(standby, **more))
        finally:
            await standby.close()

    assert anyio.run(asked) is fits


def test_a_process_that_died_while_waiting_is_not_taken(echoing: None) -> None:
    async def asked() -> bool:
        standby = Standby()
        await standby.prepare()
        assert standby._waiting
        standby._waiting.kill()
        await standby._waiting.wait()
        try:
            return standby.fits(ENGINE, environment(standby))
        finally:
            await standby.close()

    assert anyio.run(asked) is False


def test_after_one_that_was_killed_another_waits_for_the_run_after_next(echoing: None) -> None:
    async def killed() -> tuple[int, int]:
        standby = Standby()
        await standby.prepare()
        assert standby._waiting is not None
        first = standby._waiting
        first.kill()
        await first.wait()
        told = environment(standby)
        await standby.run_process([sys.executable, "-c", "pass"], stream_output=False, env=told)
        try:
            assert standby._waiting is not None and standby._waiting.returncode is None
            return first.pid, standby._waiting.pid
        finally:
            await standby.close()

    dead, waiting = anyio.run(killed)
    assert dead != waiting


def test_a_run_that_does_not_fit_gets_a_process_and_a_session_of_its_own() -> None:
    script = "import os; print(os.getsid(0) == os.getpid())"

    async def run() -> list[str]:
        said, standby = Said(), Standby()
        await standby.run_process([sys.executable, "-c", script], stream_output=(said, said), env=dict(os.environ))
        await standby.close()
        return said.lines

    assert anyio.run(run) == ["True"]


def test_a_runs_process_is_known_by_its_machine_and_number() -> None:
    told: list[str] = []
    worker._OnThisMachine(SimpleNamespace(started=told.append)).started(7)
    assert told == [f"{platform.node()}:7"]


def test_what_a_worker_took_and_did_not_begin_before_it_died_is_marked_as_crashed_by_its_successor(
    prefect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what another worker has taken, nor what has a process."""
    monkeypatch.setattr(worker, "STANDBY", [sys.executable, "-c", ""])
    given = {"first": "begun by m1", "another": "begun by m2", "at work": "m1:7", "just taken": None}

    async def restarted() -> dict[str, str]:
        async with get_client() as client:
            with suppress(ObjectAlreadyExists):
                await client.create_work_pool(WorkPoolCreate(name="p", type="process"))
            taken = Pending(message="begun by m1")
            made = {name: await client.create_flow_run(nothing, state=taken) for name in given}
            for name, run in made.items():
                await client.update_flow_run(run.id, infrastructure_pid=given[name])
            async with worker.QuickWorker(work_pool_name="p", name="m1"):
                pass
            return {name: str((await client.read_flow_run(run.id)).state.name) for name, run in made.items()}

    wanted = {"first": "Crashed", "another": "Pending", "at work": "Pending", "just taken": "Crashed"}
    assert anyio.run(restarted) == wanted


@pytest.mark.parametrize("lost", [False, True])
def test_a_run_that_is_taken_says_by_whom_before_its_process_begins_also_when_the_answer_was_lost(
    prefect: str, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    monkeypatch.setattr(worker, "STANDBY", [sys.executable, "-c", ""])
    propose = worker.propose_state

    async def proposed(*arguments: Any, **named: Any) -> Any:
        answer = await propose(*arguments, **named)
        return await propose(*arguments, **named) if lost else answer  # the second time it is refused

    async def taken() -> str:
        async with get_client() as client:
            with suppress(ObjectAlreadyExists):
                await client.create_work_pool(WorkPoolCreate(name="p", type="process"))
            run = await client.create_flow_run(nothing, state=Scheduled())
            async with worker.QuickWorker(work_pool_name="p", name="m1") as own:
                monkeypatch.setattr(worker, "propose_state", proposed)
                assert await own._propose_pending_state(run)
            async with worker.QuickWorker(work_pool_name="p", name="m2") as other:
                assert not await other._propose_pending_state(run)
            now = await client.read_flow_run(run.id)
            return f"{now.infrastructure_pid}, {now.state and now.state.message}"

    assert anyio.run(taken) == "begun by m1, begun by m1"


def test_while_its_home_ends_a_worker_takes_no_run_and_one_that_died_while_ending_holds_nobody_up(
    prefect: str, monkeypatch: pytest.MonkeyPatch, home: Home
) -> None:
    monkeypatch.setattr(worker, "STANDBY", [sys.executable, "-c", ""])
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()

    async def asked() -> list[bool]:
        async with get_client() as client:
            with suppress(ObjectAlreadyExists):
                await client.create_work_pool(WorkPoolCreate(name="p", type="process"))
            run = await client.create_flow_run(nothing, state=Scheduled())
            async with worker.QuickWorker(work_pool_name="p", name="m1") as own:
                with stopping(home):
                    seen = [await own._propose_pending_state(run)]
                    waits = (await client.read_flow_run(run.id)).state
                    seen.append(bool(waits and waits.is_scheduled()))
                home.stopping.write_text(f"{platform.node()}:{gone.pid}")
                return [*seen, await own._propose_pending_state(run)]

    assert anyio.run(asked) == [False, True, True]
    with stopping(home):
        assert is_stopping(home)
        again = home.stopping.read_text().partition("_")[0]  # the same number, on this machine and on another
        home.stopping.write_text(f"{again}_1")
        assert not is_stopping(home)
        home.stopping.write_text(f"elsewhere:{os.getpid()}")
        assert not is_stopping(home)
    assert not home.stopping.exists() and not is_stopping(home)


def test_the_engine_is_started_directly_and_a_deployments_own_command_stays() -> None:
    run: Any = FlowRunLike()
    for given, wanted in ((None, " ".join(ENGINE)), ("nice python -m prefect.engine", "nice python -m prefect.engine")):
        configuration = DirectConfiguration(command=given)
        configuration.prepare_for_flow_run(run)
        assert configuration.command == wanted and configuration._command_configured


class FlowRunLike:
    """What a configuration asks of a run."""

    id, name, labels, state, job_variables = uuid4(), "Ada", {"a": "label"}, None, None
    deployment_id = flow_id = None

    def __getattr__(self, name: str) -> Any:
        return None


@pytest.fixture
def waiting(home: Home) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "deployments.standby", "json"],
        env=child_environment(home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )


def test_it_goes_when_its_worker_has_gone(waiting: subprocess.Popen[str]) -> None:
    said, _ = waiting.communicate("", timeout=120)
    assert (said, waiting.returncode) == ("", 0)


@pytest.mark.parametrize(("there", "wanted"), [(True, "Invalid flow run id"), (False, "No such file or directory: ")])
def test_it_becomes_the_engine_in_the_environment_and_folder_of_its_run(
    waiting: subprocess.Popen[str], tmp_path: Path, home: Home, there: bool, wanted: str
) -> None:
    folder = tmp_path if there else tmp_path / "nowhere"
    told = {"environment": {**child_environment(home), "PREFECT__FLOW_RUN_ID": "no id"}, "folder": str(folder)}
    said, _ = waiting.communicate(json.dumps(told) + "\n", timeout=120)
    assert wanted in said and "RuntimeWarning" not in said and waiting.returncode == 1
