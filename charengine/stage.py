"""What a stage declares: its name, what it reads, and the work; everything else about it follows from this.

The stage's key is made from the declaration, and the work is handed what is declared and nothing else, so that a key cannot
forget what the work reads (docs/design.md, rule 2). `charengine/run/running.py` runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from charengine.config import Character, Settings
from charengine.records import Record

if TYPE_CHECKING:
    from charengine.models import Models
    from charengine.store import Store
    from charengine.tracking.protocol import Tracker

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Progress:
    """How far training is; memory in GiB (0 without a GPU); `doing` says in words what comes before the next step, if anything does.

    Before the first step, at step 0, there are no losses yet (NaN).
    """

    step: int
    steps: int
    loss: float
    smoothed: float
    learning_rate: float
    ms_per_step: float
    seconds_left: float
    memory: float
    doing: str = ""


class NotDeclared(AttributeError):
    """The work of a stage reads what the stage does not declare; its key would not know."""


@dataclass(frozen=True)
class Stage(Generic[R]):
    """One stage of the pipeline.

    Args:
        name: of its folder, task file, command, settings section, key prefix and docs page.
        version: bumped when its output would change for the same input.
        makes: the record it returns.
        work: called with a `Given` and the stage's inputs (records, or paths of files that count by content).
        settings: its section of the profile; "" for none.
        character: fields of the character that it reads.
        models: of `Models`, those it uses; or what decides that from its settings.
        files: settings of its section that name a file or folder; these count by content, never by path.
        seeded: its randomness comes from the character's seed, which it may then read.
        gpu: it holds the GPU while it works.
        draws: it draws with the diffusion model, so how that is prompted and sampled counts too, not its weights alone; or what
            decides that from its settings.
        long: it stops when asked to, at its next step, keeps resumable state under its key, and has an MLflow run of its own.
        shows_provenance: its page shows how its inputs were made, so that counts too.
        smaller: settings that need less memory, tried once when memory runs out; None when there are none.
    """

    name: str
    version: int
    makes: type[R]
    work: Callable[..., R]
    settings: str = ""
    character: tuple[str, ...] = ()
    models: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = ()
    files: tuple[str, ...] = ()
    seeded: bool = False
    gpu: bool = False
    draws: bool | Callable[[Any], bool] = False
    long: bool = False
    shows_provenance: bool = False
    smaller: Callable[..., Settings | None] | None = None

    def models_for(self, settings: Settings | None) -> tuple[str, ...]:
        """The models it uses with these settings, in the declaration's order."""
        return self.models if isinstance(self.models, tuple) else self.models(settings)

    def draws_with(self, settings: Settings | None) -> bool:
        """Whether it draws with these settings."""
        return self.draws if isinstance(self.draws, bool) else self.draws(settings)


@dataclass(frozen=True)
class Given:
    """What the work of a stage is handed besides its inputs: only what the stage declares can be read.

    Args:
        stage: the declaration.
        character: its declared fields; reading another raises NotDeclared.
        settings: its section of the profile; None for a stage without one.
        models: its declared models; reading another raises NotDeclared.
        store: where results go.
        tracker: its own MLflow run when it is `long`, else one that records nothing.
        recipe: what it reads, as its key was made from it, for the files it writes; never read by the work itself.
        key: of its result; results of parts of the work that are kept lie below it, and go when the whole is kept.
        state: folder for resumable state, of a `long` stage.
        should_stop: asked between two steps, by a `long` stage.
        on_step: told about training, if anybody listens.
        on_drawn: told how many pictures of a sweep are drawn, and how many there may be at most, if anybody listens.
        files_read: called when every file that counts by content was read, by work that goes on for long after it; raises BadInput where
            one is no longer what the key was made from. Of other work that is asked at its end.
    """

    stage: Stage[Any]
    character: Character
    settings: Any
    models: Models
    store: Store
    tracker: Tracker
    recipe: dict[str, Any]
    key: str = ""
    state: Path | None = None
    should_stop: Callable[[], bool] = lambda: False
    on_step: Callable[[Progress], None] | None = None
    on_drawn: Callable[[int, int], None] | None = None
    files_read: Callable[[], None] = lambda: None

    @property
    def seed(self) -> int:
        """The character's seed.

        Raises:
            NotDeclared: the stage says it has no randomness.
        """
        return self.character.seed


class _Only:
    """The named attributes of an object; any other is refused."""

    def __init__(self, whole: Any, names: Iterable[str], stage: str) -> None:
        self._whole, self._names, self._stage = whole, frozenset(names), stage

    def __getattr__(self, name: str) -> Any:
        if name not in self._names:
            raise NotDeclared(f"stage {self._stage} reads {type(self._whole).__name__}.{name} and does not declare it")
        return getattr(self._whole, name)


def only_character(character: Character, stage: Stage[Any]) -> Character:
    """The character as the stage may see it."""
    names = (*stage.character, "seed") if stage.seeded else stage.character
    return cast("Character", _Only(character, names, stage.name))


def only_models(models: Models, stage: Stage[Any], settings: Settings | None) -> Models:
    """The models as the stage may see them."""
    return cast("Models", _Only(models, stage.models_for(settings), stage.name))
