"""A cast, one character after the other here, or all at once on the work pool; one failure never stops the rest."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Annotated, Any
from typing import cast as cast_type

from prefect import Flow, runtime
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_UI_URL
from prefect.states import Completed, Failed
from pydantic import Field

from charengine.errors import EngineError, StageFailed
from charengine.machine.home import find_home, in_work_folder
from charengine.machine.known_runs import note_run
from charengine.machine.shared import shared_store
from charengine.records import RunResult
from charengine.run import folder
from charengine.run.as_checked import AsChecked
from charengine.run.budget import MOST_HOURS, QUEUES, Budget, not_begun_said, queue_of
from charengine.run.cast import MAX_CAST, check_cast, read_cast
from charengine.run.handing_over import fetch, for_any_machine
from charengine.run.inbox import Inbox, opened
from charengine.run.request import RunRequest
from charengine.stages.report.cast import as_text, gallery_page, table, warnings_of, with_warnings
from flows.character import ProfileName, character
from flows.pool import PrefectAway, made_on_pool, patiently
from tasks.heartbeats import beating, instead_of_prefects
from tasks.live import LiveText
from tasks.page import failed_state

log = logging.getLogger("charengine.flows")

MOST_ROWS = 200  # of the page that is written anew whenever a character begins or ends
LONGEST_MESSAGE = 4000  # characters of the table that Prefect's page shows as the reason


# what Prefect's form checks; as in flows/character.py
Hours = Annotated[float, Field(json_schema_extra={"minimum": 0, "maximum": MOST_HOURS})]
Priority = Annotated[str, Field(json_schema_extra={"enum": [*QUEUES]})]
Count = Annotated[int, Field(json_schema_extra={"minimum": 0, "maximum": MAX_CAST})]


class CastFailed(StageFailed):
    """Some characters of a cast could not be made; the others were."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__(result["table"])
        self.result = result


class BatchFlow(Flow[..., Any]):
    """Fails in Prefect's page when a character did, and hands its caller the outcomes all the same."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The outcomes, or with `return_state=True` the state."""
        try:
            with instead_of_prefects():
                return super().__call__(*args, **kwargs)
        except CastFailed as failed:
            return failed.result


def _batch(
    characters: list[dict[str, Any]] = [],  # noqa: B006 - never changed, and Prefect's form shows it
    file: str = "",
    workers: bool = False,
    batch_id: str = "",
    max_hours: Hours = 0.0,
    max_characters: Count = 0,
    inbox: bool = False,
    profile: ProfileName = "embedded",
    overrides: list[str] = [],  # noqa: B006
    priority: Priority = "normal",
) -> Any:
    """Make every character of a cast, all checked before the first is made, and a summary with their pictures.

    Args:
        characters: Entries with the fields of the character form. Empty: taken from the file.
        file: YAML or CSV file with one character an entry.
        workers: Hand the characters to the work pool instead of making them here.
        batch_id: With the same id nothing is started twice. Empty: the time this was scheduled for.
        max_hours: After so many hours since this began no further character is begun; those that run are finished. 0: no limit.
        max_characters: So many are made at most; what was made before does not count. 0: no limit.
        inbox: Where no characters and no file are given: take what lies in the inbox, the folder `inbox` of the home.
        profile: Of characters that name none.
        overrides: Settings to change for all, one an item: train.steps=800
        priority: Of the characters on the work pool, among casts: a single character goes before all.
    """
    with beating():
        how = profile, tuple(overrides)
        try:
            budget = Budget(max_hours, max_characters, began=_first_began())
            queue = queue_of(priority) if workers else ""
            if inbox and not (characters or file):
                with opened(find_home(), *how) as box:
                    return _make(box.requests, queue, batch_id, budget, box)
            home = find_home()
            requests = (
                check_cast(characters, "cast", *how, home=home)
                if characters
                else read_cast(in_work_folder(file), *how, home=home)
            )
        except EngineError as error:
            return failed_state(error, "batch")
        return _make(requests, queue, batch_id, budget)


