"""Prefect's worker, whose runs begin at once: `python -m deployments.worker start --pool characters`, as `prefect worker start`.

Prefect's own starts two processes for each run, one of them to prepare a workspace that our deployments do not have, and each
imports Prefect for seconds. This one starts the engine alone, and hands the run to a process that has imported everything before
it was asked (`deployments/standby.py`). docs/decisions/0063-a-run-begins-at-once.md has the measurements.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import Abort
from prefect.runner import _starter_engine
from prefect.settings import get_current_settings
from prefect.states import Crashed, Pending
from prefect.utilities import processutils
from prefect.utilities.engine import propose_state
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from charengine.machine.home import find_home
from charengine.services.prefect_api import PrefectApi
from charengine.services.stopping import is_stopping
from charengine.services.unheard import Unheard
from charengine.services.workers import has_driver
from deployments.forked import CAN_FORK, Forked, NotForked, Nursery
from deployments.standby import FORK, THEN

ENGINE = [sys.executable, "-m", "prefect.engine"]
STANDBY = [sys.executable, "-P", "-m", "deployments.standby"]  # -P: no modules of the folder where it stands
OF_ITS_OWN: dict[str, Any] = {"start_new_session": True}  # a worker killed with its group leaves its run alone
OF_ONE_RUN = "PREFECT__"  # begins the names of what a run alone is told
# What a process in waiting imports, by work pool: the flows, and of what a character needs the half that costs most for its memory
MODULES = {"characters": ("flows.character", "flows.sweep", "torch", "mlflow"), "orchestrate": ("flows.batch",)}
# and where one imports for all, later: the other half. Not beside a GPU, with which these begin to talk, and of which a fork knows nothing
LATER = {"characters": ("transformers", "diffusers", "peft")}


class DirectConfiguration(ProcessJobConfiguration):
    """How a run is started: the engine and nothing before it, unless its deployment names a command."""

    def prepare_for_flow_run(self, *args: Any, **kwargs: Any) -> None:
        """Fill in what the deployment leaves open."""
        self.command = self.command or processutils.command_to_string(ENGINE)
        super().prepare_for_flow_run(*args, **kwargs)


class Standby:
    """One process that is ready for the next run; made anew when the run that took it has ended.

    Args:
        modules: that it imports.
        later: that are imported, where processes are forked, once the first is there.
    """

    def __init__(self, *modules: str, later: Sequence[str] = ()) -> None:
        self._modules, self._later = modules, later
        self._forks = CAN_FORK
        self._environment: dict[str, str] = {}
        self._waiting: anyio.abc.Process | None = None
        self._nursery: Nursery | None = None

    async def close(self) -> None:
        """Nobody needs it any more."""
        process, self._waiting = self._waiting, None
        if process and process.returncode is None:
            process.terminate()
            await process.aclose()
        if self._nursery:
            self._nursery.close()

    async def prepare(self) -> None:
        """Start it, unless one waits already."""
        if self._waiting and self._waiting.returncode is None:
            return
        if self._nursery and self._nursery.refused:
            self._forks = False
        self._waiting = (self._fork() if self._forks else None) or await self._start()

    def _fork(self) -> Forked | None:
        """From the one that has imported everything, which is made anew when it has died; None when the new one is dead too."""
        if self._nursery and self._nursery.lives:
            with suppress(NotForked):
                return self._nursery.fork()
        if self._nursery:
            self._nursery.close()
        self._environment = _environment()
        self._nursery = Nursery([*STANDBY, FORK, *self._modules, THEN, *self._later], self._environment)
        with suppress(NotForked):  # killed already, or out of memory: no reason for the worker to end
            return self._nursery.fork()
        return None

    async def _start(self) -> anyio.abc.Process:
        self._environment = _environment()
        pipe = subprocess.PIPE
        return await anyio.open_process(
            [*STANDBY, *self._modules], env=self._environment, stdin=pipe, stdout=pipe, stderr=pipe, **OF_ITS_OWN
        )

    def fits(self, command: list[str], environment: Mapping[str, str]) -> bool:
        """Whether one waits that is as the run's own process would be, but for what the run alone is told."""
        if self._waiting is None or self._waiting.returncode is not None or command != ENGINE:
            return False
        return _shared(environment) == _shared(self._environment)

    @asynccontextmanager
    async def take(self, environment: Mapping[str, str], folder: str) -> AsyncIterator[anyio.abc.Process]:
        """The process, told whose run it is; ended on the way out, as Prefect ends its own."""
        process, self._waiting = self._waiting, None
        assert process and process.stdin
        try:
            async with process:
                told = {"environment": dict(environment), "folder": folder}
                await process.stdin.send(json.dumps(told).encode() + b"\n")
                if isinstance(process, Forked):
                    await process.begun()
                yield process
        finally:
            if process.returncode is None:
                process.terminate()
            with anyio.CancelScope(shield=True):
                await process.aclose()

    async def run_process(
        self,
        command: list[str],
        *,
        stream_output: Any = False,
        task_status: Any = None,
        task_status_handler: Callable[[anyio.abc.Process], Any] | None = None,
        **how: Any,
    ) -> anyio.abc.Process:
        """Prefect's `run_process`: in the process that waits where it fits, else in a new one."""
        environment = {name: value for name, value in (how.get("env") or {}).items() if value is not None}
        if set(how) - {"env", "cwd"} or not stream_output or not self.fits(command, environment):
            options = {"task_status": task_status, "task_status_handler": task_status_handler, **OF_ITS_OWN, **how}
            process = await processutils.run_process(command, stream_output=stream_output, **options)
            await self.prepare()  # the one that waited may have been killed
            return process
        sinks = (sys.stdout, sys.stderr) if stream_output is True else stream_output
        async with self.take(environment, str(how.get("cwd") or os.getcwd())) as process:
            if task_status is not None:
                task_status.started(task_status_handler(process) if task_status_handler else process.pid)
            await processutils.consume_process_output(process, stdout_sink=sinks[0], stderr_sink=sinks[1])
            await process.wait()
        await self.prepare()
        return process


