"""The pipeline as a Prefect flow: one character from one sentence. What it goes through: charengine/run/making.py."""

from __future__ import annotations

import re
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, runtime
from prefect.states import Completed
from pydantic import Field

from charengine.errors import EngineError
from charengine.field_types import MAX_PROMPT
from charengine.machine.home import find_home
from charengine.machine.shared import shared_store
from charengine.profiles.loading import profile_names
from charengine.records import RunRecord, RunResult
from charengine.run import making
from charengine.run.before_the_sweep import foretell
from charengine.run.claim import claimed
from charengine.run.handing_over import found, hand_over
from charengine.run.making import Steps
from charengine.run.opening import open_workspace
from charengine.run.outputs import check_run
from charengine.run.request import STAGES, CheckedRun, RunRequest, check, usual_name
from charengine.run.result import seconds_of
from charengine.run.workspace import Workspace
from charengine.tracking.protocol import closing
from charengine.wording import LONGEST_NOUN, NAME_PATTERN, TRIGGER_PATTERN
from tasks.artifacts import show_run
from tasks.caption import caption_views
from tasks.crop import crop_views
from tasks.expand import expand_views
from tasks.heartbeats import beating, instead_of_prefects
from tasks.page import failed_state, showing
from tasks.report import write_report
from tasks.sheet import make_sheet
from tasks.sweep import register_pick, sweep_adapter
from tasks.train import train_adapter
from tasks.workspace import flow_run_id, track

_prepared: ContextVar[tuple[CheckedRun, Workspace] | None] = ContextVar("prepared", default=None)


def optional(pattern: re.Pattern[str]) -> str:
    """The pattern for a field that may be left empty, as JSON Schema has it."""
    return f"^({pattern.pattern})?$"


# what Prefect's form checks, in the schema alone: our own check says it better where there is no form; its words come from the docstrings
Prompt = Annotated[str, Field(max_length=MAX_PROMPT)]
Name = Annotated[str, Field(max_length=64, json_schema_extra={"pattern": optional(NAME_PATTERN)})]
Noun = Annotated[str, Field(max_length=LONGEST_NOUN)]
Trigger = Annotated[str, Field(json_schema_extra={"pattern": optional(TRIGGER_PATTERN)})]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
ProfileName = Annotated[
    str,
    Field(
        json_schema_extra={
            "pattern": rf"^({'|'.join(profile_names())}|.+\.ya?ml)$",
            "examples": [*profile_names(), "my.yaml"],
        }
    ),
]
StageName = Annotated[str, Field(json_schema_extra={"enum": [*STAGES]})]


def run_name() -> str:
    """The character's name, also when it is taken from the prompt or from a picture's file."""
    given = runtime.flow_run.parameters
    return str(given.get("name") or usual_name(*(str(given.get(key, "")) for key in ("prompt", "reference", "out"))))


@flow(name="character", flow_run_name=run_name, validate_parameters=True, persist_result=False)
def character(
    prompt: Prompt = "",
    name: Name = "",
    class_noun: Noun = "",
    trigger: Trigger = "",
    seed: Seed = 42,
    profile: ProfileName = "embedded",
    overrides: list[str] = [],  # noqa: B006 - never changed, and Prefect's form shows it
    sheet: str = "",
    out: str = "",
    refresh: list[StageName] = [],  # noqa: B006
    reference: str = "",
) -> Any:
    """Make a character: sheet, views, captions, adapter, sweep, pick and report.

    Stages whose inputs have not changed are taken from the cache; a run that was killed continues.

    Args:
        prompt: One sentence saying what the character looks like. Empty: a reference says it.
        name: Letters, digits, spaces, _ and -; names the files. Empty: taken from the prompt.
        class_noun: "woman", "robot"… Empty: taken from the prompt.
        trigger: Rare word that will mean the character. Empty: derived from the name.
        seed: Same seed, same machine kind: same files.
        profile: Models and settings for a kind of machine: a shipped profile, or the path of a YAML file of your own.
        overrides: Settings to change, one an item: train.steps=800
        sheet: Path of a sheet that exists already. Empty: one is drawn.
        out: Folder for the results. Empty: runs/NAME.
        refresh: Stages to run even if nothing changed.
        reference: Path of one picture of the character, in any pose and place; the sheet is drawn from it.
    """
    request = RunRequest(
        prompt, name, class_noun, trigger, seed, profile, tuple(overrides), sheet, out, tuple(refresh), reference
    )
    name = name or usual_name(prompt, reference, out)
    try:
        with beating(), showing(name, prompt) as page:
            run, workspace = _prepared.get() or _prepare(request)
            check_run(run, workspace.character)
            with workspace.alone(), claimed(run) as own:
                page.begin(workspace, own.out)
                track(workspace)
                with closing(workspace.tracker):
                    foretell(workspace)
                    made = make_character(workspace, own.out)
                    # what a notification of Prefect's says of it (docs/howto/cast.md)
                    pick = f"step {made.checkpoint_step} at strength {made.strength:g}"
                    return Completed(message=f"{pick}; say {made.recommended_prompt!r}", data=made)
    except EngineError as error:
        return failed_state(error, name)


