"""The start form: what was filled in, checked as a run will check it, each mistake beside its field; then started."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from charengine.config import Profile
from charengine.errors import BadInput, ConfigError, EngineError, StoreCorrupt
from charengine.machine.home import Home
from charengine.machine.shared import shared_url
from charengine.misspelt import NO_SETTING
from charengine.profiles.loading import load_profile, setting_names
from charengine.records import Ref
from charengine.run.claim import free_folder, identity_of
from charengine.run.handing_over import for_any_machine, found, lent_as
from charengine.run.paths import absolute_profile
from charengine.run.request import REFERENCE, CheckedRun, RunRequest, check, usual_name
from charengine.services.gallery.characters import Character
from charengine.services.gallery.settings_form import SHOWN, overrides_from, setting_fields
from charengine.services.gallery.uploads import Upload, take_reference_upload, take_sheet_upload
from charengine.store import Store
from charengine.wording import slug

TEXTS = ("prompt", "name", "class_noun", "trigger", "seed", "profile", "profile_file", "more_settings")
WHOLE_FORM = ""  # the field of what belongs to none
FIELD_WORDS = {
    REFERENCE: "the picture",
    "--sheet": "picture",
    "--set": "setting",
    "--profile": "profile",
    "--out": "folder",
    "--name": "name",
}
LISTED = re.compile(r"`charengine settings[^`]*` lists all of them")
LISTED_HERE = "the page “Start a character” lists all at its foot"
STORED = re.compile(r"[0-9a-f]{40,64}")
WHOLE_NUMBER = re.compile(r"[-+]?[0-9]{1,12}")

Problems = dict[str, list[str]]


@dataclass
class StartForm:
    """What was filled in; texts as they were sent."""

    values: Mapping[str, str]
    picture: Upload | None = None
    kept_picture: str = ""  # digest of a picture that was sent before, so that it need not be sent again
    reference: Upload | None = None
    kept_reference: str = ""

    def text(self, name: str) -> str:
        """A field's text."""
        return self.values.get(name, "").strip()

    @property
    def profile(self) -> str:
        """The profile's name, or the file that is written beside the list."""
        return self.text("profile_file") or self.text("profile") or "embedded"

    @property
    def profile_field(self) -> str:
        """Where that stands."""
        return "profile_file" if self.text("profile_file") else "profile"

    @property
    def overrides(self) -> list[str]:
        """The settings shown, then those written out, one a line."""
        lines = [line.strip() for line in self.text("more_settings").splitlines()]
        return [*overrides_from(self.values, setting_fields()), *(line for line in lines if line)]

    @property
    def written(self) -> dict[str, list[int]]:
        """Lines, from 1, of each setting that is written out."""
        found: dict[str, list[int]] = {}
        for number, line in enumerate(self.values.get("more_settings", "").splitlines(), start=1):
            if name := line.partition("=")[0].strip():
                found.setdefault(name, []).append(number)
        return found


@dataclass
class Checked:
    """A form that was looked at: what can start, or problems by field; `shown` is a picture of what is wrong with the upload."""

    run: CheckedRun | None = None
    problems: Problems = field(default_factory=dict)
    shown: Ref | None = None
    kept_picture: str = ""
    kept_reference: str = ""
    reference_name: str = ""  # of the file that was sent, which names a character without a prompt
    same: Character | None = None  # who is being made already

    def add(self, name: str, problem: str) -> None:
        """One more problem of a field."""
        self.problems.setdefault(name, []).append(in_page_words(problem, name))


