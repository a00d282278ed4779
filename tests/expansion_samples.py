"""An edit model, an embedder and a captioner that do as a test of more views says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageChops
from run_samples import WHITE, doll

from charengine.config import CaptionSettings, Character, ExpandSettings
from charengine.likeness.scoring import frame
from charengine.models import Description
from charengine.records import DatasetRecord, ExpansionRecord, ViewsRecord
from charengine.stages.caption import caption_views
from charengine.stages.expand.expand import expand_views
from charengine.store import Store

GRISHA = Character(name="Grisha", prompt="an orc in a blue coat", class_noun="orc", trigger="zorgax", seed=7)
RED = (200, 30, 40)
Brush = Callable[[Image.Image, str, int], Image.Image]


class Painter:
    """An edit model that does as the test says, and remembers what it was told."""

    fingerprint, prompt_style = "painter", "rich"

    def __init__(self, brush: Brush) -> None:
        self.brush, self.told = brush, list[dict]()

    def draw(self, template, prompt, **options):
        self.told.append({"template": template, "prompt": prompt, **options})
        return self.brush(template, prompt, options["seed"])

    def unknown_words(self, prompt):
        return ()

    def unload(self):
        pass


class Eye:
    """Identity as the small picture itself: the same figure elsewhere is the same, another coat is somebody else."""

    fingerprint = "eye"

    def embed_images(self, images):
        small = [np.asarray(image.resize((12, 12), Image.Resampling.BOX), np.float32).ravel() - 200 for image in images]
        rows = torch.from_numpy(np.stack(small))
        return rows / rows.norm(dim=1, keepdim=True)

    def unload(self):
        pass


class Witness:
    """A captioner that says the same of every picture."""

    fingerprint = "witness"

    def __init__(self, tags: tuple[str, ...] = (), **facts: str) -> None:
        self.said = Description(tags, "", facts)

    def describe(self, image, hint=""):
        return self.said

    def unload(self):
        pass


def shifted(picture: Image.Image, prompt: str, seed: int) -> Image.Image:
    """The picture as it was, a little to one side."""
    return ImageChops.offset(picture, 3, 0)


def stranger(picture: Image.Image, prompt: str, seed: int) -> Image.Image:
    """Somebody else."""
    return frame(doll(coat=RED), None, WHITE, margin=0.0).resize(picture.size)


def expand(views: ViewsRecord, store: Store, brush: Brush, **settings) -> tuple[ExpansionRecord, Painter]:
    painter = Painter(brush)
    chosen = ExpandSettings(**{"count": 1, "kinds": ("pose",), "candidates": 1, **settings})
    return expand_views(views, GRISHA, chosen, painter, Eye(), store), painter


def captioned(views: ViewsRecord, store: Store, expansion: ExpansionRecord, witness: Witness) -> DatasetRecord:
    return caption_views(views, GRISHA, CaptionSettings(), witness, store, expansion.kept)
