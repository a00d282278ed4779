"""Every character: those with a folder on this machine, and those that Prefect runs, joined into one list."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from charengine.errors import BadInput
from charengine.machine.home import in_work_folder
from charengine.run.claim import free_folder, identity_of
from charengine.run.request import usual_name
from charengine.services.gallery.folders import RunFolder
from charengine.wording import slug

Json = dict[str, Any]
State = Literal["being made", "stopping", "waits", "made", "failed", "stopped", "unfinished", "elsewhere"]

STATES: dict[str, State] = {
    "SCHEDULED": "waits",
    "PENDING": "waits",
    "PAUSED": "waits",
    "RUNNING": "being made",
    "CANCELLING": "stopping",
    "FAILED": "failed",
    "CRASHED": "stopped",
    "CANCELLED": "stopped",
    "COMPLETED": "elsewhere",  # unless its folder is here
}
ORDER: tuple[State, ...] = ("being made", "stopping", "waits")  # before all others, which stand by time
ACTIVE = frozenset(ORDER)
LONGEST_SEARCH = 200
CANCELLED = "Flow run was cancelled successfully."  # as Prefect's worker says it, in words of its own place


@dataclass(frozen=True)
class Character:
    """One character as the gallery shows it.

    Args:
        path: of its folder, which may not exist yet.
        folder: what is in it, when it is on this machine.
        flow_run: Prefect's newest run of it.
    """

    name: str
    prompt: str
    state: State
    path: Path
    folder: RunFolder | None = None
    flow_run: Json | None = field(default=None, repr=False)

    @cached_property  # a card asks for it ten times
    def id(self) -> str:
        """Its part of an address: the name for people, and letters made from the folder."""
        return f"{self.slug}-{hashlib.sha256(str(self.path).encode(errors='replace')).hexdigest()[:8]}"

    @cached_property
    def slug(self) -> str:
        """Its name as files have it."""
        return slug(self.name)

    @property
    def finished(self) -> bool:
        """Whether what was made of it is on this machine."""
        return bool(self.folder and self.folder.record)

    @property
    def parameters(self) -> Json:
        """What Prefect's newest run of it was asked for."""
        return (self.flow_run or {}).get("parameters") or {}

    @property
    def given(self) -> tuple[str, str]:
        """What that run was given, `picture` or `sheet`, and its place; empty without one."""
        kinds = {"picture": self.parameters.get("reference"), "sheet": self.parameters.get("sheet")}
        return next(((kind, str(place)) for kind, place in kinds.items() if place), ("", ""))

    @property
    def once(self) -> str:
        """With this word its newest run is continued once, whichever page asks."""
        return hashlib.sha256(self.run_id.encode()).hexdigest()[:32]

    @property
    def active(self) -> bool:
        """Whether it waits or is being made."""
        return self.state in ACTIVE

    @property
    def run_id(self) -> str:
        """Prefect's id of the newest run; of the run that made it where Prefect has none; empty when neither is known."""
        if self.flow_run:
            return str(self.flow_run["id"])
        return self.folder.record.prefect_flow_run_id if self.folder and self.folder.record else ""

    @property
    def message(self) -> str:
        """Why it failed or stopped, or is not here, or its record cannot be read; else empty."""
        if self.state == "elsewhere":
            return f"Its folder is not at {self.path}: it was moved or deleted, or another machine made it."
        if self.state in ("failed", "stopped") and self.flow_run:
            said = str((self.flow_run.get("state") or {}).get("message") or "")
            return "It was cancelled; it can be continued from where it was." if said == CANCELLED else said
        return self.folder.problem if self.folder else ""

    @property
    def can_resume(self) -> bool:
        """Whether it may be started again from where it was: its run is known and has ended early."""
        return self.state in ("failed", "stopped") and bool(self.flow_run)

    def matches(self, words: str) -> bool:
        """Whether each word stands in its name, prompt, trigger or class noun."""
        made = self.folder.record if self.folder else None
        text = " ".join([self.name, self.prompt, *([made.trigger, made.class_noun] if made else [])]).lower()
        return all(word in text for word in words.lower().split())


