"""Everything one character run works with: who, which settings, which models, and where things go."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charengine import __version__
from charengine.config import Character
from charengine.machine.home import Home
from charengine.models import Models, load
from charengine.records import DatasetRecord, StageFact
from charengine.run.keys import digest, file_digest
from charengine.run.request import CheckedRun, slug
from charengine.store import Store
from charengine.tracking.protocol import NullTracker, Tracker

if TYPE_CHECKING:
    pass
from charengine.run.watching import current_watcher

log = logging.getLogger(__name__)


class Workspace:
    """One run's settings, models, store and tracker. A plain class, so that Prefect passes it on unvisited.

    Raises:
        MissingDependency: a model file is not there.
        BadInput: a model file is not what the profile says, or the home cannot be written.
    """

    def __init__(self, run: CheckedRun, home: Home) -> None:
        self.profile = run.profile
        self.models: Models = load(run.profile)
        self.character = complete(run.character, self.models)
        self.sheet_file = run.sheet
        self.out: Path = run.out
        self.refresh = run.refresh
        self.home = home.create()
        self.store = Store(home.store)
        self.tracker: Tracker = NullTracker()
        self.on_step = current_watcher()
        self.facts: list[StageFact] = []

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
        given = file_digest(self.sheet_file) if self.sheet_file else ""
        models = [model.fingerprint for model in self._models_in_order()]
        return f"run-{digest([self.config, given, models])[:40]}"

    def recipe(self, dataset: DatasetRecord) -> dict[str, Any]:
        """What an adapter file must say to be made again."""
        return {**self.config, "dataset_digest": dataset.digest, "engine_version": __version__}

    def params(self) -> dict[str, object]:
        """The resolved config as flat `section.key` parameters."""
        flat: dict[str, object] = {}
        for section, value in {**self.config["profile"], "character": self.config["character"]}.items():
            flat |= {f"{section}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {}
        return {key: value for key, value in flat.items() if value not in ("", [], None)}

    def note(self, fact: StageFact) -> None:
        """Remember how a stage went."""
        self.facts.append(fact)
        log.info(
            "%s: %s in %.1f s", fact.stage, "unchanged, taken from the cache" if fact.cached else "done", fact.seconds
        )

    def unload(self) -> None:
        """Free every model's memory."""
        for model in self._models_in_order():
            model.unload()

    def _models_in_order(self) -> tuple[Any, ...]:
        return (self.models.editor, self.models.captioner, self.models.diffusion, self.models.embedder)


def complete(character: Character, models: Models) -> Character:
    """The character with class noun and trigger filled in when they were left open."""
    from charengine.language.naming import derive_class_noun, derive_trigger

    return character.model_copy(
        update={
            "class_noun": character.class_noun or derive_class_noun(character.prompt),
            "trigger": character.trigger or derive_trigger(character.name, models.diffusion.count_tokens),
        }
    )


def peak_rss_gib() -> float | None:
    """Highest resident memory of this process so far, GiB; None where the system does not say."""
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
