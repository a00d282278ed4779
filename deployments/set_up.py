"""Make what the deployments need on a Prefect server, and the deployments: `python -m deployments.set_up`. Safe to repeat."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import yaml
from prefect.automations import Automation
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

HERE = Path(__file__).parent
POOLS = ("characters", "orchestrate")  # one worker slot a GPU; batch parents, which only wait
QUEUES = {"interactive": 1, "batch": 5}  # of `characters`; 1 goes first


def main() -> None:
    """Pools, queues, automations, deployments."""
    asyncio.run(_make_all())
    deploy(project_file())


def project_file() -> Path:
    """`prefect.yaml`: of the checkout, else the packaged copy."""
    beside = HERE.parent / "prefect.yaml"
    return beside if beside.is_file() else HERE / "prefect.yaml"


def deploy(path: Path) -> None:
    """All deployments of a `prefect.yaml`."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", path.name]
    subprocess.run(command, check=True, cwd=path.parent, env={**os.environ, "PREFECT_LOGGING_LEVEL": "WARNING"})


async def _make_all() -> None:
    async with get_client() as client:
        for pool in POOLS:
            await _make_pool(client, pool)
        for name, priority in QUEUES.items():
            await _make_queue(client, name, priority)
    for path in sorted((HERE / "automations").glob("*.yaml")):
        await _make_automation(path)


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
    wanted = Automation(**yaml.safe_load(path.read_text()))
    try:
        wanted.id = (await Automation.aread(name=wanted.name)).id
    except ValueError:
        await wanted.acreate()
    else:
        await wanted.aupdate()


if __name__ == "__main__":
    main()
