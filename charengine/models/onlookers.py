"""`Onlooker`: what a picture of somebody shows, by a question to Qwen2.5-VL, or by the embedded family's own small net and captioner."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import BaseModel, Field

from charengine.embedded import onlooker as embedded
from charengine.embedded.completion import described
from charengine.embedded.packaged import ONLOOKER, packaged_digest
from charengine.embedded.shape import PICTURE_SIZE, VIEW_SIZE
from charengine.errors import BadInput
from charengine.models.captioners import REMINDER, read_object
from charengine.models.embedded_known import onlooker_fingerprint
from charengine.models.loading import Loaded
from charengine.models.protocols import Framing, Sight
from charengine.wording import noun_problem

if TYPE_CHECKING:
    from PIL.Image import Image

    from charengine.models.captioners import EmbeddedCaptioner, QwenCaptioner

log = logging.getLogger(__name__)

ANSWER_TOKENS = 220
UPRIGHT = 1.9  # height / width of a picture that is shown as the views of a sheet are
SURE = 0.6  # how likely "several" or "a face alone" must be before a picture is refused for it
QUESTION = """A character is to be drawn anew from this picture. Answer with one JSON object and nothing else:
{"figures": how many people, creatures or robots the picture shows, 0 if it shows none; the same one drawn three times counts three,
 "shown": "full body" | "upper body" | "face": how much of the character is in the picture,
 "class_noun": "one or two plain words for what the character is: woman, orc woman, robot",
 "description": "one sentence of at most 60 words: what the character is, build, skin, hair (colour, length, style), every garment with its colour, everything worn or held and whether it is on the character's own left or right; no pose, no place, no light, no style of drawing"}"""


class Answer(BaseModel):
    """What the model is asked to fill in."""

    figures: int = Field(ge=0)
    shown: Literal["full body", "upper body", "face"] = "full body"
    class_noun: str = ""
    description: str = Field(default="", max_length=1200)

    def sight(self) -> Sight:
        """The answer, its class noun only where a caption may hold it."""
        noun = " ".join(self.class_noun.lower().split()).strip(" .")
        text = " ".join(self.description.split()).strip(' "')
        return Sight(self.figures, self.shown, "" if noun and noun_problem(noun) else noun, text)


class AskingOnlooker:
    """`Onlooker` that asks Qwen2.5-VL one question, greedy, so that the same picture always gets the same answer.

    Args:
        model: the captioner, whose weights these are.
    """

    def __init__(self, model: QwenCaptioner) -> None:
        self._model = model

    @property
    def fingerprint(self) -> str:
        """Of the weights and the question."""
        return hashlib.sha256(f"{self._model.fingerprint}|{QUESTION}".encode()).hexdigest()

    def look(self, image: Image) -> Sight:
        """What the picture shows; asked twice if need be.

        Raises:
            BadInput: neither answer can be read.
        """
        for question in (QUESTION, QUESTION + REMINDER):
            answer = self._model.ask(image, question, max_tokens=ANSWER_TOKENS)
            if (found := read_answer(answer)) is not None:
                return found
        log.warning("asked about a reference, the vision-language model answered %.200r", answer)
        raise BadInput("the vision-language model cannot say what it shows; give a clearer picture of one character")

    def unload(self) -> None:
        """Free all memory the weights take."""
        self._model.unload()


def read_answer(raw: str) -> Sight | None:
    """The first JSON object in an answer, or None if there is none of the right form."""
    answer = read_object(raw, Answer)
    return answer.sight() if answer else None


class EmbeddedOnlooker:
    """`Onlooker` of the embedded family: a small net says who is there, the captioner what it looks like.

    Args:
        captioner: its Qwen2.5-VL.
        device: where the net works.
        weights: the net's file.

    Raises:
        MissingDependency: it is not there.
    """

    def __init__(self, captioner: EmbeddedCaptioner, device: torch.device, weights: Path = ONLOOKER) -> None:
        self._net_digest = packaged_digest("onlooker", weights)
        self._captioner, self._device, self._weights, self._loaded = captioner, device, weights, Loaded()

    @property
    def fingerprint(self) -> str:
        """Of both models' weights."""
        return onlooker_fingerprint(self._captioner.fingerprint, self._net_digest)

    def look(self, image: Image) -> Sight:
        """What the picture shows; a description only of one character."""
        net = self._loaded.get("onlooker", lambda: embedded.load_onlooker(self._weights, self._device))
        likely = embedded.kind_of(net, image)
        if likely["nobody"] > SURE:
            return Sight(0)
        if likely["several"] > SURE:
            return Sight(2)
        framing = _framing(likely)
        if framing == "face":
            return Sight(1, framing)
        seen = self._captioner.describe(_as_taught(image)).facts
        return Sight(1, framing, seen.get("species", ""), described(seen))

    def unload(self) -> None:
        """Free all memory the weights take."""
        self._captioner.unload()
        self._loaded.free()


def _as_taught(image: Image) -> Image:
    """At most as large as the captioner was taught: of what is shown larger it names a half, and that wrongly."""
    smaller = image.copy()
    smaller.thumbnail(VIEW_SIZE if image.height >= UPRIGHT * image.width else PICTURE_SIZE)
    return smaller


def _framing(likely: dict[str, float]) -> Framing:
    """How much of the one figure there is; a face alone only where that is sure."""
    if likely["face"] > SURE:
        return "face"
    return "upper body" if likely["upper body"] + likely["face"] > likely["full body"] else "full body"
