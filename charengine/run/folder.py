"""The run's folder: what a user looks at and takes away, written from records, each file whole or not at all.

sheet.png  reference.png (if one was given)  views/  extra_views/ (if asked for)  dataset/ (kohya layout, captions editable)  adapters/ (with model card and sidecars)  contact_sheet.png  trade_off.png  report.html  run.json
"""

from __future__ import annotations

import json
import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from charengine import files
from charengine.dataset.folder import (
    HELD_OUT_FOLDER,
    export_dataset,
    forgettable,
    refused_name,
    subset_name,
    with_edits,
)
from charengine.errors import BadInput
from charengine.machine.ledger import EXPANSION, foreign, write_own
from charengine.mistakes import explain
from charengine.records import (
    DatasetRecord,
    ExpansionRecord,
    Ref,
    ReportRecord,
    RunRecord,
    RunResult,
    SheetRecord,
    SweepRecord,
    ViewsRecord,
)
from charengine.run.beside import write_beside
from charengine.store import Store
from charengine.wording import file_stem
from charengine.writing import write_atomically

log = logging.getLogger(__name__)

REPORT = "report.html"
RESULT = "result.json"  # what `charengine run --json` says, written last
MOST_ASIDE = 1000
SUBSET = re.compile(r"[0-9]+_[A-Za-z0-9 -]+")  # kohya's name for a folder of pictures
CAPTION_FILE = re.compile(r"[a-z][a-z0-9-]*\.txt")
MARKER = ".charengine.json"  # which caption stage wrote the sidecars, and what it wrote


def write_sheet(sheet: SheetRecord, out: Path, store: Store) -> Path:
    """`sheet.png` (or the given file's own format), and `reference.png` where it was drawn from a picture."""
    content: dict[Path, Ref | bytes] = {out / "reference.png": sheet.reference} if sheet.reference else {}
    content[out / f"sheet{Path(sheet.image.name).suffix or '.png'}"] = sheet.image
    return write_own(out, content, store)[-1]


def write_views(views: ViewsRecord, folder: Path, store: Store) -> list[Path]:
    """`front.png`… with their masks, and the sheet with the boxes that were found."""
    content: dict[Path, Ref | bytes] = {folder / "overlay.png": views.overlay} if views.overlay else {}
    content |= {folder / f"{view.view}.alpha.png": view.alpha for view in views.views}
    content |= {folder / f"{view.view}.png": view.image for view in views.views}
    return write_own(folder, content, store)[-len(views.views) :]


def write_expansion(expansion: ExpansionRecord, folder: Path, store: Store) -> list[Path]:
    """The pictures that were kept with their masks, those held out in `held_out/`, those refused in `refused/`, and
    `expansion.json`, which says why; the paths of the kept ones."""
    content: dict[Path, Ref | bytes] = {}
    paths = []
    for extra in expansion.views:
        if extra.fate == "refused":
            content[folder / "refused" / refused_name(extra)] = extra.image
            continue
        place = folder / HELD_OUT_FOLDER if extra.fate == "held out" else folder
        content[place / f"{extra.view}.alpha.png"] = extra.alpha
        content[path := place / f"{extra.view}.png"] = extra.image
        paths.append(path)
    content[folder / EXPANSION] = expansion.model_dump_json(indent=2).encode()
    write_own(folder, content, store, gone=forgettable(folder))
    return [path.resolve() for path in paths]


def take_edits(dataset: DatasetRecord, out: Path, caption_key: str) -> DatasetRecord:
    """The dataset with the captions that the user edited in `dataset/` since this caption stage wrote them.

    Sidecars of an earlier, different caption stage are not edits of this one: they are set aside when edited.
    """
    folder = dataset_folder(out)
    marker = _read_marker(folder)
    if marker.get("caption_key") == caption_key:
        return with_edits(dataset, folder)
    recorded = {} if marker else _recorded_captions(out)  # a copy without its hidden files
    if recorded and (there := with_edits(dataset, folder)) is not dataset:
        if recorded == {caption.view: caption.text for caption in dataset.captions}:
            return there
        if recorded != {caption.view: caption.text for caption in there.captions}:
            log.warning("edited captions were moved to %s", _set_aside(folder, "dataset-edited"))
        return dataset
    if any(_differs(folder / name, text) for name, text in _written(folder).items()) or marker.get("edited"):
        aside = _set_aside(folder, f"dataset-{_plain(marker.get('caption_key'))}")
        log.warning("captions edited for an earlier version of this character were moved to %s", aside)
    return dataset