def join(folders: Iterable[RunFolder], runs: Iterable[Json], places: list[Path]) -> list[Character]:
    """Folders and Prefect's runs as characters: those being made, then those that wait, then the others, the newest first.

    Args:
        folders: found on this machine.
        runs: of the flow `character`, the newest first; of several for one folder the most advanced active one counts.
        places: where folders stand that a run does not name.
    """
    by_path = {folder.path: folder for folder in folders}
    of_path: dict[Path, Json] = {}
    made_by = {folder.record.prefect_flow_run_id: folder.path for folder in by_path.values() if folder.record}
    for run in sorted(runs, key=_rank):
        path = folder_of(run, by_path, places)
        if path not in by_path:  # it may have been given another name
            path = made_by.get(str(run["id"]), path)
        of_path.setdefault(path, run)
    found = [_character(path, by_path.get(path), of_path.get(path)) for path in {**by_path, **of_path}]
    return sorted(found, key=_place_in_list)


def given_folder(run: Json) -> Path | None:
    """The folder that a run was given; None when it was given none, or what it was given is no path."""
    given = (run.get("parameters") or {}).get("out")
    try:
        return in_work_folder(str(given)) if given else None
    except BadInput:
        return None


def folder_of(run: Json, by_path: dict[Path, RunFolder], places: list[Path]) -> Path:
    """Where a run writes: the folder it was given, else its character's own, else the one it will be given."""
    parameters = run.get("parameters") or {}
    if given := given_folder(run):
        return given
    name, prompt = _named(parameters, str(run.get("name", "")))
    wanted = identity_of(name, prompt)
    mine = (path for path, folder in by_path.items() if folder.identity == wanted and path.parent in places)
    usual = places[0] / slug(name)
    try:
        return next(mine, None) or free_folder(usual, name, prompt)
    except BadInput:
        return usual


def _character(path: Path, folder: RunFolder | None, flow_run: Json | None) -> Character:
    parameters = (flow_run or {}).get("parameters") or {}
    if folder and folder.record:
        name, prompt = folder.record.name, folder.record.prompt
    elif flow_run:
        name, prompt = _named(parameters, str(flow_run.get("name", "")))
    else:
        assert folder
        name, prompt = folder.identity
    return Character(name, prompt, _state(folder, flow_run), path, folder, flow_run)


def _named(parameters: Json, run_name: str) -> tuple[str, str]:
    prompt = str(parameters.get("prompt") or "")
    return str(parameters.get("name") or "") or (usual_name(prompt) if prompt else run_name or "character"), prompt


def _state(folder: RunFolder | None, flow_run: Json | None) -> State:
    made = bool(folder and folder.record)
    if flow_run is None:
        return "made" if made else "unfinished"
    state = STATES.get(str(flow_run.get("state_type")), "waits")
    if state in ACTIVE:
        return state
    assert folder or not made
    if made and (state == "elsewhere" or (folder and folder.written > _seconds(flow_run.get("end_time")))):
        return "made"
    return "unfinished" if state == "elsewhere" and folder else state


def _rank(run: Json) -> int:
    """Of several runs for one folder: one that goes on before one that waits before one that has ended."""
    state = STATES.get(str(run.get("state_type")), "waits")
    return {"being made": 0, "stopping": 1, "waits": 2}.get(state, 3)


def _place_in_list(character: Character) -> tuple[int, float, str]:
    run = character.flow_run or {}
    if character.active:
        return ORDER.index(character.state), _seconds(run.get("expected_start_time")), character.name
    when = max(character.folder.written if character.folder else 0.0, _seconds(run.get("end_time")))
    return len(ORDER), -when, character.name


def _seconds(text: Any) -> float:
    """Prefect's time in seconds since 1970; 0 for none."""
    try:
        return datetime.fromisoformat(str(text)).timestamp() if text else 0.0
    except ValueError:
        return 0.0
