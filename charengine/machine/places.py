"""Where a user has something written: what stands in the way is said before anything runs, and what is there already is not lost."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from charengine import files
from charengine.errors import BadInput
from charengine.machine.home import Home, find_home
from charengine.machine.known_runs import CLAIM, RECORDS
from charengine.wording import CONTROL, shows

MIN_FREE_GIB = {"embedded": 0.5, "sdxl": 8.0}  # checkpoints, resumable state and pictures of one run
LONGEST_PART = 255  # bytes of one name in a path
RUNS_FOLDERS = ("views", "extra_views", "dataset", "adapters")  # of a run, in its folder
DEEPEST = 3  # folders above a run's file, up to the run's own


def check_folder(folder: Path, label: str) -> Path:
    """The folder, when files can be written there; nothing is left behind.

    Raises:
        BadInput: it cannot be written, or is one of the home's own, or one that a run keeps its files in.
    """
    if problems := folder_problems(folder, label) or home_problems(folder, find_home(), label):
        raise BadInput(problems[0])
    refuse_runs_folder(folder, label)
    return folder


def check_file(path: Path, label: str, rewritten: Path | None = None) -> Path:
    """Where the file is to be written: the path, or what it links to; nothing is left behind.

    Args:
        path: as the user gave it.
        label: the option.
        rewritten: a file of a run that may be written again.

    Raises:
        BadInput: it cannot be written, lies in one of the home's own folders, or would replace a device, a pipe, or a run's own file.
    """
    place = files.real(path) if files.is_link(path) else path
    if files.is_dir(place):
        raise BadInput(f"{label} {path} is a folder; give the name of a file in it")
    if problems := folder_problems(place.parent, label) or home_problems(place, find_home(), label):
        raise BadInput(problems[0])
    if not files.exists(place):
        return place
    if not files.is_file(place):
        raise BadInput(f"{label} {path} is a device, a pipe or a socket; give the name of a plain file")
    real = files.real(place)
    runs = [
        folder for folder in real.parents[:DEEPEST] if any(files.exists(folder / name) for name in (CLAIM, *RECORDS))
    ]
    if runs and (
        rewritten is None or real != files.real(rewritten.parent) / rewritten.name
    ):  # which may be a link itself
        raise BadInput(f"{label} {path}: is a file of the run in {runs[0]} and would be lost; give another name")
    return place


def refuse_runs_folder(place: Path, label: str) -> None:
    """Whatever is written there would be taken for the run's, or replace a file of it.

    Raises:
        BadInput: it is the folder of a run, or one in it that the run keeps its files in.
    """
    real = files.real(place)
    for folder in (real, *real.parents[:DEEPEST]):
        if any(files.exists(folder / name) for name in (CLAIM, RECORDS[0])):
            inside = real.relative_to(folder).parts
            if not inside or inside[0] in RUNS_FOLDERS:
                raise BadInput(
                    f"{label} {place}: the run in {folder} has its own files there; give a folder of another name"
                )


def folder_problems(folder: Path, label: str) -> list[str]:
    """Why nothing can be written into a folder that is there or is to be made; nothing is left behind."""
    if folder.name and (CONTROL.search(str(folder)) or not shows(folder.name)):
        return [
            f"{label} {str(folder)!a}: a folder's name is read by people: leave out control characters, and write something"
        ]
    try:
        place = nearest_existing(folder)
        if not files.is_dir(place):
            return [f"{label} {folder}: {place} is a file; choose a folder"]
        with tempfile.TemporaryFile(dir=place):
            pass
        too_long = next((part for part in folder.parts if len(os.fsencode(part)) > LONGEST_PART), "")
        return [f"{label} {folder}: cannot be written (File name too long); choose another folder"] if too_long else []
    except BadInput as error:
        return [f"{label} {error}"]
    except (OSError, ValueError) as error:
        return [f"{label} {folder}: cannot be written ({files.reason(error)}); choose another folder"]


def home_problems(out: Path, home: Home, label: str) -> list[str]:
    """What lies there is the engine's: from the inbox a run's captions would be taken as characters."""
    if not home.holds(out):
        return []
    allowed = f"any folder outside of it, or {home.root / 'runs'}/NAME"
    return [f"{label} {out}: is one of the home's own folders ({home.root}); allowed is {allowed}: choose one"]


def space_problems(folders: set[Path], family: str) -> list[str]:
    """Why a run of a family of models does not fit on the disks of these folders."""
    wanted_gib, problems = MIN_FREE_GIB[family], []
    for place in sorted(_existing(folders)):
        free_gib = shutil.disk_usage(place).free / 2**30
        if free_gib < wanted_gib:
            problems.append(
                f"{place} has {free_gib:.2f} GiB free; a run needs {wanted_gib:g}: free some space, or move it with "
                "--out and CHARENGINE_HOME"
            )
    return problems[:1]


def _existing(folders: set[Path]) -> set[Path]:
    found = set()
    for folder in folders:
        with suppress(BadInput):  # said already
            found.add(nearest_existing(folder))
    return found


def nearest_existing(path: Path) -> Path:
    """The path itself, or the closest parent that exists.

    Raises:
        BadInput: it cannot be told.
    """
    return path if files.exists(path) or path == path.parent else nearest_existing(path.parent)
