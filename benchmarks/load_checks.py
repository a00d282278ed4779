"""What a load has left: runs and their states, what grew on the disk, what is wrong; and the tables of what was measured."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from typing import Any

from kill_targets import Site

from charengine.services.prefect_api import ENDED, OPEN, PrefectApi

RECENT = {"sort": "START_TIME_DESC", "flows": {"name": {"any_": ["character"]}}}
KINDS = ("character", "train", "sweep")  # of MLflow's runs, one a character


def all_runs(api: PrefectApi) -> list[dict[str, Any]]:
    """Every run of a character that has begun."""
    found: list[dict[str, Any]] = []
    while part := api.post("flow_runs/filter", {**RECENT, "limit": 200, "offset": len(found)}):
        found += part
    return [run for run in found if run["start_time"]]


def states_of(api: PrefectApi) -> Counter[str]:
    """Runs of characters by state."""
    states = (*OPEN, *ENDED)
    found = {state: count(api, "character", state) for state in states}
    return Counter({state: number for state, number in found.items() if number})


def count(api: PrefectApi, flow: str, *states: str) -> int:
    """Runs of a flow that are in one of these states."""
    wanted = {"flow_runs": {"state": {"type": {"any_": [*states]}}}} if states else {}
    return int(api.post("flow_runs/count", {"flows": {"name": {"any_": [flow]}}, **wanted}))


def sizes(site: Site) -> dict[str, int]:
    """Bytes of what grows: the databases, the store, the folders of runs, MLflow's files, the logs."""
    home = site.home
    databases = {"Prefect's database": home.prefect.glob("*.db*"), "MLflow's database": home.mlflow.glob("*.db*")}
    folders = {"store": home.store, "runs": site.work / "runs", "MLflow's files": home.mlflow / "artifacts"}
    folders |= {"logs": home.logs, "locks": home.locks}
    found = {what: sum(path.stat().st_size for path in files) for what, files in databases.items()}
    return found | {what: sum(p.stat().st_size for p in at.rglob("*") if p.is_file()) for what, at in folders.items()}


def wrong_in_prefect(api: PrefectApi, asked: int) -> list[str]:
    """Runs that are not completed, or more or fewer than were asked for; slots that are held."""
    states = states_of(api)
    wrong = [f"Prefect: {number} runs are {state}" for state, number in states.items() if state != "COMPLETED"]
    wrong += [f"Prefect: {states['COMPLETED']} runs are completed, not {asked}"] * (states["COMPLETED"] != asked)
    limits = api.post("v2/concurrency_limits/filter", {})
    return wrong + [f"Prefect: {one['name']} holds slots" for one in limits if one["active_slots"]]


def wrong_in_mlflow(site: Site, made: int) -> list[str]:
    """Runs that are not finished, or more or fewer than were made."""
    with sqlite3.connect(site.home.mlflow / "mlflow.db") as database:
        states = dict(database.execute("SELECT status, count(*) FROM runs GROUP BY status").fetchall())
        asked = "SELECT value, count(*) FROM tags WHERE key = 'charengine.kind' GROUP BY value"
        kinds = dict(database.execute(asked).fetchall())
    wrong = [f"MLflow: {number} runs are {state}" for state, number in states.items() if state != "FINISHED"]
    return wrong + [f"MLflow: {kinds.get(kind)} runs of {kind}" for kind in KINDS if kinds.get(kind) != made]


def tables(found: dict[str, Any]) -> list[str]:
    """What was measured, as the manual shows it."""
    lines = ["| calls of the pages | p50 s | p95 s | most s | asked |", "| --- | ---: | ---: | ---: | ---: |"]
    lines += [f"| {what} | {' | '.join(map(str, row))} |" for what, row in found["api_s"].items()]
    lines += [
        "",
        "| MiB | after the first minutes | at the end | an hour | most |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [f"| {kind} | {' | '.join(map(str, row))} |" for kind, row in found["memory_mib"].items()]
    lines += ["", "| bytes a character | |", "| --- | ---: |"]
    lines += [f"| {what} | {size:,} |" for what, size in found["bytes_per_character"].items()]
    rest = {name: value for name, value in found.items() if name not in ("api_s", "memory_mib", "bytes_per_character")}
    return [*lines, "", *(f"{name}: {json.dumps(value)}" for name, value in rest.items())]