def _recorded_captions(out: Path) -> dict[str, str]:
    """By view, the captions that a run's record says; empty where it says none."""
    told = files.kept_object(out / "run.json").get("dataset")
    captions = told.get("captions") if isinstance(told, dict) else ()
    found = [one for one in captions if isinstance(one, dict)] if isinstance(captions, list) else []
    return {str(one.get("view")): str(one.get("text")) for one in found}


def write_dataset(dataset: DatasetRecord, out: Path, store: Store, caption_key: str) -> list[Path]:
    """`dataset/` in kohya's layout; the caption files in view order.

    What an earlier trigger or class noun left there and nobody edited goes, so that trainers do not read both.
    """
    folder = dataset_folder(out)
    _forget_subsets(folder, dataset)
    paths = export_dataset(dataset, folder, store)
    captions = [path.resolve() for path in paths if path.suffix == ".txt"]
    written = {path.relative_to(folder.resolve()).as_posix(): path.read_text(encoding="utf-8") for path in captions}
    edited = any(caption.edited for caption in dataset.captions)
    marker = {"caption_key": caption_key, "edited": edited, "captions": written}
    write_atomically(folder / MARKER, json.dumps(marker).encode())
    return captions


def captions_of(out: Path) -> set[Path]:
    """The caption files that were written to a run's folder: edits in them are taken into the run, or set aside."""
    return {out / "dataset" / name for name in _written(out / "dataset")}


def edited_captions(out: Path) -> set[Path]:
    """The caption files of a run's folder that the user edited since they were written there."""
    found = {out / "dataset" / name: text for name, text in _written(out / "dataset").items()}
    return {path for path, text in found.items() if files.is_file(path) and _differs(path, text)}


def dataset_folder(out: Path) -> Path:
    """`dataset/` of a run.

    Raises:
        BadInput: it is a link: what it points to is somebody's, and would be overwritten.
    """
    folder = out / "dataset"
    if files.is_link(folder):
        raise BadInput(
            f"{folder} is a link to {folder.resolve()}: nothing is written through it; remove it, or give another --out"
        )
    return folder


def _set_aside(folder: Path, name: str) -> Path:
    """Move a folder beside itself, under the first name that is free."""
    for number in range(1, MOST_ASIDE):
        aside = folder.with_name(name if number == 1 else f"{name}-{number}")
        if files.exists(aside):
            continue
        try:
            folder.rename(aside)
        except FileExistsError:  # another process was first
            continue
        except OSError as error:
            raise BadInput(f"{folder} cannot be moved to {aside} ({error.strerror}); move it yourself") from error
        return aside
    raise BadInput(f"{folder}: {MOST_ASIDE} folders named {name} are beside it; remove some")


def _plain(key: object) -> str:
    """The end of a key, as part of a file name."""
    return re.sub(r"[^A-Za-z0-9]", "", str(key))[-8:] or "earlier"


def _forget_subsets(folder: Path, dataset: DatasetRecord) -> None:
    """Remove the pictures and captions that this engine wrote for another trigger or class noun, those unedited."""
    for name, text in _written(folder).items():
        subset, _, file = name.partition("/")
        if subset == subset_name(dataset) or not SUBSET.fullmatch(subset) or not CAPTION_FILE.fullmatch(file):
            continue
        path = folder / subset / file
        if files.is_link(path.parent) or _differs(path, text) or not files.is_file(path):
            continue
        for gone in (path, picture := path.with_suffix(".png")):
            if gone != picture or not foreign([picture], {}):
                gone.unlink(missing_ok=True)
        with suppress(OSError):  # something of the user's is in it
            path.parent.rmdir()


