"""Stage 6, sweep: checkpoints × strengths are drawn and scored, and one is picked."""

from __future__ import annotations

from charengine.records import AdapterRecord, DatasetRecord, SweepRecord
from charengine.stage import Given, Stage


def _work(given: Given, training: AdapterRecord, dataset: DatasetRecord) -> SweepRecord:
    from charengine.stages.sweep.sweep import sweep_adapter

    return sweep_adapter(
        training,
        dataset,
        given.settings,
        given.models.diffusion,
        given.models.embedder,
        given.store,
        seed=given.seed,
        tracker=given.tracker,
        recipe={**given.recipe, "dataset_digest": dataset.digest},
        should_stop=given.should_stop,
        key=given.key,
    )


SWEEP = Stage(
    name="sweep",
    version=4,
    makes=SweepRecord,
    work=_work,
    settings="sweep",
    character=("name",),  # not read: another character with an equal adapter has a sweep, and an MLflow run, of its own
    models=("diffusion", "embedder"),
    seeded=True,
    gpu=True,
    draws=True,
    long=True,
)
