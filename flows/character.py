"""The pipeline: from one sentence to a tested character adapter. Read `character` first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from charengine.config import MAX_PROMPT
from charengine.machine.home import find_home
from charengine.profiles.loading import profile_names
from charengine.records import (
    AdapterRecord,
    DatasetRecord,
    ExpansionRecord,
    RunRecord,
    SheetRecord,
    SweepRecord,
    ViewsRecord,
)
from charengine.run import folder as outputs
from charengine.run.request import STAGES, RunRequest, check
from charengine.run.workspace import Workspace
from charengine.tracking.protocol import closing
from tasks.artifacts import show_run
from tasks.caption import caption_key, caption_views, show_dataset
from tasks.crop import crop_views
from tasks.expand import expand_views
from tasks.report import write_report
from tasks.sheet import make_sheet
from tasks.sweep import sweep_adapter
from tasks.train import train_adapter
from tasks.workspace import flow_run_id, open_workspace

# what Prefect's form checks; its words come from the docstrings
Prompt = Annotated[str, Field(max_length=MAX_PROMPT)]
Name = Annotated[str, Field(max_length=64)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
ProfileName = Annotated[str, Field(json_schema_extra={"enum": [*profile_names()]})]
StageName = Annotated[str, Field(json_schema_extra={"enum": [*STAGES]})]


@flow(name="character", flow_run_name="{name}", validate_parameters=True, persist_result=False)
def character(
    prompt: Prompt,
    name: Name = "",
    class_noun: str = "",
    trigger: str = "",
    seed: Seed = 42,
    profile: ProfileName = "embedded",
    overrides: list[str] = [],  # noqa: B006 - never changed, and Prefect's form shows it
    sheet: str = "",
    out: str = "",
    refresh: list[StageName] = [],  # noqa: B006
) -> dict[str, Any]:
    """Make a character: sheet, views, captions, adapter, sweep, pick and report.

    Stages whose inputs have not changed are taken from the cache; a run that was killed continues.

    Args:
        prompt: One sentence saying what the character looks like.
        name: Letters, digits, spaces, _ and -; names the files. Empty: taken from the prompt.
        class_noun: "woman", "robot"… Empty: taken from the prompt.
        trigger: Rare word that will mean the character. Empty: derived from the name.
        seed: Same seed, same machine kind: same files.
        profile: Models and settings for a kind of machine.
        overrides: Settings to change, one an item: train.steps=800
        sheet: Path of a sheet that exists already. Empty: one is drawn.
        out: Folder for the results. Empty: runs/NAME.
        refresh: Stages to run even if nothing changed.
    """
    request = RunRequest(
        prompt, name, class_noun, trigger, seed, profile, tuple(overrides), sheet, out, refresh=tuple(refresh)
    )
    home = find_home()
    checked = check(request, home)
    workspace = open_workspace(checked, home, title=checked.character.name)
    with closing(workspace.tracker):
        return make_character(workspace)


def make_character(workspace: Workspace) -> dict[str, Any]:
    """The stages, each handing a record to the next; files are written as soon as they exist."""
    out, store = workspace.out, workspace.store

    sheet = make_sheet(workspace)
    sheet_path = outputs.write_sheet(sheet, out, store)

    views = crop_views(workspace, sheet)
    view_paths = outputs.write_views(views, out / "views", store)

    expansion = expand_views(workspace, views)
    if expansion:
        outputs.write_expansion(expansion, out / "extra_views", store)
    extras = expansion.kept if expansion else ()

    key = caption_key(workspace, views, extras)
    dataset = outputs.take_edits(caption_views(workspace, views, extras), out, key)
    show_dataset(workspace, dataset)
    caption_paths = outputs.write_dataset(dataset, out, store, key)

    training = train_adapter(workspace, dataset)

    sweep = sweep_adapter(workspace, training, dataset)
    adapter_path, recommended_path = outputs.write_adapters(sweep, dataset.trigger, out, store)
    outputs.write_pictures(sweep, out, store)

    run = _record(workspace, sheet, views, expansion, dataset, training, sweep)
    report = write_report(workspace, run)
    run = run.model_copy(update={"stages": tuple(workspace.facts)})
    report_path = outputs.write_report(report, run, out, store)
    show_run(workspace, run)
    _log_outcome(workspace, run)

    result = {
        "name": run.name,
        "trigger": run.trigger,
        "sheet": str(sheet_path),
        "views": [str(path) for path in view_paths],
        "captions": [str(path) for path in caption_paths],
        "adapter": str(adapter_path),
        "recommended_adapter": str(recommended_path),
        "checkpoint_step": sweep.pick.checkpoint_step,
        "strength": sweep.pick.strength,
        "report": str(report_path),
        "mlflow_run_id": run.mlflow_run_id,
        "prefect_flow_run_id": run.prefect_flow_run_id,
        "cached_stages": [fact.stage for fact in run.stages if fact.cached],
        "seconds": {fact.stage: round(fact.seconds, 3) for fact in run.stages},
    }
    outputs.write_result(result, out)
    return result


def _record(
    workspace: Workspace,
    sheet: SheetRecord,
    views: ViewsRecord,
    expansion: ExpansionRecord | None,
    dataset: DatasetRecord,
    training: AdapterRecord,
    sweep: SweepRecord,
) -> RunRecord:
    records = (sheet, views, expansion, dataset, training, sweep)
    warnings = [warning for record in records if record for warning in record.warnings]
    return RunRecord(
        name=workspace.character.name,
        prompt=workspace.character.prompt,
        trigger=dataset.trigger,
        class_noun=dataset.class_noun,
        seed=workspace.character.seed,
        profile=workspace.profile.name,
        config=workspace.config,
        sheet=sheet,
        views=views,
        expansion=expansion,
        dataset=dataset,
        training=training,
        sweep=sweep,
        stages=tuple(workspace.facts),
        mlflow_run_id=workspace.tracker.run_id,
        prefect_flow_run_id=flow_run_id(),
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _log_outcome(workspace: Workspace, run: RunRecord) -> None:
    pick = run.sweep.pick
    numbers = {
        "pick/checkpoint_step": pick.checkpoint_step,
        "pick/strength": pick.strength,
        "train/final_loss": run.training.checkpoints[-1].loss,
    }
    for label, cell in (("pick", pick.metrics), ("base", pick.baseline), ("last_at_1", pick.overbaked)):
        numbers |= {
            f"{label}/{name}": getattr(cell, name) for name in ("identity", "adherence", "diversity", "copying")
        }
    if run.expansion:
        fates = [extra.fate for extra in run.expansion.views]
        numbers |= {
            f"expand/{fate.replace(' ', '_')}": fates.count(fate) for fate in ("trained", "held out", "refused")
        }
    numbers |= {f"seconds/{fact.stage}": fact.seconds for fact in run.stages if not fact.cached}
    workspace.tracker.log_metrics(numbers, step=0)
    workspace.tracker.set_tags(
        {
            "dataset_digest": run.dataset.digest,
            "cached_stages": ", ".join(fact.stage for fact in run.stages if fact.cached),
            "charengine.train_run_id": run.training.mlflow_run_id or "",
            "charengine.sweep_run_id": run.sweep.mlflow_run_id or "",
            "out": str(Path(workspace.out)),
        }
    )
