"""Where things live, and the environment defaults of Prefect and MLflow: the one file that sets them.

Home folder: `$CHARENGINE_HOME`, else `~/.charengine`. A variable that the user has set is never overwritten.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from charengine.errors import BadInput

WORK_FOLDER = "CHARENGINE_WORK_FOLDER"

DEFAULTS = {
    # torch's threads may not spin without end at a barrier: ten times slower when cores are shared
    "OMP_WAIT_POLICY": "PASSIVE",
    # but sleeping at every small one costs half of the time on quiet cores: GNU's OpenMP spins for some 20 µs first
    "GOMP_SPINCOUNT": "10000",
    # nothing is reported to anybody
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # the default 20 s are too few on a fresh home, where the database is made first
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # leases in memory are lost with the server, and their slots leak
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # a dead server must not hold a GPU: MLflow's default retries take four minutes a call
    "PREFECT_CLIENT_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    # the default 10 s of polling dominate a short run
    "PREFECT_WORKER_QUERY_SECONDS": "2",
    # a flow process that dies is noticed after three missed beats (deployments/automations)
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # the engine's own log lines reach Prefect's UI
    "PREFECT_LOGGING_EXTRA_LOGGERS": "charengine",
    # loading a model is not worth a bar each
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # LyCORIS must not compile kernels of its own before training starts
    "LYCORIS_KERNEL_BACKEND": "torch",
}


@dataclass(frozen=True)
class Home:
    """The folder that outlives runs."""

    root: Path

    @property
    def store(self) -> Path:
        """Blobs by digest."""
        return self.root / "store"

    @property
    def state(self) -> Path:
        """Resumable training states, one folder a stage key."""
        return self.root / "state"

    @property
    def locks(self) -> Path:
        """Files that processes flock."""
        return self.root / "locks"

    @property
    def mlflow(self) -> Path:
        """MLflow's database, artifacts and spool."""
        return self.root / "mlflow"

    @property
    def prefect(self) -> Path:
        """Prefect's database and results."""
        return self.root / "prefect"

    @property
    def logs(self) -> Path:
        """Tracebacks of unexpected errors, and the logs of `charengine up`."""
        return self.root / "logs"

    @property
    def services_file(self) -> Path:
        """What `charengine up` wrote about the servers it started."""
        return self.root / "up.json"

    def create(self) -> Home:
        """Make the folders.

        Raises:
            BadInput: the home cannot be written.
        """
        try:
            for folder in (self.store, self.state, self.locks, self.mlflow, self.prefect, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(
                f"home folder {self.root} cannot be written ({error.strerror}); set CHARENGINE_HOME to a folder that can"
            ) from error
        return self


@dataclass(frozen=True)
class Services:
    """The servers that `charengine up` started."""

    prefect_api: str
    mlflow: str
    pid: int


def find_home() -> Home:
    """The home folder; nothing is created."""
    return Home(Path(os.environ.get("CHARENGINE_HOME") or Path.home() / ".charengine").expanduser().absolute())


def apply_defaults(home: Home) -> None:
    """Set every default that the user has not set. Call before Prefect or MLflow are imported."""
    for name, value in {**DEFAULTS, "PREFECT_HOME": str(home.prefect)}.items():
        os.environ.setdefault(name, value)


def work_folder() -> Path:
    """Where relative paths start: the folder that `charengine up` was started in, else the current one.

    A worker runs each flow in a folder of its own, which is gone afterwards.
    """
    return Path(os.environ.get(WORK_FOLDER) or Path.cwd())


def tracking_uri(home: Home) -> str:
    """MLflow's address: `MLFLOW_TRACKING_URI`, else the database in the home folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or database_uri(home)


def database_uri(home: Home) -> str:
    """MLflow's SQLite database in the home folder."""
    return f"sqlite:///{home.mlflow / 'mlflow.db'}"


def use_services(home: Home) -> Services | None:
    """Point this process at the servers of `charengine up`, when they answer and the user named no others."""
    services = running_services(home)
    if services:
        os.environ.setdefault("PREFECT_API_URL", services.prefect_api)
        os.environ.setdefault("MLFLOW_TRACKING_URI", services.mlflow)
    return services


def running_services(home: Home) -> Services | None:
    """The servers of `charengine up`, if they answer."""
    try:
        data = json.loads(home.services_file.read_text())
        services = Services(prefect_api=data["prefect_api"], mlflow=data["mlflow"], pid=int(data["pid"]))
    except (OSError, ValueError, KeyError):
        return None
    return services if answers(f"{services.prefect_api}/health") and answers(f"{services.mlflow}/health") else None


def answers(url: str, seconds: float = 3.0) -> bool:
    """Whether a health address says 200."""
    try:
        with urllib.request.urlopen(url, timeout=seconds) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False
