"""What a user asks for, checked before anything heavy starts: every mistake is reported at once."""

from __future__ import annotations

import hashlib
import logging
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from charengine import files
from charengine.config import Character, Profile
from charengine.dataset.folder import read_expansion
from charengine.errors import BadInput, ConfigError
from charengine.machine.home import Home, in_work_folder
from charengine.machine.places import among_a_runs_files, folder_problems, home_problems, space_problems
from charengine.misspelt import did_you_mean
from charengine.mistakes import explain
from charengine.pictures import picture_problems
from charengine.run.claim import free_folder, identity_of, others_run, owner_of
from charengine.run.keys import path_digest
from charengine.run.outputs import run_problems
from charengine.run.paths import absolute_file, absolute_override, absolute_profile, profile_as_named
from charengine.run.starting_files import starting_problems
from charengine.wording import composed, file_stem, slug, unaccented, unmarked

SHEET, REFERENCE = "--sheet", "--reference"
STAGES = ("sheet", "crop", "expand", "caption", "train", "sweep", "report")
_FILLER = frozenset({"a", "an", "the", "of", "in", "on", "with", "and", "her", "his", "who", "has", "wears", "wearing"})

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunRequest:
    """One character run as it was asked for; nothing is checked yet."""

    prompt: str
    name: str = ""
    class_noun: str = ""
    trigger: str = ""
    seed: int = 42
    profile: str = "embedded"
    overrides: tuple[str, ...] = ()
    sheet: str = ""
    out: str = ""
    refresh: tuple[str, ...] = ()
    reference: str = ""

    def as_parameters(self) -> dict[str, Any]:
        """The flow's parameters; paths absolute, since a worker stands elsewhere."""
        return {
            "prompt": self.prompt,
            "name": self.name,
            "class_noun": self.class_noun,
            "trigger": self.trigger,
            "seed": self.seed,
            "profile": absolute_profile(self.profile),
            "overrides": [absolute_override(text) for text in self.overrides],
            "sheet": absolute_file(self.sheet),
            "out": absolute_file(self.out),
            "refresh": list(self.refresh),
            "reference": absolute_file(self.reference),
        }


@dataclass(frozen=True)
class CheckedRun:
    """One character run that can start.

    Where only a picture says what the character looks like (`said` is False), its prompt stands for that picture until the run
    looks at it: a folder is that picture's as it is a prompt's.
    """

    character: Character
    profile: Profile
    sheet: Path | None
    out: Path
    profile_source: str
    overrides: tuple[str, ...] = ()
    refresh: frozenset[str] = field(default_factory=frozenset)
    out_is_given: bool = False
    reference: Path | None = None
    said: bool = True

    def parameters(self) -> dict[str, Any]:
        """The flow's parameters that ask for this run."""
        character = self.character
        return RunRequest(
            character.prompt if self.said else "",
            character.name,
            character.class_noun,
            character.trigger,
            character.seed,
            self.profile_source,
            self.overrides,
            str(self.sheet or ""),
            str(self.out),
            tuple(sorted(self.refresh)),
            str(self.reference or ""),
        ).as_parameters()


def check(request: RunRequest, home: Home, *, whole: bool = True, writes_run: bool = True) -> CheckedRun:
    """The request in checked form.

    Args:
        request: what was asked for.
        home: the folder that outlives runs.
        whole: False for one stage alone, which may write anywhere, also beside another character's run.
        writes_run: False for who writes other files than those of a run, or asks later what is in their way.

    Raises:
        ConfigError: everything that is wrong with it, one line each.
    """
    problems: list[str] = []
    reference = _reference(request.reference, problems)
    said = bool(str(request.prompt).strip()) or not request.reference
    character = _character(request, None if said else reference, problems) if said or reference else None
    profile = _profile(request, problems)
    sheet = _picture(request.sheet, SHEET, problems)
    if sheet and reference:
        problems.append(f"{REFERENCE} and {SHEET}: a sheet is drawn from the one, the other is a sheet; leave one out")
    out = _out(request, character if whole else None, home, problems)
    problems += _utf8_problems(request, out, home) if whole else []
    problems += _stage_problems(request.refresh)
    problems += folder_problems(home.root, "home folder") or home.problems()
    if profile:
        problems += profile_problems(profile) if whole else starting_problems(profile)
        problems += space_problems({out, home.root}, profile.models.family)
    if whole and writes_run and profile and character and not problems:  # the folder can be asked
        problems += run_problems(out, profile, character, sheet, reference)
    if problems or character is None or profile is None:
        raise ConfigError(problems)
    return CheckedRun(
        character,
        profile,
        sheet,
        out,
        request.profile,
        request.overrides,
        frozenset(request.refresh),
        bool(request.out),
        reference,
        said,
    )


def _out(request: RunRequest, character: Character | None, home: Home, problems: list[str]) -> Path:
    """The run's folder: the one that was asked for, else `runs/NAME`, or the next when that is another prompt's."""
    out = place_of(request.out or f"runs/{slug(character.name if character else 'run')}", "--out", problems)
    if out is None:
        return home.root
    found = (
        folder_problems(out, "--out")
        or home_problems(out, home, "--out")
        or among_a_runs_files(out, "--out", itself=False)
    )
    problems += found
    if found or character is None:
        return out
    problems += _dataset_problems(out)
    if request.out:
        problems += [problem] if (problem := others_run(out, character)) else []
        return out
    free = free_folder(out, character.name, character.prompt)
    if free != out:
        log.warning("%s holds another prompt's run; this one goes to %s", out, free)
    return free


