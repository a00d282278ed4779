"""The processes that `charengine up` keeps running: one that ends by itself is started again."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from charengine import files
from charengine.errors import StageFailed
from charengine.machine.logs import rotate
from charengine.machine.processes import end, end_group, end_left_group, spawn

log = logging.getLogger(__name__)

REMEMBERED = "children.json"
FIRST_PAUSE = 1.0  # seconds before a child is started again, doubled each time
LONGEST_PAUSE = 30.0
MOST_RESTARTS = 8  # of one child within `FORGIVEN_AFTER`, then it is given up
FORGIVEN_AFTER = 3600.0  # seconds that a child must have run for its earlier ends to be forgotten


@dataclass
class Child:
    """A process and what it takes to start it again."""

    name: str
    command: list[object]
    environment: Mapping[str, str]
    log_file: Path
    popen: subprocess.Popen[bytes]
    started: float
    ends: int = 0  # since it last ran for long
    start_at: float | None = None  # when it is due again; None while it runs

    def last_words(self) -> str:
        """The end of its log."""
        return "\n".join(self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])


@dataclass
class Children:
    """All of them, in the order started.

    Args:
        logs: folder of their log files, `NAME.log`.
    """

    logs: Path
    running: list[Child] = field(default_factory=list)

    def start(self, name: str, command: list[object], environment: Mapping[str, str]) -> None:
        """Start one; its log begins anew, and the last time's is kept as the part before it."""
        log_file = self.logs / f"{name}.log"
        log_file.touch()  # of a first start there is none to keep
        rotate(log_file, largest=1)
        popen = _spawn(command, log_file, environment)
        self.running.append(Child(name, command, environment, log_file, popen, time.monotonic()))
        self._remember()

    def check_alive(self) -> None:
        """While they come up, none may end.

        Raises:
            StageFailed: one has; its last log lines are in the message.
        """
        for child in self.running:
            if child.popen.poll() is not None:
                raise StageFailed(f"{child.name} ended with status {child.popen.returncode}:\n{child.last_words()}")

    def restart_ended(self) -> None:
        """Start again what has ended by itself, after a pause that grows; the others go on meanwhile. Large logs begin anew.

        Raises:
            StageFailed: one ends again and again; its last log lines are in the message.
        """
        now = time.monotonic()
        for child in self.running:
            rotate(child.log_file)
            if child.start_at is not None:
                if now >= child.start_at:
                    child.popen = _spawn(child.command, child.log_file, child.environment)
                    child.started, child.start_at = now, None
                    self._remember()
            elif child.popen.poll() is not None:
                self._plan_restart(child, now)

    def _plan_restart(self, child: Child, now: float) -> None:
        child.ends = 1 if now - child.started > FORGIVEN_AFTER else child.ends + 1
        if child.ends > MOST_RESTARTS:
            raise StageFailed(
                f"{child.name} ended {child.ends} times, last with status {child.popen.returncode}:\n{child.last_words()}"
            )
        end_group(child.popen.pid)
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (child.ends - 1))
        child.start_at = now + pause
        log.warning(
            "%s ended with status %s; it is started again in %.0f s (its log: %s)",
            child.name,
            child.popen.returncode,
            pause,
            child.log_file,
        )

    def end(self, named: str = "") -> None:
        """End them all, the last first; or only those whose name begins so."""
        for child in reversed(self.running):
            if child.name.startswith(named):
                end(child.popen)
        self.running = [child for child in self.running if not child.name.startswith(named)]
        self._remember()

    def end_families(self, named: str = "") -> None:
        """The same, with all that they have started."""
        family = _descendants([child.popen.pid for child in self.running if child.name.startswith(named)])
        self.end(named)
        for straggler in family:
            with suppress(ProcessLookupError):
                os.kill(straggler, signal.SIGKILL)

    def end_left(self, home: Path) -> None:
        """End what children of an earlier `up` of this home left running when that was killed: a server's child holds its port."""
        left = files.kept_json(self.logs / REMEMBERED)
        for pid in left if isinstance(left, list) else []:
            if type(pid) is int:
                end_left_group(pid, str(home))

    def _remember(self) -> None:
        """Process ids, for the next `up` when this one is killed."""
        (self.logs / REMEMBERED).write_text(json.dumps([child.popen.pid for child in self.running]), encoding="utf-8")


def _descendants(pids: list[int]) -> list[int]:
    """Processes that these have started, and theirs; of this process's other children, none."""
    import psutil

    found = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            found += [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return found


def _spawn(command: list[object], log_file: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with log_file.open("ab") as output:
        return spawn(command, output, environment)
