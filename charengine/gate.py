"""Judges a candidate sheet by numbers, and by asking the captioner which view each box shows."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from charengine.config import CropSettings
from charengine.crop import View, cut_views, draw_overlay, examine, measure
from charengine.models import Captioner
from charengine.records import VIEWS

# Hard limits: beyond these a sheet is not accepted. Soft ones only lower its score.
HEIGHT_SPREAD = 0.15
WIDER_SIDE = 1.4
COLOUR_DISTANCE = 0.75
MIRRORED = 0.995

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
        facts: the numbers of `crop.measure`.
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


def judge(
    image: Image.Image,
    *,
    captioner: Captioner | None = None,
    class_noun: str = "",
    settings: CropSettings = CropSettings(),
) -> Verdict:
    """Score a sheet.

    Args:
        image: RGB sheet.
        captioner: asked which view each crop shows; None: only the numbers decide.
        class_noun: hint for the captioner.
        settings: how the crop finds figures.
    """
    backdrop, found = examine(image, settings.threshold)
    if found.problem:
        picture = draw_overlay(image, found)
        score = 0.1 * min(len(found.figures), 3) / 3
        return Verdict(score, (found.problem,), found.blamed, {}, {}, found.warnings, picture)
    facts = measure(backdrop, found)
    reasons, boxes, score = _by_numbers(facts)
    answers: dict[str, str] = {}
    if captioner is not None:
        answers = _ask(cut_views(backdrop, found.figures, settings), captioner, class_noun)
        wrong = [k for k, view in enumerate(VIEWS) if answers.get(view, view) != view]
        reasons += [f"the {VIEWS[k]} box shows a {answers[VIEWS[k]]} view, says the captioner" for k in wrong]
        boxes += wrong
        score *= 1 - len(wrong) / 4
    box = boxes[0] if len(set(boxes)) == 1 else None
    return Verdict(score, tuple(reasons), box, facts, answers, found.warnings, draw_overlay(image, found))


def _by_numbers(facts: dict[str, float]) -> tuple[list[str], list[int], float]:
    """Reasons against the sheet, the boxes they blame, and the score."""
    reasons, boxes = [], []
    if facts["height_spread"] > HEIGHT_SPREAD:
        share = round(100 * facts["height_spread"])
        reasons.append(f"the figures differ in height by {share} % (at most {round(100 * HEIGHT_SPREAD)} % is allowed)")
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


def _ask(views: tuple[View, ...], captioner: Captioner, class_noun: str) -> dict[str, str]:
    """Which view the captioner takes each crop for; views it did not name are left out."""
    answers: dict[str, str] = {}
    for view in views:
        seen = captioner.describe(view.image, hint=class_noun)
        said = seen.facts.get("view") or ", ".join(seen.tags)
        named = [name for name, words in _VIEW_WORDS.items() if words.search(said.lower())]
        if len(named) == 1:
            answers[view.name] = named[0]
    return answers
