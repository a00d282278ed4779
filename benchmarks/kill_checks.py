"""What must be true when a night of kills has ended: each check gives what is wrong, in words; nothing when all is well."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from kill_targets import Site

from charengine.records import AdapterRecord, DatasetRecord, Record, SheetRecord, SweepRecord, ViewsRecord
from charengine.run.keys import content_digest
from charengine.services.prefect_api import ENDED, OPEN
from charengine.store import refs_in

RECORDS: dict[str, type[Record]] = {
    "sheet": SheetRecord,
    "crop": ViewsRecord,
    "caption": DatasetRecord,
    "train": AdapterRecord,
    "sweep": SweepRecord,
}
TEMPORARY = ("*.tmp", "*.partial", ".charengine-run.json.*")


def contents(site: Site) -> dict[str, Any]:
    """What a night made, as far as it must be the same each time: results by key, files by path.

    A report shows when and in which run its character was made; it and the records beside it are left out.
    """
    store = site.store()
    results: dict[str, str] = {}
    for key in sorted(Path(path).stem for path in store.fs.glob(f"{store.root}/results/*.json")):
        kind = RECORDS.get(key.split("-")[0])
        record = store.result(key, kind) if kind else None
        if kind is None:
            continue
        whole = record is not None and all(store.has(ref) for ref in refs_in(record))
        results[key] = content_digest(record) if record is not None and whole else "lost or damaged"
    digests: dict[str, str] = {}
    for work in site.works:
        for path, digest in _files(work):
            same = digests.setdefault(path, digest) == digest
            digests[path] = digest if same else "differs between machines"
    return {"results": results, "files": digests}


def _files(work: Path) -> list[tuple[str, str]]:
    """Path and digest of the files that must be the same each night."""
    found = [path for pattern in ("*.png", "*.safetensors", "*.txt") for path in sorted((work / "runs").rglob(pattern))]
    told = [path for path in found if "trade_off" not in path.name]
    return [(path.relative_to(work).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()) for path in told]


def differences(found: dict[str, Any], expected: dict[str, Any], names: list[str]) -> list[str]:
    """Where this night's content is not that of the undisturbed one, for the characters it made."""
    wrong = []
    folders = tuple(f"runs/{name.lower().replace(' ', '-')}/" for name in names)
    wanted = {path: digest for path, digest in expected["files"].items() if path.startswith(folders)}
    for path in sorted(wanted.keys() | found["files"].keys()):
        if wanted.get(path) != found["files"].get(path):
            how = "missing" if path not in found["files"] else "one too many" if path not in wanted else "differs"
            wrong.append(f"bytes: {path} {how}")
    for key, digest in found["results"].items():
        if expected["results"].get(key) != digest:
            wrong.append(
                f"result {key}: {'differs' if key in expected['results'] else 'made under a key of no other night'}"
            )
    made, usual = (Counter(key.split("-")[0] for key in night["results"]) for night in (found, expected))
    # characters that are given one sheet share its result, and that of its views
    wrong += [
        f"results: {made[stage]} of {stage}, not {usual[stage]}" for stage in RECORDS if made[stage] != usual[stage]
    ]
    return wrong


def wrong_in_prefect(site: Site, names: list[str]) -> list[str]:
    """Runs that are not finished, characters completed in more runs than batches were asked for, slots and leases still held."""
    runs = site.runs()
    wrong = [f"Prefect: run {run['name']} is {run['state_name']}" for run in runs if run["state_type"] not in ENDED]
    ended = {run["id"]: run["state_name"] for run in runs}
    wrong += [
        f"Prefect: task {task['name']} of a run that is {ended.get(task['flow_run_id'])} is {task['state_name']}"
        for task in open_tasks(site)
    ]
    done = Counter(run["name"] for run in runs if run["state_type"] == "COMPLETED" and run["parameters"].get("prompt"))
    # Each batch that was asked for may complete a run of each character, also one that crashed: what it submitted goes on,
    # and the batch given again submits its own, which takes all from the store. That a character is made only once is seen in
    # MLflow (one run a key, each step told once) and in the results (`differences`).
    batches = sum(run["name"].startswith("batch") for run in runs)
    wrong += [
        f"Prefect: {name} was completed {done[name]} times" for name in names if not 1 <= done[name] <= max(1, batches)
    ]
    limits = site.api("v2/concurrency_limits/filter", {})
    wrong += [
        f"Prefect: {limit['name']} holds {limit['active_slots']} slots" for limit in limits if limit["active_slots"]
    ]
    return wrong


