"""The sweep: checkpoints x strengths x prompts x seeds, and the pick, with one MLflow run a cell."""

from __future__ import annotations

from charengine.adapter.files import STRENGTH, load_adapter
from charengine.config import ModelSettings
from charengine.models.embedded import base_folder
from charengine.records import AdapterRecord, DatasetRecord, SweepRecord
from charengine.run.workspace import Workspace
from charengine.stages.sweep.stage import SWEEP
from tasks.artifacts import show_sweep
from tasks.stage import stage_task

sweep = stage_task(SWEEP)


def sweep_adapter(workspace: Workspace, training: AdapterRecord, dataset: DatasetRecord) -> SweepRecord:
    """Cells, pictures and the pick; the pick is registered."""
    swept = sweep(workspace, training, dataset)
    register_pick(workspace, swept, dataset)
    show_sweep(workspace, swept)
    return swept


def register_pick(workspace: Workspace, sweep: SweepRecord, dataset: DatasetRecord) -> None:
    """The recommended adapter as the character's newest registered version."""
    pick, character = sweep.pick, workspace.character
    adapter = workspace.store.get(sweep.recommended_adapter)
    workspace.tracker.register_pick(
        f"character-{workspace.slug}",
        adapter,
        pick.checkpoint_step,
        pick.strength,
        {"identity": pick.metrics.identity, "adherence": pick.metrics.adherence, "score": pick.metrics.score},
        rescaled=load_adapter(adapter)[1].get(STRENGTH) == str(pick.strength),  # DoRA cannot be
        facts={
            "character": character.name,
            "prompt": character.prompt,
            "trigger": dataset.trigger,
            "recommended_prompt": f"{dataset.trigger} {dataset.class_noun}",
            "dataset": f"{dataset.trigger} {dataset.digest}",
            "base_model": base_model(workspace.profile.models),
        },
    )


def base_model(settings: ModelSettings) -> str:
    """What `mlflow.diffusers` puts the adapter on: a folder, a file or a hub id."""
    if settings.family == "embedded":
        return str(base_folder(settings))
    return settings.sdxl
