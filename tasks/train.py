"""The adapter: trained on the dataset, in its own MLflow run, resumable under its stage key."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from charengine.config import TrainSettings
from charengine.errors import OutOfBudget
from charengine.machine.interrupts import run_stoppable
from charengine.machine.threads import fastest_threads
from charengine.records import VIEWS, AdapterRecord, DatasetRecord
from charengine.run.keys import file_digest, folder_digest, stage_key
from charengine.run.workspace import Workspace
from charengine.stages.train import loop as engine
from charengine.tracking.protocol import Tracker, closing
from tasks.artifacts import show_training
from tasks.stage import run_stage, stage_task

log = logging.getLogger("charengine.tasks")


def train_adapter(workspace: Workspace, dataset: DatasetRecord) -> AdapterRecord:
    """Checkpoints and curves."""
    key = train_key(workspace, dataset)
    if "train" in workspace.refresh:
        shutil.rmtree(workspace.home.state / key, ignore_errors=True)
    training = run_stage(train_task, key, workspace, dataset, on_gpu=True)
    show_training(workspace, training)
    return training


def train_key(workspace: Workspace, dataset: DatasetRecord) -> str:
    """The dataset, the training settings (files they name by content), the base model and the seed.

    The name is part of it: another character with equal data gets a run of its own.
    """
    settings = workspace.profile.train
    files = [
        file_digest(Path(settings.continue_from)) if settings.continue_from else "",
        folder_digest(Path(settings.regularisation)) if settings.regularisation else "",
    ]
    return stage_key(
        "train",
        engine.STAGE_VERSION,
        character={"name": workspace.character.name, "trigger": dataset.trigger, "class_noun": dataset.class_noun},
        settings=settings.model_copy(update={"continue_from": "", "regularisation": ""}),
        inputs=[dataset.digest, f"side_bound={dataset.side_bound}", *files],
        models=[workspace.models.diffusion.fingerprint],
        seed=workspace.character.seed,
    )


@stage_task("train")
def train_task(key: str, workspace: Workspace, dataset: DatasetRecord) -> AdapterRecord:
    """Train so that cancelling stops it at the next step, state saved; out of memory gets one smaller plan."""
    tracker = workspace.tracker.child("train", key=key, params=_params(workspace.profile.train))
    tracker.log_dataset(workspace.slug, dataset.digest, {"trigger": dataset.trigger, "class_noun": dataset.class_noun})
    try:
        with closing(tracker), fastest_threads(workspace.models.diffusion, workspace.home):
            record = run_stoppable(lambda stop: _train_within_memory(key, workspace, dataset, tracker, stop))
    finally:
        workspace.models.diffusion.unload()
    shutil.rmtree(workspace.home.state / key, ignore_errors=True)
    return record


def _train_within_memory(
    key: str, workspace: Workspace, dataset: DatasetRecord, tracker: Tracker, stop: Callable[[], bool]
) -> AdapterRecord:
    settings = workspace.profile.train
    try:
        return _train(key, workspace, dataset, settings, tracker, stop)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        smaller = smaller_plan(settings, len(VIEWS) + len(dataset.trained_extras))
        if smaller == settings:
            raise OutOfBudget(f"training ran out of memory with the smallest plan there is: {error}") from error
    workspace.models.diffusion.unload()
    told = f"training ran out of memory and went on with checkpointing={smaller.checkpointing}, batch={smaller.batch}"
    log.warning(told)
    tracker.set_tags({"charengine.fallback": told})
    record = _train(f"{key}-smaller", workspace, dataset, smaller, tracker, stop)
    return record.model_copy(update={"warnings": (*record.warnings, told)})


def _train(
    key: str,
    workspace: Workspace,
    dataset: DatasetRecord,
    settings: TrainSettings,
    tracker: Tracker,
    stop: Callable[[], bool],
) -> AdapterRecord:
    return engine.train_adapter(
        dataset,
        settings,
        workspace.models.diffusion,
        workspace.store,
        seed=workspace.character.seed,
        state_dir=workspace.home.state / key,
        tracker=tracker,
        recipe=workspace.recipe(dataset),
        should_stop=stop,
        on_step=workspace.on_step,
    )


def smaller_plan(settings: TrainSettings, views: int = len(VIEWS)) -> TrainSettings:
    """The plan that needs least memory for the same samples per step: full checkpointing, one view at a time."""
    samples = (settings.batch or views) * settings.accumulate
    return settings.model_copy(update={"checkpointing": "full", "batch": 1, "accumulate": min(samples, 64)})


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError)


def _params(settings: TrainSettings) -> dict[str, object]:
    return {key: value for key, value in settings.model_dump(mode="json").items() if value not in ("", [], None)}
