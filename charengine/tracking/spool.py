"""Metrics go to a local file first and to the tracking server in batches, from one background thread.

Training never waits for the server: `add` appends a line and returns. What a killed process had not sent yet is sent by
the next one that opens the same run (`recover`); a dead server only makes the file longer.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from charengine.files import json_in
from charengine.machine.full_disks import is_waited_for, warn
from charengine.machine.processes import has_ended, this_process

log = logging.getLogger(__name__)

BATCH = 500  # points in one request
QUEUE = 20_000  # points held in memory; what is beyond stays in the file until `recover`
SEND_EVERY = 2.0  # seconds
LONGEST_PAUSE = 60.0  # seconds between attempts while the server is away
DISK_PAUSES = (1.0, 5.0, 15.0)  # seconds that the end of a work waits for the disk
SPOOL = "spool"  # in MLflow's folder of the home
RUN_ID = re.compile("[0-9a-f]{32}")  # MLflow's; files of other names are another program's


class Point(NamedTuple):
    """One metric value; `when` is Unix time in milliseconds."""

    key: str
    value: float
    step: int
    when: int


def _point(line: str) -> Point | None:
    """The value that a line tells; None for another line, as the last of a process that was killed while writing it."""
    told = json_in(line)
    kinds: tuple[Any, ...] = (str, int | float, int, int)
    fits = isinstance(told, list) and len(told) == len(kinds) and all(map(isinstance, told, kinds))
    return Point(*told) if fits else None


WRITER = "process"  # the only field of the line that a process begins with


def left_points(folder: Path) -> bool:
    """Whether points wait in the folder whose process has ended: it will not send them itself."""
    return any(map(_is_left, _spooled(folder)))


def _spooled(folder: Path) -> list[Path]:
    """The files of points in a folder."""
    return [path for path in folder.glob("*.jsonl") if RUN_ID.fullmatch(path.stem) and path.is_file()]


def _is_left(path: Path) -> bool:
    """Whether whoever wrote to a file of points last has ended, or is not known; not when it was delivered meanwhile."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return False
    last = ""
    for line in lines:
        if line.startswith(f'{{"{WRITER}"') and isinstance(told := json_in(line), dict):  # else it was cut off
            last = told[WRITER] if isinstance(told.get(WRITER), str) else last
    return not last or has_ended(last)


class NotTold(Exception):
    """The server does not say what it holds: nothing may be sent that it might hold already."""


class Job(NamedTuple):
    """A slower delivery, and what is done when it fails."""

    what: str
    deliver: Callable[[], object]
    otherwise: Callable[[], object]


