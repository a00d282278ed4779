"""`charengine up`: the gallery, Prefect and MLflow with their pages, and the workers, on this machine; all of it ends together."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from charengine import files
from charengine.errors import BadInput, ConfigError, Interrupted, StageFailed
from charengine.machine.addresses import answers, database_uri, own_origins, running_services
from charengine.machine.databases import database_problems
from charengine.machine.environment import apply_defaults, for_children
from charengine.machine.home import WORK_FOLDER, Home, work_folder
from charengine.machine.locks import flocked_if_free
from charengine.machine.processes import HOST, choose_port, end, is_port, spawn
from charengine.machine.variables import check_variables
from charengine.services.children import Children
from charengine.services.delivery import Delivery
from charengine.services.prefect_api import cancel_active_runs, crash_left_runs, give_back_runs
from charengine.services.stopping import stopping
from charengine.services.workers import WORKER, count_gpus, start_workers

log = logging.getLogger(__name__)

PORTS = {"gallery": 4300, "prefect": 4200, "mlflow": 5000}
# glibc gives each thread a heap of its own, which never shrinks; a server has a thread for each connection to its database, and grew by the hour
FEW_ARENAS = {"MALLOC_ARENA_MAX": "2"}
START_SECONDS = 180.0  # the first start makes both databases
SAY_SECONDS = 10.0  # without a word
ENDING_SECONDS = 20.0  # that one which is just ending is waited for
CANCEL_SECONDS = 40.0  # a training saves its state well within this


@dataclass
class Addresses:
    """Where the pages are."""

    prefect_port: int
    mlflow_port: int
    gallery_port: int = PORTS["gallery"]

    @property
    def gallery(self) -> str:
        """The page of all characters."""
        return f"http://{HOST}:{self.gallery_port}"

    @property
    def prefect(self) -> str:
        """Prefect's page."""
        return f"http://{HOST}:{self.prefect_port}"

    @property
    def api(self) -> str:
        """Prefect's API."""
        return f"{self.prefect}/api"

    @property
    def mlflow(self) -> str:
        """MLflow's page and API."""
        return f"http://{HOST}:{self.mlflow_port}"


@dataclass
class Up:
    """The running set.

    Args:
        home: databases, logs and the state file.
        addresses: of the servers.
        gpus: how many; each gets a worker, none means one worker on the CPU. None: counted while the servers come up.
        asked_to_stop: asked twice a second.
    """

    home: Home
    addresses: Addresses
    gpus: int | None
    asked_to_stop: Callable[[], bool]
    children: Children = field(init=False)
    delivery: Delivery = field(init=False)
    mlflow_page: str = field(default="", init=False)  # where MLflow shows the runs
    _setting_up: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.children = Children(self.home.logs)
        self.delivery = Delivery(self.home, self.addresses.mlflow, self._environment())
        self._set_up_log = self.home.logs / "set-up.log"

    def start(self) -> None:
        """Servers, then deployments, then workers; returns when all of it answers.

        Raises:
            StageFailed: something did not come up; its last log lines are in the message.
        """
        self._run("prefect-server", ["deployments.server", "--port", self.addresses.prefect_port])
        self._begin_set_up()
        self._run("gallery", ["charengine.services.gallery", "--port", self.addresses.gallery_port])
        from charengine.tracking.database import initialise_database  # takes a second, in which the two above begin

        initialise_database(self.home)
        self._run("mlflow-server", self._mlflow_command())
        gpus = self.gpus = count_gpus() if self.gpus is None else self.gpus
        self._wait_for("Prefect", lambda: answers(f"{self.addresses.api}/health"))
        self._wait_for("MLflow", lambda: answers(f"{self.addresses.mlflow}/health"))
        self._wait_for("the gallery", lambda: answers(f"{self.addresses.gallery}/health"))
        if left := crash_left_runs(self.addresses.api):
            log.warning("%d runs of the last time have no process any more; they are marked as crashed", left)
        from charengine.tracking.experiment import experiment_page

        self.mlflow_page = experiment_page(self.home, self.addresses.mlflow)
        self._end_set_up()
        start_workers(self.children, gpus, self._environment())
        self._write_state()

    def watch(self) -> None:
        """Keep everything running, and MLflow told, until asked to stop.

        Raises:
            StageFailed: a child ended again and again.
        """
        while not self.asked_to_stop():
            self.children.restart_ended()
            self.delivery.look()
            time.sleep(0.5)

    def stop(self) -> None:
        """Cancel what runs, so that it saves its state; then workers, then what waits for MLflow, then servers; nothing is left behind."""
        self.home.services_file.unlink(missing_ok=True)
        if any(child.name.startswith(WORKER) for child in self.children.running):
            with stopping(self.home):
                self._cancel_runs()
                self.children.end_families(WORKER)  # with the runs: nobody is at work any more in what is delivered
            self._give_back_runs()
            self.delivery.finish(self.children.restart_ended)
        if self._setting_up and self._setting_up.poll() is None:
            end(self._setting_up)
        self.children.end_families("")

    def _cancel_runs(self) -> None:
        try:
            cancel_active_runs(self.addresses.api, CANCEL_SECONDS)
        except OSError as error:
            log.warning("what runs could not be cancelled (%s); it loses what it did since it last saved", error)

    def _give_back_runs(self) -> None:
        try:
            give_back_runs(self.addresses.api)
        except OSError as error:
            log.warning("runs that had not begun could not be given back (%s); continue them in the gallery", error)

    def _mlflow_command(self) -> list[object]:
        return [
            "deployments.mlflow_server",
            "--host",
            HOST,
            "--port",
            self.addresses.mlflow_port,
            "--workers",
            1,
            "--backend-store-uri",
            database_uri(self.home),
            "--artifacts-destination",
            (self.home.mlflow / "artifacts").as_uri(),
        ]

    def _run(self, name: str, command: list[object]) -> None:
        self.children.start(name, command, FEW_ARENAS | self._environment())

    def _environment(self) -> dict[str, str]:
        return {
            **for_children(),
            "CHARENGINE_HOME": str(self.home.root),
            "PREFECT_API_URL": self.addresses.api,
            "PREFECT_UI_URL": self.addresses.prefect,
            "MLFLOW_TRACKING_URI": self.addresses.mlflow,
            **_mlflow_limits(self.addresses.mlflow_port),
            WORK_FOLDER: str(work_folder()),
            "TMPDIR": str(self.home.temporary),  # what a killed worker leaves there goes with the folder
        }

    def _begin_set_up(self) -> None:
        """The deployments are made by a process that imports the flows while the servers begin, and waits for Prefect itself."""
        self._set_up_log.write_bytes(b"")
        with self._set_up_log.open("ab") as output:
            self._setting_up = spawn(["deployments.set_up", "--wait"], output, self._environment())

    def _end_set_up(self) -> None:
        process = self._setting_up
        assert process
        self._wait_for("making the deployments", lambda: process.poll() is not None)
        said = self._set_up_log.read_text(encoding="utf-8", errors="replace")
        if process.returncode:
            raise StageFailed(f"the deployments could not be made:\n{said[-2000:]}")
        for line in said.splitlines():
            if line.startswith("warning: "):
                log.warning(line)

    def _wait_for(self, what: str, ready: Callable[[], bool]) -> None:
        began = said = time.monotonic()
        while not ready():
            self.children.check_alive()
            if self.asked_to_stop():
                raise Interrupted("stopped before everything was up")
            now = time.monotonic()
            if now > said + SAY_SECONDS:
                log.info("waiting for %s, %.0f s so far", what, now - began)
                said = now
            if now > began + START_SECONDS:
                raise StageFailed(f"{what} did not answer within {START_SECONDS:.0f} s; see {self.home.logs}")
            time.sleep(0.3)

    def _write_state(self) -> None:
        state = {
            "pid": os.getpid(),
            "prefect_api": self.addresses.api,
            "prefect_ui": self.addresses.prefect,
            "mlflow": self.addresses.mlflow,
            "gallery": self.addresses.gallery,
        }
        self.home.services_file.write_text(json.dumps(state, indent=2), encoding="utf-8")
        used = self.addresses
        ports = {"prefect": used.prefect_port, "mlflow": used.mlflow_port, "gallery": used.gallery_port}
        self.home.ports_file.write_text(json.dumps(ports), encoding="utf-8")


