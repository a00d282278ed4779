"""The sweep: checkpoints x strengths x prompts x seeds, and the pick, with one MLflow run a cell."""

from __future__ import annotations

from charengine.records import AdapterRecord, DatasetRecord, SweepRecord
from charengine.run import steps
from charengine.run.beside import facts_of, is_rescaled
from charengine.run.workspace import Workspace
from tasks.artifacts import show_sweep
from tasks.live import LiveProgress
from tasks.page import stage_line
from tasks.stage import as_task, how


def sweep_adapter(workspace: Workspace, training: AdapterRecord, dataset: DatasetRecord) -> SweepRecord:
    """Cells, pictures and the pick."""
    on_page = stage_line("sweep")
    live = LiveProgress(f"{workspace.slug}-sweeping", workspace.character.name, "sweeping", on_page)
    workspace.on_drawn = live.on_drawn
    try:
        with live.following():
            swept = steps.sweep(as_task, workspace, training, dataset)
    finally:
        workspace.on_drawn = None
    on_page(how(workspace.facts[-1]))  # the last step stood there
    show_sweep(workspace, swept)
    return swept


def register_pick(workspace: Workspace, sweep: SweepRecord, dataset: DatasetRecord) -> None:
    """The recommended adapter as the character's newest registered version."""
    pick, character, store = sweep.pick, workspace.character, workspace.store
    rescaled = is_rescaled(sweep, store)
    workspace.tracker.register_pick(
        f"character-{workspace.slug}",
        store.get(sweep.recommended_adapter),
        pick.checkpoint_step,
        pick.strength,
        {"identity": pick.metrics.identity, "adherence": pick.metrics.adherence, "score": pick.metrics.score},
        rescaled=rescaled,
        facts=facts_of(character.name, character.prompt, dataset, sweep, workspace.profile.models, rescaled),
    )