def _make(requests: list[RunRequest], queue: str, batch_id: str, budget: Budget, box: Inbox | None = None) -> Any:
    """Make the characters, here or through a queue of the work pool, and put away the files that asked for them."""
    cast = [request.as_parameters() for request in requests]
    started = time.monotonic()
    told = _Told(cast)
    made = _on_pool(cast, batch_id or _default_id(), told, budget, queue) if queue else _one_by_one(cast, told, budget)
    outcomes = [made[index] for index in sorted(made)]
    if box:
        box.settle({index: outcome["error"] for index, outcome in made.items()})
        outcomes += [_outcome({"name": file, "prompt": ""}, error=why) for file, why in box.refused]
    not_begun = [entry["name"] for index, entry in enumerate(cast) if index not in made]
    said = not_begun_said(not_begun, budget.spent)
    told.stopped(said)
    folder_of_all = Path(cast[0]["out"]).parent if cast else in_work_folder("runs")
    page = gallery_page(outcomes, folder_of_all / "batch.html", said) if outcomes else ""
    result = {
        "characters": outcomes,
        "failed": [outcome["name"] for outcome in outcomes if outcome["error"]],
        "not_begun": not_begun,
        "summary": str(page),
        "seconds": round(time.monotonic() - started, 1),
        "table": "\n\n".join(filter(None, (table(outcomes), as_text(said)))),
    }
    return _ended(result, len(outcomes) + len(not_begun), said)


def _ended(result: dict[str, Any], count: int, said: str) -> Any:
    """The result, in a state that says what Prefect's page is to show of it."""
    failed = len(result["failed"])
    if failed:
        message = " ".join(filter(None, (f"{failed} of {count} characters could not be made.", said)))
        return Failed(message=f"{message}\n\n{result['table']}"[:LONGEST_MESSAGE], data=CastFailed(result))
    made = "1 character is made" if count == 1 else f"{count} characters are made"
    made += with_warnings(result["characters"])
    return Completed(message=said or (made if count else "the inbox was empty"), data=result)


def run_name() -> str:
    """The cast's file, or how many characters it has; and the batch's id, if it was given one."""
    given = runtime.flow_run.parameters
    count = len(given.get("characters") or [])
    what = (
        f"{count} character{'s' * (count != 1)}"
        if count
        else Path(str(given.get("file") or "")).stem or ("inbox" if given.get("inbox") else "")
    )
    return " ".join(filter(None, ("batch:", what, str(given.get("batch_id") or ""))))


batch = BatchFlow(_batch, name="batch", flow_run_name=run_name, validate_parameters=True, persist_result=False)


class _Told:
    """What the batch's page says as it goes: each character, how it is, and the way to its run."""

    def __init__(self, cast: list[dict[str, Any]]) -> None:
        self._rows = {entry["name"]: ("waits", "") for entry in cast}
        self._ended = 0
        self._note = ""
        self._live = LiveText("batch-summary", "the cast")
        self._show()

    def began(self, name: str) -> None:
        """A character is being made."""
        log.info("%s is being made", name)
        self._say(name, "is being made")

    def ended(self, outcome: dict[str, Any], run_id: object = None) -> None:
        """A character is made, or failed."""
        warned = warnings_of(outcome)
        said = (
            f"failed: {outcome['error']}"
            if outcome["error"]
            else f"made, {warned}: see its report"
            if warned
            else "made"
        )
        self._ended += 1
        log.info("%s: %s (%d of %d have ended)", outcome["name"], said, self._ended, len(self._rows))
        ui = PREFECT_UI_URL.value()
        self._say(outcome["name"], said, f"{ui}/runs/flow-run/{run_id}" if ui and run_id else "")

    def stopped(self, note: str) -> None:
        """Why the rest was not begun; empty when there is none."""
        if note:
            log.info("%s", note)
            self._note = f"\n\n{as_text(note)}"
            self._rows = {
                name: ("not begun" if said == "waits" else said, link) for name, (said, link) in self._rows.items()
            }
            self._show()

    def _say(self, name: str, said: str, link: str = "") -> None:
        self._rows[name] = (said, link)
        self._show()

    def _show(self) -> None:
        rows, count = list(self._rows.items()), len(self._rows)
        if count > MOST_ROWS:  # of many, those that one looks for
            rows = sorted(rows, key=lambda row: _looked_for(row[1][0]))[:MOST_ROWS]
        lines = [
            f"| {f'[{as_text(name)}]({link})' if link else as_text(name)} | {as_text(said)[:400]} |"
            for name, (said, link) in rows
        ]
        if len(rows) < count:
            lines.append(f"| and {count - len(rows)} more | {self._ended} of {count} have ended |")
        self._live.show("\n".join(["| character | |", "| --- | --- |", *lines]) + self._note)


