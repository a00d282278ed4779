"""Variables of other programs with which nothing could start: said by name, before it is tried or where a library fails at them."""

from __future__ import annotations

import math
import os
import re
import subprocess
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points
from pathlib import Path

from pydantic import ValidationError

from charengine import files
from charengine.errors import BadInput, ConfigError
from charengine.machine.databases import database_problem
from charengine.machine.environment import DEFAULTS, for_children
from charengine.machine.home import find_home
from charengine.machine.places import folder_problems
from charengine.machine.processes import PYTHON_MODULE
from charengine.machine.proxies import proxy_problems

API, TRACKING, DATABASE = "PREFECT_API_URL", "MLFLOW_TRACKING_URI", "PREFECT_SERVER_DATABASE_CONNECTION_URL"
DRIVERS = ("sqlite+aiosqlite://", "postgresql+asyncpg://")
# of MLflow, which knows those of plugins besides
SCHEMES = {"http", "https", "sqlite", "postgresql", "mysql", "mssql", "file", "databricks", "databricks-uc", "uc"}

TIMEOUT = "PREFECT_API_REQUEST_TIMEOUT"
LEAST_TIMEOUT = 1.0  # seconds; with less, each question to a busy server fails, and Prefect asks again without a word
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
PROBLEM = "problem: "  # before what `deployments.settings` says
LONGEST_READING = 60.0  # seconds
SECRET = re.compile(r"AUTH|HEADERS|KEY|PASSWORD|SECRET|TOKEN|URL")  # in the name of a variable whose value is not shown
# packages that read variables: how theirs begin
READERS = {
    "prefect": ("PREFECT_",),
    "torch": ("TORCH_", "PYTORCH_"),
    "triton": ("TRITON_",),
    "huggingface_hub": ("HF_", "HUGGINGFACE_"),
    "transformers": ("TRANSFORMERS_", "HF_"),
    "diffusers": ("DIFFUSERS_", "HF_"),
}
OWN_PACKAGES = ("charengine", "flows", "tasks", "deployments")


def check_variables(of_servers: bool = False) -> None:
    """Before a server or a client is started.

    Args:
        of_servers: what is started stays up, so that Prefect is asked whether it can read its own, which takes a second or two.

    Raises:
        ConfigError: every variable that is wrong, one line each.
    """
    if problems := variable_problems() or (prefect_problems() if of_servers else []):
        raise ConfigError(problems)


def variable_problems() -> list[str]:
    """A line for each variable with which nothing could start."""
    problems = [*proxy_problems(), *filter(None, [tracking_problem(), _hub_problem()]), *_number_problems()]
    if os.environ.get(API):  # whose server has settings of its own
        return problems
    try:
        if own := os.environ.get("PREFECT_HOME"):
            problems += folder_problems(files.expanded(own), "PREFECT_HOME:")
    except BadInput as error:
        problems.append(f"PREFECT_HOME: {error}")
    if not (database := os.environ.get(DATABASE, DRIVERS[0])).startswith(DRIVERS):
        problems.append(f"{DATABASE}={database}: begin with {' or '.join(DRIVERS)}, or unset it")
    return problems


def tracking_problem() -> str:
    """Why MLflow can never be reached at the address that the user gave; empty where it may be."""
    uri = os.environ.get(TRACKING, "")
    scheme = uri.partition("://")[0].partition("+")[0].lower() if "://" in uri else ""
    if scheme == "sqlite" and (place := uri.partition(":///")[2].partition("?")[0]):
        problem = database_problem(Path(place))
        return f"{TRACKING}={uri}: {problem}" if problem else ""
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
        read = str(found["input"]).lower()  # levels are read in capitals
        wrong = _shown({name: value for name, value in set_for("prefect").items() if value.lower() == read})
        wrong = wrong or f"a setting of Prefect={found['input']}"
        raise BadInput(f"{wrong}: Prefect cannot read it ({found['msg']}); correct it, or unset it") from error


def prefect_problems(it_failed: bool = False) -> list[str]:
    """A line for a variable, or a file of its own, that Prefect cannot read.

    Args:
        it_failed: there is a cause to look for; else only variables are, where one is set, since Prefect's import takes a second or two.
    """
    if not it_failed and all(name.endswith("_LEVEL") and value in LEVELS for name, value in set_for("prefect").items()):
        return []
    command = [*PYTHON_MODULE, "deployments.settings"]
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, env=for_children(), timeout=LONGEST_READING)
        said = done.stdout.decode("utf-8", "replace").splitlines()
        return [line.removeprefix(PROBLEM) for line in said if line.startswith(PROBLEM)]
    return []


def set_for(package: str) -> dict[str, str]:
    """The variables that a package reads and that somebody has set, those left out that the engine sets itself."""
    ours: Mapping[str, str] = {**DEFAULTS, "PREFECT_HOME": str(find_home().prefect)}
    found = {name: value for name, value in for_children().items() if name.startswith(READERS[package])}
    return {name: value for name, value in found.items() if name != API and ours.get(name) != value}


def variables_to_blame(error: BaseException) -> str:
    """The variables at which a library failed, with what to do; empty where it was not for one.

    To blame is what the error's words repeat; where they say nothing, all that is set for a package which could not even be imported,
    or for Prefect when it did not come as far as the flow.
    """
    frames = [
        (str(frame.f_globals.get("__name__")), frame.f_code.co_name)
        for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    packages = [module.partition(".")[0] for module, _ in frames]
    package = next((name for name in reversed(packages) if name in READERS or name in OWN_PACKAGES), "")
    if package not in READERS:
        return ""
    given = set_for(package)
    blamed = {name: value for name, value in given.items() if len(value) > 1 and value in str(error)}
    imported = any(module.partition(".")[0] == package and code == "<module>" for module, code in frames)
    at_once = package == "prefect" and not {*OWN_PACKAGES} & {*packages[packages.index("prefect") :]}
    if not blamed and (imported or at_once):
        blamed = {name: value for name, value in given.items() if imported or "_LOGGING_" not in name}
    if not blamed:
        return ""
    why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}".rstrip(": ")
    return f"{_shown(blamed)}: {package} cannot work with it ({why}); correct it, or unset it"


def _shown(variables: Mapping[str, str]) -> str:
    return " or ".join(name if SECRET.search(name) else f"{name}={value[:100]}" for name, value in variables.items())


def _hub_problem() -> str:
    """What huggingface_hub fails at, which reads its variables when it is imported."""
    try:
        from huggingface_hub import constants  # noqa: F401
    except ImportError:  # who only shows runs can do without
        return ""
    except ValueError as error:
        return variables_to_blame(error)
    return ""


def _number_problems() -> Iterator[str]:
    """Times that Prefect can read and not wait for."""
    for name, value in set_for("prefect").items():
        with suppress(ValueError):
            number = float(value)
            if math.isnan(number) or (name == TIMEOUT and not LEAST_TIMEOUT <= number < math.inf):
                yield f"{name}={value}: give {LEAST_TIMEOUT:g} second or more, or unset it"
