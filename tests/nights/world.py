"""The world of one night: a cast on workers over a disk, a Prefect and an MLflow that fail as its seed says."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import httpx
from mlflow.exceptions import MlflowException
from prefect.exceptions import PrefectHTTPStatusError

from charengine.errors import EngineError
from charengine.tracking.open_tracker import open_tracker
from flows import pool
from nights import character
from nights.character import HOME, NAMES
from nights.disk import Disk
from nights.schedule import Process, Schedule
from nights.servers import Mlflow, MlflowClient, Prefect, State
from tasks.stage import should_retry

TYPICAL_STEPS = 1200  # of an undisturbed night
WORKERS = 2
NO_HEARTBEAT, NOT_STARTED = 120.0, 3600.0  # seconds after which the automations mark a run as crashed
WRITES = ("write", "create", "rename", "fsync", "mkdir", "link")


class Broken(AssertionError):
    """Something is not true in the morning."""


@dataclass(frozen=True)
class Plan:
    """What goes wrong in a night, drawn from its seed.

    Args:
        kills: (step, what is killed).
        away: (server, from, to) in simulated seconds.
        full: (from, to) in which nothing can be written.
        requests: share of requests that fail; half of them have taken effect.
        disk: share of writes, renames, syncs that fail.
        clock: (step, seconds) by which the wall clock is set.
        links: the file system has hard links.
    """

    kills: tuple[tuple[int, str], ...] = ()
    away: tuple[tuple[str, float, float], ...] = ()
    full: tuple[float, float] = (0.0, 0.0)
    requests: float = 0.0
    disk: float = 0.0
    clock: tuple[tuple[int, float], ...] = ()
    links: bool = True


def drawn_plan(dice: random.Random) -> Plan:
    """A night's faults."""
    kinds = ("flow", "flow", "worker", "parent", "up", "power", "power")
    kills = tuple(
        sorted((dice.randrange(TYPICAL_STEPS), dice.choice(kinds)) for _ in range(dice.choice((0, 1, 2, 3, 5))))
    )
    away = tuple(
        (server, start, start + dice.choice((0.5, 5.0, 60.0, 400.0)))
        for server in ("prefect", "mlflow", "mlflow")
        if dice.random() < 0.4
        for start in (dice.uniform(0, 80),)
    )
    start = dice.uniform(0, 60)
    full = (start, start + dice.choice((1.0, 10.0, 60.0))) if dice.random() < 0.15 else (0.0, 0.0)
    clock = tuple(
        (dice.randrange(TYPICAL_STEPS), dice.choice((-7200.0, -1.0, 3600.0))) for _ in range(dice.choice((0, 0, 1)))
    )
    return Plan(
        kills,
        away,
        full,
        dice.choice((0.0, 0.0, 0.01, 0.05)),
        dice.choice((0.0, 0.0, 0.002, 0.01)),
        clock,
        dice.random() < 0.9,
    )


