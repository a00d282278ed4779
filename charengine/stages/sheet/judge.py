"""Judges a candidate sheet by numbers, and by asking the captioner which view each box shows."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from charengine.config import CropSettings
from charengine.figures.cut import cut_views, examine_sheet
from charengine.figures.measure import measure_sheet
from charengine.figures.overlay import draw_overlay
from charengine.language.sides import SideItem
from charengine.models import Captioner, Description, Questioner, describe_all
from charengine.records import VIEWS

# Hard limits: beyond these a sheet is not accepted. Soft ones only lower its score.
HEIGHT_SPREAD = 0.15
OVERLAP = 0.1  # of the sheet's width: a sword may reach over its neighbour, a body may not
WIDER_SIDE = 1.4
COLOUR_DISTANCE = 0.55
MIRRORED = 0.97

DISAGREES = 0.6  # factor on the score for each thing the captioner sees otherwise

WHERE = (
    "In this picture of a character seen from the front, where is the {item}: in the left half of the picture, in the right "
    "half, or is there none? Answer with one word: left, right or none."
)

_VIEW_WORDS = {
    "front": re.compile(r"\b(front|facing (?:the )?viewer)\b"),
    "side": re.compile(r"\b(side|profile)\b"),
    "back": re.compile(r"\b(back|behind|rear)\b"),
}


@dataclass(frozen=True)
class Verdict:
    """What the gate thinks of a sheet.

    Args:
        score: 0 to 1, for choosing among candidates.
        reasons: why it is not accepted; empty when it is.
        box: the one box to blame (0 front, 1 side, 2 back), if redrawing it alone could help.
        facts: the numbers of `figures.measure`.
        answers: view to what the captioner saw there, when it was asked.
        warnings: from the crop.
        picture: the sheet with what was found drawn on it.
    """

    score: float
    reasons: tuple[str, ...]
    box: int | None
    facts: dict[str, float]
    answers: dict[str, str]
    warnings: tuple[str, ...]
    picture: Image.Image = field(repr=False)

    @property
    def accepted(self) -> bool:
        """Whether the sheet is good enough to train on."""
        return not self.reasons

    def summary(self) -> dict[str, Any]:
        """As JSON for the sheet's record."""
        return {
            "accepted": self.accepted,
            "score": round(self.score, 4),
            "reasons": list(self.reasons),
            "facts": {name: round(value, 4) for name, value in self.facts.items()},
            "answers": dict(self.answers),
        }


