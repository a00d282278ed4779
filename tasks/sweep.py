"""The sweep: checkpoints x strengths x prompts x seeds, and the pick, with one MLflow run a cell."""

from __future__ import annotations

from charengine.machine.interrupts import run_stoppable
from charengine.machine.threads import fastest_threads
from charengine.records import AdapterRecord, DatasetRecord, SweepRecord
from charengine.run.keys import stage_key
from charengine.run.workspace import Workspace
from charengine.stages.sweep import sweep as engine
from charengine.tracking.protocol import closing
from tasks.artifacts import show_sweep
from tasks.stage import run_stage, stage_task


def sweep_adapter(workspace: Workspace, training: AdapterRecord, dataset: DatasetRecord) -> SweepRecord:
    """Cells, pictures and the pick; the pick is registered."""
    sweep = run_stage(sweep_task, sweep_key(workspace, training, dataset), workspace, training, dataset, on_gpu=True)
    _register(workspace, sweep)
    show_sweep(workspace, sweep)
    return sweep


def sweep_key(workspace: Workspace, training: AdapterRecord, dataset: DatasetRecord) -> str:
    """The checkpoints, the views they are compared with, the sweep settings, both models and the seed."""
    models = workspace.models
    return stage_key(
        "sweep",
        engine.STAGE_VERSION,
        character={"name": workspace.character.name, "trigger": training.trigger, "class_noun": training.class_noun},
        settings=workspace.profile.sweep,
        inputs=[dataset.digest, *(checkpoint.adapter.sha256 for checkpoint in training.checkpoints)],
        models=[models.diffusion.fingerprint, models.embedder.fingerprint],
        seed=workspace.character.seed,
    )


@stage_task("sweep")
def sweep_task(key: str, workspace: Workspace, training: AdapterRecord, dataset: DatasetRecord) -> SweepRecord:
    """Draw and score every cell; cancelling stops between two."""
    tracker = workspace.tracker.child("sweep", key=key)
    models = workspace.models
    try:
        with closing(tracker), fastest_threads(models.diffusion, workspace.home):
            return run_stoppable(
                lambda stop: engine.sweep_adapter(
                    training,
                    dataset,
                    workspace.profile.sweep,
                    models.diffusion,
                    models.embedder,
                    workspace.store,
                    seed=workspace.character.seed,
                    tracker=tracker,
                    recipe=workspace.recipe(dataset),
                    should_stop=stop,
                )
            )
    finally:
        models.diffusion.unload()
        models.embedder.unload()


def _register(workspace: Workspace, sweep: SweepRecord) -> None:
    pick = sweep.pick
    workspace.tracker.register_pick(
        f"character-{workspace.slug}",
        workspace.store.get(sweep.recommended_adapter),
        pick.checkpoint_step,
        pick.strength,
        {"identity": pick.metrics.identity, "adherence": pick.metrics.adherence, "score": pick.metrics.score},
    )
