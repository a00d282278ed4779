"""MLflow's server in one process: `python -m deployments.mlflow_server --port 5000 …`, told what `mlflow server` is told.

`mlflow server` starts uvicorn in a second process and waits for it. So everything is imported twice, which on two cores is
half of what `charengine up` waits for, 250 MB are held by a process that does nothing, and when that one is killed the other
goes on holding the port.

Its assistant is left out: it runs commands and edits files with the rights of this process for whoever looks like this computer's
own user, which everybody does who comes through an SSH tunnel. Its panel, which would open itself over a quarter of the page, is told
that it has done so.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from charengine.machine.collection import before_serving

UVICORN = [sys.executable, "-m", "uvicorn"]
HEAD = b"<head>"
CLOSED = b"<script>localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')</script>"


class Served:
    """What MLflow holds for its server's process, once the server has ended here."""

    def poll(self) -> int:
        """It has ended."""
        return 0

    def wait(self) -> int:
        """It has ended."""
        return 0


def serve_here(command: Sequence[str], *, extra_env: Mapping[str, str], **_: Any) -> Served:
    """Be the server that MLflow meant to start; returns when it was told to end.

    Raises:
        RuntimeError: it meant to start something else.
    """
    if list(command[: len(UVICORN)]) != UVICORN:
        raise RuntimeError(f"MLflow would start {list(command)}, not uvicorn: mlflow is pinned below 3.18 for this")
    import uvicorn

    os.environ.update(extra_env)
    import mlflow.server.fastapi_app  # noqa: F401  # with the environment it is told in; uvicorn would import it next

    before_serving()
    uvicorn.main.main(list(command[len(UVICORN) :]), standalone_mode=False)
    return Served()


def leave_out_the_assistant() -> None:
    """Its addresses are not there, and its panel stays closed; before MLflow's application is made."""
    from fastapi import APIRouter
    from flask import request
    from mlflow.server import app
    from mlflow.server.assistant import api

    api.assistant_router = APIRouter()

    @app.after_request
    def closed(response: Any) -> Any:
        if request.path == "/" and response.status_code == 200:
            response.direct_passthrough = False
            response.set_data(response.get_data().replace(HEAD, HEAD + CLOSED, 1))
        return response


def main(arguments: Sequence[str]) -> None:
    """Serve until terminated."""
    import uvicorn  # noqa: F401  # MLflow's application asks whether it runs in a server when it is imported
    from mlflow import server
    from mlflow.cli import cli

    leave_out_the_assistant()
    server._exec_cmd = serve_here  # type: ignore[attr-defined]  # meant to be replaced
    cli.main(["server", *arguments], prog_name="mlflow")


if __name__ == "__main__":
    main(sys.argv[1:])
