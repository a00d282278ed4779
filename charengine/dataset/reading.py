"""Folders of views as records: what the single-stage commands read, in the layouts the engine itself writes."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from charengine.dataset.digest import dataset_digest
from charengine.dataset.folder import MASKS, read_expansion, silent_captions, with_edits
from charengine.errors import BadInput, ConfigError
from charengine.language.traits import is_side_bound
from charengine.pictures import picture_problems, png
from charengine.records import VIEWS, CaptionRecord, DatasetRecord, ExtraView, ViewName, ViewRecord, ViewsRecord
from charengine.store import Store
from charengine.wording import noun_problem, phrase_problem

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def read_views(folder: Path, store: Store) -> ViewsRecord:
    """The pictures named front, side and back, with their masks if there are any (`front.alpha.png`, `masks/front.png`).

    Raises:
        ConfigError: a view is missing, doubled or unreadable; all of them are named.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder; give one with front, side and back pictures")
    found = {name: _pictures(folder, name) for name in VIEWS}
    problems = [
        f"{folder}: {len(paths)} pictures named {name}; there must be one (PNG, JPEG or WebP)"
        for name, paths in found.items()
        if len(paths) != 1
    ]
    problems += [problem for paths in found.values() for path in paths for problem in picture_problems(path, "picture")]
    if problems:
        raise ConfigError(problems)
    views = tuple(_view(name, paths[0], folder, store) for name, paths in found.items())
    with Image.open(found["front"][0]) as front:
        red, green, blue = front.convert("RGB").resize((1, 1), box=(0, 0, 1, 1)).tobytes()
    return ViewsRecord(views=views, background=(red, green, blue))


def read_extras(folder: Path, store: Store) -> tuple[ExtraView, ...]:
    """More views that `expansion.json` names, as their pictures are now; those deleted by hand are left out.

    Raises:
        BadInput: `expansion.json` is damaged, or a picture is doubled.
        ConfigError: a picture cannot be read.
    """
    expansion = read_expansion(folder)
    found = []
    for extra in expansion.kept if expansion else ():
        paths = _pictures(folder, extra.view)
        if len(paths) > 1:
            raise BadInput(f"{folder}: {len(paths)} pictures named {extra.view}; leave one")
        if problems := [problem for path in paths for problem in picture_problems(path, "picture")]:
            raise ConfigError(problems)
        for path in paths:
            image, alpha = _read(path, folder)
            found.append(
                extra.model_copy(
                    update={
                        "image": store.put(png(image), f"{extra.view}.png"),
                        "alpha": store.put(png(alpha), f"{extra.view}.alpha.png"),
                        "width": image.width,
                        "height": image.height,
                    }
                )
            )
    return tuple(found)


def read_dataset(folder: Path, store: Store, trigger: str = "", class_noun: str = "") -> DatasetRecord:
    """Views, and more views if there are any, with their `.txt` captions; trigger and class noun are the captions' first two terms unless given.

    Raises:
        BadInput: a caption is missing or empty, or the captions do not begin with one trigger.
        ConfigError: the trigger or the class noun cannot be one.
    """
    views = read_views(folder, store)
    extras = read_extras(folder, store)
    empty = tuple(CaptionRecord(view=name, text="") for name in (*VIEWS, *(extra.view for extra in extras)))
    blank = DatasetRecord(
        trigger=trigger,
        class_noun=class_noun,
        views=views,
        captions=empty,
        digest=dataset_digest(views, empty, extras),
        extras=extras,
    )
    captions = with_edits(blank, folder).captions
    if missing := [caption.view for caption in captions if not caption.text]:
        raise BadInput(
            f"{folder}: no caption for {', '.join(missing)}; write .txt files, or run charengine caption first"
        )
    heads = {tuple(term.strip() for term in caption.text.split(",")[:2]) for caption in captions}
    if not (trigger and class_noun) and (len(heads) != 1 or len(next(iter(heads))) != 2):
        raise BadInput(f"{folder}: captions must begin with 'trigger, class noun'; or give --trigger and --class-noun")
    head = next(iter(heads))
    trigger, class_noun = trigger or head[0], class_noun or head[1]
    if problems := [problem for problem in (phrase_problem(trigger), noun_problem(class_noun)) if problem]:
        raise ConfigError([f"{folder}: {problem}; or give --trigger and --class-noun" for problem in problems])
    captions = tuple(caption.model_copy(update={"edited": False}) for caption in captions)
    return DatasetRecord(
        trigger=trigger,
        class_noun=class_noun,
        views=views,
        captions=captions,
        digest=dataset_digest(views, captions, extras),
        side_bound=any(is_side_bound(caption.text) for caption in captions),
        extras=extras,
        warnings=silent_captions(trigger, captions),
    )


def picture_of(folder: Path, name: str) -> Path:
    """The picture of one view; `read_views` or `read_extras` has checked that there is one."""
    return _pictures(folder, name)[0]


def _pictures(folder: Path, name: str) -> list[Path]:
    return [
        path
        for path in sorted(folder.rglob(f"{name}.*"))
        if path.stem == name and path.suffix.lower() in SUFFIXES and path.parent.name != MASKS
    ]


def _read(path: Path, folder: Path) -> tuple[Image.Image, Image.Image]:
    """A picture and its mask, which is measured where there is no file of it."""
    from charengine.likeness.scoring import figure_mask

    with Image.open(path) as opened:
        image = opened.convert("RGB")
    mask = next(
        (mask for mask in (path.with_suffix(".alpha.png"), folder / MASKS / f"{path.stem}.png") if mask.is_file()), None
    )
    alpha = Image.open(mask).convert("L") if mask else figure_mask(image)
    if alpha.size != image.size:
        raise BadInput(f"{mask} is {alpha.size}, its picture {image.size}; they must have one size")
    return image, alpha


def _view(name: ViewName, path: Path, folder: Path, store: Store) -> ViewRecord:
    image, alpha = _read(path, folder)
    return ViewRecord(
        view=name,
        image=store.put(png(image), f"{name}.png"),
        alpha=store.put(png(alpha), f"{name}.alpha.png"),
        width=image.width,
        height=image.height,
        source_box=(0, 0, image.width, image.height),
    )
