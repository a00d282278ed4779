"""A character handed over: its adapters with card, preview and sidecars, the report and the recipe, as a folder or a zip."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import uuid
import zipfile
from contextlib import suppress
from pathlib import Path

from charengine import files
from charengine.adapter.header import read_metadata
from charengine.adapter.metadata import told_by
from charengine.errors import BadInput, StoreCorrupt
from charengine.machine.home import Home, find_home
from charengine.machine.known_runs import known_runs
from charengine.records import RunRecord
from charengine.run.beside import left_behind, write_beside
from charengine.run.folder import REPORT, read_run
from charengine.store import Store
from charengine.wording import file_stem, slug

log = logging.getLogger(__name__)

SHEETS = ("sheet.png", "sheet.jpg", "sheet.webp")
PAGES = (REPORT, *SHEETS, "reference.png", "contact_sheet.png")
MOST_NAMED = 20  # folders in a message
WHEN = (1980, 1, 1, 0, 0, 0)  # of every file in a zip, so that equal content is an equal zip


def find_run(home: Home, name: str) -> Path:
    """The folder of a run, by its path, by its own name or by the character's.

    Raises:
        BadInput: there is none, or there are several.
    """
    place = files.as_it_lies(files.expanded(name))
    if place.name == "run.json" and files.is_file(place):
        place = place.parent
    if files.is_file(place / "run.json"):
        return place.absolute()
    runs = {files.real(run.folder) for run in known_runs(home) if files.is_file(run.folder / "run.json")}
    named = {folder: _name(folder) for folder in sorted(runs)}
    found = [folder for folder in named if folder.name == name]
    found = found or [folder for folder, own in named.items() if own and slug(own) == slug(name)]
    if not found:
        known = ", ".join(sorted({own for own in named.values() if own})[:20]) or "none yet"
        raise BadInput(f"{name!r} is neither a run's folder nor the name of a finished character; known here: {known}")
    if len(found) > 1:
        places = ", ".join(map(str, found[:MOST_NAMED]))
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        raise BadInput(
            f"{name!r} is the name of {len(found)} runs: {places}{more}; give the folder of the one that is meant"
        )
    return found[0]


def export(run_folder: Path, target: Path, store: Store) -> Path:
    """Write a character to a folder, or to a zip when `target` ends in `.zip`; all of it or nothing.

    Args:
        run_folder: of a finished run.
        target: must not exist yet.
        store: for the preview.

    Raises:
        BadInput: the run has no adapters, or `target` exists, lies in the run's folder or cannot be written.
    """
    if target.name.lower() == ".zip":
        raise BadInput(f"--to {target} is an ending without a name; give NAME.zip")
    if files.real(run_folder) in files.real(target).parents:
        raise BadInput(f"--to {target} lies in the folder of the run itself; name a place outside of {run_folder}")
    if files.exists(target) or files.is_link(target):
        raise BadInput(f"{target} exists already: name another place with --to, or remove it")
    content = contents(run_folder, store)
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix.lower() == ".zip":
            _write_zip(aside, target.stem, content)
        else:
            aside.mkdir()
            for name, data in content.items():
                (aside / name).write_bytes(data)
        os.replace(aside, target)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        with suppress(OSError):  # a path through a file, or a name that is too long: there is nothing
            aside.unlink(missing_ok=True)
        raise BadInput(f"cannot write {target}: {error.strerror or error}; name another place with --to") from error
    return target.absolute()


def contents(run_folder: Path, store: Store) -> dict[str, bytes]:
    """What is handed over, by file name: what lies beside the adapters of the run as it is now, and what is missing there.

    Raises:
        BadInput: the run has no adapters, or one is damaged.
    """
    from charengine.adapter.files import file_problems  # needs torch, which who only shows runs can do without

    run = read_run(run_folder)
    stem = file_stem(run.trigger)
    place = run_folder / "adapters"
    lying = files.entries(place) if files.is_dir(place) else []
    beside = [path for path in lying if files.is_file(path)]
    if others := [path for path in lying if path not in beside]:
        log.warning("left out, since they are no files: %s", ", ".join(map(str, others)))
    trained, recommended = f"{stem}.safetensors", f"{stem}_recommended.safetensors"
    elsewhere = [
        path for path in beside if path.name not in (trained, recommended) and _points_elsewhere(path, run_folder)
    ]
    if elsewhere:
        told = ", ".join(f"{path} (to {files.real(path)})" for path in elsewhere[:MOST_NAMED])
        log.warning("left out, since they are links to files elsewhere: %s; copy such a file to hand it over", told)
    left = left_behind(beside, run.trigger)
    beside = [path for path in beside if path not in (*left, *elsewhere)]
    content = {path.name: files.asked(path, path.read_bytes) for path in beside}
    for path in beside:
        if path.suffix == ".safetensors" and (problems := file_problems(path)):
            raise BadInput(f"{path}: {problems[0]}; or run the character again, it is taken from the store")
    if missing := {trained, recommended} - content.keys():
        raise BadInput(
            f"{place} lacks {' and '.join(sorted(missing))}: run the character again, it is taken from the store"
        )
    if "README.md" not in content:  # a run of an earlier version
        content = {**_beside(run, store), **content}
    pages = [run_folder / name for name in PAGES]
    content |= {path.name: path.read_bytes() for path in pages if files.is_file(path)}
    if left:
        log.warning("left where it is, of an earlier trigger: %s", ", ".join(str(path) for path in left))
    gone = [names[0] for names in ((REPORT,), SHEETS) if not content.keys() & {*names}]
    if gone:
        log.warning("%s has no %s any more: handed over without", run_folder, " and no ".join(gone))
    recipe = told_by(read_metadata(place / recommended)).recipe
    content["recipe.json"] = json.dumps(recipe, indent=2, sort_keys=True, ensure_ascii=False).encode()
    return dict(sorted(content.items()))


def _points_elsewhere(path: Path, run_folder: Path) -> bool:
    """Whether a path is a link to what lies neither in the run's folder, nor in the folder that it stands in, nor in the home."""
    if not files.is_link(path):
        return False
    own = {files.real(place) for place in (run_folder, path.parent, find_home().root)}
    return not own & {*files.real(path).parents}


def _write_zip(place: Path, folder: str, content: dict[str, bytes]) -> None:
    with zipfile.ZipFile(place, "w", zipfile.ZIP_STORED) as archive:  # adapters do not get smaller by packing
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(f"{folder}/{name}", WHEN), data)


def _name(folder: Path) -> str:
    try:
        return read_run(folder).name
    except BadInput:
        return ""


def _beside(run: RunRecord, store: Store) -> dict[str, bytes]:
    """Card, preview and sidecars, made now; none when the store has lost their pictures."""
    with tempfile.TemporaryDirectory() as place:
        try:
            written = write_beside(run, Path(place), store)
        except StoreCorrupt as error:
            log.warning("no card and no preview: %s", error)
            return {}
        return {path.name: path.read_bytes() for path in written}
