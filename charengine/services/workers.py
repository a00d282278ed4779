"""`charengine worker`: the workers of one machine among several, for servers that run elsewhere; and how `charengine up` starts its own."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from charengine.errors import BadInput, Interrupted
from charengine.machine.addresses import answers
from charengine.machine.environment import apply_defaults, for_children
from charengine.machine.home import WORK_FOLDER, Home, work_folder
from charengine.machine.locks import reach_other_machines
from charengine.machine.shared import STORE, check_locks, open_store, shared_store
from charengine.machine.variables import check_variables
from charengine.services.admission import refusal_of_mlflow, refusal_of_prefect
from charengine.services.children import Children
from charengine.services.delivery import Delivery
from charengine.services.living import runs_a_flow
from charengine.services.prefect_api import crash_runs_of
from charengine.services.stopping import stopping

log = logging.getLogger(__name__)

# Of NVIDIA, of AMD, of Windows for its Linux; a machine without them has no GPU
DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
WORKER = "worker"  # how the names of the workers begin
ORCHESTRATE_LIMIT = 4  # batch parents only wait, so several share one worker
ADDRESSES = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")
VISIBLE = "CUDA_VISIBLE_DEVICES"
LOOK_AGAIN = 1.0  # seconds between two questions whether the servers answer


@dataclass
class Workers:
    """The workers of this machine, one a GPU and one for casts, and the process that tells MLflow what it missed.

    Args:
        home: of this machine; locks, logs and what waits for MLflow.
        asked_to_stop: asked twice a second.
    """

    home: Home
    asked_to_stop: Callable[[], bool]
    gpus: int = field(default=0, init=False)
    children: Children = field(init=False)
    delivery: Delivery = field(init=False)

    def __post_init__(self) -> None:
        self.temporary, self.logs = own_folder(self.home.temporary), own_folder(self.home.logs)
        self.children = Children(self.logs)
        self.delivery = Delivery(self.home, os.environ["MLFLOW_TRACKING_URI"], self._environment())

    def start(self) -> None:
        """Wait for the servers, and start.

        Raises:
            Interrupted: asked to stop meanwhile.
            BadInput: the store cannot be used or locked, or Prefect does not let this machine in.
        """
        if store := shared_store():
            check_locks(store)
        else:
            open_store(self.home)
        self._wait_for_servers()
        self._ask_to_be_let_in()
        self._crash_left_runs()
        self._forget_copies()
        self.gpus = count_gpus()
        start_workers(self.children, self.gpus, self._environment(), f"{platform.node()}-")

    def watch(self) -> None:
        """Keep everything running, and MLflow told, until asked to stop.

        Raises:
            StageFailed: a worker ended again and again.
        """
        while not self.asked_to_stop():
            self.children.restart_ended()
            self.delivery.look()
            time.sleep(0.5)

    def stop(self) -> None:
        """End the workers with their runs, which others try again from where these were; then tell MLflow what waits."""
        began = any(child.name.startswith(WORKER) for child in self.children.running)
        with stopping(self.home):
            self.children.end_families()
        if began:
            self._crash_left_runs()
            self._forget_copies()
            self.delivery.finish(lambda: None)

    def _wait_for_servers(self) -> None:
        waited = False
        while missing := [name for name in ADDRESSES if not answers(_health(os.environ[name]))]:
            if self.asked_to_stop():
                raise Interrupted("stopped before the servers answered")
            if not waited:
                log.warning("waiting for %s", " and ".join(f"{name}={os.environ[name]}" for name in missing))
            waited = True
            time.sleep(LOOK_AGAIN)

    def _ask_to_be_let_in(self) -> None:
        """Without Prefect nothing is made; what MLflow refuses waits, as while it is away."""
        if refusal := refusal_of_prefect(os.environ["PREFECT_API_URL"]):
            raise BadInput(refusal)
        if refusal := refusal_of_mlflow(os.environ["MLFLOW_TRACKING_URI"]):
            log.warning("%s; until then what it is told waits", refusal)

    def _crash_left_runs(self) -> None:
        """What Prefect believes to run here has no process any more: no worker of this home is there."""
        try:
            if left := crash_runs_of(os.environ["PREFECT_API_URL"].rstrip("/"), platform.node(), runs_a_flow):
                log.warning("%d runs of this machine have no process any more; they are marked as crashed", left)
        except OSError as error:
            log.warning("runs that this machine left could not be marked as crashed (%s); Prefect notices", error)

    def _forget_copies(self) -> None:
        """States of trainings that were killed here: another machine goes on from the store, and nobody else ends these."""
        if shared_store() is not None:
            shutil.rmtree(self.home.state, ignore_errors=True)
            self.home.create()

    def _environment(self) -> dict[str, str]:
        return {
            **for_children(),
            "CHARENGINE_HOME": str(self.home.root),
            WORK_FOLDER: str(work_folder()),
            "TMPDIR": str(self.temporary),  # what a killed worker leaves there goes with the folder
        }


def own_folder(folder: Path) -> Path:
    """Of this machine alone inside a folder of a home that several may share."""
    return folder / platform.node()


def check_addresses() -> None:
    """Whether the three are named; the store is opened, which waits while its server is away.

    Raises:
        BadInput: one is not, or the store cannot be used.
    """
    if unnamed := [name for name in ADDRESSES if not os.environ.get(name)]:
        raise BadInput(f"set {' and '.join(unnamed)}: the addresses of the servers (docs/howto/many-machines.md)")
    if not reach_other_machines():
        raise BadInput(
            f"set {STORE} to the store that the machines share, s3://BUCKET/PREFIX; or where they share a folder, "
            "CHARENGINE_HOME to that and CHARENGINE_LOCKS=lease"
        )


@contextmanager
def workers(home: Home, asked_to_stop: Callable[[], bool]) -> Iterator[Workers]:
    """The workers of this machine, after `check_addresses`; everything is stopped on the way out, however that is.

    Raises:
        BadInput: as `Workers.start` does, or a variable is wrong.
        Interrupted: asked to stop before the servers answered.
    """
    check_variables(of_servers=True)
    apply_defaults(home.create())
    running = Workers(home, asked_to_stop)
    running.logs.mkdir(parents=True, exist_ok=True)
    running.children.end_left(home.root)
    _renew(running.temporary)
    try:
        running.start()
        yield running
    finally:
        running.stop()
        shutil.rmtree(running.temporary, ignore_errors=True)


def _renew(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)


def start_workers(children: Children, gpus: int, environment: Mapping[str, str], prefix: str = "") -> None:
    """One worker a GPU, or one on the CPU, and one for casts.

    Args:
        children: that they are started among.
        gpus: how many.
        environment: of each, with which GPU is its own.
        prefix: of the names that Prefect knows them by.
    """
    named = [name for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    for index in range(max(gpus, 1)):
        device = {VISIBLE: named[index] if index < len(named) else str(index)} if gpus else {}
        command = _worker("characters", f"{prefix}characters-{index}", 1)
        children.start(f"{WORKER}-{index}", command, {**environment, **device})
    command = _worker("orchestrate", f"{prefix}orchestrate", ORCHESTRATE_LIMIT)
    children.start(f"{WORKER}-orchestrate", command, {**environment, VISIBLE: ""})


def has_driver() -> bool:
    """Whether Linux has a GPU's driver here."""
    return any(Path(device).exists() for device in DRIVERS)


def count_gpus() -> int:
    """CUDA devices that this process may use; without a driver none, which is known before torch is imported."""
    if sys.platform == "linux" and not has_driver():
        return 0
    import torch

    return torch.cuda.device_count()


def _worker(pool: str, name: str, limit: int) -> list[object]:
    return ["deployments.worker", "start", "--pool", pool, "--name", name, "--limit", limit]


def _health(address: str) -> str:
    return f"{address.rstrip('/')}/health"
