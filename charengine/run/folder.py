"""The run's folder: what a user looks at and takes away, written from records, each file whole or not at all.

sheet.png  views/  extra_views/ (if asked for)  dataset/ (kohya layout, captions editable)  adapters/  contact_sheet.png  trade_off.png  report.html  run.json
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from charengine.dataset.folder import EXPANSION, HELD_OUT, export_dataset, forget_extras, refused_name, with_edits
from charengine.errors import BadInput
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
from charengine.store import Store, write_atomically
from charengine.wording import file_stem

log = logging.getLogger(__name__)

RESULT = "result.json"  # what `charengine run --json` says, written last
MARKER = ".charengine.json"  # which caption stage wrote the sidecars, and what it wrote


def write_sheet(sheet: SheetRecord, out: Path, store: Store) -> Path:
    """`sheet.png` (or the given file's own format)."""
    return store.export(sheet.image, out / f"sheet{Path(sheet.image.name).suffix or '.png'}")


def write_views(views: ViewsRecord, folder: Path, store: Store) -> list[Path]:
    """`front.png`… with their masks, and the sheet with the boxes that were found."""
    if views.overlay:
        store.export(views.overlay, folder / "overlay.png")
    for view in views.views:
        store.export(view.alpha, folder / f"{view.view}.alpha.png")
    return [store.export(view.image, folder / f"{view.view}.png") for view in views.views]


def write_expansion(expansion: ExpansionRecord, folder: Path, store: Store) -> list[Path]:
    """The pictures that were kept with their masks, those held out in `held_out/`, those refused in `refused/`, and
    `expansion.json`, which says why; the paths of the kept ones."""
    forget_extras(folder)
    paths = []
    for extra in expansion.views:
        if extra.fate == "refused":
            store.export(extra.image, folder / "refused" / refused_name(extra))
            continue
        place = folder / HELD_OUT if extra.fate == "held out" else folder
        store.export(extra.alpha, place / f"{extra.view}.alpha.png")
        paths.append(store.export(extra.image, place / f"{extra.view}.png"))
    write_atomically(folder / EXPANSION, expansion.model_dump_json(indent=2).encode())
    return paths


def take_edits(dataset: DatasetRecord, out: Path, caption_key: str) -> DatasetRecord:
    """The dataset with the captions that the user edited in `dataset/` since this caption stage wrote them.

    Sidecars of an earlier, different caption stage are not edits of this one: they are set aside when edited.
    """
    folder = out / "dataset"
    marker = _read_marker(folder)
    if marker.get("caption_key") == caption_key:
        return with_edits(dataset, folder)
    changed = any(_differs(folder / name, text) for name, text in marker.get("captions", {}).items())
    if changed or marker.get("edited"):
        aside = folder.with_name(f"dataset-{str(marker.get('caption_key'))[-8:]}")
        log.warning("captions edited for an earlier version of this character were moved to %s", aside)
        folder.rename(aside)
    return dataset


def write_dataset(dataset: DatasetRecord, out: Path, store: Store, caption_key: str) -> list[Path]:
    """`dataset/` in kohya's layout; the caption files in view order."""
    folder = out / "dataset"
    paths = export_dataset(dataset, folder, store)
    captions = [path.resolve() for path in paths if path.suffix == ".txt"]
    written = {str(path.relative_to(folder.resolve())): path.read_text() for path in captions}
    edited = any(caption.edited for caption in dataset.captions)
    marker = {"caption_key": caption_key, "edited": edited, "captions": written}
    write_atomically(folder / MARKER, json.dumps(marker).encode())
    return captions


def write_adapters(sweep: SweepRecord, trigger: str, out: Path, store: Store) -> tuple[Path, Path]:
    """The adapter as trained, and as recommended."""
    folder = out / "adapters"
    trained = store.export(sweep.adapter, folder / f"{file_stem(trigger)}.safetensors")
    recommended = store.export(sweep.recommended_adapter, folder / f"{file_stem(trigger)}_recommended.safetensors")
    return trained, recommended


def write_pictures(sweep: SweepRecord, out: Path, store: Store) -> list[Path]:
    """The contact sheet, and the plot of identity against adherence."""
    wanted: list[tuple[Ref | None, str]] = [(sweep.contact_sheet, "contact_sheet"), (sweep.plot, "trade_off")]
    return [store.export(ref, out / f"{stem}{Path(ref.name).suffix}") for ref, stem in wanted if ref]


def write_sweep(sweep: SweepRecord, out: Path) -> Path:
    """`sweep.json`: every cell and the pick."""
    path = out / "sweep.json"
    write_atomically(path, sweep.model_dump_json(indent=2).encode())
    return path.resolve()


def write_report(report: ReportRecord, run: RunRecord, out: Path, store: Store) -> Path:
    """`report.html` and `run.json`, from which it can be rebuilt."""
    write_atomically(out / "run.json", run.model_dump_json(indent=2).encode())
    return store.export(report.html, out / "report.html")


def write_result(result: RunResult, out: Path) -> None:
    """`result.json`, the sign that the folder is complete."""
    write_atomically(out / RESULT, result.model_dump_json(indent=2).encode())


def read_result(out: Path) -> RunResult:
    """What a run said when its folder was complete."""
    return RunResult.model_validate_json((out / RESULT).read_bytes())


def read_run(place: Path) -> RunRecord:
    """The record of an earlier run, from its folder or its `run.json`.

    Raises:
        BadInput: there is none, or it is not one.
    """
    path = place / "run.json" if place.is_dir() else place
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; give a run's folder or its run.json") from error
    except ValueError as error:
        raise BadInput(f"{path} is not the record of a run: {str(error).splitlines()[0]}") from error


def _read_marker(folder: Path) -> dict[str, Any]:
    try:
        marker = json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return {}
    return marker if isinstance(marker, dict) else {}


def _differs(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text() != text
