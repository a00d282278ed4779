"""Make what the deployments need on a Prefect server, and the deployments: `python -m deployments.set_up`. Safe to repeat.

What is there already keeps what a user set in the page: schedules and whether they are on, parameters, pauses, limits.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from prefect.automations import Automation
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.settings import PREFECT_API_URL
from prefect.utilities.callables import parameter_schema

from charengine.machine.addresses import answers
from charengine.machine.own_packages import take_own_packages
from charengine.services.admission import refusal_of_prefect

log = logging.getLogger("charengine.deployments")

HERE = Path(__file__).parent
WARNING = "warning: "  # begins the lines that `charengine up` says again
POOLS = ("characters", "orchestrate")  # one worker slot a GPU; batch parents, which only wait
WAIT = "--wait"  # for a server that begins at the same time
START_SECONDS = 180.0  # that it may take
QUEUES = {"interactive": 1, "batch-high": 3, "batch": 5, "batch-low": 7}  # of `characters`; 1 goes first


def main() -> None:
    """Pools, queues, automations, deployments."""
    take_own_packages()  # Prefect imports the flows with the folder where the user stands searched first
    logging.basicConfig(level=logging.WARNING, format=f"{WARNING}%(message)s")
    path = project_file()
    wanted = yaml.safe_load(path.read_text(encoding="utf-8"))["deployments"]
    flows = {one["name"]: load_flow_from_entrypoint(one["entrypoint"]) for one in wanted}
    if WAIT in sys.argv[1:]:
        wait_for_server()
    if refusal := refusal_of_prefect(PREFECT_API_URL.value() or ""):
        sys.exit(f"error: {refusal}")
    missing = asyncio.run(_make_all(wanted, flows))
    if missing:
        deploy(path, missing)
    print(f"ready: the pools {' and '.join(POOLS)}, the deployments {', '.join(flows)}")


def project_file() -> Path:
    """`prefect.yaml`: of the checkout, else the packaged copy."""
    beside = HERE.parent / "prefect.yaml"
    return beside if beside.is_file() else HERE / "prefect.yaml"


def deploy(path: Path, names: list[str]) -> None:
    """Make deployments of a `prefect.yaml`, with everything it says about them; what Prefect says is shown when that fails."""
    wanted = [part for name in names for part in ("--name", name)]
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", *wanted, "--prefect-file", path.name]
    environment = {**os.environ, "PREFECT_LOGGING_LEVEL": "WARNING"}
    # it advises to start workers of Prefect's own, which are not ours
    made = subprocess.run(command, cwd=path.parent, env=environment, capture_output=True, text=True)
    if made.returncode:
        sys.exit(f"error: the deployments could not be made:\n{made.stdout}{made.stderr}")


def wait_for_server() -> None:
    """Wait until the server that the environment names answers; what it says if it never does is Prefect's client's to tell."""
    api = PREFECT_API_URL.value()
    deadline = time.monotonic() + START_SECONDS
    while api and not answers(f"{api}/health") and time.monotonic() < deadline:
        time.sleep(0.2)


async def _make_all(wanted: list[dict[str, Any]], flows: dict[str, Flow[..., Any]]) -> list[str]:
    """Everything but new deployments; the names of those that do not exist yet."""
    async with get_client() as client:
        for pool in POOLS:
            await _make_pool(client, pool)
        for name, priority in QUEUES.items():
            await _make_queue(client, name, priority)
        missing = [one["name"] for one in wanted if not await _renew(client, one, flows[one["name"]])]
    for automation in sorted((HERE / "automations").glob("*.yaml")):
        await _make_automation(automation)
    return missing


async def _renew(client: PrefectClient, wanted: dict[str, Any], flow: Flow[..., Any]) -> bool:
    """Bring what is ours in an existing deployment up to date; whether it exists."""
    try:
        found = await client.read_deployment_by_name(f"{flow.name}/{wanted['name']}")
    except ObjectNotFound:
        return False
    ours = DeploymentUpdate(
        entrypoint=wanted["entrypoint"],
        pull_steps=wanted["pull"],
        description=wanted["description"],
        tags=[*dict.fromkeys([*wanted["tags"], *found.tags])],
        parameter_openapi_schema=parameter_schema(flow).model_dump(exclude_unset=True),
    )
    if _differs(found, ours):  # an update drops the runs that are planned until the scheduler comes by again
        await _update(client, found, ours)
    return True


def _differs(found: DeploymentResponse, ours: DeploymentUpdate) -> bool:
    return any(getattr(found, field) != getattr(ours, field) for field in ours.model_fields_set)


async def _update(client: PrefectClient, found: DeploymentResponse, ours: DeploymentUpdate) -> None:
    try:
        await client.update_deployment(found.id, ours)
    except PrefectHTTPStatusError as error:
        if error.response.status_code != 409:  # Prefect's answer when the parameters do not fit the new schema
            raise
        log.warning(
            "deployment %s is left as it is: parameters set in its page no longer exist or fit (%s). "
            "Correct them there and start again, or delete the deployment to have it made anew",
            found.name,
            error.response.json().get("detail", error),
        )


async def _make_pool(client: PrefectClient, name: str) -> None:
    try:
        await client.read_work_pool(name)
    except ObjectNotFound:
        await client.create_work_pool(WorkPoolCreate(name=name, type="process"))


async def _make_queue(client: PrefectClient, name: str, priority: int) -> None:
    try:
        await client.create_work_queue(name=name, priority=priority, work_pool_name=POOLS[0])
    except ObjectAlreadyExists:
        return


async def _make_automation(path: Path) -> None:
    wanted = Automation(**yaml.safe_load(path.read_text(encoding="utf-8")))
    try:
        found = await Automation.aread(name=wanted.name)
    except ValueError:
        await wanted.acreate()
    else:
        wanted.id, wanted.enabled = found.id, found.enabled
        await wanted.aupdate()


if __name__ == "__main__":
    main()