def check_start(form: StartForm, home: Home, store: Store, characters: Iterable[Character]) -> Checked:
    """Everything that is wrong with a form, by field; or the run that it asks for.

    Args:
        form: as it was sent.
        home: of the runs.
        store: where an uploaded picture goes.
        characters: all there are; one that is being made is not started again, and its folder is left alone.
    """
    checked = Checked()
    sheet, reference = _sheet(form, store, checked), _reference(form, store, checked)
    name = form.text("name")
    if reference and not name and not form.text("prompt"):
        name = usual_name("", reference, file_name=checked.reference_name)  # in the store it has its digest's name
        if STORED.fullmatch(name):  # of one like another, whose file lost its name
            checked.add("name", "is empty, and how the picture's file was called is not known: write one")
    request = RunRequest(
        prompt=form.text("prompt"),
        name=name,
        class_noun=form.text("class_noun"),
        trigger=form.text("trigger"),
        seed=_seed(form.text("seed"), checked),
        profile=form.profile,
        overrides=tuple(form.overrides),
        sheet=sheet,
        reference=reference,
    )
    for setting, lines in form.written.items():
        places = [f"“{SHOWN[setting]}” above"] * bool(form.text(setting)) if setting in SHOWN else []
        if len(places := [*places, *(f"line {line}" for line in lines)]) > 1:
            checked.add("more_settings", f"{setting} is given twice, in {' and '.join(places)}: leave one")
    run = check_request(request, home, characters, checked, _beside(form))
    if "reference" in checked.problems and not request.prompt:  # a picture that can be read says what the prompt would
        checked.problems.pop("prompt", None)
    if not checked.problems:
        checked.run = run
    checked.problems = {name: checked.problems[name] for name in sorted(checked.problems, key=_place)}
    return checked


def check_request(
    request: RunRequest,
    home: Home,
    characters: Iterable[Character],
    checked: Checked,
    beside: Callable[[str], str] | None = None,
) -> CheckedRun | None:
    """A request as its run will check it, in a folder that no active character writes to; problems go into `checked`.

    Args:
        request: what is asked for.
        home: of the runs.
        characters: all there are.
        checked: takes the problems.
        beside: the field of a problem; by default as its sentence begins.
    """
    try:
        run = check(request, home)
    except ConfigError as error:
        for problem in error.problems:
            checked.add((beside or field_of)(problem), problem)
        return None
    if lacking := lacking_models(run.profile):
        checked.add((beside or field_of)(lacking), lacking)
        return None
    active = [character for character in characters if character.active]
    mine = identity_of(run.character.name, run.character.prompt)
    for character in active:
        if identity_of(character.name, character.prompt) == mine:
            checked.same = character
            checked.add(
                "name", f"{character.name} with this prompt is being made already: follow it, or give another name"
            )
            return None
    return (
        run
        if request.out
        else replace(run, out=_free(run, {character.path for character in active}), out_is_given=True)
    )


def lacking_models(profile: Profile) -> str:
    """Which models of a profile are not on this machine; empty where none lacks, or others do the work."""
    if profile.models.family == "embedded" or shared_url():
        return ""
    from charengine.models.survey import survey  # needs torch

    try:
        missing = survey(profile).missing
    except EngineError as error:
        return f"profile {profile.name}: {error}"
    names = ", ".join(dict.fromkeys(line.partition(":")[0] for line in missing))
    told = f"profile {profile.name} lacks models here ({names}): choose another; `charengine doctor -p {profile.name}` says how to get each"
    return told if missing else ""


def parameters_of(run: CheckedRun, store: Store) -> dict[str, Any]:
    """The flow's parameters that ask for a run; of any machine, where machines share the store and no folder."""
    return run.parameters() if store.local else for_any_machine(run.parameters(), store)


def field_of(problem: str) -> str:
    """The field that a problem is about, by how our own checks begin their sentences."""
    head = re.split(r"[:\s]", problem, maxsplit=1)[0]
    if head in ("prompt", "name", "class_noun", "trigger", "seed"):
        return head
    shown = ".".join(head.split(".")[:2])  # an item of a list has its place behind the setting
    if shown in SHOWN:
        return shown
    of_section = re.match(r"(\w+): (\w+)", problem)  # "train: learning_rate=…", where two settings do not fit together
    if of_section and ".".join(of_section.groups()) in SHOWN:
        return ".".join(of_section.groups())
    if head in ("--sheet", "picture"):
        return "picture"
    if head == REFERENCE:
        return "reference"
    if head == "--set" or NO_SETTING in problem or head in setting_names() or head.split(".")[0] in _sections():
        return "more_settings"
    return "profile" if "profile" in problem[:40] else WHOLE_FORM