def _looked_for(said: str) -> int:
    """What failed comes first, then what is being made, then what is made, at last what waits."""
    return 0 if said.startswith("failed") else 1 if said == "is being made" else 2 if said.startswith("made") else 3


def _one_by_one(cast: list[dict[str, Any]], told: _Told, budget: Budget) -> dict[int, dict[str, Any]]:
    """The outcomes of those that the budget lets begin, by their place in the cast."""
    made: dict[int, dict[str, Any]] = {}
    checked = AsChecked(cast)
    for index, entry in enumerate(cast):
        if not budget.allows(0):
            break
        for what in checked.changed(index):
            log.warning("%s changed after the cast was checked: %s is made with it as it is now", what, entry["name"])
        made[index] = _here(entry, told, budget)
    return made


def _here(entry: dict[str, Any], told: _Told, budget: Budget) -> dict[str, Any]:
    """One character as a subflow of this one; while Prefect is busy or away it waits, and one that is begun again continues."""
    told.began(entry["name"])

    def call() -> State[RunResult]:
        return cast_type(
            "State[RunResult]", character(**entry, return_state=True)
        )  # awaitable only inside an async flow

    try:
        state = patiently(call, f"{entry['name']} could not be made")
    except PrefectAway as error:
        told.ended(outcome := _outcome(entry, error=str(error)))
        return outcome
    result = state.result() if state.is_completed() else None
    budget.count(result)
    outcome = _outcome(entry, result, "" if result else _reason(state.result(raise_on_failure=False)))
    told.ended(outcome, state.state_details.flow_run_id)
    return outcome


def _on_pool(
    cast: list[dict[str, Any]], batch_id: str, told: _Told, budget: Budget, queue: str
) -> dict[int, dict[str, Any]]:
    """The same on the work pool; the same batch id never starts one twice."""
    outcomes: dict[int, dict[str, Any]] = {}
    store = shared_store()
    asked = [for_any_machine(entry, store) for entry in cast] if store else cast
    checked = AsChecked(cast)
    for ended in made_on_pool(asked, batch_id, budget, queue):
        entry = cast[ended.index]
        for what in checked.changed(ended.index) if ended.run else ():
            log.warning("%s changed after the cast was checked: %s may be made with either", what, entry["name"])
        result, error = _of_run(entry, ended.run) if ended.run else (None, ended.error)
        budget.count(result)
        outcomes[ended.index] = _outcome(entry, result, error)
        told.ended(outcomes[ended.index], ended.run.id if ended.run else None)
    return outcomes


def _of_run(entry: dict[str, Any], run: FlowRun) -> tuple[RunResult | None, str]:
    """What a run made, or why it made nothing that can be read here."""
    if run.state and run.state.is_completed():
        try:
            return _result_of_run(run, Path(entry["out"])), ""
        except EngineError as error:
            return None, f"it is done, but {error}"
        except (OSError, ValueError):
            return None, f"it is done, but its folder {entry['out']} cannot be read from here"
    message = (run.state.message if run.state else "") or "it failed"
    return None, message.removeprefix("Flow run encountered an exception: ")


def _result_of_run(run: FlowRun, out: Path) -> RunResult:
    """What a run made, in its folder; from the store, where machines share that and no folder."""
    store = shared_store()
    if not store:
        return folder.read_result(out)
    result = fetch(str(run.id), out, store)
    note_run(find_home(), out)
    return result


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


def _first_began() -> float:
    """Seconds since 1970; of a run that Prefect tries again, when it first began; 0: just now."""
    context = FlowRunContext.get()
    began = context.flow_run.start_time if context and context.flow_run else None
    return began.timestamp() if began else 0.0


def _default_id() -> str:
    scheduled = runtime.flow_run.scheduled_start_time
    return scheduled.strftime("%Y%m%d-%H%M%S") if scheduled else time.strftime("%Y%m%d-%H%M%S")