def judge_sheet(
    image: Image.Image, *, captioner: Captioner | None = None, class_noun: str = "", items: tuple[SideItem, ...] = ()
) -> Verdict:
    """Score a sheet.

    Args:
        image: RGB sheet.
        captioner: asked which view each crop shows, if the numbers are good; None: only the numbers decide.
        class_noun: hint for the captioner.
        items: what the prompt binds to a side; the captioner is listened to about them too.
    """
    # the captioner sees the views at the size they have on the sheet, whatever bucket they will train in
    settings = CropSettings(bucket_area=max(64 * 64, image.width * image.height // 3))
    backdrop, found = examine_sheet(image, settings.threshold)
    if found.problem:
        picture = draw_overlay(image, found)
        score = 0.1 * min(len(found.figures), 3) / 3
        return Verdict(score, (found.problem,), found.blamed, {}, {}, found.warnings, picture)
    facts = measure_sheet(backdrop, found)
    reasons, boxes, score = _by_numbers(facts, image.width)
    answers: dict[str, str] = {}
    warnings = found.warnings
    if captioner is not None and not reasons:  # loading the captioner is dear, and the numbers have decided
        views = {view.name: view for view in cut_views(backdrop, found.figures, settings)}
        found_by_eye = describe_all(captioner, [view.image for view in views.values()], class_noun)
        seen = dict(zip(views, found_by_eye, strict=True))
        answers = {view: said for view, description in seen.items() if (said := _view_named(description))}
        wrong = [k for k, view in enumerate(VIEWS) if answers.get(view, view) != view]
        reasons += [f"the {VIEWS[k]} box shows a {answers[VIEWS[k]]} view, says the captioner" for k in wrong]
        boxes += wrong
        doubts = _doubts(views["front"].image, seen["front"], captioner, items)
        warnings += tuple(doubts.values())
        answers |= doubts
        score *= DISAGREES ** (len(wrong) + len(doubts))
    box = boxes[0] if len(set(boxes)) == 1 else None
    return Verdict(score, tuple(reasons), box, facts, answers, warnings, draw_overlay(image, found))


def _by_numbers(facts: dict[str, float], width: int) -> tuple[list[str], list[int], float]:
    """Reasons against the sheet, the boxes they blame, and the score."""
    reasons, boxes = [], []
    if facts["height_spread"] > HEIGHT_SPREAD:
        share = round(100 * facts["height_spread"])
        reasons.append(f"the figures differ in height by {share} % (at most {round(100 * HEIGHT_SPREAD)} % is allowed)")
    if facts["gutter_min"] < -OVERLAP * width:
        share = round(-100 * facts["gutter_min"] / width)
        reasons.append(f"neighbouring figures overlap by {share} % of the sheet's width: there is no gutter")
    if facts["side_to_front_core"] > WIDER_SIDE:
        reasons.append(
            f"the side view is {facts['side_to_front_core']:.2f} times as wide as the front: it is no profile"
        )
        boxes.append(1)
    if facts["colour_distance"] > COLOUR_DISTANCE:
        reasons.append(f"the views do not share their colours (distance {facts['colour_distance']:.2f} of 1)")
    if facts["mirror_likeness"] > MIRRORED:
        reasons.append("the back view is the front view mirrored")
        boxes.append(2)
    score = 1.0
    score *= 1 - min(1.0, facts["height_spread"] / HEIGHT_SPREAD) * 0.3
    score *= 1 - min(1.0, max(0.0, facts["side_to_front_core"] - 0.9) / (WIDER_SIDE - 0.9)) * 0.3
    score *= 1 - min(1.0, facts["colour_distance"] / COLOUR_DISTANCE) * 0.4
    score *= 1 - min(1.0, facts["edges_touched"] / 3) * 0.3
    return reasons, boxes, score * (0.5 if reasons else 1.0)


def _view_named(seen: Description) -> str:
    """The one view that the captioner names ("three-quarter" counts as none of the three); "" when it names none."""
    said = (seen.facts.get("view") or ", ".join(seen.tags)).lower()
    if "three-quarter" in said:
        return "three-quarter"
    named = [name for name, words in _VIEW_WORDS.items() if words.search(said)]
    return named[0] if len(named) == 1 else ""


def _doubts(front: Image.Image, seen: Description, captioner: Captioner, items: tuple[SideItem, ...]) -> dict[str, str]:
    """Items that the captioner does not see where they belong in the front view, with a warning each."""
    doubts = {}
    for item in items:
        side = _side_asked(front, captioner, item) if isinstance(captioner, Questioner) else _side_tagged(seen, item)
        if side == "none":
            doubts[item.item] = f"the captioner sees no {item.item} in the front view"
        elif side and side != item.side:
            doubts[item.item] = f"the captioner sees the {item.item} on the character's {side}, not {item.side}"
    return doubts


def _side_asked(front: Image.Image, captioner: Questioner, item: SideItem) -> str:
    """The character's side ("left", "right"), "none", or "" for no clear answer."""
    # halves of the picture are asked for: language models confuse a person's left with the picture's
    answer = captioner.ask(front, WHERE.format(item=item.item), max_tokens=8).lower()
    said = [word for word in ("left", "right", "none") if re.search(rf"\b{word}\b", answer)]
    mirrored = {"left": "right", "right": "left", "none": "none"}
    return mirrored[said[0]] if len(said) == 1 else ""


def _side_tagged(seen: Description, item: SideItem) -> str:
    """The one side that tags naming the item give, or ""."""
    noun = item.item.split()[-1]
    tags = [tag.lower() for tag in seen.tags if noun in tag.lower()]
    sides = {side for side in ("left", "right") for tag in tags if side in tag.split()}
    return sides.pop() if len(sides) == 1 else ""
