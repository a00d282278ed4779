"""Sweeps without a run of ours: any adapter file, and identity references from a folder of pictures."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

from charengine.adapter_files import read_metadata
from charengine.dataset import MASKS, dataset_digest
from charengine.errors import BadInput
from charengine.evaluation.sample import to_png
from charengine.evaluation.scoring import border_colour, figure_mask
from charengine.records import (
    VIEWS,
    AdapterRecord,
    CaptionRecord,
    CheckpointRecord,
    DatasetRecord,
    ViewName,
    ViewRecord,
    ViewsRecord,
)
from charengine.store import Store

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def training_from_file(path: Path, store: Store, *, trigger: str = "", class_noun: str = "") -> AdapterRecord:
    """A sweepable record of an adapter file from an earlier run or another trainer; its step and trigger come from its metadata.

    Raises:
        BadInput: not a readable adapter, or its trigger or class noun is neither in the file nor given.
    """
    metadata = read_metadata(path)
    recipe = json.loads(metadata.get("charengine.recipe", "{}"))
    character = recipe.get("character", {})
    trigger = trigger or metadata.get("modelspec.trigger_phrase", "") or character.get("trigger", "")
    class_noun = class_noun or recipe.get("class_noun", "") or character.get("class_noun", "")
    missing = [word for word, value in (("trigger", trigger), ("class noun", class_noun)) if not value]
    if missing:
        raise BadInput(f"{path} does not say its {' and '.join(missing)}: give {' and '.join(missing)} yourself")
    steps = int(metadata.get("ss_steps") or metadata.get("ss_max_train_steps") or 0)
    data = path.read_bytes()
    checkpoint = CheckpointRecord(step=steps, adapter=store.put(data, path.name), loss=float("nan"))
    return AdapterRecord(
        checkpoints=(checkpoint,),
        steps=steps,
        trigger=trigger,
        class_noun=class_noun,
        dataset_digest=recipe.get("dataset_digest", ""),
        curve=store.put(b"step,loss,smoothed,learning_rate\n", "loss.csv"),
    )


def references_from_folder(folder: Path, trigger: str, class_noun: str, store: Store) -> DatasetRecord:
    """The pictures `front`, `side` and `back` of a folder (png, jpg or webp; any of them may be missing) as references.

    A mask of the same name in `masks/` says where the figure is; without one it is cut from a plain background, and a
    picture on a busy background is used whole. The folder a run exports its dataset to reads back as it is.

    Raises:
        BadInput: no such pictures, or one that cannot be read.
    """
    found = {view: path for view in VIEWS if (path := _picture(folder, view))}
    if not found:
        names = ", ".join(f"{view}.png" for view in VIEWS)
        raise BadInput(
            f"{folder} holds no reference pictures: name them {names} (.jpg and .webp will do; one is enough)"
        )
    views = [_reference(path, view, folder, store) for view, path in found.items()]
    captions = tuple(CaptionRecord(view=view, text=f"{trigger}, {class_noun}, {view} view") for view in found)
    image = _open(next(iter(found.values())))
    record = ViewsRecord(views=tuple(views), background=border_colour(image), overlay=views[0].image)
    return DatasetRecord(
        trigger=trigger,
        class_noun=class_noun,
        views=record,
        captions=captions,
        digest=dataset_digest(record, captions),
    )


def _picture(folder: Path, view: ViewName) -> Path | None:
    """The picture of a view, in the folder or (kohya's layout) in a folder inside it."""
    places = [folder, *sorted(path for path in folder.glob("*") if path.is_dir() and path.name != MASKS)]
    names = (place / f"{view}{suffix}" for place in places for suffix in PICTURES)
    return next((path for path in names if path.is_file()), None)


def _reference(path: Path, view: ViewName, folder: Path, store: Store) -> ViewRecord:
    image = _open(path)
    drawn = next(
        (p for p in (folder / MASKS / f"{view}.png", path.parent / MASKS / f"{view}.png") if p.is_file()), None
    )
    mask = _open(drawn, "L") if drawn else figure_mask(image)
    if mask.size != image.size:
        raise BadInput(
            f"mask {drawn} is {mask.width}x{mask.height}, its picture {image.width}x{image.height}: make them equal"
        )
    return ViewRecord(
        view=view,
        image=store.put(to_png(image), f"{view}.png"),
        alpha=store.put(to_png(mask), f"{view}-alpha.png"),
        width=image.width,
        height=image.height,
        source_box=(0, 0, image.width, image.height),
    )


def _open(path: Path, mode: str = "RGB") -> Image:
    from PIL import Image as pil

    try:
        return pil.open(io.BytesIO(path.read_bytes())).convert(mode)
    except (pil.UnidentifiedImageError, OSError) as error:
        raise BadInput(f"picture {path} cannot be read ({error}): give a png, jpg or webp file") from error
