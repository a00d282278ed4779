"""`TraitReader`: which of a character's traits a picture shows, by yes/no questions to Qwen2.5-VL or by the embedded family's probe."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from charengine.embedded import probe
from charengine.embedded.grammar import parse_prompt
from charengine.embedded.packaged import PROBE, packaged_digest
from charengine.embedded.traits import COLUMN, TRAITS, visible_mask
from charengine.models.loading import Loaded

if TYPE_CHECKING:
    from PIL.Image import Image

    from charengine.models.captioners import QwenCaptioner

MOST_TRAITS = 24  # in one pass
ASKED = (
    "Look at the {noun} in this picture. Does the picture show what is named below? Left and right are the character's own. "
    "Answer with one word: yes, no, or hidden when that part of the body is not in the picture or turned away.\n"
)
MEANING = {"yes": True, "no": False, "hidden": None}


class AskingReader:
    """`TraitReader` that asks Qwen2.5-VL about each trait of a picture, all of them in one pass.

    Args:
        model: the captioner, whose weights these are.
    """

    def __init__(self, model: QwenCaptioner) -> None:
        self._model = model
        self._told: dict[tuple[str, ...], list[bool | None]] = {}  # by picture, noun and traits
        self.fingerprint = hashlib.sha256(f"{model.fingerprint}|{ASKED}".encode()).hexdigest()

    def shown(self, images: Sequence[Image], traits: Sequence[str], class_noun: str) -> list[list[bool | None]]:
        """By picture and trait; None where the model says that it cannot be seen. What was told before is not asked again."""
        keys = [(_digest(image), class_noun, *traits) for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._told}
        if new:
            self._told |= dict(zip(new, self._ask(list(new.values()), traits, class_noun), strict=True))
        return [list(self._told[key]) for key in keys]

    def _ask(self, images: Sequence[Image], traits: Sequence[str], class_noun: str) -> list[list[bool | None]]:
        rows: list[list[bool | None]] = [[] for _ in images]
        asked = ASKED.format(noun=class_noun or "character")
        for start in range(0, len(traits), MOST_TRAITS):
            answers = self._model.choose_all(images, asked, traits[start : start + MOST_TRAITS], tuple(MEANING))
            for row, said in zip(rows, answers, strict=True):
                row += [MEANING[word] for word in said]
        return rows

    def step_aside(self) -> None:
        """Off the GPU; host memory may keep the weights."""
        self._model.step_aside()

    def unload(self) -> None:
        """Free all memory the weights take, and what was told."""
        self._told.clear()
        self._model.unload()


class ProbeReader:
    """`TraitReader` of the embedded family: its probe, which was trained on renders alone.

    Args:
        device: where it works.
        weights: its file.

    Raises:
        MissingDependency: it is not there.
    """

    def __init__(self, device: torch.device, weights: Path = PROBE) -> None:
        self.fingerprint = packaged_digest("probe", weights)
        self._device, self._weights, self._loaded = device, weights, Loaded()

    def shown(self, images: Sequence[Image], traits: Sequence[str], class_noun: str) -> list[list[bool | None]]:
        """By picture and trait; None for words it was never taught, and for what cannot be seen from the side that it reads."""
        model = self._loaded.get("probe", lambda: probe.load_judge(self._weights, self._device))
        stated = [_values(words, class_noun) for words in traits]
        rows: list[list[bool | None]] = []
        for _, alike in itertools.groupby(images, lambda image: image.size):
            together = probe.score_images(model, probe.to_tensor(list(alike)))
            for traits_read, view in zip(together.traits.split(1), together.views.split(1), strict=True):
                reading = probe.Reading(traits_read, view)
                rows.append([_read(values, reading) for values in stated])
        return rows

    def step_aside(self) -> None:
        """Nothing: it is small."""

    def unload(self) -> None:
        """Free all memory the weights take."""
        self._loaded.free()


def _digest(image: Image) -> str:
    return hashlib.blake2b(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()


def _values(words: str, class_noun: str) -> dict[int, int]:
    """Columns and values of the embedded vocabulary that a phrase states; the kind of being only where it says nothing else."""
    stated = {name: value for name, value in parse_prompt(words).items() if value in TRAITS.get(name, ())}
    if len(stated) > 1 or words.endswith(class_noun):
        stated.pop("species", None)
    return {COLUMN[name]: TRAITS[name].index(value) for name, value in stated.items()}


def _read(values: dict[int, int], reading: probe.Reading) -> bool | None:
    """Whether a picture (a reading of one row) shows all of these, as far as they can be seen."""
    wanted = reading.traits.clone()
    for column, value in values.items():
        wanted[0, column] = value
    seen = visible_mask(wanted, reading.views)[0]
    judged = [bool(wanted[0, column] == reading.traits[0, column]) for column in values if seen[column]]
    return all(judged) if judged else None
