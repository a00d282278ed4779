"""Where things live, and the environment defaults of Prefect and MLflow: the one file that sets them.

Home folder: `$CHARENGINE_HOME`, else `~/.charengine`. A variable that the user has set is never overwritten.
"""

from __future__ import annotations

import logging
import os
import sys

from charengine.machine.home import WORK_FOLDER, Home
from charengine.machine.locks import LOCKS
from charengine.machine.own_packages import INSTALLED
from charengine.machine.proxies import keep_loopback_direct
from charengine.machine.shared import STORE
from charengine.misspelt import did_you_mean, shown_value

CORS_ORIGINS = "PREFECT_SERVER_CORS_ALLOWED_ORIGINS"
SERVER_AUTH = "PREFECT_SERVER_API_AUTH_STRING"  # user:password
CLIENT_AUTH = "PREFECT_API_AUTH_STRING"
SITE = ("site-packages", "dist-packages")  # where installed packages lie
HEARTBEATS = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
CONSOLE_LEVEL = "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"
MLFLOW_LEVEL = "MLFLOW_LOGGING_LEVEL"

PREFIX = "CHARENGINE_"
OURS = (
    "CHARENGINE_HOME",
    WORK_FOLDER,
    LOCKS,
    STORE,
    "CHARENGINE_GALLERY_ORIGINS",
)  # docs/reference/settings.md says what each does

DEFAULTS = {
    # torch's threads may not spin without end at a barrier: ten times slower when cores are shared
    "OMP_WAIT_POLICY": "PASSIVE",
    # but sleeping at every small one costs half of the time on quiet cores: GNU's OpenMP spins for some 20 µs first
    "GOMP_SPINCOUNT": "10000",
    # nothing is reported to anybody
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_UI_V2_ENABLED": "false",  # the second page loads a third party's script; our links use the first
    # no web page may call a server of ours (docs/decisions/0030-local-servers.md); one with a page of its own adds that
    "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
    CORS_ORIGINS: "http://127.0.0.1,http://localhost",
    # a character that waits for its turn behind others is not "Late", as Prefect calls it in orange after 15 s
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # the default 20 s are too few on a fresh home, where the database is made first
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # leases in memory are lost with the server, and their slots leak
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # the server's database does not grow for ever: events go after 7 days (Prefect's own), runs with their logs and pages after 90
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": "7776000",
    # Prefect's server answers 500 while PostgreSQL below it is started again, for some 12 s: asked again for 31 s, as when it is away itself
    "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
    "PREFECT_CLIENT_MAX_RETRIES": "5",
    # a dead server must not hold a GPU: MLflow's default retries take four minutes a call
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    MLFLOW_LEVEL: "WARNING",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    # the default 10 s of polling dominate a short run
    "PREFECT_WORKER_QUERY_SECONDS": "2",
    # a flow process that dies is noticed after four missed beats (deployments/automations); ours beat themselves (tasks/heartbeats.py)
    HEARTBEATS: "30",
    # the engine's own log lines reach Prefect's UI
    "PREFECT_LOGGING_EXTRA_LOGGERS": "charengine",
    # and those of a thread or a command without a flow are no cause for a warning each
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    # loading a model is not worth a bar each
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # LyCORIS must not compile kernels of its own before training starts
    "LYCORIS_KERNEL_BACKEND": "torch",
}


def apply_defaults(home: Home) -> None:
    """Set every default that the user has not set. Call before Prefect or MLflow are imported."""
    keep_loopback_direct()
    for name, value in {**DEFAULTS, "PREFECT_HOME": str(home.prefect)}.items():
        os.environ.setdefault(name, value)
    if password := os.environ.get(SERVER_AUTH):  # of a server that we start: our own programs know it too
        os.environ.setdefault(CLIENT_AUTH, password)


def lost_defaults() -> list[str]:
    """What the defaults no longer change, since a library that reads them when it is imported is there; ask before setting them."""
    return [
        f"{library}: {lost}"
        for library, (prefixes, lost) in _READ_AT_IMPORT.items()
        if library in sys.modules and any(name.startswith(prefixes) and name not in os.environ for name in DEFAULTS)
    ]


_READ_AT_IMPORT = {
    "torch": (("OMP_", "GOMP_"), "training is slower wherever other programs use the processor too"),
    "mlflow": (("MLFLOW_",), "it may report how it is used, and retries for minutes when its server is gone"),
    "prefect": (
        ("PREFECT_", "DO_NOT_TRACK"),
        "it may report how it is used, and keeps its database in a folder of its own",
    ),
}


def unknown_variables() -> list[str]:
    """One line for each variable that begins as ours do and that nothing reads: misspelt, it would be passed over in silence."""
    return [
        f"{name}: got {shown_value(value)}, but there is no such variable; read are {', '.join(OURS)}{did_you_mean(name, OURS)}"
        for name, value in os.environ.items()
        if name.startswith(PREFIX) and name not in OURS
    ]


def quieten_console() -> None:
    """Keep Prefect's and MLflow's log lines off this process's terminal, unless the user has set a level; children speak as ever.

    What MLflow fails at is told by who called it, in a line; MLflow itself adds a traceback for each, also for a disk that is full.
    Nor does logging tell there that a line did not reach Prefect.
    """
    logging.raiseExceptions = False
    for level in (CONSOLE_LEVEL, MLFLOW_LEVEL):
        if level not in os.environ:
            os.environ[level] = "CRITICAL"
            _of_this_process.add(level)


def quieten_libraries() -> None:
    """Keep what libraries say about themselves off the terminal and out of notebooks, unless the user has set a level."""
    for name in ("mlflow", "alembic", "httpx", "bitsandbytes"):
        if logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel(logging.ERROR)


def for_children() -> dict[str, str]:
    """The environment to hand on; a checkout that is not installed stays importable (children search no current folder)."""
    inherited = {name: value for name, value in os.environ.items() if name not in _of_this_process}
    if INSTALLED.name in SITE:
        return inherited
    return {**inherited, "PYTHONPATH": os.pathsep.join(filter(None, (str(INSTALLED), os.environ.get("PYTHONPATH"))))}


_of_this_process: set[str] = set()
