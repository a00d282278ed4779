"""A sweep alone: other strengths, prompts or seeds for an earlier run, or for any adapter file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from charengine import outputs
from charengine.config import load_profile
from charengine.earlier import sweep_inputs
from charengine.environment import find_home, work_folder
from charengine.request import RunRequest, check, slug
from charengine.store import Store
from charengine.tracking import closing, open_tracker
from charengine.workspace import Workspace
from flows.character import PROJECT, ClassNoun, OutFolder, Overrides, ProfileName, Seed, Trigger, run_tags
from tasks.sweep import sweep_adapter

Source = Annotated[str, Field(description="Folder or run.json of an earlier run, or an adapter file (.safetensors)")]
Views = Annotated[str, Field(description="For a file: folder with the character's front, side and back pictures")]
SheetFile = Annotated[str, Field(description="For a file: the character's sheet, instead of views")]


@flow(name="sweep", flow_run_name="sweep-{source}", validate_parameters=True, persist_result=False)
def sweep(
    source: Source,
    views: Views = "",
    sheet: SheetFile = "",
    trigger: Trigger = "",
    class_noun: ClassNoun = "",
    seed: Seed = 42,
    profile: ProfileName = "embedded",
    overrides: Overrides = [],  # noqa: B006
    out: OutFolder = "",
) -> dict[str, Any]:
    """Try checkpoints at several strengths and pick one."""
    home = find_home().create()
    place = work_folder() / Path(source).expanduser()
    training, dataset = sweep_inputs(
        place,
        Store(home.store),
        load_profile(profile, overrides),
        views=work_folder() / views if views else None,
        sheet=work_folder() / sheet if sheet else None,
        trigger=trigger,
        class_noun=class_noun,
    )
    request = RunRequest(
        prompt=f"{dataset.class_noun}, from {place.name}",
        name=dataset.trigger,
        class_noun=dataset.class_noun,
        trigger=dataset.trigger,
        seed=seed,
        profile=profile,
        overrides=tuple(overrides),
        out=out or f"runs/sweep-{slug(dataset.trigger)}",
    )
    workspace = Workspace(check(request, home), home)
    workspace.tracker = open_tracker(
        home,
        project=PROJECT,
        name=f"sweep {dataset.trigger}",
        key=workspace.key,
        params=workspace.params(),
        tags=run_tags(workspace),
    )
    with closing(workspace.tracker):
        record = sweep_adapter(workspace, training, dataset)
    adapter, recommended = outputs.write_adapters(record, dataset.trigger, workspace.out, workspace.store)
    outputs.write_pictures(record, workspace.out, workspace.store)
    return {
        "adapter": str(adapter),
        "recommended_adapter": str(recommended),
        "checkpoint_step": record.pick.checkpoint_step,
        "strength": record.pick.strength,
        "sweep": str(outputs.write_sweep(record, workspace.out)),
        "mlflow_run_id": workspace.tracker.run_id,
    }