def open_tasks(site: Site) -> list[dict[str, Any]]:
    """Tasks in Prefect, of whatever run, that are in no final state; 200 at most."""
    return list(site.api("task_runs/filter", {"task_runs": {"state": {"type": {"any_": OPEN}}}}))


def wrong_in_mlflow(site: Site, names: list[str], steps: int) -> list[str]:
    """Runs that still run, or stand there twice; metrics lost or sent twice; a pick registered twice."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=site.mlflow_uri)
    experiment = client.get_experiment_by_name("charengine")
    if experiment is None:
        return ["MLflow: no experiment"]
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    wrong = [f"MLflow: run {run.info.run_name} is {run.info.status}" for run in runs if run.info.status != "FINISHED"]
    keys = Counter(run.data.tags.get("charengine.key", "no key") for run in runs)
    wrong += [f"MLflow: {count} runs with the key {key}" for key, count in keys.items() if count > 1]
    kinds = Counter(run.data.tags.get("charengine.kind", "") for run in runs)
    wrong += [
        f"MLflow: {kinds[kind]} runs of kind {kind}, not {len(names)}"
        for kind in ("character", "train", "sweep")
        if kinds[kind] != len(names)
    ]
    for run in runs:
        if run.data.tags.get("charengine.kind") == "train":
            losses = ("train/loss", "train/lesson_loss")
            told = [point for name in losses for point in client.get_metric_history(run.info.run_id, name)]
            found = sorted(point.step for point in told)
            if found != list(range(1, steps + 1)):
                wrong.append(f"MLflow: losses of {run.info.run_name} at steps {found}, not 1 to {steps}")
    versions = Counter(version.name for version in client.search_model_versions())
    wrong += [f"MLflow: {versions[name]} versions of a pick of {name}" for name in versions if versions[name] != 1]
    if len(versions) != len(names):
        wrong.append(f"MLflow: picks of {len(versions)} characters, not {len(names)}")
    return wrong


def left_behind(site: Site, caches: list[str]) -> list[str]:
    """Processes, locks and files that must not be there once `up` has ended.

    Args:
        site: whose.
        caches: what lies in the temporary folder after an undisturbed night too.
    """
    wrong = [
        f"process: {kind} {process.pid} still runs"
        for kind, found in site.processes().items()
        for process in found
        if kind not in site.stays
    ]
    wrong += site.held()
    for place in (*(home.root for home in site.homes), *site.works):
        wrong += [
            f"temp file: {path.relative_to(site.folder)}"
            for pattern in TEMPORARY
            for path in sorted(place.rglob(pattern))
        ]
    temporary = [path for folder in site.temporaries for path in sorted(folder.iterdir()) if path.name not in caches]
    temporary += [path for home in site.homes for path in sorted(home.temporary.glob("*"))]
    wrong += [f"temp file: {path.relative_to(site.folder)}" for path in temporary]
    for home in site.homes:
        for folder in ("spool", "journal"):
            wrong += [f"not delivered: {path.name} in {folder}" for path in sorted((home.mlflow / folder).glob("*"))]
        wrong += [f"state left: {path.name}" for path in sorted(home.state.glob("*"))]
    store = site.store()
    unfinished = [path for path in store.fs.find(f"{store.root}/state") if store.fs.isfile(path)]
    return wrong + ([] if store.local else [f"state left: {path}" for path in unfinished])


def read_contents(path: Path) -> dict[str, Any]:
    """What `contents` gave for the undisturbed night."""
    return dict(json.loads(path.read_text()))