class MetricSpool:
    """One writer for all runs of a process.

    Args:
        folder: where `<run id>.jsonl` files are kept.
        send: delivers points of one run; may raise, then it is tried again later.
    """

    def __init__(self, folder: Path, send: Callable[[str, list[Point]], None]) -> None:
        self._folder = folder
        self._send = send
        self._queue: deque[tuple[str, Point]] = deque()
        self._jobs: deque[Job] = deque()
        self._files: dict[str, TextIO] = {}
        self._unwritten: dict[str, list[Point]] = {}  # what the disk did not take, in order
        self._incomplete: set[str] = set()
        self._changed = threading.Condition()
        self._busy = False
        self._pause = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="metric-spool", daemon=True)
        folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def add(self, run_id: str, metrics: Mapping[str, float], step: int) -> None:
        """Queue metrics of one step; never blocks on the server."""
        when = int(time.time() * 1000)
        points = [Point(key, float(value), step, when) for key, value in metrics.items()]
        self._append(run_id, points)
        with self._changed:
            if len(self._queue) + len(points) > QUEUE:
                self._incomplete.add(run_id)
                return
            self._queue.extend((run_id, point) for point in points)
            if len(self._queue) >= BATCH:
                self._changed.notify_all()

    def submit(self, what: str, deliver: Callable[[], object], otherwise: Callable[[], object] = lambda: None) -> None:
        """Run a slower delivery (a picture, a file) in the same background thread; one that fails is done otherwise."""
        with self._changed:
            self._jobs.append(Job(what, deliver, otherwise))
            self._changed.notify_all()

    def recover(self, run_id: str, delivered: Callable[[str], Collection[int]]) -> int:
        """Queue what an earlier process wrote down but did not deliver; how many points that was.

        Args:
            run_id: of the run.
            delivered: the steps of a metric that the server holds.
        """
        try:
            points = [point for point in self._read(run_id) if point.step not in delivered(point.key)]
        except NotTold as error:
            log.warning("%s; what waits in %s waits on", error, self._path(run_id))
            self._incomplete.add(run_id)
            return 0
        with self._changed:
            self._queue.extend((run_id, point) for point in points)
            self._changed.notify_all()
        return len(points)

    def written_step(self, run_id: str, key: str) -> int:
        """Highest step of a metric in the run's file, or that waits for it; -1 when there is none."""
        return max((point.step for point in self._read(run_id) if point.key == key), default=-1)

    def sync(self, run_id: str, pauses: tuple[float, ...] | None = None) -> bool:
        """What was added to a run survives a power cut from now on; a disk that does not take it is waited for a little. Whether it did."""
        for pause in DISK_PAUSES if pauses is None else pauses:
            if self._is_synced(run_id):
                return True
            time.sleep(pause)
        return self._is_synced(run_id)

    def _is_synced(self, run_id: str) -> bool:
        """Whether all of a run could be written and is on the disk; without a file there is nothing to sync."""
        if self._unwritten.get(run_id) and not self._append(run_id, []):
            return False
        file = self._files.get(run_id)
        try:
            if file is not None:
                os.fsync(file.fileno())
        except OSError as error:
            warn(log, self._folder, "metrics cannot be spooled to %s: %s", self._folder, error.strerror)
            return False
        return True

    def waiting(self) -> list[str]:
        """Ids of the runs that have a file, this process's own left out."""
        return sorted(path.stem for path in _spooled(self._folder) if path.stem not in self._files)

    def drain(self, run_id: str, seconds: float = 30.0, ended: str = "FINISHED") -> bool:
        """Wait until everything of a run that ended so is delivered, at most so long; the run's file goes when it is."""
        deadline = time.monotonic() + seconds
        with self._changed:
            self._pause = 0.0
            self._changed.notify_all()
            while self._pending(run_id) and time.monotonic() < deadline and not self._pause:
                self._changed.wait(0.2)
            done = not self._pending(run_id) and run_id not in self._incomplete
            undone = [] if done else [self._jobs.popleft() for _ in range(len(self._jobs))]
        for job in undone:
            job.otherwise()
        kept = done or self.sync(run_id, None if is_waited_for(self._folder, ended) else ())
        self._close_file(run_id)
        if done:
            self._unwritten.pop(run_id, None)
            with suppress(OSError):
                self._path(run_id).unlink(missing_ok=True)
        elif kept:
            log.warning("MLflow does not answer; metrics of run %s wait in %s", run_id, self._path(run_id))
        else:
            warn(log, self._folder, "neither MLflow nor the disk took the last metrics of run %s", run_id)
        return done

    def close(self) -> None:
        """Stop the thread; undelivered points stay in their files."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=15)
        for run_id in list(self._files):
            self._close_file(run_id)

    def _pending(self, run_id: str) -> bool:
        return self._busy or bool(self._jobs) or any(queued == run_id for queued, _ in self._queue)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                if not self._closed and (self._pause or not self._jobs):
                    self._changed.wait(self._pause or SEND_EVERY)
                if self._closed:
                    return
                run_id, points = self._take()
                job = self._jobs.popleft() if self._jobs else None
                self._busy = bool(points or job)
            if points:
                self._deliver(run_id, points)
            if job:
                self._run(job)

    def _take(self) -> tuple[str, list[Point]]:
        """The next points of the oldest queued run, in order."""
        if not self._queue:
            return "", []
        run_id = self._queue[0][0]
        taken: list[Point] = []
        rest: deque[tuple[str, Point]] = deque()
        for queued, point in self._queue:
            if queued == run_id and len(taken) < BATCH:
                taken.append(point)
            else:
                rest.append((queued, point))
        self._queue = rest
        return run_id, taken

    def _deliver(self, run_id: str, points: list[Point]) -> None:
        try:
            self._send(run_id, points)
        except Exception as error:  # any failure of a server: the points are safe in the file, training goes on
            pause = min(LONGEST_PAUSE, max(2.0, self._pause * 2))
            why = (str(error).splitlines() or [""])[0][:200]
            warn(log, self._folder, "MLflow took no metrics (%s); trying again in %.0f s", why, pause)
            with self._changed:
                self._queue.extendleft((run_id, point) for point in reversed(points))
                self._pause = pause
            return
        self._pause = 0.0

    def _run(self, job: Job) -> None:
        try:
            job.deliver()
        except Exception as error:  # a late picture is worth a warning, not a lost run
            why = (str(error).splitlines() or [""])[0][:200]
            warn(log, self._folder, "MLflow did not take %s: %s", job.what, why)
            job.otherwise()

    def _path(self, run_id: str) -> Path:
        return self._folder / f"{run_id}.jsonl"

    def _append(self, run_id: str, points: list[Point]) -> bool:
        """Write what waits and these points, in order, so that the highest step written says that those below are; whether it could be."""
        waiting = self._unwritten.setdefault(run_id, [])
        waiting += points
        try:
            file = self._files.get(run_id)
            if file is None:
                file = self._files[run_id] = self._path(run_id).open("a", buffering=1, encoding="utf-8")
                file.write("\n")  # the line before may have been cut off, and would take the next one with it
                file.write(json.dumps({WRITER: this_process()}) + "\n")  # `left_points` asks; `_read` passes it over
            file.write("".join(json.dumps(point) + "\n" for point in waiting))
        except OSError as error:
            warn(log, self._folder, "metrics cannot be spooled to %s yet: %s", self._folder, error.strerror)
            self._close_file(run_id)
            return False
        waiting.clear()
        return True

    def _read(self, run_id: str) -> list[Point]:
        path = self._path(run_id)
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        return [*filter(None, map(_point, lines)), *self._unwritten.get(run_id, [])]

    def _close_file(self, run_id: str) -> None:
        file = self._files.pop(run_id, None)
        if file is not None:
            try:
                file.close()
            except OSError as error:  # the disk is full: nothing that is worth a run
                warn(log, self._folder, "metrics cannot be spooled to %s: %s", self._folder, error.strerror)
