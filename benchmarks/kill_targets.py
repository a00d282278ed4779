"""One `charengine up` in a home of its own, whose processes are killed: its start, its cast, its processes, how long until it is whole."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from charengine.machine.addresses import Services, answers, running_services
from charengine.machine.home import Home
from charengine.run import request
from charengine.services.prefect_api import PrefectApi
from charengine.store import Store

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 900.0
STARTS = 3
NOTICED_SECONDS = 200.0  # more than any promise of the recovery table
STANDBY = "standby"

# whose locks are held while they are made; other locks are of runs and of MLflow's. These casts ask for no further views
STAGES = tuple(stage for stage in request.STAGES if stage != "expand")

# what is killed: texts of which the command line of such a process has one
COMMANDS: dict[str, tuple[str, ...]] = {
    "up": ("-m charengine.cli up",),
    "Prefect": ("-m deployments.server ",),
    "MLflow": ("-m deployments.mlflow_server ",),
    "gallery": ("-m charengine.services.gallery ",),
    "worker": ("worker start --pool characters",),
    "batch worker": ("worker start --pool orchestrate",),
    "flow": ("-m prefect.engine", "-m prefect flow-run execute"),
    STANDBY: ("-m deployments.standby ",),  # until it takes a run: then it is a flow
}


@dataclass
class Site:
    """A home, the folder its runs go to, and the `up` that serves it.

    Args:
        folder: gets `home`, `work` and `tmp`.
        environment: for all processes, beside what they need to find the home.
        also: further things to kill, name → texts of the command line (a database, a store), of any home.
    """

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    also: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    popen: subprocess.Popen[bytes] | None = None

    @property
    def home(self) -> Home:
        """Its home folder."""
        return Home(self.folder / "home")

    @property
    def work(self) -> Path:
        """Where `up` stands: relative paths and results."""
        return self.folder / "work"

    @property
    def tmp(self) -> Path:
        """The temporary folder of all its processes."""
        return self.folder / "tmp"

    def start(self) -> None:
        """Start `up` and wait until it says that it is ready; again when a busy machine was too slow for it."""
        for folder in (self.work, self.tmp):
            folder.mkdir(parents=True, exist_ok=True)
        for left in range(STARTS - 1, -1, -1):
            try:
                self._start()
                return
            except RuntimeError:
                if not left:
                    raise

    def _start(self) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
        own = {"CHARENGINE_HOME": str(self.home.root), "TMPDIR": str(self.tmp), "PYTHONPATH": str(ROOT)}
        with (self.folder / "up.log").open("ab") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "charengine.cli", "up"],
                env={**kept, "OMP_NUM_THREADS": "1", **own, **self.environment},
                cwd=self.work,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while (found := running_services(self.home)) is None or found.pid != self.popen.pid:
            if self.popen.poll() is not None:
                raise RuntimeError(f"up ended with status {self.popen.returncode}:\n{self.last_words()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"up is not ready after {START_SECONDS:.0f} s:\n{self.last_words()}")
            time.sleep(0.5)

    def stop(self) -> float:
        """Ctrl-C, as a user ends it; the seconds it took."""
        assert self.popen
        started = time.monotonic()
        self.popen.send_signal(signal.SIGINT)
        self.popen.wait(180)
        return time.monotonic() - started

    def has_ended(self) -> bool:
        """Whether `up` has ended by itself."""
        return self.popen is not None and self.popen.poll() is not None

    def last_words(self) -> str:
        """The end of what `up` said."""
        return (self.folder / "up.log").read_text(errors="replace")[-3000:]

    @property
    def services(self) -> Services:
        """The addresses, of the last `up`."""
        import json

        data = json.loads(self.home.services_file.read_text())
        return Services(data["prefect_api"], data["mlflow"], data["pid"])

    def api(self, path: str, body: dict[str, Any]) -> Any:
        """A POST to Prefect; asked again while it is away."""
        return self._patiently(lambda: PrefectApi(self.services.prefect_api).post(path, body))

    def read(self, path: str) -> Any:
        """A GET from Prefect; asked again while it is away."""
        import json

        def call() -> Any:
            with urllib.request.urlopen(f"{self.services.prefect_api}/{path}", timeout=20) as response:
                return json.loads(response.read())

        return self._patiently(call)

    def _patiently(self, call: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return call()
            except (OSError, ValueError, http.client.HTTPException):
                if time.monotonic() > deadline:
                    raise
                time.sleep(1.0)

    # --- the cast ---

    def ask(self, cast: list[dict[str, Any]], batch_id: str) -> str:
        """Ask for a cast as the nightly schedule does; the id of the batch's run. Asking again with the same id is the same run."""
        (deployment,) = [one for one in self.api("deployments/filter", {}) if one["name"] == "batch"]
        parameters = {"characters": cast, "file": "", "workers": True, "batch_id": batch_id}
        wanted = {"parameters": parameters, "idempotency_key": batch_id}
        return str(self.api(f"deployments/{deployment['id']}/create_flow_run", wanted)["id"])

    def runs(self) -> list[dict[str, Any]]:
        """All flow runs."""
        return list(self.api("flow_runs/filter", {"limit": 200}))

    # --- processes ---

    def processes(self) -> dict[str, list[psutil.Process]]:
        """What runs for this home, by kind; also what a killed `up` left behind."""
        found: dict[str, list[psutil.Process]] = {name: [] for name in (*COMMANDS, *self.also, "other")}
        mine = f"{self.home.root}"
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                words = process.cmdline()
                if not words or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if kind := kind_of(words, self.also):
                    found[kind].append(process)
                elif process.environ().get("CHARENGINE_HOME") == mine:
                    kind = kind_of(words, COMMANDS) or "other"
                    found["flow" if kind == STANDBY and has_a_run(process) else kind].append(process)
        return found

    def end_all(self, gently: bool = False) -> None:
        """Whatever is left of its own processes, which have ended by themselves where their files are needed."""
        for kind, found in self.processes().items():
            for process in found if kind not in self.also else []:
                with suppress(psutil.Error):
                    process.kill()

    # --- what is checked in the end ---

    @property
    def stays(self) -> Collection[str]:
        """The kinds of process that run on once the night's work has been ended."""
        return self.also

    def store(self) -> Store:
        """Where results are."""
        return Store(self.home.store)

    @property
    def mlflow_uri(self) -> str:
        """Where MLflow's runs are read, also once its server has ended."""
        return f"sqlite:///{self.home.mlflow / 'mlflow.db'}"

    @property
    def homes(self) -> list[Home]:
        """Where spools, states and temporary files are."""
        return [self.home]

    @property
    def works(self) -> list[Path]:
        """Where the folders of runs are."""
        return [self.work]

    @property
    def temporaries(self) -> list[Path]:
        """The temporary folders of all processes."""
        return [self.tmp]

    def held(self) -> list[str]:
        """Locks and slots that somebody holds."""
        holders = lock_holders()
        locks = [path for path in sorted(self.home.locks.glob("*")) if path.stat().st_ino in holders]
        leases = sorted((self.home.prefect / "concurrency_leases").glob("*.json"))
        slots = [f"Prefect: lease {path.name} is held" for path in leases if path.name != "expirations.json"]
        return [f"lock: {path.name} is held" for path in locks] + slots

    # --- recovery ---

    def subject(self, kind: str, process: psutil.Process) -> str:
        """What is asked for after the kill of a process: a flow's run."""
        return self.run_of(process.pid) if kind == "flow" else ""

    def recovered(self, kind: str, subject: str, since: float) -> Callable[[], bool]:
        """The question whose first yes ends the time of recovery.

        Args:
            kind: what was killed.
            subject: what `subject` gave before that.
            since: when.
        """
        return whole_again(self, kind, subject, since)

    def run_of(self, pid: int) -> str:
        """The id of the run that a process was given; empty for none."""
        given = {str(run["infrastructure_pid"]).rpartition(":")[2]: run["id"] for run in self.runs()}  # "[host:]pid"
        return str(given.get(f"{pid}", ""))

    def stage_of(self, pid: int) -> str:
        """The stage that a process holds the lock of; empty between stages."""
        held = lock_holders()
        for path in self.home.locks.glob("*.lock"):
            with suppress(OSError):
                if held.get(path.stat().st_ino) == pid and (stage := path.name.split("-")[0]) in STAGES:
                    return stage
        return ""