@contextmanager
def services(
    home: Home,
    asked_to_stop: Callable[[], bool],
    prefect_port: int | None = None,
    mlflow_port: int | None = None,
    gallery_port: int | None = None,
    begins: Callable[[], None] = lambda: None,
) -> Iterator[Up]:
    """The running set; everything is stopped on the way out, however that is. `begins` is called once nothing is refused.

    Raises:
        BadInput: it runs already or is starting or ending, a port that was asked for is taken, or a variable or a database is wrong.
        StageFailed: something did not come up.
        Interrupted: asked to stop before it was up.
    """
    if found := running_services(home):
        raise BadInput(f"charengine up already runs here (process {found.pid}): {found.prefect_api}, {found.mlflow}")
    check_variables(of_servers=True)
    apply_defaults(home.create())
    with _alone(home, asked_to_stop):
        if problems := database_problems(home):
            raise ConfigError(problems)
        Children(home.logs).end_left(home.root)  # before the ports are asked for
        _empty(home.temporary)  # once nobody can be using it
        home.temporary.mkdir(exist_ok=True)
        ports = remembered_ports(home)
        asked = {"prefect": prefect_port, "mlflow": mlflow_port, "gallery": gallery_port}
        addresses = Addresses(**{f"{name}_port": choose_port(port, ports[name]) for name, port in asked.items()})
        running = Up(home, addresses, None, asked_to_stop)
        begins()
        try:
            running.start()
            yield running
        finally:
            running.stop()
            _empty(home.temporary)


@contextmanager
def _alone(home: Home, asked_to_stop: Callable[[], bool]) -> Iterator[None]:
    """Whoever starts or ends is not in the home's `up.json`, and its servers would pass for what a killed `up` left.

    Raises:
        BadInput: another is starting or ending.
        Interrupted: asked to stop while it was waited for.
    """
    deadline = time.monotonic() + ENDING_SECONDS
    while True:
        with flocked_if_free(home.locks / "up.lock", make=True) as free:
            if free:
                yield
                return
        if asked_to_stop():
            raise Interrupted("stopped before another charengine up had ended")
        if time.monotonic() > deadline:
            raise BadInput(
                f"another charengine up is just starting or ending in {home.root}: wait until its pages answer, or until it has "
                "stopped; for one beside it set CHARENGINE_HOME to another folder"
            )
        time.sleep(0.3)


def _empty(folder: Path) -> None:
    """Remove a folder; what another process is just writing into stays until the next time."""
    shutil.rmtree(folder, ignore_errors=True)


def remembered_ports(home: Home) -> dict[str, int]:
    """The ports of the last time, so that links and pictures in the pages go on working; else the usual ones."""
    kept = files.kept_object(home.ports_file)
    return {name: kept[name] if is_port(kept.get(name)) else usual for name, usual in PORTS.items()}


def _mlflow_limits(port: int) -> dict[str, str]:
    """Names MLflow's server answers to, and pages that may call it, unless the user has set either."""
    limits = {
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"{HOST}:*,localhost:*",
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(own_origins(port)),
    }
    return {name: os.environ.get(name) or value for name, value in limits.items()}
