"""The gate scores sheets by numbers, listens to the captioner, and names the box to blame."""

import numpy as np
import pytest
from PIL import Image, ImageDraw
from sheet_samples import THREE, Look, Sheet, Spot, paint

from charengine.language.sides import SideItem
from charengine.models import Description
from charengine.records import VIEWS
from charengine.stages.sheet.judge import _by_numbers, judge_sheet

SIZE = (768, 512)


class Witness:
    """A captioner that answers the calls in turn."""

    fingerprint = "witness"

    def __init__(self, *answers):
        self.answers = list(answers)

    def describe(self, image, hint=""):
        return self.answers.pop(0)

    def unload(self):
        pass


def view(name, *tags):
    return Description((f"{name} view", *tags), "", {"view": name})


def test_a_proper_sheet_is_accepted_and_its_numbers_come_along():
    verdict = judge_sheet(paint(Sheet(SIZE, rules="exact")))
    assert verdict.accepted and verdict.score > 0.8 and verdict.box is None
    assert verdict.facts["rules_erased"] == 6
    assert verdict.summary()["reasons"] == []


@pytest.mark.parametrize(
    ("spots", "reason", "box"),
    [
        ((THREE[0], THREE[2]), "side box is empty", 1),
        ((THREE[0], THREE[1], Spot("back", 5 / 6, 0.62, 0.3)), "differ in height by 28 %", None),
        ((Spot("side", 1 / 6), Spot("front", 1 / 2), THREE[2]), "as wide as the front", 1),
    ],
)
def test_a_faulty_sheet_is_not_accepted_and_ranks_below_a_good_one(spots, reason, box):
    verdict = judge_sheet(paint(Sheet(SIZE, spots)))
    assert not verdict.accepted
    assert reason in "; ".join(verdict.reasons)
    assert verdict.box == box
    assert verdict.score < 0.6 * judge_sheet(paint(Sheet(SIZE))).score


def test_figures_that_reach_far_over_their_neighbour_are_not_accepted():
    image = paint(Sheet(SIZE, tuple(Spot(spot.view, spot.x, 0.7, 0.2) for spot in THREE)))
    ImageDraw.Draw(image).line((128, 200, 200, 60, 440, 60), fill=(90, 60, 30), width=14)  # a pole over the side view
    verdict = judge_sheet(image)
    assert any("overlap by" in reason for reason in verdict.reasons)


def test_views_in_different_colours_are_not_accepted():
    image = paint(Sheet(SIZE))
    other = paint(Sheet(SIZE, look=Look(coat=(30, 150, 40))))
    recoloured = np.asarray(other).copy()
    recoloured = np.roll(recoloured, 2, axis=2)  # hair, skin and boots change too
    image.paste(Image.fromarray(recoloured).crop((512, 0, 768, 512)), (512, 0))
    verdict = judge_sheet(image)
    assert any("do not share their colours" in reason for reason in verdict.reasons)


def test_a_back_that_is_the_front_mirrored_is_not_accepted():
    image = paint(Sheet(SIZE, look=Look(lantern=True)))
    front = image.crop((0, 0, 256, 512))
    image.paste(front.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (512, 0))
    verdict = judge_sheet(image)
    assert verdict.reasons == ("the back view is the front view mirrored",)
    assert verdict.box == 2


def test_the_captioner_can_veto_a_box():
    witness = Witness(view("front"), view("front"), view("back"))
    verdict = judge_sheet(paint(Sheet(SIZE)), captioner=witness)
    assert verdict.reasons == ("the side box shows a front view, says the captioner",)
    assert verdict.box == 1
    assert verdict.answers == {"front": "front", "side": "front", "back": "back"}


def test_a_captioner_that_names_no_view_vetoes_nothing():
    verdict = judge_sheet(paint(Sheet(SIZE)), captioner=Witness(*[Description(("blue coat",))] * 3))
    assert verdict.accepted and verdict.answers == {}


HOOK = (SideItem("right", "rusty hook", "hand"),)


def test_an_item_tagged_on_the_wrong_side_lowers_the_score_and_warns():
    right, wrong = (
        judge_sheet(
            paint(Sheet(SIZE)), captioner=Witness(view("front", f"{side} hook"), view("side"), view("back")), items=HOOK
        )
        for side in ("right", "left")
    )
    assert right.accepted and wrong.accepted
    assert right.warnings == () and "on the character's left, not right" in wrong.warnings[0]
    assert wrong.score == pytest.approx(0.6 * right.score)


class Examined(Witness):
    """A witness that is also asked where things are."""

    def __init__(self, answer):
        super().__init__(view("front"), view("side"), view("back"))
        self.answer = answer

    def ask(self, image, question, *, max_tokens=64):
        assert "where is the rusty hook" in question and image.height >= 448  # as large as on the sheet
        return self.answer


@pytest.mark.parametrize(
    ("answer", "warning"),
    [
        ("Left.", None),  # of the picture: the character's right
        ("right", "on the character's left, not right"),
        ("None", "sees no rusty hook"),
        ("left or right, hard to say", None),
    ],
)
def test_a_captioner_that_answers_questions_is_asked_for_halves_of_the_picture(answer, warning):
    verdict = judge_sheet(paint(Sheet(SIZE)), captioner=Examined(answer), items=HOOK)
    assert len(verdict.warnings) == (warning is not None)
    assert warning is None or warning in verdict.warnings[0]


def test_the_picture_shows_where_the_views_are():
    image = paint(Sheet(SIZE))
    verdict = judge_sheet(image)
    assert verdict.picture.size == image.size
    changed = np.abs(np.asarray(verdict.picture).astype(int) - np.asarray(image)).max(axis=2) > 60
    for k in range(len(VIEWS)):
        assert changed[:, 256 * k : 256 * (k + 1)].sum() > 200


FACTS = {
    "height_spread": 0.0,
    "gutter_min": 5.0,
    "side_to_front_core": 0.9,
    "colour_distance": 0.0,
    "mirror_likeness": 0.0,
    "edges_touched": 0.0,
}


@pytest.mark.parametrize(
    ("changed", "reasons", "blamed", "score"),
    [
        ({}, 0, [], 1.0),
        ({"height_spread": 0.075}, 0, [], 0.85),
        ({"height_spread": 0.15}, 0, [], 0.7),
        ({"height_spread": 0.151}, 1, [], 0.35),
        ({"gutter_min": -20.0}, 0, [], 1.0),
        ({"gutter_min": -21.0}, 1, [], 0.5),
        ({"side_to_front_core": 1.15}, 0, [], 0.85),
        ({"side_to_front_core": 1.41}, 1, [1], 0.35),
        ({"colour_distance": 0.275}, 0, [], 0.8),
        ({"colour_distance": 0.56}, 1, [], 0.3),
        ({"mirror_likeness": 0.97}, 0, [], 1.0),
        ({"mirror_likeness": 0.98}, 1, [2], 0.5),
        ({"edges_touched": 1.0}, 0, [], 0.9),
        ({"edges_touched": 3.0}, 0, [], 0.7),
        ({"height_spread": 0.2, "mirror_likeness": 0.98}, 2, [2], 0.35),
    ],
)
def test_each_number_has_its_limit_and_its_weight_in_the_score(changed, reasons, blamed, score):
    found, boxes, scored = _by_numbers(FACTS | changed, width=200)
    assert (len(found), boxes) == (reasons, blamed)
    assert scored == pytest.approx(score)