def kind_of(words: list[str], commands: Mapping[str, tuple[str, ...]]) -> str:
    """The kind of process that a command line is of; empty for none."""
    line = " ".join(words)
    return next((name for name, texts in commands.items() if any(text in line for text in texts)), "")


def has_a_run(process: psutil.Process) -> bool:
    """Whether a process in waiting was told of a run: its input is closed then (deployments/standby.py)."""
    return os.readlink(f"/proc/{process.pid}/fd/0") == os.devnull


def lock_holders() -> dict[int, int]:
    """inode → process id of every flock that is held on this machine."""
    held = {}
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1] == "FLOCK":
            held[int(words[5].rpartition(":")[2])] = int(words[4])
    return held


def whole_again(site: Site, kind: str, run_id: str, since: float) -> Callable[[], bool]:
    """The question whose first yes ends the time of recovery.

    A server answers; a worker that Prefect has heard of since the kill; a flow's run that is no longer called running.
    """

    def replaced() -> bool:
        # begun after the kill: a child that outlived its parent, and still answers, is no replacement
        return any(process.create_time() > since for process in site.processes()[kind])

    def heard() -> bool:
        pool = "characters" if kind == "worker" else "orchestrate"
        workers = PrefectApi(site.services.prefect_api).post(f"work_pools/{pool}/workers/filter", {})
        return any(seconds_of(worker["last_heartbeat_time"]) > since for worker in workers)

    def noticed() -> bool:
        wanted = {"flow_runs": {"id": {"any_": [run_id]}}}
        (run,) = PrefectApi(site.services.prefect_api).post("flow_runs/filter", wanted)
        return run["state_type"] not in ("RUNNING", "PENDING", "CANCELLING")

    if kind == "Prefect":
        return lambda: replaced() and answers(f"{site.services.prefect_api}/health")
    if kind == "MLflow":
        return lambda: replaced() and answers(f"{site.services.mlflow}/health")
    if kind == "gallery":
        return replaced
    if kind in ("worker", "batch worker"):
        return lambda: replaced() and heard()
    return noticed


def seconds_until(question: Callable[[], bool], since: float, limit: float = NOTICED_SECONDS) -> float | None:
    """Seconds from a kill until the answer is yes; None when it stays no."""
    while time.time() - since < limit:
        with suppress(OSError, ValueError, http.client.HTTPException):
            if question():
                return round(time.time() - since, 1)
        time.sleep(0.25)
    return None


def seconds_of(stamp: str) -> float:
    """A time of Prefect's, in seconds since 1970."""
    from datetime import datetime

    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()
