"""Where a user has something written: what stands in the way is said before anything runs, and what is there already is not lost."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from charengine import files
from charengine.errors import BadInput
from charengine.machine.home import Home, find_home
from charengine.machine.known_runs import CLAIM, RECORDS
from charengine.machine.ledger import OWN_FOLDERS, overwriting
from charengine.wording import CONTROL, shows

MIN_FREE_GIB = {"embedded": 0.5, "sdxl": 8.0}  # checkpoints, resumable state and pictures of one run
LONGEST_PART = 255  # bytes of one name in a path
LONGEST_FILE = 180  # of a file that is written: its temporary sibling has a longer name
LEAST_FREE = 2**23  # bytes; with fewer, databases cannot be written
DEEPEST = 3  # folders above a run's file, up to the run's own


def check_folder(folder: Path, label: str) -> Path:
    """The folder, when files can be written there; nothing is left behind.

    Raises:
        BadInput: it cannot be written, or is one of the home's own, or one that a run keeps its files in.
    """
    if problems := folder_problems(folder, label) or home_problems(folder, find_home(), label):
        raise BadInput(problems[0])
    if problems := among_a_runs_files(folder, label, itself=True):
        raise BadInput(problems[0])
    return folder


def among_a_runs_files(folder: Path, label: str, *, itself: bool) -> list[str]:
    """That a folder is one which a run keeps its files in; `itself`: or the run's own."""
    real = files.real(folder)
    run = _run_above(real, (CLAIM, RECORDS[0]))
    inside = real.relative_to(run).parts if run else ()
    if run is None or not (inside[0] in OWN_FOLDERS if inside else itself):
        return []
    return [f"{label} {folder}: the run in {run} has its own files there; give a folder of another name"]


def check_file(path: Path, label: str, rewritten: Path | None = None, inputs: Iterable[Path] = ()) -> Path:
    """Where the file is to be written: the path, or what it links to; nothing is left behind.

    Args:
        path: as the user gave it.
        label: the option.
        rewritten: a file of a run that may be written again.
        inputs: files that the command reads.

    Raises:
        BadInput: it cannot be written, is or lies in one of the home's own, or would replace a device, a pipe, a run's own file, or what
            is not the engine's.
    """
    place = files.real(path) if files.is_link(path) else path
    if files.is_dir(place):
        raise BadInput(f"{label} {path} is a folder; give the name of a file in it")
    if len(os.fsencode(place.name)) > LONGEST_FILE:
        raise BadInput(f"{label} {path}: the name of a file has at most {LONGEST_FILE} bytes; give a shorter one")
    if problems := folder_problems(place.parent, label) or home_problems(place, find_home(), label):
        raise BadInput(problems[0])
    if not files.exists(place):
        return place
    if not files.is_file(place):
        raise BadInput(f"{label} {path} is a device, a pipe or a socket; give the name of a plain file")
    real = files.real(place)
    own = rewritten and files.real(rewritten.parent) / rewritten.name  # which may be a link itself
    if real != own and (run := _run_above(real, (CLAIM, *RECORDS))):
        raise BadInput(f"{label} {path}: is a file of the run in {run} and would be lost; give another name")
    if problems := overwriting([place], label, place.parent, inputs):
        raise BadInput(problems[0])
    return place


def _run_above(real: Path, records: tuple[str, ...]) -> Path | None:
    """The run's folder that a path lies in, or is; by the files that make it one."""
    places = (real, *real.parents[:DEEPEST])
    return next((place for place in places if any(files.exists(place / name) for name in records)), None)


def folder_problems(folder: Path, label: str) -> list[str]:
    """Why nothing can be written into a folder that is there or is to be made; nothing is left behind."""
    if folder.name and (CONTROL.search(str(folder)) or not shows(folder.name)):
        return [
            f"{label} {str(folder)!a}: a folder's name is read by people: leave out control characters, and write something"
        ]
    if found := no_folder_problems(folder, label):
        return found
    try:
        with tempfile.TemporaryFile(dir=nearest_existing(folder)):
            pass
        too_long = next((part for part in folder.parts if len(os.fsencode(part)) > LONGEST_PART), "")
        return [f"{label} {folder}: cannot be written (File name too long); choose another folder"] if too_long else []
    except BadInput as error:
        return [f"{label} {error}"]
    except (OSError, ValueError) as error:
        return [f"{label} {folder}: cannot be written ({files.reason(error)}); choose another folder"]


def no_folder_problems(folder: Path, label: str) -> list[str]:
    """Why a folder is not there and cannot be made: a file, or a link to nothing, stands in its place or above it."""
    try:
        place = nearest_existing(folder)
        if not files.is_dir(place):
            return [f"{label} {folder}: {place} is a file; choose a folder"]
        if dead := next((part for part in (folder, *folder.parents) if part != place and files.is_link(part)), None):
            return [
                f"{label} {folder}: {dead} is a link to {os.readlink(dead)}, where nothing is; choose another folder, or make that one"
            ]
        return []
    except BadInput as error:
        return [f"{label} {error}"]
    except (OSError, ValueError) as error:
        return [f"{label} {folder}: cannot be read ({files.reason(error)}); choose another folder"]


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


def full_disk(folder: Path) -> str:
    """That no file can be written where a folder is, and what to do; empty where some can."""
    with suppress(BadInput, OSError):
        if shutil.disk_usage(place := nearest_existing(folder)).free < LEAST_FREE:
            return f"the disk of {place} is full: free some space"
    return ""


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
