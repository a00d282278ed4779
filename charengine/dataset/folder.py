"""The dataset as one thing: its digest, its files in kohya's layout, and captions edited by hand."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from charengine import files
from charengine.dataset.digest import dataset_digest
from charengine.errors import BadInput
from charengine.machine.ledger import EXPANSION, must_be_own, write_own
from charengine.records import VIEWS, CaptionRecord, DatasetRecord, ExpansionRecord, ExtraView, Ref, ViewRecord
from charengine.store import Store
from charengine.wording import CONTROL, composed, file_stem, holds_word, shows

REPEATS = 10  # kohya reads it from the folder's name; our own training counts steps instead
CAPTIONS = (".txt", ".caption")  # endings of caption files; the second is what kohya's scripts look for unless told
MASKS = "masks"
HELD_OUT_FOLDER = "held_out"  # no number before it: kohya's trainers pass it by
LONGEST_CAPTION = 2000


def export_dataset(dataset: DatasetRecord, folder: Path, store: Store) -> list[Path]:
    """Write `<repeats>_<trigger> <class>/<view>.png` and `.txt`, and the masks in `masks/` beside it.

    More views lie among them, those held out in `held_out/`, and `expansion.json` tells which they are.

    Returns:
        Absolute paths: image, caption, mask, view by view.
    """
    texts = {caption.view: caption.text for caption in dataset.captions}
    held_out = {extra.view for extra in dataset.held_out}
    content: dict[Path, Ref | bytes] = {}
    said = {}
    pictures: list[ViewRecord | ExtraView] = [*dataset.views.views, *dataset.extras]
    for view in pictures:
        place = folder / (HELD_OUT_FOLDER if view.view in held_out else subset_name(dataset))
        content[place / f"{view.view}.png"] = view.image
        said[sidecar := place / f"{view.view}.txt"] = texts[view.view]
        content[sidecar] = (texts[view.view] + "\n").encode()
        content[folder / MASKS / f"{view.view}.png"] = view.alpha
    paths = [*content]
    if dataset.extras:
        content[folder / EXPANSION] = ExpansionRecord(views=dataset.extras).model_dump_json(indent=2).encode()
    kept = saying(said)
    edited = {caption.view for caption in dataset.captions if caption.edited}
    theirs = {path for path in kept if path.stem in edited}  # stay as they are, the user's
    content = {path: data for path, data in content.items() if path not in theirs}
    gone = [path for path in forgettable(folder, kept) if path not in theirs]
    write_own(folder, content, store, kept, gone)
    return [path.resolve() for path in paths]


def saying(texts: Mapping[Path, str]) -> set[Path]:
    """The caption files that say these texts already, however they are laid out: writing them again takes nothing from anybody."""
    found = set()
    for path, text in texts.items():
        with suppress(BadInput):
            if files.is_file(path) and read_caption(path) == text:
                found.add(path)
    return found


def read_expansion(folder: Path) -> ExpansionRecord | None:
    """What a folder's `expansion.json` says of more views; None where there is none.

    Raises:
        BadInput: it is damaged, or names what is no more view.
    """
    file = folder / EXPANSION
    if not files.exists(file):
        return None
    text = files.read_text(file)
    try:
        expansion = ExpansionRecord.model_validate_json(text)
        if any(extra.view in (*VIEWS, "sheet", "overlay") for extra in expansion.views):
            raise ValueError("a view of the sheet is no more view")
    except ValueError as error:
        raise BadInput(f"{file} is damaged: delete it to train without, or to run charengine expand again") from error
    return expansion


def forgettable(folder: Path, kept: Container[Path] = ()) -> list[Path]:
    """The more views that were written to a folder before: they go before others are written, so that they do not mix.

    Raises:
        BadInput: one was changed since, and is not among those that are kept in what is written next.
    """
    gone = extra_files(folder)
    must_be_own(folder, [path for path in gone if path not in kept])
    return gone


def extra_files(folder: Path) -> list[Path]:
    """What was written to a folder of more views: pictures, masks, captions and `expansion.json`."""
    expansion = read_expansion(folder)
    if expansion is None:
        return []
    found = [folder / EXPANSION]
    for extra in expansion.views:
        named = folder.rglob(refused_name(extra) if extra.fate == "refused" else f"{extra.view}.*")
        found += [path for path in named if path.suffix in (".png", ".txt")]
    return [*dict.fromkeys(found)]


def refused_name(extra: ExtraView) -> str:
    """File name of a picture that was refused; there may be several of one view."""
    return f"{extra.view}-{extra.seed}.png"


def with_edits(dataset: DatasetRecord, folder: Path) -> DatasetRecord:
    """The dataset with the captions of the folder's `.txt` files where they differ; the same record when none does.

    Raises:
        BadInput: a sidecar is empty, too long or not text.
    """
    own = folder / subset_name(dataset)  # an earlier trigger's subset may lie beside it
    places = {extra.view: folder / HELD_OUT_FOLDER for extra in dataset.held_out} if files.is_dir(own) else {}
    within = own if files.is_dir(own) else folder
    captions = tuple(_edited(caption, places.get(caption.view, within)) for caption in dataset.captions)
    if captions == dataset.captions:
        return dataset
    silent = silent_captions(dataset.trigger, captions, "the edited ")
    return dataset.model_copy(
        update={
            "captions": captions,
            "digest": dataset_digest(dataset.views, captions, dataset.extras),
            "warnings": tuple(dict.fromkeys((*dataset.warnings, *silent))),
        }
    )


def silent_captions(trigger: str, captions: Sequence[CaptionRecord], which: str = "the ") -> tuple[str, ...]:
    """A warning for each caption in which the trigger is no word of its own: what such a picture teaches is bound to other words."""
    silent = [caption for caption in captions if not holds_word(caption.text, trigger)]
    if len(silent) == len(captions) > 1:
        return (f"no caption holds the trigger {trigger!r} as a word: what is learned is not bound to it",)
    return tuple(
        f"{which}{caption.view} caption does not hold the trigger {trigger!r}"
        + (" as a word of its own, only inside another" if trigger.lower() in caption.text.lower() else "")
        for caption in silent
    )


def _edited(caption: CaptionRecord, folder: Path) -> CaptionRecord:
    beside = list(files.below(folder)) if files.is_dir(folder) else []
    named = [[path for path in beside if path.name.lower() == f"{caption.view}{kind}".lower()] for kind in CAPTIONS]
    found = [path for paths in named for path in paths]
    if not found:
        return caption
    if doubled := next((paths for paths in named if len(paths) > 1), None):
        raise BadInput(f"{folder} holds {len(doubled)} captions named {doubled[0].name}: leave one")
    text = one_caption(found)
    return caption if text == caption.text else caption.model_copy(update={"text": text, "edited": True})


def one_caption(paths: Iterable[Path]) -> str:
    """What the caption files of one picture say, .txt and .caption; "" where there is none.

    Raises:
        BadInput: they say different things: nobody knows which was edited; or as `read_caption` does.
    """
    said = {path: read_caption(path) for path in paths}
    if len({*said.values()}) > 1:
        raise BadInput(f"captions {' and '.join(map(str, said))} of one picture differ: leave one")
    return next(iter(said.values()), "")


def read_caption(path: Path) -> str:
    """A caption file's text, in one line.

    Raises:
        BadInput: it is empty, too long, not UTF-8 text, or holds control characters.
    """
    text: str = composed(" ".join(files.read_text(path, "caption").split()))
    if not shows(text):
        raise BadInput(f"caption {path} is empty: write what the picture shows, or delete the file")
    if len(text) > LONGEST_CAPTION:
        raise BadInput(f"caption {path} has {len(text)} characters; at most {LONGEST_CAPTION} are allowed")
    if found := CONTROL.search(text):
        raise BadInput(f"caption {path} holds the control character {found[0]!a}: write it as plain text")
    return text


def subset_name(dataset: DatasetRecord) -> str:
    """kohya's name for a folder of pictures: how often they count, and what they show."""
    return f"{REPEATS}_{file_stem(dataset.trigger)} {file_words(dataset.class_noun)}"


def file_words(text: str) -> str:
    """The text as part of a file name: letters, digits, spaces and hyphens."""
    return " ".join(re.sub(r"[^A-Za-z0-9 -]", " ", text).split()) or "character"
