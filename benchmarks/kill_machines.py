"""A studio of three machines that share three addresses and no folder, as a site whose processes are killed.

A machine is a namespace of this computer with a name and process ids of its own, in which `charengine worker` runs with a home, a work
folder and a temporary folder of its own. Its first process is the machine: killing that is pulling the plug, and it is started again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from kill_servers import Ports, Servers, is_due
from kill_targets import COMMANDS, ROOT, STAGES, STANDBY, Site, has_a_run, kind_of, seconds_of

from charengine.machine.addresses import Services
from charengine.machine.home import Home
from charengine.services.prefect_api import PrefectApi
from charengine.store import Store
from charengine.tracking.waiting import is_left

NAMES = ("m1", "m2", "m3")
SERVERS = ("PostgreSQL", "Redis", "S3", "Prefect", "MLflow")
MACHINE = "machine"
READY = "ready; Ctrl-C stops all"
START_SECONDS = 600.0
DELIVERY_SECONDS = 400.0
OWN = ["unshare", "--uts", "--pid", "--mount", "--fork", "--mount-proc", "--kill-child"]
# not exec: the shell is the first process, and takes in what the killed leave behind
RUN = 'hostname "$0" && "$@"; exit $?'
FIRST_PORT, PORTS_OF_A_PLACE = 12_000, 10


@dataclass
class Machine:
    """One of them.

    Args:
        name: that it calls itself.
        folder: gets `home`, `work` and `tmp`.
    """

    name: str
    folder: Path
    popen: subprocess.Popen[bytes] | None = None
    start_at: float = 0.0

    @property
    def home(self) -> Home:
        """Its home folder."""
        return Home(self.folder / "home")

    @property
    def log(self) -> Path:
        """What `charengine worker` said."""
        return self.folder / "worker.log"

    def start(self, environment: Mapping[str, str]) -> None:
        """Switch it on."""
        for name in ("work", "tmp"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.folder / "tmp")  # as a machine's that is switched on
        (self.folder / "tmp").mkdir()
        foreign = ("PREFECT_", "MLFLOW_", "CHARENGINE_", "AWS_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        own = {"CHARENGINE_HOME": f"{self.home.root}", "TMPDIR": f"{self.folder / 'tmp'}", "PYTHONPATH": f"{ROOT}"}
        command = [*OWN, "sh", "-c", RUN, self.name, sys.executable, "-m", "charengine.cli", "worker"]
        with self.log.open("wb") as output:
            self.popen = subprocess.Popen(
                command,
                env={**kept, "OMP_NUM_THREADS": "1", **own, **environment},
                cwd=self.folder / "work",
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.start_at = 0.0

    @property
    def is_ready(self) -> bool:
        """Whether its workers were started."""
        return READY in self.log.read_text(errors="replace")

    @property
    def first_process(self) -> psutil.Process | None:
        """The machine itself; None while it is off."""
        with suppress(psutil.Error):
            if self.popen and self.popen.poll() is None:
                return next(iter(psutil.Process(self.popen.pid).children()), None)
        return None


@dataclass
class Studio(Site):
    """Three machines and their servers.

    Args:
        place: of the studios at the same time, which; ports follow from it.
    """

    place: int = 0
    machines: list[Machine] = field(default_factory=list)
    _ending: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __post_init__(self) -> None:
        self.servers = Servers(self.folder / "servers", Ports(FIRST_PORT + self.place * PORTS_OF_A_PLACE))
        self.machines = [Machine(name, self.folder / name) for name in NAMES]
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    @property
    def home(self) -> Home:
        """Of the servers."""
        return Home(self.folder / "servers" / "home")

    @property
    def homes(self) -> list[Home]:
        """Of every machine."""
        return [machine.home for machine in self.machines]

    @property
    def works(self) -> list[Path]:
        """Where results go, of every machine."""
        return [machine.folder / "work" for machine in self.machines]

    @property
    def temporaries(self) -> list[Path]:
        """Every machine's temporary folder."""
        return [machine.folder / "tmp" for machine in self.machines]

    @property
    def stays(self) -> Collection[str]:
        """The servers: they are ended once the checks are made."""
        return SERVERS

    def store(self) -> Store:
        """The store that they share."""
        told = self.servers.credentials
        names = {"key": "AWS_ACCESS_KEY_ID", "secret": "AWS_SECRET_ACCESS_KEY", "endpoint_url": "AWS_ENDPOINT_URL_S3"}
        return Store(self.servers.store, **{option: told[name] for option, name in names.items()})

    @property
    def mlflow_uri(self) -> str:
        """Where MLflow's runs are read, also once its server has ended."""
        return self.servers.database("mlflow")

    @property
    def services(self) -> Services:
        """The addresses."""
        return Services(self.servers.prefect_api, self.servers.mlflow, os.getpid())

    # --- starting ---

    def start(self) -> None:
        """Servers, what the deployments need, machines; until all say that they are ready."""
        self.servers.start()
        environment = {
            **os.environ,
            **self.servers.for_machines,
            "CHARENGINE_HOME": f"{self.home.root}",
            "PYTHONPATH": f"{ROOT}",
        }
        subprocess.run([sys.executable, "-m", "deployments.set_up", "--wait"], check=True, env=environment, cwd=ROOT)
        for machine in self.machines:
            machine.start(self._told)
        deadline = time.monotonic() + START_SECONDS
        while not all(machine.is_ready for machine in self.machines):
            if time.monotonic() > deadline or any(
                machine.popen and machine.popen.poll() is not None for machine in self.machines
            ):
                raise RuntimeError(f"not all machines are ready:\n{self.last_words()}")
            time.sleep(0.5)
        self._ending.clear()
        self._thread = threading.Thread(target=self._keep_on, name="machines", daemon=True)
        self._thread.start()

    @property
    def _told(self) -> dict[str, str]:
        return {**self.servers.for_machines, **self.environment}

    def _keep_on(self) -> None:
        """A machine that went off is switched on again, as its owner would."""
        while not self._ending.wait(0.2):
            for machine in self.machines:
                if is_due(machine):
                    machine.start(self._told)

    def stop(self) -> float:
        """Ctrl-C on each machine; the seconds until the last has ended. The servers go on for the checks.

        Before that MLflow is told what waits, as it is of machines that run on: nobody switches a studio off at once.
        """
        until = time.monotonic() + DELIVERY_SECONDS
        while time.monotonic() < until and any(is_left(home) for home in self.homes):
            time.sleep(2.0)
        self._ending.set()
        if self._thread:
            self._thread.join()
        started = time.monotonic()
        for machine in self.machines:
            for process in self._of(machine, "-m charengine.cli worker"):
                process.send_signal(signal.SIGINT)
        for machine in self.machines:
            if machine.popen:
                machine.popen.wait(180)
        return time.monotonic() - started

    def end_all(self, gently: bool = False) -> None:
        """Whatever is left, the servers too; gently when their files are needed afterwards."""
        self._ending.set()
        for machine in self.machines:
            if machine.popen and machine.popen.poll() is None:
                machine.popen.kill()
                machine.popen.wait()
        self.servers.stop(gently)

    def has_ended(self) -> bool:
        """Nothing ends the whole."""
        return False

    def last_words(self) -> str:
        """The end of what each machine said."""
        return "\n".join(
            f"{machine.name}: {machine.log.read_text(errors='replace')[-1500:]}" for machine in self.machines
        )

    # --- processes ---

    def processes(self) -> dict[str, list[psutil.Process]]:
        """What runs on the machines, by kind, and the servers."""
        kinds = (*(name for name in COMMANDS if name not in ("up", "gallery", *SERVERS)), *SERVERS, MACHINE, "other")
        found: dict[str, list[psutil.Process]] = {name: [] for name in kinds}
        homes = {f"{machine.home.root}" for machine in self.machines}
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                words = process.cmdline()
                if (
                    not words
                    or process.status() == psutil.STATUS_ZOMBIE
                    or process.environ().get("CHARENGINE_HOME") not in homes
                ):
                    continue
                kind = kind_of(words, COMMANDS) or ("" if "charengine.cli worker" in " ".join(words) else "other")
                kind = "flow" if kind == STANDBY and has_a_run(process) else kind
                if kind:
                    found[kind].append(process)
        for name in SERVERS:
            with suppress(psutil.Error, StopIteration):
                if pid := self.servers.pid_of(name):
                    found[name].append(psutil.Process(pid))
        found[MACHINE] = [process for machine in self.machines if (process := machine.first_process)]
        return found

    def _of(self, machine: Machine, text: str) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                words = process.cmdline()
                own = process.environ().get("CHARENGINE_HOME") == f"{machine.home.root}"
                if own and words[:1] == [sys.executable] and text in " ".join(words):
                    found.append(process)
        return found

    def run_of(self, pid: int) -> str:
        """The id of the run that a process was given; empty for none."""
        machine, inner = self._inside(pid)
        named = f"{machine}:{inner}"
        return next((str(run["id"]) for run in self.runs() if run["infrastructure_pid"] == named), "")

    def _inside(self, pid: int) -> tuple[str, int]:
        """The machine that a process is on, and its number there."""
        home = psutil.Process(pid).environ()["CHARENGINE_HOME"]
        machine = next(machine.name for machine in self.machines if f"{machine.home.root}" == home)
        line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("NSpid:"))
        return machine, int(line.split()[-1])

    def stage_of(self, pid: int) -> str:
        """The stage whose lease a process holds; empty between stages, or while the store is away."""
        with suppress(psutil.Error, OSError, KeyError, StopIteration):
            machine, inner = self._inside(pid)
            namespace = os.stat(f"/proc/{pid}/ns/pid").st_ino
            host = hashlib.sha256(f"{machine} {self._boot} {namespace}".encode()).hexdigest()[:16]
            return self._stages_held().get((host, inner), "")
        return ""

    def _stages_held(self) -> dict[tuple[str, int], str]:
        return {
            (told["host"], told["pid"]): name.split("-")[0]
            for name, told in self.leases().items()
            if not told["free"] and name.split("-")[0] in STAGES
        }

    def leases(self) -> dict[str, dict[str, Any]]:
        """What the newest file of every lease in the store says, by the lease's name."""
        if not self.servers.answers("S3"):
            return {}
        store = self.store()
        newest: dict[str, str] = {}
        for path in sorted(store.fs.find(f"{store.root}/locks")):
            name, _, number = path.rpartition("/")[2].rpartition(".")
            if number.isdigit():
                newest[name] = path
        found = {}
        for name, path in newest.items():
            with suppress(FileNotFoundError, ValueError):
                found[name] = json.loads(store.fs.cat_file(path))
        return found

    def held(self) -> list[str]:
        """Locks, slots and leases that somebody holds."""
        import redis

        locks = [f"lease {name} is held" for name, told in self.leases().items() if not told["free"]]
        client = redis.Redis(port=self.servers.ports.redis)
        slots = [f"Prefect: {key.decode()} is held" for key in client.keys("*prefect:concurrency*lease:*")]
        return locks + slots

    def subject(self, kind: str, process: psutil.Process) -> str:
        """What is asked for after the kill: a flow's run, else the machine that it was on."""
        if kind == "flow":
            return self.run_of(process.pid)
        return "" if kind in SERVERS else self._inside(process.pid)[0]

    def recovered(self, kind: str, subject: str, since: float) -> Callable[[], bool]:
        """The question whose first yes ends the time of recovery: that of one machine, and a server gives its answer."""
        if kind in SERVERS:
            return lambda: self._is_new(kind, since) and self.servers.answers(kind)
        if kind in ("worker", "batch worker", MACHINE):
            pool = "orchestrate" if kind == "batch worker" else "characters"
            return lambda: (
                self._is_new("batch worker" if kind == "batch worker" else "worker", since)
                and self._heard(pool, subject, since)
            )
        return super().recovered(kind, subject, since)

    def _is_new(self, kind: str, since: float) -> bool:
        return any(process.create_time() > since for process in self.processes()[kind])

    def _heard(self, pool: str, machine: str, since: float) -> bool:
        """Whether Prefect heard of a machine's worker since the kill."""
        workers = PrefectApi(self.services.prefect_api).post(f"work_pools/{pool}/workers/filter", {})
        own = [worker for worker in workers if worker["name"].startswith(f"{machine}-")]
        return any(seconds_of(worker["last_heartbeat_time"]) > since for worker in own)
