"""What the trigger alone brings is read off the pick's pictures; what it does not is said, wherever the adapter is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from PIL import Image
from sweep_samples import OWN_COAT, PROMPTS, SETTINGS, Notebook, Painter, Unet, run_sweep, trained

from charengine.adapter.files import load_adapter
from charengine.errors import Interrupted
from charengine.likeness.prompts import SHOWN
from charengine.models.usage import Usage
from charengine.pictures import open_image
from charengine.records import DatasetRecord, SweepRecord
from charengine.stages.sweep import session, words
from charengine.store import Store

PROMPT = "a green orc with red hair and a purple hood, in a blue coat, black boots, with a hook for a right hand"

SEEN: dict[str, Callable[[int], bool | None]] = {
    "green orc": lambda number: None,
    "red hair": lambda number: False if number % 2 else None,  # half of the pictures hide it
    "purple hood": lambda number: None if number % 4 == 3 else True,
    "hook for a right hand": lambda number: number % 3 == 0,
    "black boots": lambda number: False,
}


@dataclass
class Reader:
    """What it sees of each trait: the coat where the doll's is blue; of the others, what `SEEN` says, by number of picture."""

    painter: Painter
    fingerprint: str = "reader"
    seen: list[int] = field(default_factory=list)
    freed: bool = False
    aside: int = 0

    def shown(self, images: Sequence[Image.Image], traits: Sequence[str], class_noun: str) -> list[list[bool | None]]:
        assert self.painter.freed[-1] == (), "the diffusion model must have made room"
        assert class_noun == "orc"
        self.seen.append(len(images))
        return [[self._sees(words, number, image) for words in traits] for number, image in enumerate(images)]

    def _sees(self, words: str, number: int, image: Image.Image) -> bool | None:
        if words == "blue coat":
            red, _, blue = image.getpixel((image.width // 2, int(image.height * 0.4)))  # type: ignore[misc]
            return bool(blue > red)
        return SEEN[words](number)

    def step_aside(self) -> None:
        self.aside += 1

    def unload(self) -> None:
        self.freed = True


@pytest.fixture(autouse=True)
def _applied(known_adapter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "AdapterMerger", session.AdapterMerger)


@pytest.fixture
def painter() -> Painter:
    return Painter()


@pytest.fixture
def reader(painter: Painter) -> Reader:
    return Reader(painter)


def found(store: Store, dataset: DatasetRecord, painter: Painter, reader: Reader, **more: Any) -> SweepRecord:
    swept = run_sweep(store, dataset, painter, 100, 200)
    painter.drawn.clear()
    pick = words.Pick(trained(store, 100, 200), swept, SETTINGS, painter, store, 7)  # type: ignore[arg-type]
    return words.find_words(pick, PROMPT, reader, **more)


@pytest.fixture
def swept(store: Store, dataset: DatasetRecord, painter: Painter, reader: Reader) -> SweepRecord:
    return found(store, dataset, painter, reader)


def test_no_scene_waits_for_cudnn_to_plan_attention(store: Store, dataset: DatasetRecord) -> None:
    class Draws(Painter):
        def sample(self, *args: Any, **kwargs: Any) -> list[Image.Image]:
            seen.append(torch.backends.cuda.cudnn_sdp_enabled())
            return super().sample(*args, **kwargs)

    seen: list[bool] = []
    painter = Draws()
    found(store, dataset, painter, Reader(painter))
    assert not any(seen[-2:]) and torch.backends.cuda.cudnn_sdp_enabled()


def test_where_too_few_pictures_show_a_trait_all_are_said(swept: SweepRecord) -> None:
    assert swept.words is not None
    assert swept.words.shares == {
        "purple hood": 1.0,
        "blue coat": 1.0,
        "black boots": 0.0,
        "hook for a right hand": pytest.approx(3 / 8),
    }
    assert swept.words.said == tuple(swept.words.shares)
    assert swept.words.recommended_prompt == "zorgax orc, purple hood, blue coat, black boots, hook for a right hand"


def test_a_base_that_was_taught_few_words_is_recommended_those(
    store: Store, dataset: DatasetRecord, painter: Painter, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    painter.usage = Usage(few_words="2")
    monkeypatch.setitem(globals(), "PROMPT", PROMPT.replace("blue coat", "teal trench coat"))
    monkeypatch.setitem(SEEN, "teal trench coat", lambda number: True)
    told = found(store, dataset, painter, reader).words
    assert told is not None and "teal trench coat" in told.said  # as the character is described
    assert told.recommended_prompt == "zorgax orc, purple hood, blue coat, black boots, hook for a right hand"


def test_where_the_trigger_brings_every_trait_nothing_else_is_said() -> None:
    counts: list[str] = []
    enough = {"red hair": words.SAID_BELOW, "blue coat": 1.0}
    assert words.said_of(enough, "zorgax orc", lambda text: counts.append(text) or 1) == ()  # type: ignore[func-returns-value]
    assert words.said_of({}, "zorgax orc", len) == ()
    assert words.said_of({**enough, "boots": words.SAID_BELOW - 0.01}, "zorgax orc", lambda text: 1) == (
        "red hair",
        "blue coat",
        "boots",
    )


def test_a_trait_that_was_made_up_in_more_words_is_said_once() -> None:
    shares = {"red hair": 0.2, "curly red hair": 0.4}
    assert words.said_of(shares, "zorgax orc", lambda text: 1) == ("curly red hair",)


def test_the_picks_own_pictures_are_read_and_only_as_many_more_drawn_as_are_missing(
    swept: SweepRecord, painter: Painter, reader: Reader
) -> None:
    assert swept.words is not None
    judged = len(PROMPTS) * SETTINGS.seeds
    assert reader.seen == [words.ENOUGH, 2 * len(SHOWN)] and swept.words.pictures == words.ENOUGH
    more = [seed for step, _, seeds in painter.drawn[:-2] for seed in seeds]
    assert len(more) == words.ENOUGH - judged
    assert not set(more) & set(swept.seeds), "the same noise would be the same picture"
    assert {(step, strength) for step, strength, _ in painter.drawn[:-2]} == {
        (swept.pick.checkpoint_step, swept.pick.strength)
    }


def test_the_base_model_is_told_the_same_words_on_the_same_noise(
    swept: SweepRecord, painter: Painter, store: Store
) -> None:
    assert swept.words is not None and swept.words.scenes == SHOWN
    base, own = painter.drawn[-2:]
    assert base == (0, 0.0, (7,) * len(SHOWN))
    assert own == (swept.pick.checkpoint_step, swept.pick.strength, (7,) * len(SHOWN))
    asked = painter.asked[-2 * len(SHOWN) - 1 :]  # and the negative prompt
    assert asked[0].startswith("orc, purple hood, blue coat, black boots, hook for a right hand, facing the viewer")
    assert asked[len(SHOWN)].startswith(
        "zorgax orc, purple hood, blue coat, black boots, hook for a right hand, facing the viewer"
    )
    assert not any("zorgax" in text for text in asked[: len(SHOWN)])
    assert len(swept.words.drawn) == len(swept.words.base) == len(SHOWN)
    with_adapter = open_image(store.get(swept.words.drawn[0])).getpixel((32, 25))
    assert all(abs(a - b) < 40 for a, b in zip(with_adapter, OWN_COAT, strict=True))  # type: ignore[arg-type]
    assert swept.words.shown > swept.words.base_shown  # type: ignore[operator]
    assert words.doubts_of(swept.words) == swept.warnings == ()
    worse = swept.words.model_copy(update={"shown": 0.7, "base_shown": 0.9})
    assert "70% of the traits with the adapter, 90% without" in words.doubts_of(worse)[0]
    assert painter.model == Unet(0, 0.0)


def test_the_recommended_file_says_it_too(swept: SweepRecord, store: Store) -> None:
    assert swept.words is not None
    metadata = load_adapter(store.get(swept.recommended_adapter))[1]
    assert metadata["charengine.recommended_prompt"] == swept.words.recommended_prompt
    assert json.loads(metadata["charengine.traits"]) == swept.words.shares
    assert swept.words.recommended_prompt in metadata["modelspec.usage_hint"]
    assert metadata["modelspec.trigger_phrase"] == "zorgax"  # what other programs take for the trigger
    assert "charengine.pick" in metadata
    assert "charengine.recommended_prompt" not in load_adapter(store.get(swept.adapter))[1]


def test_mlflow_has_the_shares_and_the_prompt(
    store: Store, dataset: DatasetRecord, painter: Painter, reader: Reader
) -> None:
    class Tagged(Notebook):
        tags: dict[str, str] = {}  # noqa: RUF012

        def set_tags(self, tags):
            self.tags |= tags

    notebook = Tagged()
    swept = found(store, dataset, painter, reader, tracker=notebook)
    assert swept.words is not None
    assert notebook.tags == {"recommended_prompt": swept.words.recommended_prompt}
    assert notebook.metrics["trait/blue coat"] == 1.0 and notebook.metrics["trait/black boots"] == 0.0
    assert notebook.metrics["scenes/traits"] == swept.words.shown


def test_words_that_clip_has_no_room_for_are_left_out_beginning_with_those_shown_most(
    store: Store, dataset: DatasetRecord, painter: Painter, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Painter, "count_tokens", lambda self, text: 45 * text.count(","), raising=False)
    swept = found(store, dataset, painter, reader)
    assert swept.words is not None and swept.words.said == ("black boots",)


def test_a_description_without_traits_recommends_the_trigger_and_asks_nobody(
    store: Store, dataset: DatasetRecord, painter: Painter, reader: Reader
) -> None:
    swept = run_sweep(store, dataset, painter, 100)
    pick = words.Pick(trained(store, 100), swept, SETTINGS, painter, store, 7)  # type: ignore[arg-type]
    told = words.find_words(pick, "zorgax Orc", reader).words
    assert told is not None and (told.shares, told.said, told.shown) == ({}, (), None)
    assert told.recommended_prompt == "zorgax orc" and reader.seen == []


def test_a_sweep_that_is_told_to_stop_draws_no_more(
    store: Store, dataset: DatasetRecord, painter: Painter, reader: Reader
) -> None:
    with pytest.raises(Interrupted):
        found(store, dataset, painter, reader, should_stop=lambda: True)
    assert painter.drawn == []
