"""Variables of Prefect, MLflow and of proxies that the user has set so that nothing could start: said by name, before it is tried."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from charengine import files
from charengine.errors import BadInput, ConfigError
from charengine.machine.places import folder_problems
from charengine.machine.proxies import proxy_problems

API, PREFECT_HOME, TRACKING = "PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI"
DATABASES = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL")
DRIVERS = ("sqlite+aiosqlite://", "postgresql+asyncpg://")
# of MLflow, which knows those of plugins besides
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "file", "databricks", "databricks-uc", "uc")


def check_variables() -> None:
    """Before a server or a client is started.

    Raises:
        ConfigError: every variable that is wrong, one line each.
    """
    if problems := variable_problems():
        raise ConfigError(problems)


def variable_problems() -> list[str]:
    """A line for each variable with which nothing could start."""
    problems = [*proxy_problems(), *([told] if (told := tracking_problem()) else [])]
    if os.environ.get(API):  # whose server has settings of its own
        return problems
    if place := os.environ.get(PREFECT_HOME):
        problems += _home_problems(place)
    return problems + [
        f"{name}={os.environ[name]}: is no database of Prefect's; begin with {' or '.join(DRIVERS)}, or unset it"
        for name in DATABASES
        if os.environ.get(name) and not os.environ[name].startswith(DRIVERS)
    ]


def _home_problems(place: str) -> list[str]:
    try:
        return folder_problems(files.expanded(place), f"{PREFECT_HOME}:")
    except BadInput as error:
        return [f"{PREFECT_HOME}: {error}"]


def tracking_problem() -> str:
    """Why MLflow can never be reached at the address that the user gave; empty where it may be."""
    uri = os.environ.get(TRACKING, "")
    scheme = uri.partition("://")[0].partition("+")[0].lower() if "://" in uri else ""
    known = {*SCHEMES, *(plugin.name for plugin in entry_points(group="mlflow.tracking_store"))}
    if not scheme or scheme in known:
        return ""
    return f"{TRACKING}={uri}: MLflow knows no {scheme}://; give http://HOST:PORT, or unset it for the database in the home"


def chosen_by_user(prefix: str, ours: Mapping[str, Any]) -> list[str]:
    """The variables with a prefix whose values are not the engine's own."""
    return [name for name, value in os.environ.items() if name.startswith(prefix) and str(ours.get(name, "")) != value]


def named_values(values: list[Any]) -> str:
    """The variables of Prefect that have one of these values, with them; what was refused knows no more than its value."""
    said = [
        f"{name}={value}"
        for name, value in os.environ.items()
        if name.startswith("PREFECT_") and value in map(str, values)
    ]
    return ", ".join(said) or f"a setting of Prefect's ({', '.join(map(str, values))[:200]})"
