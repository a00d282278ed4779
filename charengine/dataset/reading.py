"""Folders of views as records: what the single-stage commands read, in the layouts the engine itself writes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from charengine import files
from charengine.dataset.digest import dataset_digest
from charengine.dataset.folder import CAPTIONS, MASKS, one_caption, read_expansion, silent_captions, with_edits
from charengine.errors import BadInput, ConfigError
from charengine.figures.alike import alike_warnings
from charengine.language.traits import is_side_bound
from charengine.pictures import SUFFIXES, cuts_out, picture_problems, png, read_mask, read_picture
from charengine.records import VIEWS, CaptionRecord, DatasetRecord, ExtraView, ViewName, ViewRecord, ViewsRecord
from charengine.store import Store
from charengine.wording import composed, noun_problem, phrase_problem

log = logging.getLogger(__name__)

SMALLEST_VIEW = 16  # pixels a side
MOST_NAMED = 5  # files in a message
CUT_OUT = ".alpha.png"  # behind a picture's name: its mask
OTHER_PICTURES = (
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".avif",
    ".heic",
    ".heif",
    ".jxl",
    ".psd",
    ".jp2",
    ".svg",
)  # not read


def read_views(folder: Path, store: Store) -> ViewsRecord:
    """The pictures named front, side and back, with their masks: `front.alpha.png`, `masks/front.png`, the
    picture's own transparency, or else measured.

    Raises:
        ConfigError: a view is missing, doubled or unreadable, or its mask is; all of them are named.
    """
    if not files.is_dir(folder):
        raise BadInput(f"{folder} is not a folder; give one with front, side and back pictures")
    found = {name: _pictures(folder, name) for name in VIEWS}
    problems = [
        f"{folder}: {len(paths)} pictures named {name}{_which(folder, name, paths)}; there must be one (PNG, JPEG or WebP)"
        for name, paths in found.items()
        if len(paths) != 1
    ]
    read: dict[ViewName, _Read] = {}
    for name, paths in found.items():
        for path in paths:
            try:
                read[name] = _read(path, folder)
            except BadInput as error:
                problems.append(str(error))
    if problems:
        raise ConfigError(problems)
    alike = alike_warnings({name: one.image for name, one in read.items()})
    red, green, blue = read["front"].image.resize((1, 1), box=(0, 0, 1, 1)).tobytes()
    return ViewsRecord(
        views=tuple(_view(name, one, store) for name, one in read.items()),
        background=(red, green, blue),
        warnings=(*(warning for one in read.values() for warning in one.warnings), *alike),
    )


def read_extras(folder: Path, store: Store) -> tuple[ExtraView, ...]:
    """More views that `expansion.json` names, as their pictures are now; those deleted by hand are left out.

    Raises:
        BadInput: `expansion.json` is damaged, or a picture or mask is doubled or cannot be read.
    """
    expansion = read_expansion(folder)
    found = []
    for extra in expansion.kept if expansion else ():
        paths = _pictures(folder, extra.view)
        if len(paths) > 1:
            raise BadInput(f"{folder}: {len(paths)} pictures named {extra.view}; leave one")
        for path in paths:
            read = _read(path, folder)
            found.append(
                extra.model_copy(
                    update={
                        "image": store.put(png(read.image), f"{extra.view}.png"),
                        "alpha": store.put(png(read.alpha), f"{extra.view}.alpha.png"),
                        "width": read.image.width,
                        "height": read.image.height,
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
    trigger, class_noun = composed(trigger) or head[0], composed(class_noun) or head[1]
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
        for path in files.below(folder)
        if path.stem.lower() == name.lower() and path.suffix.lower() in SUFFIXES and path.parent.name.lower() != MASKS
    ]


def _which(folder: Path, name: str, paths: list[Path]) -> str:
    """Those that are meant; where there is none, those of the name that are not read."""
    there = files.below(folder) if not paths else ()
    others = [path for path in there if path.stem.lower() == name.lower() and path.suffix.lower() in OTHER_PICTURES]
    named = ", ".join(str(path.relative_to(folder)) for path in (paths or others)[:MOST_NAMED])
    return f" ({named}{'' if paths else ' is not read: convert it to PNG'})" if named else ""


@dataclass(frozen=True)
class _Read:
    """A picture as it is trained on, and where its figure is."""

    image: Image.Image
    alpha: Image.Image
    warnings: tuple[str, ...]


def _read(path: Path, folder: Path) -> _Read:
    """A picture and its mask: the file of it, else the transparency that cuts the figure out, else measured."""
    from charengine.likeness.scoring import figure_mask

    picture = read_picture(path, "picture", SMALLEST_VIEW)
    if picture.image.getcolors(1):  # None where there are more
        raise BadInput(
            f"picture {path} is of one colour all over: nothing can be learnt from it; give one that shows the character"
        )
    places = (path.with_suffix(CUT_OUT), folder / MASKS / f"{path.stem}.png")
    there = files.by_name(files.below(folder))
    given = [found for place in places if (found := there.get(str(place).lower()))]
    endings = [str(place.with_suffix(ending)).lower() for ending in SUFFIXES[1:] for place in places]
    others = [there[name] for name in endings if name in there]
    if others:
        raise BadInput(f"mask {others[0]} is not read: masks are PNG files; save it as {places[0].name}")
    if given:
        alpha, *second = (read_mask(mask, picture.image.size) for mask in given)
        if any(mask.tobytes() != alpha.tobytes() for mask in second):
            raise BadInput(f"masks {given[0]} and {given[1]} of one picture differ: leave one")
    elif picture.alpha and cuts_out(picture.alpha):
        alpha = picture.alpha
    else:
        alpha = figure_mask(picture.image)
    return _Read(picture.image, alpha, picture.warnings)


def _view(name: ViewName, read: _Read, store: Store) -> ViewRecord:
    width, height = read.image.size
    return ViewRecord(
        view=name,
        image=store.put(png(read.image), f"{name}.png"),
        alpha=store.put(png(read.alpha), f"{name}.alpha.png"),
        width=width,
        height=height,
        source_box=(0, 0, width, height),
    )


# --- class images -----------------------------------------------------------------------------------------------------


def class_pictures(folder: Path) -> list[tuple[Path, str]]:
    """A regularisation folder's pictures and their captions, "" where a picture has none.

    Raises:
        BadInput: it holds no picture, or a caption is empty or not text.
    """
    if not files.is_dir(folder):
        raise BadInput(
            f"train.regularisation={str(folder)[:200]!r} cannot be read (it is no folder); give a folder of class images"
        )
    there = files.by_name(shown := files.shown(folder))
    found = [path for path in shown if path.suffix.lower() in SUFFIXES and not _is_mask(path, there)]
    if not found:
        raise BadInput(
            f"train.regularisation={str(folder)!r} holds no PNG, JPEG or WebP image; give a folder of class images"
        )
    texts = [[there.get(str(path.with_suffix(suffix)).lower()) for suffix in CAPTIONS] for path in found]
    return [(path, one_caption(filter(None, both))) for path, both in zip(found, texts, strict=True)]


def _is_mask(path: Path, there: Mapping[str, Path]) -> bool:
    """Whether it is the mask of a picture beside it, as in a folder of views."""
    if not path.name.lower().endswith(CUT_OUT):
        return False
    picture = str(path).lower().removesuffix(CUT_OUT)
    return any(f"{picture}{ending}" in there for ending in SUFFIXES)


def class_picture_problems(folder: Path) -> list[str]:
    """Why a regularisation folder cannot be trained with, without decoding its pictures; empty when it can."""
    try:
        pictures = class_pictures(folder)
        _tell_unread(folder)
    except BadInput as error:
        return [str(error)]
    return [
        problem
        for path, _ in pictures
        for problem in picture_problems(path, "train.regularisation:", decode=False, smallest=SMALLEST_VIEW)
    ]


def _tell_unread(folder: Path) -> None:
    """A word on what somebody may have meant to be class images, and is none."""
    shown = files.shown(folder)
    other = [path.name for path in shown if path.suffix.lower() in OTHER_PICTURES]
    inner = [path for path in shown if files.is_dir(path) and path.name.lower() != MASKS]
    inside = [path.name for path in inner if any(one.suffix.lower() in SUFFIXES for one in files.shown(path))]
    for names, why in ((other, "convert them to PNG"), (inside, "pictures in folders inside it are not class images")):
        if names:
            more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
            log.warning("train.regularisation=%s: not read: %s%s; %s", folder, ", ".join(names[:MOST_NAMED]), more, why)
