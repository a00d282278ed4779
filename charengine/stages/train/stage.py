"""Stage 5, train: the views and captions become an adapter."""

from __future__ import annotations

from charengine.config import TrainSettings
from charengine.records import VIEWS, AdapterRecord, DatasetRecord
from charengine.stage import Given, Stage


def _work(given: Given, dataset: DatasetRecord) -> AdapterRecord:
    from charengine.adapter.metadata import recipe_of_dataset
    from charengine.language.phrases import with_traits
    from charengine.machine.home import find_home
    from charengine.stages.train.loop import train_adapter

    assert given.state is not None
    tags = {"trigger": dataset.trigger, "class_noun": dataset.class_noun}
    given.tracker.log_dataset(dataset.trigger, dataset.digest, tags)
    return train_adapter(
        dataset,
        given.settings,
        given.models.diffusion,
        given.store,
        seed=given.seed,
        state_dir=given.state,
        tracker=given.tracker,
        recipe=recipe_of_dataset(given.recipe, dataset.trigger, dataset.class_noun, dataset.digest),
        should_stop=given.should_stop,
        on_step=given.on_step,
        description=with_traits(given.character.prompt, dataset.views.added),
        plans=find_home().root / "plans.json",
        files_read=given.files_read,
    )


def smaller_plan(settings: TrainSettings, dataset: DatasetRecord) -> TrainSettings | None:
    """The plan that needs least memory for the same samples per step: full checkpointing, one view at a time; None when it is that."""
    views = len(VIEWS) + len(dataset.trained_extras)
    samples = (settings.batch or views) * settings.accumulate
    smaller = settings.model_copy(update={"checkpointing": "full", "batch": 1, "accumulate": min(samples, 64)})
    return smaller if smaller != settings else None


TRAIN = Stage(
    name="train",
    version=3,
    makes=AdapterRecord,
    work=_work,
    settings="train",
    character=(
        "name",  # not read: another character with equal data has a training, and an MLflow run, of its own
        "prompt",
    ),
    models=("diffusion",),
    files=("continue_from", "regularisation"),
    seeded=True,
    gpu=True,
    draws=lambda settings: settings.distill > 0,
    long=True,
    smaller=smaller_plan,
)