@dataclass
class Night:
    """The world of one seed.

    Args:
        seed: decides everything.
        plan: what goes wrong; drawn when left out.
    """

    seed: int
    plan: Plan | None = None
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.faults = self.plan if self.plan is not None else drawn_plan(random.Random(f"plan {self.seed}"))
        self.schedule = Schedule(random.Random(f"turns {self.seed}"))
        self.disk = Disk(self.schedule, random.Random(f"disk {self.seed}"), self._disk_fault)
        self.mlflow = Mlflow()
        self.client = MlflowClient(self.mlflow, lambda name: self._request("mlflow", name))
        self.prefect = Prefect(lambda name: self._request("prefect", name))
        self.flows: dict[str, Process] = {}
        self.working: dict[str, Process] = {}
        self.workers: list[Process] = []
        self.parent: Process | None = None
        self.asked = 0
        self.outcomes: dict[str, str] = {}
        self.silent: dict[str, float] = {}  # run → when something was last heard of it
        self.quiet = False
        self.is_morning = False
        events = [(step, lambda what=what: self._kill(what)) for step, what in self.faults.kills]
        events += [(step, lambda by=by: self._set_clock(by)) for step, by in self.faults.clock]
        self.schedule.events = sorted(events, key=lambda event: -event[0])

    # --- the night ---

    def run(self) -> None:
        """Until all characters are made and the morning's first run has come by.

        Raises:
            Stuck: it does not end.
        """
        self.disk.folders |= {"/night/home", "/night/studio"}
        self.schedule.spawn("up", self._up)
        self.schedule.run(lambda: self.is_morning)

    def say(self, text: str) -> None:
        """For the log of a night that is run again."""
        self.told.append(f"{self.schedule.steps:6d} {self.schedule.now:8.1f} s  {text}")

    def _up(self) -> None:
        """Not killed itself: starts what has ended, asks for the cast until it is there, and looks at the morning."""
        while True:
            self._restart()
            if self.parent is None or not self.parent.alive:
                if self._all_made():
                    break
                self._ask()
            self.schedule.wait(1.0)
        self.quiet = True
        while any(not run.state.is_final() for run in self.prefect.runs.values()) or any(
            process.alive for process in self.flows.values()
        ):
            self._restart()
            self.schedule.wait(1.0)
        for worker in self.workers:
            self._end(worker)
        self.workers = []
        self.schedule.spawn("morning", self._morning, lambda error: self._morning_ended(error))
        self.schedule.wait(None, lambda: self.is_morning)

    def _restart(self) -> None:
        self.workers = [worker for worker in self.workers if worker.alive]
        while len(self.workers) < WORKERS:
            self.workers.append(self.schedule.spawn("worker", self._worker))
        for run in self.prefect.active():
            flow = self.flows.get(run.id)
            seconds = self.schedule.now - self.silent.setdefault(run.id, self.schedule.now)
            if flow is not None and flow.alive and self.schedule.is_running(run.worker):
                self.silent[run.id] = self.schedule.now
            elif seconds > (NOT_STARTED if run.state.type == "PENDING" else NO_HEARTBEAT):  # deployments/automations
                self.say(f"{run.name}: nothing is heard of it, {run.state.type}")
                run.state = State("CRASHED")

    def _all_made(self) -> bool:
        return set(self.outcomes) == set(NAMES) and not any(self.outcomes.values())

    def _ask(self) -> None:
        self.asked += 1
        self.quiet = self.quiet or self.asked > 4
        cast = [character.entry(name) for name in NAMES]
        self.outcomes = {}
        self.say(f"the cast is asked for, {self.asked}")
        batch_id = f"night-{self.asked}"
        self.parent = self.schedule.spawn("parent", lambda: self._batch(cast, batch_id))

    def _batch(self, cast: list[dict[str, Any]], batch_id: str) -> None:
        for ended in pool.made_on_pool(cast, batch_id):
            state: Any = ended.run.state if ended.run else None
            self.outcomes[cast[ended.index]["name"]] = (
                "" if state and state.is_completed() else ended.error or state.message or state.type
            )

    def _worker(self) -> None:
        """Takes runs, one at a time, as Prefect's process worker does."""
        me = self.schedule.current()
        assert me
        while True:
            try:
                run = self.prefect.next_scheduled(me.pid)
            except (httpx.HTTPError, PrefectHTTPStatusError):
                run = None
            if run is not None:
                flow = self.schedule.spawn(f"flow {run.name}", lambda run=run: self._flow(run.id, run.name))  # type: ignore[misc]
                self.flows[run.id] = flow
                self.schedule.wait(None, lambda flow=flow: not flow.alive)  # type: ignore[misc]
                self._persist(lambda run=run: self.prefect.set_flow_run_state(run.id, State("CRASHED")))  # type: ignore[misc]
            self.schedule.step()
            self.schedule.wait(2.0)

    def _flow(self, run_id: str, name: str) -> None:
        """A flow's process: its state is told to Prefect at both ends."""
        if not self._persist(lambda: self.prefect.set_flow_run_state(run_id, State("RUNNING")), tries=4):
            return
        try:
            character.make(name, self._attempts)
            state = State("COMPLETED")
        except Exception as error:
            self.say(f"{name} failed: {type(error).__name__}: {error}")
            if not isinstance(error, EngineError | OSError | MlflowException):
                raise Broken(f"{name}: {type(error).__name__}: {error}") from error
            state = State("FAILED", f"{type(error).__name__}: {error}")
        self._persist(lambda: self.prefect.set_flow_run_state(run_id, state), tries=4)

    def _attempts(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """As Prefect runs a task: again where that can help."""
        for attempt in range(3):
            try:
                return call(*arguments)
            except Exception as error:
                state: Any = SimpleNamespace(result=lambda raise_on_failure, error=error: error)
                if attempt == 2 or not should_retry(None, None, state):  # type: ignore[arg-type]
                    raise
            self.schedule.wait(2.0**attempt)

    def _persist(self, call: Callable[[], Any], tries: int = 1000) -> Any:
        """As Prefect's client: again while the server is away."""
        for _ in range(tries):
            try:
                return call()
            except (httpx.HTTPError, PrefectHTTPStatusError):
                self.schedule.wait(3.0)
        return None

    def _morning(self) -> None:
        """The first run of the next day: what was written down reaches MLflow."""
        tracker = open_tracker(HOME, project="charengine", name="morning", key="run-morning", params={}, tags={})
        tracker.finish()

    def _morning_ended(self, error: BaseException | None) -> None:
        if error is not None:
            raise Broken(f"the morning's run failed: {error!r}") from error
        self.is_morning = True

    # --- what goes wrong ---

    def _kill(self, what: str) -> None:
        if self.quiet:
            return
        flows = [flow for flow in self.flows.values() if flow.alive]
        chosen = {
            "flow": flows,
            "worker": self.workers,
            "parent": [self.parent] if self.parent else [],
            "up": [*flows, *self.workers, self.parent],
            "power": [*flows, *self.workers, self.parent],
        }[what]
        alive = [process for process in chosen if process and process.alive]
        if what in ("flow", "worker", "parent"):
            alive = [self.dice.choice(alive)] if alive else []
        self.say(f"killed: {what} ({', '.join(process.name for process in alive)})")
        for process in alive:
            self._end(process)
        if what == "power":
            self.disk.lose_power()
        if what in ("up", "power"):  # services.prefect_api.crash_left_runs
            for run in self.prefect.active():
                run.state = State("CRASHED")

    def _end(self, process: Process) -> None:
        self.schedule.kill(process)
        self.disk.close_of(process)

    def _set_clock(self, by: float) -> None:
        self.say(f"the clock is set by {by:g} s")
        self.schedule.drift += by

    def _disk_fault(self, name: str, path: str) -> int:
        if self.quiet or self.schedule.current() is None or name not in WRITES:
            return 0
        if name == "link" and not self.faults.links:
            return errno.EPERM
        start, end = self.faults.full
        if start <= self.schedule.now < end and name in ("write", "create", "mkdir"):
            return errno.ENOSPC
        if self.faults.disk and self.dice.random() < self.faults.disk:
            self.say(f"fails: {name} {path}")
            return self.dice.choice((errno.EIO, errno.ENOSPC))
        return 0

    def _request(self, server: str, name: str) -> bool:
        """Whether the answer is lost."""
        self.schedule.step()
        if self.quiet:
            return False
        away = any(one == server and start <= self.schedule.now < end for one, start, end in self.faults.away)
        if away:
            self.schedule.wait(0.1)
        if away or self.dice.random() < self.faults.requests / 2:
            self.say(f"{server} refuses {name}")
            raise self._refusal(server, name)
        if self.faults.requests and self.dice.random() < self.faults.requests / 2:
            self.say(f"{server} loses the answer to {name}")
            return True
        return False

    def _refusal(self, server: str, name: str) -> Exception:
        if server == "mlflow":
            return MlflowException(f"{name}: API request failed, connection refused")
        if self.dice.random() < 0.5:
            return httpx.ConnectError(f"{name}: connection refused")
        response = httpx.Response(503, request=httpx.Request("POST", "http://prefect.night/api"))
        return PrefectHTTPStatusError(f"{name}: 503", request=response.request, response=response)

    # --- what the night sees of the work ---

    def begins(self, work: str) -> Callable[[], None]:
        """Nobody else may be at it."""
        me = self.schedule.current()
        assert me
        other = self.working.get(work)
        if other is not None and other is not me and other.alive:
            raise Broken(f"{work} is made twice at once")
        self.working[work] = me
        return lambda: self.working.pop(work, None) and None