def _prepare(request: RunRequest) -> tuple[CheckedRun, Workspace]:
    home = find_home()
    if store := shared_store():
        request = replace(request, sheet=found(request.sheet, store), reference=found(request.reference, store))
    run = check(request, home)
    return run, open_workspace(run, home)


def start(run: CheckedRun, workspace: Workspace) -> RunResult:
    """The flow in this process, with a run that is checked and a workspace that is open: nothing is done twice."""
    token = _prepared.set((run, workspace))
    try:
        with instead_of_prefects():
            result: RunResult = character(**run.parameters())
        return result
    finally:
        _prepared.reset(token)


def make_character(workspace: Workspace, out: Path) -> RunResult:
    """The stages as Prefect tasks, one after the other (charengine/run/making.py), each shown on pages and told to MLflow."""
    steps = Steps(
        sheet=make_sheet,
        views=crop_views,
        expansion=expand_views,
        dataset=caption_views,
        training=train_adapter,
        sweep=sweep_adapter,
        register=register_pick,
        report=write_report,
        record=_in_this_flow,
        tell=_tell,
        deliver=_deliver,
    )
    return making.make_character(workspace, out, steps)


def _in_this_flow(run: RunRecord) -> RunRecord:
    return run.model_copy(update={"prefect_flow_run_id": flow_run_id()})


def _tell(workspace: Workspace, run: RunRecord, out: Path) -> None:
    show_run(workspace, run)
    _log_outcome(workspace, run, out)


def _deliver(workspace: Workspace, out: Path) -> None:
    """Where machines share a store and no folder, whoever asked fetches it from there."""
    if not workspace.store.local and (mine := flow_run_id()):
        hand_over(out, mine, workspace.store)


def _log_outcome(workspace: Workspace, run: RunRecord, out: Path) -> None:
    pick = run.sweep.pick
    numbers: dict[str, float] = {
        "pick/checkpoint_step": pick.checkpoint_step,
        "pick/strength": pick.strength,
    }
    if run.training.final_loss is not None:
        numbers["train/final_loss"] = run.training.final_loss
    for label, cell in (("pick", pick.metrics), ("base", pick.baseline), ("last_at_1", pick.overbaked)):
        numbers |= {
            f"{label}/{name}": getattr(cell, name) for name in ("identity", "adherence", "diversity", "copying")
        }
    if run.expansion:
        fates = [extra.fate for extra in run.expansion.views]
        numbers |= {
            f"expand/{fate.replace(' ', '_')}": fates.count(fate) for fate in ("trained", "held out", "refused")
        }
    took = seconds_of([fact for fact in run.stages if not fact.cached])
    numbers |= {f"seconds/{stage}": seconds for stage, seconds in took.items()}
    workspace.tracker.log_metrics(numbers, step=0)
    workspace.tracker.set_tags(
        {
            "dataset_digest": run.dataset.digest,
            "recommended_prompt": run.recommended_prompt,
            "cached_stages": ", ".join(fact.stage for fact in run.stages if fact.cached),
            "charengine.train_run_id": run.training.mlflow_run_id or "",
            "charengine.sweep_run_id": run.sweep.mlflow_run_id or "",
            "out": str(out),
        }
    )