def _environment() -> dict[str, str]:
    """Of a run's process, but for what the run alone is told."""
    return {**os.environ, **get_current_settings().to_environment_variables(exclude_unset=True)}


def _shared(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(OF_ONE_RUN)}


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it takes the place of Prefect's own, which is meant

    class QuickWorker(ProcessWorker):
        """Prefect's process worker with a process in waiting."""

        type = ProcessWorker.type
        job_configuration = DirectConfiguration

        async def setup(self) -> None:
            """Begin, and have a process made for the first run."""
            pool = self._work_pool_name
            url = get_current_settings().api.url
            self._unheard = Unheard(PrefectApi(url.rstrip("/"))) if url and pool == "orchestrate" else None
            await super().setup()
            await self._crash_what_was_begun()
            later = () if has_driver() else LATER.get(pool, ())
            self._standby = Standby(*MODULES.get(pool, ()), later=later)
            _starter_engine.run_process = self._standby.run_process  # type: ignore[attr-defined]  # meant to be replaced
            await self._standby.prepare()

        async def run(self, flow_run: FlowRun, configuration: Any, task_status: Any = None) -> Any:
            """Prefect's, but a process is known by its machine too: numbers alone are the same on many."""
            return await super().run(flow_run, configuration, _OnThisMachine(task_status) if task_status else None)

        async def sync_with_backend(self) -> None:
            """Prefect's, twice a minute; the worker of casts, which every studio has, looks after what others left open."""
            try:
                await super().sync_with_backend()
            finally:
                if self._unheard:
                    self._unheard.look()

        async def _propose_pending_state(self, flow_run: FlowRun) -> bool:
            """Prefect's; the state itself says who took the run, so that it is lost neither with a worker that dies nor with an answer."""
            if is_stopping(find_home()):
                return False
            run, mine, taken = flow_run.id, self._begun_here, False
            state: State[Any] | None = None
            try:
                state = await propose_state(self.client, Pending(message=mine), flow_run_id=run)
            except (Abort, Exception) as error:  # perhaps it was taken, and the answer is what was lost
                self._logger.info("run %s was not given to this worker: %s", run, error)
            try:
                state = state or (await self.client.read_flow_run(run)).state
                taken = state is not None and state.is_pending() and state.message == mine
                if taken:
                    await self.client.update_flow_run(run, infrastructure_pid=mine)  # not that of an earlier try
            except Exception as error:
                self._logger.warning("run %s does not say which worker took it: %s", run, error)
            return taken

        async def _crash_what_was_begun(self) -> None:
            """What this worker's predecessor had taken and not begun will never begin."""
            pending = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PENDING]))
            for run in await self.client.read_flow_runs(flow_run_filter=FlowRunFilter(state=pending)):
                told = run.infrastructure_pid or (run.state and run.state.message)
                if told == self._begun_here:
                    died = Crashed(message=f"worker {self.name} took it and died before it began")
                    await self.client.set_flow_run_state(run.id, died, force=True)

        @property
        def _begun_here(self) -> str:
            return f"begun by {self.name}"

        async def teardown(self, *exc_info: Any) -> None:
            """End, with the process that waits."""
            await self._standby.close()
            await super().teardown(*exc_info)


class _OnThisMachine:
    """Whoever waits for a run's process to begin, told its machine and number.

    Args:
        task_status: of the task group that starts it.
    """

    def __init__(self, task_status: Any) -> None:
        self._task_status = task_status

    def started(self, pid: int) -> None:
        """It has begun."""
        self._task_status.started(f"{platform.node()}:{pid}")


def main() -> None:
    """Prefect's own command, with the worker above in the place of Prefect's."""
    from prefect.cli import app

    sys.argv[:] = ["prefect", "worker", *sys.argv[1:]]
    app()


if __name__ == "__main__":
    main()
