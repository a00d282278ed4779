"""Which files a command will write, known before it works, so that none of them replaces what is somebody's (docs/decisions/0072)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from charengine import files
from charengine.config import Character, ExpandSettings, Profile, TrainSettings
from charengine.dataset.folder import HELD_OUT_FOLDER, MASKS, REPEATS, extra_files, file_words, saying
from charengine.errors import BadInput, ConfigError
from charengine.machine.ledger import EXPANSION, foreign, overwriting
from charengine.records import VIEWS, DatasetRecord
from charengine.run.folder import REPORT, RESULT, adapter_files, captions_of, says_nothing
from charengine.wording import file_stem

if TYPE_CHECKING:
    from charengine.run.request import CheckedRun

SCENES = tuple(f"scene-{number}.webp" for number in range(1, 5))
EDITED = "`charengine train` takes edited captions as they are; a view whose .txt file is removed is captioned anew"
SWEPT = ("contact_sheet.png", "trade_off.png")


def views_files() -> list[str]:
    """Of the three views."""
    return ["overlay.png", *(f"{view}{ending}" for view in VIEWS for ending in (".png", ".alpha.png"))]


def expansion_files(settings: ExpandSettings) -> list[str]:
    """Of more views, of all that may be drawn; the name of one that is refused is known when it is drawn."""
    drawn = [f"{kind}-{number}" for kind in settings.kinds for number in range(1, settings.count + 1)]
    names = [f"{name}{ending}" for name in drawn for ending in (".png", ".alpha.png")]
    return [EXPANSION, *names, *(f"{HELD_OUT_FOLDER}/{name}" for name in names)]


def sweep_files(trigger: str) -> list[str]:
    """Of a sweep alone."""
    return [*adapter_files(trigger), *SWEPT, "sweep.json"]


def training_files(trigger: str, settings: TrainSettings) -> list[str]:
    """Of a training alone: its checkpoints."""
    from charengine.stages.train.checkpoints import checkpoint_steps

    return checkpoint_files(trigger, sorted(checkpoint_steps(settings)))


def checkpoint_files(trigger: str, steps: Sequence[int]) -> list[str]:
    """Of checkpoints after these steps of one training, the last without its step."""
    return [f"{file_stem(trigger)}{mark}.safetensors" for mark in (*(f"-{step:06d}" for step in steps[:-1]), "")]


def earlier_checkpoints(out: Path, trigger: str, names: Sequence[str]) -> list[Path]:
    """Checkpoints that an earlier training left beside those of this one (`names`); not what somebody else put there."""
    steps = re.compile(rf"{re.escape(file_stem(trigger))}-\d{{6}}\.safetensors")
    found = [path for path in files.entries(out) if steps.fullmatch(path.name) and path.name not in names]
    return [path for path in found if not foreign([path], {})]


def run_files(profile: Profile, character: Character, reference: bool) -> list[str]:
    """Of a whole run: those named after the trigger and the class noun where these are known."""
    names = ["sheet.png", *(f"views/{name}" for name in views_files()), *SWEPT, REPORT, "run.json", RESULT]
    names += ["reference.png"] if reference else []
    names += [f"extra_views/{name}" for name in expansion_files(profile.expand)] if profile.expand.count else []
    names += [f"dataset/{MASKS}/{view}.png" for view in VIEWS]
    names += [f"adapters/{name}" for name in ("README.md", *SCENES)]
    if trigger := character.trigger:
        names += adapter_files(trigger)  # what lies beside them may be changed by programs: such a one stays
    if trigger and character.class_noun:
        subset = f"dataset/{REPEATS}_{file_stem(trigger)} {file_words(character.class_noun)}"
        names += [f"{subset}/{view}{ending}" for view in VIEWS for ending in (".png", ".txt")]
    return names


def problems_of(out: Path, names: Iterable[str], inputs: Iterable[Path] = ()) -> list[str]:
    """Why these files may not be written below a folder; captions of a run may have been edited, which is taken into the run."""
    edits = captions_of(out)
    try:
        return overwriting([path for name in names if (path := out / name) not in edits], "--out", out, inputs)
    except BadInput as error:
        return [f"--out {error}"]


def run_problems(
    out: Path, profile: Profile, character: Character, sheet: Path | None, reference: Path | None
) -> list[str]:
    """Why a whole run may not write its files into a folder.

    A sheet that is the folder's own `sheet.png` is written as it is, and a reference likewise, unless somebody else made it.
    """
    try:
        given = {path for path in (sheet, reference) if path} - {out / "sheet.png" if sheet else out / "reference.png"}
        start = {Path(profile.train.continue_from)} if profile.train.continue_from else set()
        before = [*(extra_files(out / "extra_views") if profile.expand.count else ()), *extra_files(out / "dataset")]
        names = run_files(profile, character, reference is not None)
        edits = {path for path in before if path.suffix == ".txt" and (out / "dataset") in path.parents}
        names = [name for name in names if name != "run.json" or not says_nothing(out / name)]
        names += [str(path.relative_to(out)) for path in before if path not in edits]
    except BadInput as error:
        return [f"--out {out}: {error}"]
    return problems_of(out, dict.fromkeys(names), given | start)


def check_run(run: CheckedRun, character: Character) -> None:
    """Before a run works, with trigger and class noun known.

    Raises:
        ConfigError: its folder holds files that are not the engine's, or were changed, and would be overwritten.
    """
    if problems := run_problems(run.out, run.profile, character, run.sheet, run.reference):
        raise ConfigError(problems)


def check_names(
    out: Path,
    names: Iterable[str],
    inputs: Iterable[Path] = (),
    wanted: Mapping[str, str] = MappingProxyType({}),
    label: str = "--out",
) -> None:
    """Before one stage works.

    Args:
        out: the folder.
        names: of what will be written below it.
        inputs: files that the command reads.
        wanted: SHA-256 of what will be written, by name, where that is known.
        label: the option that names the folder.

    Raises:
        ConfigError: a file that is not the engine's, or was changed, or is an input, would be overwritten.
    """
    known = {out / name: digest for name, digest in wanted.items()}
    if problems := overwriting([out / name for name in names], label, out, inputs, known):
        raise ConfigError(problems)


def check_captions(folder: Path, places: Mapping[str, Path], known: DatasetRecord | None) -> None:
    """Before views are captioned.

    Args:
        folder: of the views.
        places: of the caption of each.
        known: what will be written, where that was made before.

    Raises:
        ConfigError: a caption was edited, or is not the engine's.
    """
    texts = {places[caption.view]: caption.text for caption in known.captions} if known else {}
    same = saying(texts)
    try:
        check_names(folder, [str(path.relative_to(folder)) for path in places.values() if path not in same], label="")
    except ConfigError as error:
        raise ConfigError([f"{problem}. {EDITED}" for problem in error.problems]) from error
