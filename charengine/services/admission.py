"""Whether servers elsewhere let this machine in. Their health addresses answer everybody, and so say nothing of that."""

from __future__ import annotations

import base64
import os
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from charengine.machine.environment import CLIENT_AUTH
from charengine.services.prefect_api import PrefectApi

REFUSED = (401, 403)
USER, PASSWORD, TOKEN = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"
ASKED = "api/2.0/mlflow/experiments/search?max_results=1"  # what every run begins with
OTHER_WAYS = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4")  # by which MLflow's client may say who it is
MOST = 2000  # bytes of an answer
SECONDS = 10.0


def refusal_of_prefect(api: str) -> str:
    """Why Prefect does not let this machine in, and what to do; empty when it does, or says nothing.

    Args:
        api: its address, `http://servers.example:4200/api`.
    """
    try:
        PrefectApi(api.rstrip("/")).get("admin/version")
    except urllib.error.HTTPError as error:
        if error.code in REFUSED:
            return f"Prefect at {api} refuses this machine ({error.code}): set {CLIENT_AUTH} to what its server has"
    except (OSError, ValueError):  # away, or nothing that could be asked
        return ""
    return ""


def refusal_of_mlflow(uri: str) -> str:
    """The same of MLflow.

    Args:
        uri: its address, `http://servers.example:5000`.
    """
    request = urllib.request.Request(f"{uri.rstrip('/')}/{ASKED}", headers=_who_asks())
    try:
        with urllib.request.urlopen(request, timeout=SECONDS):
            return ""
    except urllib.error.HTTPError as error:
        if error.code not in REFUSED or _may_ask_in_another_way():
            return ""
        return f"MLflow at {uri} refuses this machine ({error.code}): {_remedy(uri, error)}"
    except (OSError, ValueError):
        return ""


def _remedy(uri: str, error: urllib.error.HTTPError) -> str:
    if b"Host header" in error.read(MOST):
        return f"start its server with --allowed-hosts {urlsplit(uri).netloc}"
    return f"set {USER} and {PASSWORD}"


def _who_asks() -> dict[str, str]:
    if token := os.environ.get(TOKEN):
        return {"Authorization": f"Bearer {token}"}
    said = f"{os.environ.get(USER, '')}:{os.environ.get(PASSWORD, '')}"
    return {"Authorization": f"Basic {base64.b64encode(said.encode()).decode()}"} if said != ":" else {}


def _may_ask_in_another_way() -> bool:
    """Whether MLflow's client knows what is not looked at here: its file of credentials, or a plugin."""
    return any(os.environ.get(name) for name in OTHER_WAYS) or (Path.home() / ".mlflow" / "credentials").is_file()
