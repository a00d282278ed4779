"""Where Prefect and MLflow answer."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from dataclasses import dataclass

from charengine import files
from charengine.machine.home import Home
from charengine.machine.proxies import keep_loopback_direct

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Services:
    """The servers that `charengine up` started."""

    prefect_api: str
    mlflow: str
    pid: int


def own_origins(port: int) -> tuple[str, ...]:
    """What browsers call the pages of a server on this machine."""
    return tuple(f"http://{name}:{port}" for name in ("127.0.0.1", "localhost"))


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
    told = files.kept_object(home.services_file)
    api, mlflow, pid = (told.get(name) for name in ("prefect_api", "mlflow", "pid"))
    if not (isinstance(api, str) and isinstance(mlflow, str) and isinstance(pid, int)):
        return None
    services = Services(api, mlflow, pid)
    return services if answers(f"{services.prefect_api}/health") and answers(f"{services.mlflow}/health") else None


def answers(url: str, seconds: float = 3.0) -> bool:
    """Whether a health address says 200."""
    keep_loopback_direct()
    try:
        with urllib.request.urlopen(url, timeout=seconds) as response:
            return bool(response.status == 200)
    except (OSError, ValueError, http.client.HTTPException):
        return False


def silence_of(url: str, seconds: float = 10.0) -> str:
    """Why a server says nothing at an address; empty when it says anything, a refusal included."""
    keep_loopback_direct()
    try:
        with urllib.request.urlopen(url, timeout=seconds):
            return ""
    except urllib.error.HTTPError as error:
        error.close()
        return ""
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", error) or type(error).__name__)
