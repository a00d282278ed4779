"""Stage 6, sweep: checkpoints × strengths are drawn and scored, one is picked, and what its trigger brings is read off its pictures."""

from __future__ import annotations

from charengine.records import AdapterRecord, DatasetRecord, SweepRecord
from charengine.stage import Given, Stage


def _work(given: Given, training: AdapterRecord, dataset: DatasetRecord) -> SweepRecord:
    from charengine.adapter.metadata import recipe_of_dataset
    from charengine.language.phrases import with_traits
    from charengine.stages.sweep.sweep import sweep_adapter
    from charengine.stages.sweep.words import Pick, find_words

    models, description = given.models, with_traits(given.character.prompt, dataset.views.added)
    swept = sweep_adapter(
        training,
        dataset,
        given.settings,
        models.diffusion,
        models.embedder,
        given.store,
        reader=models.reader,
        description=description,
        seed=given.seed,
        tracker=given.tracker,
        recipe=recipe_of_dataset(given.recipe, dataset.trigger, dataset.class_noun, dataset.digest),
        should_stop=given.should_stop,
        key=given.key,
        on_drawn=given.on_drawn,
    )
    pick = Pick(training, swept, given.settings, models.diffusion, given.store, given.seed)
    return find_words(pick, description, models.reader, tracker=given.tracker, should_stop=given.should_stop)


SWEEP = Stage(
    name="sweep",
    version=11,
    makes=SweepRecord,
    work=_work,
    settings="sweep",
    character=(
        "name",  # not read: another character with an equal adapter has a sweep, and an MLflow run, of its own
        "prompt",
    ),
    models=("diffusion", "embedder", "reader"),
    seeded=True,
    gpu=True,
    draws=True,
    long=True,
)
