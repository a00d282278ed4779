"""Onlookers: what is read off Qwen2.5-VL's answers, and what the embedded family's two models make of rendered pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from charengine.embedded import tags
from charengine.embedded.grammar import parse_prompt
from charengine.embedded.making.onlooker import accuracies, figures
from charengine.embedded.onlooker import SIDE, as_seen, load_onlooker
from charengine.embedded.probe import to_images
from charengine.embedded.traits import BACKGROUNDS, POSES, from_indices, sample_indices
from charengine.embedded.world import render
from charengine.errors import BadInput, MissingDependency
from charengine.models import load, onlookers
from charengine.models.onlookers import AskingOnlooker, EmbeddedOnlooker, read_answer
from charengine.profiles.loading import load_profile

ORC = {"figures": 1, "shown": "full body", "class_noun": "orc woman", "description": "an orc woman in a blue coat"}


@dataclass
class Scripted:
    """A model that gives one answer after the other."""

    answers: list[str]
    questions: list[str] = field(default_factory=list)
    fingerprint: str = "qwen"

    def ask(self, image: Image.Image, question: str, *, max_tokens: int) -> str:
        self.questions.append(question)
        return self.answers.pop(0)


def asking(*answers: Any) -> tuple[AskingOnlooker, Scripted]:
    model = Scripted([answer if isinstance(answer, str) else json.dumps(answer) for answer in answers])
    return AskingOnlooker(model), model  # type: ignore[arg-type]


PICTURE = Image.new("RGB", (64, 64))


def test_the_model_is_asked_once_and_its_answer_read() -> None:
    onlooker, model = asking(f"Here you are: {json.dumps(ORC)} I hope it helps.")
    sight = onlooker.look(PICTURE)
    assert (sight.figures, sight.framing, sight.class_noun) == (1, "full body", "orc woman")
    assert sight.description == "an orc woman in a blue coat"
    assert len(model.questions) == 1 and "left or right" in model.questions[0]


def test_an_answer_that_cannot_be_read_is_asked_for_again_and_then_refused() -> None:
    onlooker, model = asking("I see an orc.", ORC)
    assert onlooker.look(PICTURE).class_noun == "orc woman"
    assert len(model.questions) == 2 and "could not be read" in model.questions[1]
    with pytest.raises(BadInput, match="cannot say what it shows"):
        asking("no", "{}")[0].look(PICTURE)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [({"class_noun": " Orc Woman. "}, "orc woman"), ({"class_noun": "orc, or <woman>"}, ""), ({"class_noun": ""}, "")],
)
def test_only_a_class_noun_that_a_caption_may_hold_is_taken(change: dict[str, str], wanted: str) -> None:
    sight = read_answer(json.dumps({**ORC, **change}))
    assert sight is not None and sight.class_noun == wanted


@pytest.mark.parametrize(
    "wrong", [{"figures": -1}, {"figures": "many"}, {"shown": "knees"}, {"description": "x" * 1300}]
)
def test_an_answer_of_another_form_is_none(wrong: dict[str, Any]) -> None:
    assert read_answer(json.dumps({**ORC, **wrong})) is None


def test_another_question_or_another_model_is_another_onlooker(monkeypatch: pytest.MonkeyPatch) -> None:
    before = asking()[0].fingerprint
    assert AskingOnlooker(SimpleNamespace(fingerprint="other")).fingerprint != before  # type: ignore[arg-type]
    monkeypatch.setattr(onlookers, "QUESTION", "Who is it?")
    assert asking()[0].fingerprint != before


# --- the embedded family ----------------------------------------------------------------------------------------------


def test_who_is_there_is_told_on_characters_that_the_net_never_saw() -> None:
    found = accuracies(load_onlooker(), figures(10, "heldout", 500), n=300)
    for kind in ("nobody", "several", "face"):
        assert found[kind][kind] > 0.8, found
    whole = found["full body"]
    assert whole["full body"] + whole["upper body"] > 0.9 and whole["nobody"] < 0.05, found


@pytest.fixture(scope="module")
def embedded() -> EmbeddedOnlooker:
    found = load(load_profile("embedded")).onlooker
    assert isinstance(found, EmbeddedOnlooker)
    return found


def test_a_character_in_a_pose_and_a_place_is_described_and_named(embedded: EmbeddedOnlooker) -> None:
    row = sample_indices(3, torch.Generator().manual_seed(31), "heldout")[2:]
    image = to_images(
        render(
            row, yaw=torch.tensor([0.2]), pose=torch.tensor([POSES.index("waving")]),
            background=torch.tensor([BACKGROUNDS.index("meadow")]), size=(256, 256), framing=0.95,
        ).image
    )[0]  # fmt: skip
    sight = embedded.look(image)
    truth = tags.canonical_dict(from_indices(row)[0], view=None)
    told = parse_prompt(sight.description)
    assert (sight.figures, sight.framing, sight.class_noun) == (1, "full body", truth["species"])
    assert sum(told.get(name) == value for name, value in truth.items()) >= 0.8 * len(truth), (told, truth)
    assert not told.keys() & {"view", "pose", "background"}


@pytest.mark.parametrize(("size", "scale"), [((256, 256), 4), ((128, 384), 3.5)])
def test_a_large_picture_is_described_as_the_same_picture_small(
    embedded: EmbeddedOnlooker, size: tuple[int, int], scale: float
) -> None:
    row = sample_indices(6, torch.Generator().manual_seed(7), "heldout")[:1]
    standing_on_white = {"pose": torch.zeros(1, dtype=torch.long), "background": torch.zeros(1, dtype=torch.long)}
    drawn = render(row, yaw=torch.zeros(1), **standing_on_white, size=size, framing=0.95)
    image = to_images(drawn.image)[0]
    large = image.resize((round(size[0] * scale), round(size[1] * scale)), Image.Resampling.BICUBIC)
    small, told = (parse_prompt(embedded.look(one).description) for one in (image, large))
    assert len(small) >= 6
    assert sum(told.get(name) == value for name, value in small.items()) >= 0.8 * len(small), (told, small)


def test_nobody_is_not_described(embedded: EmbeddedOnlooker) -> None:
    sight = embedded.look(Image.new("RGB", (256, 256), (90, 140, 220)))
    assert (sight.figures, sight.description) == (0, "")


def test_weights_that_are_not_there_are_missed_before_anything_is_looked_at(tmp_path: Path) -> None:
    with pytest.raises(MissingDependency, match="no onlooker weights"):
        EmbeddedOnlooker(SimpleNamespace(), torch.device("cpu"), tmp_path / "none.safetensors")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(128, 384), (600, 200), (96, 96), (2000, 30)])
def test_every_shape_is_seen_whole_in_a_square(size: tuple[int, int]) -> None:
    seen = as_seen(Image.new("RGB", size, (255, 0, 0)))
    assert seen.shape == (3, SIDE, SIDE) and seen[0].min() > 0.99 and seen[1].max() < 0.01