def write_adapters(sweep: SweepRecord, trigger: str, out: Path, store: Store) -> tuple[Path, Path]:
    """The adapter as trained, and as recommended."""
    places = [out / name for name in adapter_files(trigger)]
    content = dict(zip(places, (sweep.adapter, sweep.recommended_adapter), strict=True))
    trained, recommended = write_own(out, content, store)
    return trained, recommended


def adapter_files(trigger: str) -> list[str]:
    """Below a run's or a sweep's folder: the adapter as trained and as recommended."""
    return [f"adapters/{file_stem(trigger)}{ending}.safetensors" for ending in ("", "_recommended")]


def write_pictures(sweep: SweepRecord, out: Path, store: Store) -> list[Path]:
    """The contact sheet, and the plot of identity against adherence."""
    wanted: list[tuple[Ref | None, str]] = [(sweep.contact_sheet, "contact_sheet"), (sweep.plot, "trade_off")]
    return write_own(out, {out / f"{stem}{Path(ref.name).suffix}": ref for ref, stem in wanted if ref}, store)


def write_sweep(sweep: SweepRecord, out: Path) -> Path:
    """`sweep.json`: every cell and the pick."""
    return write_own(out, {out / "sweep.json": sweep.model_dump_json(indent=2).encode()})[0]


def write_report(report: ReportRecord, run: RunRecord, out: Path, store: Store) -> Path:
    """`report.html`, `run.json`, from which it can be rebuilt, and what lies beside the adapters."""
    write_beside(run, out / "adapters", store)
    if says_nothing(record := out / "run.json"):
        log.warning("%s says nothing and was moved to %s", record, _set_aside(record, "run-damaged.json"))
    content: dict[Path, Ref | bytes] = {
        out / "run.json": run.model_dump_json(indent=2).encode(),
        out / REPORT: report.html,
    }
    return write_own(out, content, store)[-1]


def says_nothing(record: Path) -> bool:
    """Whether a `run.json` is torn: its folder is nobody's. Another program's record is somebody's."""
    if not files.is_file(record):
        return False
    told = files.json_in(files.asked(record, record.read_bytes))
    return not isinstance(told, dict) or not isinstance(told.get("prompt", ""), str)


def write_result(result: RunResult, out: Path) -> None:
    """`result.json`, the sign that the folder is complete."""
    write_own(out, {out / RESULT: result.model_dump_json(indent=2).encode()})


def read_result(out: Path) -> RunResult:
    """What a run said when its folder was complete."""
    return RunResult.model_validate_json((out / RESULT).read_bytes())


def folder_of(place: Path) -> Path:
    """The folder of an earlier run, named by itself or by its `run.json`."""
    return place if files.is_dir(place) else place.parent


def read_run(place: Path) -> RunRecord:
    """The record of an earlier run, from its folder or its `run.json`.

    Raises:
        BadInput: there is none, or it is not one.
    """
    path = place / "run.json" if files.is_dir(place) else place
    if files.exists(path) and not files.is_file(path):  # a pipe would be waited for, a device never ends
        raise BadInput(f"{path} is not a file; give a run's folder or its run.json")
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; give a run's folder or its run.json") from error
    except ValidationError as error:
        told = explain(error, RunRecord)
        first = next((line for line in told if not line.endswith(" is missing")), told[0])
        raise BadInput(f"{path} is not the record of a run: {first}; give a run's folder or its run.json") from error


def _read_marker(folder: Path) -> dict[str, Any]:
    return files.kept_object(folder / MARKER)


def _written(folder: Path) -> dict[str, str]:
    """The caption files that were written to `dataset/`, by their names there, and what they said."""
    captions = _read_marker(folder).get("captions")
    return captions if isinstance(captions, dict) else {}


def _differs(path: Path, text: str) -> bool:
    try:
        return files.is_file(path) and path.read_bytes() != str(text).encode("utf-8", "surrogatepass")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
