"""Simulated processes on one thread: who goes on is drawn from a seed, and any of them can be killed between two steps.

A process of the night is a greenlet; a `threading.Thread` that product code starts is another one of the same process. They give
way in `step`, which every simulated call (a write, a request, a lock, a pause) goes through. A killed process makes no further
step: whatever its `finally` blocks attempt raises `Killed` again and has no effect.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from greenlet import getcurrent, greenlet

START = 1_790_000_000.0  # Unix time at which a night begins
STEP_SECONDS = 0.01  # that a step takes
MOST_STEPS = (
    120_000  # an hour of waiting for a run whose worker never heard of it is 25,000; a character has three tries
)


class Killed(BaseException):
    """This process has been killed."""


class Stuck(AssertionError):
    """The night does not end."""


@dataclass(eq=False)
class Process:
    """What is killed as a whole.

    Args:
        name: for messages.
        on_end: called with the error it ended with, None when it returned; not when it is killed.
    """

    name: str
    on_end: Callable[[BaseException | None], None] = lambda error: None
    alive: bool = True
    error: BaseException | None = None
    tasks: list[Task] = field(default_factory=list)
    pid: int = 0


@dataclass(eq=False)
class Task:
    """A thread of a process."""

    process: Process
    work: greenlet
    wake_at: float = 0.0  # simulated seconds; it is not chosen before
    until: Callable[[], bool] | None = None  # nor before this holds, unless `wake_at` has come
    done: bool = False


class Schedule:
    """Time and turns of one night.

    Args:
        dice: decides all.
        switch: share of steps after which another task may go on.
    """

    def __init__(self, dice: random.Random, switch: float = 0.15) -> None:
        self.dice, self.switch = dice, switch
        self.now = 0.0
        self.drift = 0.0  # of the wall clock, which may be set
        self.steps = 0
        self.tasks: list[Task] = []
        self.processes: dict[int, Process] = {}
        self.events: list[tuple[int, Callable[[], None]]] = []  # (step, what happens then), soonest last
        self._main = getcurrent()
        self._next_pid = 100

    # --- processes ---

    def spawn(
        self, name: str, body: Callable[[], None], on_end: Callable[[BaseException | None], None] = lambda error: None
    ) -> Process:
        """Start a process."""
        process = Process(name, on_end, pid=self._next_pid)
        self._next_pid += 1
        self.processes[process.pid] = process
        self.thread(process, body, main=True)
        return process

    def thread(self, process: Process, body: Callable[[], None], main: bool = False) -> Task:
        """Start a thread of a process; the process ends with its main one."""

        def run() -> None:
            error: BaseException | None = None
            try:
                body()
            except Killed:
                return
            except BaseException as raised:
                error = raised
            task.done = True
            if main and process.alive:
                self._end(process, error)

        task = Task(process, greenlet(run, self._main))
        process.tasks.append(task)
        self.tasks.append(task)
        return task

    def kill(self, process: Process) -> None:
        """End a process at once; it hears nothing of it."""
        process.alive = False
        for task in process.tasks:
            task.done = True
        self.tasks = [task for task in self.tasks if task.process is not process]

    def _end(self, process: Process, error: BaseException | None) -> None:
        self.kill(process)
        process.error = error
        process.on_end(error)

    def current(self) -> Process | None:
        """The process whose turn it is; None outside of any."""
        task = self._task()
        return task.process if task else None

    def _task(self) -> Task | None:
        here = getcurrent()
        return getattr(here, "task", None)

    def is_running(self, pid: int) -> bool:
        """Whether a process id is one that runs."""
        return pid in self.processes and self.processes[pid].alive

    # --- steps ---

    def step(self) -> None:
        """One simulated call of the current process; raises `Killed` in one that is dead."""
        task = self._task()
        if task is None:
            return
        if not task.process.alive:
            raise Killed
        self.steps += 1
        self.now += STEP_SECONDS
        while self.events and self.events[-1][0] <= self.steps:
            self.events.pop()[1]()
        if not task.process.alive:
            raise Killed
        if self.dice.random() < self.switch:
            self._give_way(task)

    def wait(self, seconds: float | None, until: Callable[[], bool] | None = None) -> None:
        """Let the others go on until the time is over or the condition holds (None: for ever, until it holds)."""
        task = self._task()
        if task is None:
            return
        if not task.process.alive:
            raise Killed
        task.wake_at = self.now + seconds if seconds is not None else float("inf")
        task.until = until or (lambda: False)
        self._give_way(task)

    def _give_way(self, task: Task) -> None:
        self._main.switch()
        if not task.process.alive:
            raise Killed

    def run(self, finished: Callable[[], bool]) -> None:
        """Give turns until the night has ended.

        Raises:
            Stuck: it does not.
        """
        self._main = getcurrent()
        while not finished():
            self.steps += 1
            while self.events and self.events[-1][0] <= self.steps:
                self.events.pop()[1]()
            if self.steps > MOST_STEPS:
                raise Stuck(f"the night has not ended after {self.steps} steps, {self.now:.0f} s: {self.told()}")
            ready = [task for task in self.tasks if self._ready(task)]
            if not ready:
                times = [task.wake_at for task in self.tasks if task.wake_at != float("inf")]
                if not times:
                    raise Stuck(f"all wait for each other: {self.told()}")
                self.now = max(self.now, min(times))
                continue
            task = ready[0] if len(ready) == 1 else self.dice.choice(ready)
            task.wake_at, task.until = 0.0, None
            task.work.task = task  # type: ignore[attr-defined]
            task.work.parent = self._main
            task.work.switch()
            if task.done or task.work.dead:
                self.tasks = [one for one in self.tasks if one is not task]

    def _ready(self, task: Task) -> bool:
        if task.until is None:
            return task.wake_at <= self.now
        return task.until() or task.wake_at <= self.now

    def told(self) -> str:
        """Who is there."""
        return ", ".join(sorted({task.process.name for task in self.tasks})) or "nobody"


class Clock:
    """Stands for the module `time`."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def time(self) -> float:
        """Unix time; may be set back."""
        return START + self._schedule.now + self._schedule.drift

    def monotonic(self) -> float:
        """Seconds that only grow."""
        return self._schedule.now

    perf_counter = monotonic

    def sleep(self, seconds: float) -> None:
        """Let others go on."""
        self._schedule.step()
        self._schedule.wait(seconds)

    def strftime(self, form: str) -> str:
        """The time of day."""
        import time

        return time.strftime(form, time.gmtime(self.time()))


class Threading:
    """Stands for the module `threading`, as the spool of metrics uses it."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def Thread(self, target: Callable[[], None], name: str = "", daemon: bool = False) -> _Thread:  # noqa: N802
        """A thread of the current process."""
        return _Thread(self._schedule, target)

    def Condition(self) -> _Condition:  # noqa: N802
        """A condition; turns change only in `wait`, so its lock is never waited for."""
        return _Condition(self._schedule)


class _Thread:
    def __init__(self, schedule: Schedule, target: Callable[[], None]) -> None:
        self._schedule, self._target = schedule, target
        self._task: Task | None = None

    def start(self) -> None:
        process = self._schedule.current()
        assert process
        self._task = self._schedule.thread(process, self._target)

    def join(self, timeout: float | None = None) -> None:
        task = self._task
        if task and not task.done:
            self._schedule.wait(timeout, lambda: task.done)


class _Condition:
    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._calls = 0

    def __enter__(self) -> _Condition:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def notify_all(self) -> None:
        self._calls += 1

    def wait(self, timeout: float | None = None) -> None:
        before = self._calls
        self._schedule.wait(timeout, lambda: self._calls != before)
