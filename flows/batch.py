"""A cast, one character after the other here, or all at once on the work pool; one failure never stops the rest."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from prefect import flow, runtime
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import FlowRun

from charengine.errors import EngineError
from charengine.machine.home import in_work_folder
from charengine.records import RunResult
from charengine.run import folder
from charengine.run.cast import check_cast, read_cast
from charengine.stages.report.cast import gallery_page, table
from flows.character import character
from flows.pool import made_on_pool

log = logging.getLogger("charengine.flows")


@flow(name="batch", flow_run_name="batch-{batch_id}", validate_parameters=True, persist_result=False)
def batch(
    characters: list[dict[str, Any]] = [],  # noqa: B006 - never changed, and Prefect's form shows it
    file: str = "",
    workers: bool = False,
    batch_id: str = "",
) -> dict[str, Any]:
    """Make every character of a cast, and a summary with their pictures.

    Args:
        characters: Entries with the fields of the character form. Empty: taken from the file.
        file: YAML or CSV file with one character an entry.
        workers: Hand the characters to the work pool instead of making them here.
        batch_id: With the same id nothing is started twice. Empty: the time this was scheduled for.
    """
    requests = check_cast(characters) if characters else read_cast(in_work_folder(file))
    cast = [request.as_parameters() for request in requests]
    started = time.monotonic()
    outcomes = _on_pool(cast, batch_id or _default_id()) if workers else [_here(entry) for entry in cast]
    failed = [outcome["name"] for outcome in outcomes if outcome["error"]]
    page = gallery_page(outcomes, Path(cast[0]["out"]).parent / "batch.html")
    create_markdown_artifact(markdown=table(outcomes), key="batch-summary", description="the cast")
    return {
        "characters": outcomes,
        "failed": failed,
        "summary": str(page),
        "seconds": round(time.monotonic() - started, 1),
        "table": table(outcomes),
    }


def _here(entry: dict[str, Any]) -> dict[str, Any]:
    """One character as a subflow of this one."""
    state = character(**entry, return_state=True)
    if state.is_completed():
        return _outcome(entry, result=state.result())
    return _outcome(entry, error=_reason(state.result(raise_on_failure=False)))


def _on_pool(cast: list[dict[str, Any]], batch_id: str) -> list[dict[str, Any]]:
    """All characters on the work pool; the same batch id never starts one twice."""
    outcomes: dict[int, dict[str, Any]] = {}
    for ended in made_on_pool(cast, batch_id):
        entry = cast[ended.index]
        outcomes[ended.index] = _outcome_of_run(entry, ended.run) if ended.run else _outcome(entry, error=ended.error)
        log.info("%d of %d characters have ended", len(outcomes), len(cast))
    return [outcomes[index] for index in range(len(cast))]


def _outcome_of_run(entry: dict[str, Any], run: FlowRun) -> dict[str, Any]:
    if run.state and run.state.is_completed():
        try:
            return _outcome(entry, result=folder.read_result(Path(entry["out"])))
        except (OSError, ValueError):
            return _outcome(entry, error=f"it is done, but its folder {entry['out']} cannot be read from here")
    message = (run.state.message if run.state else "") or "it failed"
    return _outcome(entry, error=message.removeprefix("Flow run encountered an exception: "))


def _outcome(entry: dict[str, Any], result: RunResult | None = None, error: str = "") -> dict[str, Any]:
    return {
        "name": entry["name"],
        "prompt": entry["prompt"],
        "error": error,
        "result": result.model_dump(mode="json") if result else None,
    }


def _reason(error: Any) -> str:
    if isinstance(error, EngineError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _default_id() -> str:
    scheduled = runtime.flow_run.scheduled_start_time
    return scheduled.strftime("%Y%m%d-%H%M%S") if scheduled else time.strftime("%Y%m%d-%H%M%S")
