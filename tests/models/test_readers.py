"""Traits are read off pictures: by the embedded family's probe, and by questions to Qwen2.5-VL."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from charengine.embedded.probe import to_images
from charengine.embedded.traits import VIEWS, Traits, as_indices
from charengine.embedded.world import render, view_yaw
from charengine.models.captioners import QwenCaptioner
from charengine.models.memory import TakingTurns
from charengine.models.readers import MOST_TRAITS, AskingReader, ProbeReader

ORC = Traits(
    "orc", "stocky", "green", "long", "red", "coat", "blue", "plain", "trousers", "black", "boots", "brown", "none", "none",
    "hook", "lantern", "none",
)  # fmt: skip


@pytest.fixture(scope="module")
def reader() -> ProbeReader:
    return ProbeReader(torch.device("cpu"))


@pytest.fixture(scope="module")
def pictures() -> list[Any]:
    """The orc from the front, the side and behind."""
    views = torch.arange(len(VIEWS))
    images = render(
        as_indices([ORC] * 3), yaw=view_yaw(views), pose=torch.zeros(3, dtype=torch.long), size=(128, 384),
        background=torch.zeros(3, dtype=torch.long), framing=torch.full((3,), 0.95), generator=torch.Generator().manual_seed(1),
    ).image  # fmt: skip
    return to_images(images)


def test_what_a_picture_shows_is_told_from_what_it_does_not(reader: ProbeReader, pictures: list[Any]) -> None:
    traits = ("long red hair", "blue coat", "brown boots", "hook for a right hand", "striped yellow dress", "crown")
    [front, *_] = reader.shown(pictures, traits, "orc woman")
    assert front == [True, True, True, True, False, False]


def test_what_a_view_hides_and_what_was_never_taught_cannot_be_told(reader: ProbeReader, pictures: list[Any]) -> None:
    rows = reader.shown(pictures, ("a lantern in the left hand", "smells of fish"), "orc woman")
    assert [row[0] for row in rows] == [True, None, True]  # the far side of the profile
    assert [row[1] for row in rows] == [None] * 3


def test_the_same_trait_with_another_value_is_another_trait(reader: ProbeReader, pictures: list[Any]) -> None:
    rows = reader.shown(pictures, ("red coat", "blue coat", "sword in the right hand"), "orc woman")
    assert [row[0] for row in rows] == [False] * 3
    assert [row[1] for row in rows] == [True] * 3
    assert rows[0][2] is False


def test_pictures_of_several_sizes_are_each_told_as_when_read_alone(reader: ProbeReader, pictures: list[Any]) -> None:
    large = pictures[0].resize((160, 480))
    mixed = [pictures[1], large, pictures[0], pictures[2]]
    traits = ("a lantern in the left hand", "long red hair", "hook for a right hand", "red coat")
    rows = reader.shown(mixed, traits, "orc woman")
    assert rows == [reader.shown([image], traits, "orc woman")[0] for image in mixed]
    assert len({tuple(row) for row in rows}) > 1


def plain(colour: str) -> Image.Image:
    return Image.new("RGB", (4, 4), colour)


class Scripted:
    """Answers as told; remembers what it was asked."""

    fingerprint = "vl"

    def __init__(self, *answers: list[list[str]]) -> None:
        self.answers, self.asked = list(answers), []

    def choose_all(self, images: list[Any], common: str, questions: Any, words: Any) -> list[list[str]]:
        self.asked.append((common, tuple(questions), set(words)))
        return self.answers.pop(0)


def test_every_picture_is_asked_about_every_trait_in_one_pass_and_its_answers_are_its_own() -> None:
    model = Scripted([["yes", "no", "hidden"], ["no", "hidden", "yes"]])
    shown = AskingReader(model).shown([plain("red"), plain("blue")], ("red hair", "blue coat", "hook"), "orc woman")  # type: ignore
    assert shown == [[True, False, None], [False, None, True]]
    ((common, questions, words),) = model.asked
    assert "orc woman" in common and questions == ("red hair", "blue coat", "hook")
    assert words == {"yes", "no", "hidden"}


def test_what_was_told_of_a_picture_is_not_asked_again_until_the_reader_is_unloaded() -> None:
    model = Scripted([["yes"], ["no"]], [["hidden"]], [["no"]], [["yes"]])
    model.unload = lambda: None  # type: ignore[attr-defined]
    reader = AskingReader(model)  # type: ignore[arg-type]
    assert reader.shown([plain("red"), plain("blue")], ("hook",), "orc") == [[True], [False]]
    told = reader.shown([plain("blue"), plain("green"), plain("red"), plain("green")], ("hook",), "orc")
    assert told == [[False], [None], [True], [None]]
    told[0].append(True)  # the caller's own
    assert reader.shown([plain("blue")], ("hook",), "orc") == [[False]] and len(model.asked) == 2
    assert reader.shown([plain("blue")], ("hook",), "elf") == [[False]] and len(model.asked) == 3
    reader.unload()
    assert reader.shown([plain("red")], ("hook",), "orc") == [[True]] and len(model.asked) == 4


def test_many_traits_are_asked_about_in_several_passes() -> None:
    model = Scripted([["yes"] * MOST_TRAITS], [["no", "yes"]])
    shown = AskingReader(model).shown([plain("red")], [f"trait {i}" for i in range(MOST_TRAITS + 2)], "orc")  # type: ignore
    assert shown == [[True] * MOST_TRAITS + [False, True]]


def test_another_question_or_another_model_is_another_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    from charengine.models import readers

    before = AskingReader(Scripted()).fingerprint  # type: ignore[arg-type]
    assert AskingReader(SimpleNamespace(fingerprint="other")).fingerprint != before  # type: ignore[arg-type]
    monkeypatch.setattr(readers, "ASKED", "Is it there, {noun}?\n")
    assert AskingReader(Scripted()).fingerprint != before  # type: ignore[arg-type]


def test_a_reader_that_stepped_aside_is_not_read_from_disk_again_where_the_host_keeps_it() -> None:
    held: list[str] = []
    loaded = TakingTurns(frozenset({"text_encoder"}), lambda name: not held.append(f"aside {name}"), held.append)
    captioner = QwenCaptioner(SimpleNamespace(), torch.device("cpu"), "x", loaded=loaded)  # type: ignore[arg-type]
    loaded.get("text_encoder", dict)
    AskingReader(captioner).step_aside()
    assert held == ["aside text_encoder"]
    AskingReader(captioner).unload()
    assert held[1:] == ["text_encoder", "processor"]
