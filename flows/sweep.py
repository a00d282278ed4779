"""A sweep alone: other strengths, prompts or seeds for an earlier run, or for any adapter file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, runtime

from charengine import files
from charengine.errors import EngineError
from charengine.machine.home import find_home, in_work_folder
from charengine.machine.known_runs import note_run
from charengine.machine.shared import open_store
from charengine.records import SweepRecord
from charengine.run import folder
from charengine.run.earlier_runs import character_name, description, sweep_inputs
from charengine.run.keys import digest
from charengine.run.outputs import check_names, sweep_files
from charengine.run.paths import profile_as_named
from charengine.run.request import RunRequest, check
from charengine.run.workspace import Workspace
from charengine.tracking.protocol import closing
from charengine.wording import slug
from flows.character import ProfileName, Seed
from tasks.heartbeats import beating
from tasks.page import failed_state
from tasks.sweep import register_pick, sweep_adapter
from tasks.workspace import track


def run_name() -> str:
    """The earlier run's folder, or the adapter file, without the folders above."""
    place = Path(str(runtime.flow_run.parameters.get("source") or ""))
    return f"sweep: {place.parent.name if place.name == 'run.json' else place.stem}"


@flow(name="sweep", flow_run_name=run_name, validate_parameters=True, persist_result=False)
def sweep(
    source: str,
    views: str = "",
    sheet: str = "",
    trigger: str = "",
    class_noun: str = "",
    seed: Seed = 42,
    profile: ProfileName = "embedded",
    overrides: list[str] = [],  # noqa: B006 - never changed, and Prefect's form shows it
    out: str = "",
) -> Any:
    """Try checkpoints at several strengths and pick one.

    Args:
        source: Folder or run.json of an earlier run, or an adapter file (.safetensors).
        views: For a file: folder with the character's front, side and back pictures.
        sheet: For a file: the character's sheet, instead of views.
        trigger: For a file that does not say it.
        class_noun: For a file that does not say it.
        seed: First of the paired seeds.
        profile: Models and settings for a kind of machine.
        overrides: Settings to change, one an item: sweep.strengths=[0.5, 0.7]
        out: Folder for the results. Empty: runs/sweep-TRIGGER.
    """
    try:
        with beating():
            return _swept(source, views, sheet, trigger, class_noun, seed, profile, overrides, out)
    except EngineError as error:
        return failed_state(error, f"sweep {source}")


def _swept(
    source: str,
    views: str,
    sheet: str,
    trigger: str,
    class_noun: str,
    seed: int,
    profile: str,
    overrides: list[str],
    out: str,
) -> dict[str, Any]:
    home = find_home().create()
    place = in_work_folder(source)
    training, dataset = sweep_inputs(
        place,
        open_store(home),
        profile_as_named(profile, overrides),
        views=in_work_folder(views) if views else None,
        sheet=in_work_folder(sheet) if sheet else None,
        trigger=trigger,
        class_noun=class_noun,
    )
    request = RunRequest(
        prompt=description(place) or f"{dataset.trigger} {dataset.class_noun}",
        name=character_name(place) or dataset.trigger,  # one character is one entry of the registry
        class_noun=dataset.class_noun,
        trigger=dataset.trigger,
        seed=seed,
        profile=profile,
        overrides=tuple(overrides),
        out=out or f"runs/sweep-{slug(dataset.trigger)}",
    )
    trained = {folder.adapter_files(dataset.trigger)[0]: training.checkpoints[-1].adapter.sha256}
    inputs = [path for path in (place, *([in_work_folder(sheet)] if sheet else [])) if files.is_file(path)]
    run = check(request, home, writes_run=False)
    check_names(run.out, sweep_files(dataset.trigger), inputs, trained)
    # two sources of one character are two runs, however alike they are asked for
    source_digest = digest([[one.adapter.sha256 for one in training.checkpoints], dataset.digest])
    workspace = Workspace(run.character, run.profile, home, starts_from=source_digest)
    with workspace.alone():
        track(workspace)
        with closing(workspace.tracker):
            record = sweep_adapter(workspace, training, dataset)
            register_pick(workspace, record, dataset)
            workspace.keep_whole()
    said = _written(record, dataset.trigger, run.out, workspace)
    note_run(home, run.out, [workspace.key, *(fact.key for fact in workspace.facts)])
    return said


def _written(record: SweepRecord, trigger: str, out: Path, workspace: Workspace) -> dict[str, Any]:
    """The sweep's files in its folder; what the flow says about them."""
    adapter, recommended = folder.write_adapters(record, trigger, out, workspace.store)
    folder.write_pictures(record, out, workspace.store)
    return {
        "adapter": str(adapter),
        "recommended_adapter": str(recommended),
        "checkpoint_step": record.pick.checkpoint_step,
        "strength": record.pick.strength,
        "recommended_prompt": record.words.recommended_prompt if record.words else "",
        "sweep": str(folder.write_sweep(record, out)),
        "mlflow_run_id": workspace.tracker.run_id,
    }