def _beside(form: StartForm) -> Callable[[str], str]:
    """Tells the field of a form that a problem is about: a setting's is where it was written, else the profile that has it."""
    try:
        load_profile(absolute_profile(form.profile))
        of_profile = []
    except ConfigError as error:
        of_profile = error.problems
    filled = [name for name in SHOWN if form.text(name)]

    def beside(problem: str) -> str:
        name = form.profile_field if problem in of_profile else field_of(problem)
        if name == "profile":
            return form.profile_field
        if name not in (*SHOWN, "more_settings") or problem.startswith("--set '"):
            return name
        words = re.findall(r"\w+", problem.removeprefix("--set "))
        section, known = words[0], {*words}
        for one in (".".join(words[:2]), section):
            if one in form.written or one in filled:
                return "more_settings" if one in form.written else one
        mine = [one for one in (*form.written, *filled) if one.startswith(f"{section}.")]
        mine = [one for one in mine if one.rpartition(".")[2] in known] or mine
        if name in SHOWN and not (mine and mine[0] in form.written):
            return name
        return form.profile_field if not mine else "more_settings" if mine[0] in form.written else mine[0]

    return beside


def in_page_words(problem: str, name: str = "") -> str:
    """A problem without options of the command line, and without the name of the field that it stands beside, `name`."""
    text = LISTED.sub(LISTED_HERE, problem)
    for option, words in FIELD_WORDS.items():
        text = re.sub(rf"{option}\b", words, text)
    head, colon, rest = text.partition(": ")
    said = rest if colon and head == name else text
    return said.removeprefix(f"{name} ") if said.startswith(f"{name} is ") else said


def resume_parameters(character: Character, store: Store) -> dict[str, Any]:
    """The flow's parameters with which a run that ended early goes on: as before, in the same folder; on any machine where they share the store.

    Raises:
        BadInput: Prefect does not know the run.
    """
    if not character.flow_run:
        raise BadInput(f"{character.name}: Prefect does not know its run any more; start it again with the same prompt")
    return {**character.parameters, "out": str(character.path) if store.local else "", "refresh": []}


def _free(run: CheckedRun, taken: set[Path]) -> Path:
    character = run.character
    usual = run.out.with_name(slug(character.name))
    return free_folder(usual, character.name, character.prompt, taken)


def _sheet(form: StartForm, store: Store, checked: Checked) -> str:
    """The path of the picture that was sent, now or before; empty without one."""
    if form.picture:
        try:
            crop = load_profile(absolute_profile(form.profile), form.overrides).crop
        except ConfigError:
            crop = None
        looked = take_sheet_upload(form.picture, store, crop)
        for problem in looked.problems:
            checked.add("picture", problem)
        checked.shown = looked.shown
        kept = looked.kept
    else:
        kept = _kept(form.kept_picture, "", "picture", store, checked)
    checked.kept_picture = kept.sha256 if kept else ""
    return _path(kept, store)


def _reference(form: StartForm, store: Store, checked: Checked) -> str:
    """The path of the reference that was sent, now or before; empty without one."""
    name = form.text("reference_name")
    if form.reference:
        looked = take_reference_upload(form.reference, store)
        for problem in looked.problems:
            checked.add("reference", problem)
        kept, name = looked.kept, form.reference.last_name
    else:
        kept = _kept(form.kept_reference, name, "reference", store, checked)
    checked.kept_reference, checked.reference_name = (kept.sha256 if kept else ""), name
    return _path(kept, store)


def _kept(digest: str, name: str, field_name: str, store: Store, checked: Checked) -> Ref | None:
    """A picture that was sent before; None without one."""
    if not digest:
        return None
    try:
        ref = Ref(sha256=digest, size=0, media_type="", name=Upload(name, b"").plain_name)
        store.get(ref)
    except (ValueError, StoreCorrupt):
        checked.add(field_name, "the picture that was sent before is gone: choose it again")
        return None
    return ref


def _path(kept: Ref | None, store: Store) -> str:
    """Where a picture of the store lies on this machine; empty without one."""
    if kept is None:
        return ""
    return str(store.path(kept) or found(lent_as(kept), store))


def _place(name: str) -> int:
    """Where a field stands on the page."""
    order = (
        WHOLE_FORM,
        "prompt",
        "reference",
        "picture",
        "name",
        "profile",
        *SHOWN,
        "class_noun",
        "trigger",
        "seed",
        "profile_file",
        "more_settings",
    )
    return order.index(name)


def _seed(text: str, checked: Checked) -> int:
    if not text:
        return 42
    if not WHOLE_NUMBER.fullmatch(text):
        checked.add("seed", f"must be a whole number; got {text[:80]!r}")
        return 42
    return int(text)


def _sections() -> set[str]:
    return {name.split(".")[0] for name in setting_names()}