def name_from_prompt(prompt: str) -> str:
    """A file-friendly name from the first telling words of a prompt: "an orc woman in blue" -> "orc-woman-blue".

    Accents are dropped. Where letters of other scripts are left out, a short number made from the prompt stands for them, so that
    two prompts do not share one name.
    """
    return _name(composed(prompt), unaccented(prompt.lower()))


def _name(prompt: str, plain: str) -> str:
    words = [word for word in re.findall(r"[a-z0-9]+", plain) if word not in _FILLER]
    name = "-".join(words[:3])[:40].strip("-") or "character"
    if any(mark.isalnum() and not mark.isascii() for mark in plain):
        return f"{name}-{hashlib.sha256(' '.join(prompt.split()).encode(errors='replace')).hexdigest()[:6]}"
    return name


def usual_name(prompt: str, reference: str = "", out: str = "", within: str = "runs", file_name: str = "") -> str:
    """The name of a character that is given none: from its prompt, else from its picture's file.

    Letters such as ø and, of files that a page was sent, every accent used to be left out, and of other scripts it counted how a
    letter was written: where a folder has that name for this character, it stays.

    Args:
        prompt: may be empty with a picture.
        reference: its file.
        out: the run's folder.
        within: the folder of that, where it is not given.
        file_name: that the picture's file was sent with.
    """
    unsaid = bool(reference or file_name) and not prompt.strip()
    said = Path(file_name or reference).stem if unsaid else prompt
    name = name_from_prompt(said)
    earlier = [
        _name(said, unaccented(said.lower())),
        _name(said, unmarked(said.lower())),
        *([name_from_prompt(file_stem(said, "upload"))] if unsaid else []),
    ]
    for before in earlier:
        with suppress(BadInput):
            if before != name:
                asked = _picture_prompt(in_work_folder(reference)) if unsaid else prompt
                place = free_folder(in_work_folder(out or f"{within}/{slug(before)}"), before, asked)
                if owner_of(place) == identity_of(before, asked):
                    return before
    return name


def _picture_prompt(picture: Path) -> str:
    """Stands for what only a picture says."""
    return f"picture {path_digest(picture)[:16]}"


def _character(request: RunRequest, unsaid: Path | None, problems: list[str]) -> Character | None:
    """The character; `unsaid` is the picture that alone says what it looks like."""
    fields = {
        "name": request.name or usual_name(str(request.prompt), request.reference, request.out),
        "prompt": _picture_prompt(unsaid) if unsaid else request.prompt,
        "class_noun": request.class_noun,
        "trigger": request.trigger,
        "seed": request.seed,
    }
    try:
        return checked_character(fields)
    except ConfigError as error:
        problems += error.problems
        return None


def checked_character(fields: dict[str, object]) -> Character:
    """The character of these fields.

    Raises:
        ConfigError: everything that is wrong with them, one line each.
    """
    try:
        return Character.model_validate(fields)
    except ValidationError as error:
        raise ConfigError(explain(error, Character)) from error


def _profile(request: RunRequest, problems: list[str]) -> Profile | None:
    try:
        return profile_as_named(request.profile, request.overrides)
    except ConfigError as error:
        problems += error.problems
        return None


def profile_problems(profile: Profile) -> list[str]:
    """What every run of a profile is refused for, whoever its character is; `doctor` says it too."""
    from charengine.run.before_the_sweep import sweep_problems

    return [*starting_problems(profile), *sweep_problems(profile)]


def _picture(text: str, option: str, problems: list[str]) -> Path | None:
    if not text:
        return None
    if place := place_of(text, option, problems):
        problems += picture_problems(place, option)
    return place


def place_of(text: str, option: str, problems: list[str]) -> Path | None:
    """A path as a user wrote it, absolute; None, and a problem that names the option, where `~` and nobody's name begin it."""
    try:
        return in_work_folder(text)
    except BadInput as error:
        problems.append(f"{option} {error}")
        return None


def _reference(text: str, problems: list[str]) -> Path | None:
    found: list[str] = []
    path = _picture(text, REFERENCE, found)
    if path and not found:
        from charengine.stages.sheet.reference import reference_problems

        found += reference_problems(path)
    problems += found
    return None if found else path


def _stage_problems(stages: tuple[str, ...]) -> list[str]:
    return [
        f"--refresh {stage[:80]!r}: no such stage; stages are {', '.join(STAGES)}{did_you_mean(stage, STAGES)}"
        for stage in stages
        if stage not in STAGES
    ]


def _dataset_problems(out: Path) -> list[str]:
    """Why captions could not be written there, once everything is drawn."""
    if not files.exists(out / "dataset"):
        return []
    from charengine.run.folder import dataset_folder

    try:
        read_expansion(dataset_folder(out))
    except BadInput as error:
        return [f"--out {out}: {error}"]
    return []


def _utf8_problems(request: RunRequest, out: Path, home: Home) -> list[str]:
    """A run is written down, and handed to Prefect and MLflow, with its paths as UTF-8 text."""
    paths = {
        "--out": out,
        SHEET: request.sheet,
        REFERENCE: request.reference,
        "--profile": request.profile,
        "home folder": home.root,
    }
    remedy = "is no UTF-8, in which a run's paths are kept: rename the file or folder, or name a link to it"
    return [f"{label} {path}: {remedy}" for label, path in paths.items() if re.search(r"[\ud800-\udfff]", str(path))]
