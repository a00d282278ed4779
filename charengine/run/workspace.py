"""Everything the stages of one character run work with: who, which settings, which models, and where things go."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

from charengine.config import Character, Profile, TrainSettings
from charengine.language.naming import NO_NOUN, derive_class_noun, derive_trigger
from charengine.machine.home import Home
from charengine.machine.locks import single_flight
from charengine.machine.shared import open_store
from charengine.models import Models, load
from charengine.records import Record, StageFact
from charengine.run.keys import content_digest, digest, path_digest
from charengine.run.watching import current_watcher
from charengine.stage import Progress
from charengine.stages.sheet.reference import ReferenceRecord
from charengine.tracking.open_tracker import PROJECT, open_tracker
from charengine.tracking.protocol import NullTracker, Tracker
from charengine.tracking.views import KIND_TAG, NOTE_TAG
from charengine.version import __version__
from charengine.wording import slug

log = logging.getLogger(__name__)


class Whole(Record):
    """All of a run was made: kept under the run's key, as a stage's result is under its own."""

    character: str


class Workspace:
    """One run's character, settings, models and store. A plain class, so that Prefect passes it on unvisited.

    Args:
        character: who is to be made; class noun and trigger are filled in when they were left open.
        profile: models and settings.
        home: the folder that outlives runs.
        refresh: names of stages to run even if their result is kept.
        given: the file that the run starts from instead of a drawn sheet, if there is one; it belongs to the run's key.
        starts_from: digest of the records that the run starts from, if it does; it belongs to the run's key too.
        reference: the picture that the sheet is drawn from, looked at; likewise.
        models: the profile's, where they have been found already.
        on_step: told about training; by default whoever is watching.

    Raises:
        BadInput: the home cannot be written.
    """

    def __init__(
        self,
        character: Character,
        profile: Profile,
        home: Home,
        *,
        refresh: frozenset[str] = frozenset(),
        given: Path | None = None,
        starts_from: str = "",
        reference: ReferenceRecord | None = None,
        models: Models | None = None,
        on_step: Callable[[Progress], None] | None = None,
    ) -> None:
        self.profile = profile
        if models is not None:
            self.models = models
        whole = character.class_noun and character.trigger
        self.character = character if whole else complete(character, self.models, reference)
        self.refresh = refresh
        self.given, self.starts_from, self.reference = given, starts_from, reference
        self.given_digest = path_digest(given) if given else ""  # as it was begun with: it may be moved once it is read
        self.home = home.create()
        self.store = open_store(home)
        self.on_step = on_step or current_watcher()
        self.on_drawn: Callable[[int, int], None] | None = None
        self.facts: list[StageFact] = []
        self._tracker: Tracker = NullTracker()

    @cached_property
    def models(self) -> Models:
        """The four models of the profile, not loaded yet; asked for the first time, every file is looked for."""
        return load(self.profile)

    @property
    def tracker(self) -> Tracker:
        """The run's MLflow run once `track` has opened it; until then one that records nothing."""
        return self._tracker

    def alone(self) -> AbstractContextManager[bool]:
        """Hold this run: an equal one elsewhere waits until it has ended, and then finds everything made and told."""
        return single_flight(
            self.home.locks / f"{self.key}.lock", f"the same run of {self.character.name} is made there"
        )

    def track(self, tags: dict[str, str] | None = None) -> Tracker:
        """Open the run's MLflow run: the one with its key, or a new one.

        Args:
            tags: besides the character's own.
        """
        own = {
            "character": self.character.name,
            "trigger": self.character.trigger,
            "profile": self.profile.name,
            KIND_TAG: "character",
            NOTE_TAG: self.character.prompt,
        }
        self._tracker = open_tracker(
            self.home,
            project=PROJECT,
            name=self.character.name,
            key=self.key,
            params=self.params(),
            tags=own | (tags or {}),
        )
        return self._tracker

    def with_training(self, settings: TrainSettings) -> Workspace:
        """The same run with another training: its models, its MLflow run and what it notes are shared."""
        other = copy.copy(self)
        other.profile = self.profile.model_copy(update={"train": settings})
        return other

    def has_another_sheet(self) -> bool:
        """Whether the file that the run starts from is no longer what it was begun with.

        Raises:
            BadInput: it is gone.
        """
        return self.given is not None and path_digest(self.given) != self.given_digest

    def keep_whole(self) -> None:
        """Keep that all of this run is made: a later process of an equal run that dies or fails does not unmake it in MLflow."""
        self.store.put_result(self.key, Whole(character=self.character.name))

    @property
    def drawn_from(self) -> tuple[ReferenceRecord, ...]:
        """What the drawn sheet's stage takes: the reference, if there is one."""
        return (self.reference,) if self.reference else ()

    @property
    def slug(self) -> str:
        """The character's name as Prefect and MLflow want it in keys."""
        return slug(self.character.name)

    @property
    def config(self) -> dict[str, Any]:
        """The whole resolved config."""
        return {"character": self.character.model_dump(mode="json"), "profile": self.profile.model_dump(mode="json")}

    @property
    def key(self) -> str:
        """Key of the whole run: equal requests share one MLflow run, which a repeated run opens again."""
        models = self.models
        parts = (models.editor, models.captioner, models.diffusion, models.embedder, models.reader, models.onlooker)
        given = self.given_digest or self.starts_from
        if self.reference:
            given = content_digest(self.reference)
        return f"run-{digest([self.config, given, [model.fingerprint for model in parts]])[:40]}"

    def recipe(self) -> dict[str, Any]:
        """What a file made in this run must say to be made again."""
        drawn_from = {"reference": self.reference.image.sha256} if self.reference else {}
        return {**self.config, **drawn_from, "engine_version": __version__}

    def params(self) -> dict[str, object]:
        """The resolved config as flat `section.key` parameters."""
        flat: dict[str, object] = {}
        for section, value in {**self.config["profile"], "character": self.config["character"]}.items():
            flat |= {f"{section}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {}
        if self.reference:
            flat["character.reference"] = self.reference.image.sha256
        return {key: value for key, value in flat.items() if value not in ("", [], None)}

    def note(self, fact: StageFact) -> None:
        """Remember how a stage went."""
        self.facts.append(fact)
        log.info(
            "%s: %s in %.1f s", fact.stage, "unchanged, taken from the cache" if fact.cached else "done", fact.seconds
        )


def complete(character: Character, models: Models, reference: ReferenceRecord | None = None) -> Character:
    """The character with class noun and trigger filled in when they were left open: the one place that derives them.

    The class noun is what the prompt names, else what the reference was seen to show.
    """
    noun = derive_class_noun(character.prompt)
    if reference and reference.class_noun and (noun == NO_NOUN or reference.description == character.prompt):
        noun = reference.class_noun
    return character.model_copy(
        update={
            "class_noun": character.class_noun or noun,
            "trigger": character.trigger or derive_trigger(character.name, models.diffusion.count_tokens),
        }
    )
