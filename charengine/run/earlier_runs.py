"""Earlier runs and loose adapter files as what a sweep takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from charengine import files
from charengine.config import Character, Profile
from charengine.dataset.reading import read_views
from charengine.errors import BadInput, MissingDependency, StoreCorrupt
from charengine.records import AdapterRecord, CaptionRecord, DatasetRecord, ViewsRecord
from charengine.store import Store, refs_in


def sweep_inputs(
    source: Path,
    store: Store,
    profile: Profile,
    *,
    views: Path | None = None,
    sheet: Path | None = None,
    trigger: str = "",
    class_noun: str = "",
) -> tuple[AdapterRecord, DatasetRecord]:
    """Checkpoints and the views to compare with, from a run's folder (or `run.json`) or an adapter file.

    Args:
        source: the run or the file.
        store: where the run's blobs are, and where a file's go.
        profile: its crop settings cut `sheet`.
        views: folder of views; needed for a file unless `sheet` is given.
        sheet: a sheet to cut the views from.
        trigger: what the file does not say itself.
        class_noun: likewise.

    Raises:
        BadInput: neither a run nor an adapter; or no pictures to compare with.
        MissingDependency: the store lacks what the run refers to.
    """
    given = {"--views": views, "--sheet": sheet, "--trigger": trigger, "--class-noun": class_noun}
    named = [name for name, value in given.items() if value]
    if files.is_dir(source) or source.suffix == ".json":
        from charengine.run.folder import read_run

        run = read_run(source)
        if named:
            raise BadInput(
                f"{', '.join(named)} given for the run {source}, which has views, trigger and class noun of its own: leave "
                "them out, or sweep one of its adapter files instead"
            )
        with still_there(source):
            store.must_have([*(one.adapter for one in run.training.checkpoints), *refs_in(run.dataset.views)])
        return run.training, run.dataset
    if not files.is_file(source):
        raise BadInput(f"{source}: no such adapter file or run folder")
    if views and sheet:
        raise BadInput(f"--views {views} and --sheet {sheet}: pictures are compared with one of them; leave one out")
    if not views and not sheet:
        raise BadInput("an adapter file has no pictures to compare with: give --views FOLDER or --sheet FILE")
    from charengine.stages.sweep.adapters import training_from_file

    training = training_from_file(source, store, trigger=trigger, class_noun=class_noun)
    _check_layers(source, store.get(training.checkpoints[-1].adapter), profile)
    found = read_views(views, store) if views else _cut(sheet, profile, store)
    return training, _as_dataset(training, found)


def _check_layers(path: Path, data: bytes, profile: Profile) -> None:
    """Before the model is loaded: a file that is not for it would be refused only then."""
    from charengine.adapter.files import check_layers
    from charengine.models.skeleton import unet_skeleton

    try:
        check_layers(data, unet_skeleton(profile.models))
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error


@contextmanager
def still_there(*runs: Path) -> Iterator[None]:
    """While what earlier runs refer to is read from a store.

    Raises:
        MissingDependency: it lacks a part, as where a run's folder came from another computer.
    """
    try:
        yield
    except StoreCorrupt as error:
        raise MissingDependency(
            f"{', '.join(dict.fromkeys(map(str, runs)))}: {str(error).partition(';')[0]}, where a run's curves, pictures and checkpoints are kept: set "
            "CHARENGINE_HOME to the home that it was made with, or make the character again; its adapters and `charengine export` work as "
            "they are"
        ) from error


def character_name(source: Path) -> str:
    """The name that the character of a run, or of an adapter file, was given; empty when a file does not say it, or not as a name can be."""
    return _character_says(source, "name")


def description(source: Path) -> str:
    """What the character of a run, or of an adapter file, looks like; empty when a file does not say it, or not as a prompt can be."""
    return _character_says(source, "prompt")


def _character_says(source: Path, field: Literal["name", "prompt"]) -> str:
    """A field of the character of a run, or of the recipe in an adapter file; empty where there is none that a character can have."""
    if files.is_dir(source) or source.suffix == ".json":
        from charengine.run.folder import read_run

        return str(getattr(read_run(source), field))
    from charengine.adapter.header import read_metadata
    from charengine.adapter.metadata import told_by

    character = told_by(read_metadata(source)).recipe.get("character")
    said = character.get(field) if isinstance(character, dict) else None
    if not isinstance(said, str):
        return ""
    try:
        return str(getattr(Character.model_validate({"name": "somebody", "prompt": "somebody", field: said}), field))
    except ValueError:  # another program's, or damaged: a sweep works without
        return ""


def _cut(sheet: Path | None, profile: Profile, store: Store) -> ViewsRecord:
    from charengine.stages.crop import crop_views
    from charengine.stages.sheet.given import take_sheet

    if sheet is None:
        raise BadInput("give --views FOLDER or --sheet FILE")
    return crop_views(take_sheet(sheet, store), profile.crop, store)


def _as_dataset(training: AdapterRecord, views: ViewsRecord) -> DatasetRecord:
    from charengine.dataset.digest import dataset_digest

    head = f"{training.trigger}, {training.class_noun}"
    captions = tuple(CaptionRecord(view=view.view, text=f"{head}, {view.view} view") for view in views.views)
    return DatasetRecord(
        trigger=training.trigger,
        class_noun=training.class_noun,
        views=views,
        captions=captions,
        digest=dataset_digest(views, captions),
    )
