"""Variables of Prefect, MLflow and of proxies with which nothing could start: said by name, before it is tried."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points

from pydantic import ValidationError

from charengine import files
from charengine.errors import BadInput, ConfigError
from charengine.machine.places import folder_problems
from charengine.machine.proxies import proxy_problems

API, TRACKING, DATABASE = "PREFECT_API_URL", "MLFLOW_TRACKING_URI", "PREFECT_SERVER_DATABASE_CONNECTION_URL"
DRIVERS = ("sqlite+aiosqlite://", "postgresql+asyncpg://")
# of MLflow, which knows those of plugins besides
SCHEMES = {"http", "https", "sqlite", "postgresql", "mysql", "mssql", "file", "databricks", "databricks-uc", "uc"}


def check_variables() -> None:
    """Before a server or a client is started.

    Raises:
        ConfigError: every variable that is wrong, one line each.
    """
    if problems := variable_problems():
        raise ConfigError(problems)


def variable_problems() -> list[str]:
    """A line for each variable with which nothing could start."""
    problems = [*proxy_problems(), *filter(None, [tracking_problem()])]
    if os.environ.get(API):  # whose server has settings of its own
        return problems
    try:
        place = files.expanded(os.environ.get("PREFECT_HOME", ""))
        problems += folder_problems(place, "PREFECT_HOME:") if place.name else []
    except BadInput as error:
        problems.append(f"PREFECT_HOME: {error}")
    if not (database := os.environ.get(DATABASE, DRIVERS[0])).startswith(DRIVERS):
        problems.append(f"{DATABASE}={database}: begin with {' or '.join(DRIVERS)}, or unset it")
    return problems


def tracking_problem() -> str:
    """Why MLflow can never be reached at the address that the user gave; empty where it may be."""
    uri = os.environ.get(TRACKING, "")
    scheme = uri.partition("://")[0].partition("+")[0].lower() if "://" in uri else ""
    if not scheme or scheme in SCHEMES | {plugin.name for plugin in entry_points(group="mlflow.tracking_store")}:
        return ""
    return f"{TRACKING}={uri}: MLflow knows no {scheme}://; give http://HOST:PORT, or unset it for the database in the home"


@contextmanager
def read_by_prefect() -> Iterator[None]:
    """While Prefect is imported: it reads its variables then, and fails at one that it cannot read.

    Raises:
        BadInput: names it.
    """
    try:
        yield
    except ValidationError as error:
        found = error.errors()[0]  # knows no more of the variable than its value
        names = [
            name for name, value in os.environ.items() if name.startswith("PREFECT_") and value == str(found["input"])
        ]
        wrong = f"{' or '.join(names) or 'a setting of Prefect'}={found['input']}"
        raise BadInput(f"{wrong}: Prefect cannot read it ({found['msg']}); correct it, or unset it") from error
