"""The compose file and the page of many machines say the same, and nothing in it is open to everybody."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
FILE = ROOT / "deployments" / "compose.yaml"
PAGE = (ROOT / "docs" / "howto" / "many-machines.md").read_text(encoding="utf-8")
GUARDS = {  # what asks for a password, of each server that others can reach
    "prefect": "PREFECT_SERVER_API_AUTH_STRING",
    "mlflow": "MLFLOW_AUTH_ADMIN_PASSWORD",
    "storage": "S3_SECRET",
}


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))["services"]
    return found


def test_every_port_that_is_published_asks_for_a_password_that_must_be_set() -> None:
    published = {name for name, service in services().items() if service.get("ports")}
    assert published == set(GUARDS)
    assert all(services()[name]["environment"][guard] for name, guard in GUARDS.items())
    assert "--app-name basic-auth" in services()["mlflow"]["command"]
    required = set(re.findall(r"\$\{(\w+):\?", FILE.read_text(encoding="utf-8")))
    assert required >= {"POSTGRES_PASSWORD", "PREFECT_AUTH", "MLFLOW_PASSWORD", "MLFLOW_SECRET", "S3_KEY", "S3_SECRET"}


def test_the_page_names_every_variable_that_must_be_set_and_every_one_that_a_server_is_given() -> None:
    text = FILE.read_text(encoding="utf-8")
    asked = set(re.findall(r"\$\{(\w+)", text))
    given = {name for service in services().values() for name in service.get("environment", {})}
    own = {"POSTGRES_DB", "PGPASSWORD", "EXTRA_PIP_PACKAGES", "S3_KEY", "S3_SECRET"}  # of the containers alone
    assert {name for name in asked | (given - own) if name not in PAGE} == set()


def test_the_servers_answer_to_the_name_that_the_machines_use() -> None:
    """MLflow refuses any other, and its page and Prefect's call their server by it."""
    assert "${SERVER_NAME}:5000" in services()["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"]
    assert services()["mlflow"]["environment"]["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] == "http://${SERVER_NAME}:5000"
    assert "${SERVER_NAME" in services()["prefect"]["environment"]["PREFECT_SERVER_UI_API_URL"]
