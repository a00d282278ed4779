"""A run that starts from one picture: what the picture shows is known before any stage's key is made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from charengine.config import Character
from charengine.errors import BadInput
from charengine.machine.home import Home
from charengine.models import Models
from charengine.run.request import REFERENCE, CheckedRun
from charengine.run.steps import Runner
from charengine.run.workspace import Workspace
from charengine.stages.sheet.reference import LOOK, ReferenceRecord


def open_with_reference(run: CheckedRun, picture: Path, home: Home, models: Models | None, by: Runner) -> Workspace:
    """The workspace of a run with a reference; without a sentence, the picture's description is the prompt.

    Raises:
        EngineError: models are missing, or no character can be made from the picture.
    """
    looking = _looking(run, home, models)
    reference = by(LOOK, looking, picture)
    run = replace(run, character=described(run, reference))
    workspace = Workspace(
        run.character, run.profile, home, refresh=run.refresh, reference=reference, models=looking.models
    )
    workspace.facts += looking.facts
    return workspace


def described(run: CheckedRun, reference: ReferenceRecord) -> Character:
    """The character with a prompt: the user's sentence as it is, else what the picture was seen to show.

    Raises:
        BadInput: there is neither.
    """
    if run.said:
        return run.character
    if not reference.description:
        raise BadInput(f"{REFERENCE} {run.reference}: what it shows cannot be described; say it in a sentence too")
    return Character.model_validate({**run.character.model_dump(), "prompt": reference.description})


def _looking(run: CheckedRun, home: Home, models: Models | None) -> Workspace:
    """A workspace in which only a picture is looked at: who it will be does not matter to what it shows."""
    character = run.character.model_copy(update={"class_noun": "character", "trigger": "somebody"})
    return Workspace(character, run.profile, home, models=models)
