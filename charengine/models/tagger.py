"""`Captioner` on a WD14 tagger (SmilingWolf's v3 ONNX models) through onnxruntime."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from charengine import files
from charengine.errors import BadInput, MissingDependency
from charengine.models.loading import Loaded
from charengine.models.protocols import Description
from charengine.models.qwen_edit import over_white

GENERAL, CHARACTER, RATING = 0, 4, 9  # Danbooru's tag categories in selected_tags.csv
CHARACTER_THRESHOLD = 0.85
FILES = ("model.onnx", "selected_tags.csv")
VIEWS = {"from behind": "back", "from side": "side", "profile": "side"}


@dataclass(frozen=True)
class _Tag:
    name: str
    category: int


class WD14Captioner:
    """Danbooru tags of a picture.

    Args:
        folder: holds `model.onnx` and `selected_tags.csv`.
        fingerprint: digest of the weights, for cache keys.
        threshold: lowest probability of a general tag that is kept.
        character_threshold: the same for names of known characters, which go to `facts`, never into a caption.

    Raises:
        MissingDependency: onnxruntime or a file is not there.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        *,
        threshold: float = 0.35,
        character_threshold: float = CHARACTER_THRESHOLD,
    ) -> None:
        missing = [name for name in FILES if not files.is_file(folder / name)]
        if missing:
            raise MissingDependency(
                f"tagger folder {folder} has no {missing[0]}: put {' and '.join(FILES)} of one WD v3 tagger there, "
                "e.g. SmilingWolf/wd-convnext-tagger-v3 from Hugging Face"
            )
        self.folder, self.fingerprint = folder, fingerprint
        self.threshold, self.character_threshold = threshold, character_threshold
        self._loaded = Loaded()

    def describe(self, image: Image.Image, hint: str = "") -> Description:
        """General tags, likeliest first; `hint` is not used. Rating and known characters are facts."""
        session = self._loaded.get("session", self._open)
        tags = self._loaded.get("tags", self._read_tags)
        entry = session.get_inputs()[0]
        outputs = session.run(None, {entry.name: preprocess(image, int(entry.shape[1]))})[0][0]
        if len(outputs) != len(tags):
            raise BadInput(
                f"{self.folder}: model.onnx answers {len(outputs)} tags, selected_tags.csv names {len(tags)}; "
                "take both files from the same tagger"
            )
        return self._description(tags, outputs)

    def unload(self) -> None:
        """Free all memory the weights take."""
        self._loaded.free()

    def _description(self, tags: list[_Tag], probabilities: np.ndarray) -> Description:
        ranked = sorted(zip(probabilities.tolist(), tags, strict=True), key=lambda row: -row[0])
        raw = ", ".join(f"{tag.name} {probability:.2f}" for probability, tag in ranked if probability >= self.threshold)
        general = tuple(tag.name for p, tag in ranked if tag.category == GENERAL and p >= self.threshold)
        known = [tag.name for p, tag in ranked if tag.category == CHARACTER and p >= self.character_threshold]
        rating = [tag.name for _, tag in ranked if tag.category == RATING]
        facts = {"character": ", ".join(known), "rating": rating[0] if rating else ""}
        facts["view"] = next((VIEWS[name] for name in general if name in VIEWS), "")
        return Description(general, raw, {name: value for name, value in facts.items() if value})

    def _open(self) -> Any:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingDependency(
                "the WD14 tagger needs onnxruntime: pip install onnxruntime, or set caption.captioner=vl"
            ) from error
        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        return onnxruntime.InferenceSession(str(self.folder / "model.onnx"), providers=providers)

    def _read_tags(self) -> list[_Tag]:
        with open(self.folder / "selected_tags.csv", newline="", encoding="utf-8") as file:
            return [_Tag(readable(row["name"]), int(row["category"])) for row in csv.DictReader(file)]


def preprocess(image: Image.Image, side: int) -> np.ndarray:
    """What WD v3 taggers were trained on: (1, side, side, 3) float32 BGR 0-255, padded square with white, bicubic."""
    picture = over_white(image)
    longest = max(picture.size)
    square = Image.new("RGB", (longest, longest), "white")
    square.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
    if longest != side:
        square = square.resize((side, side), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square, dtype=np.float32)[None, :, :, ::-1])


def readable(tag: str) -> str:
    """Spaces for underscores, except in faces such as ^_^ (kohya: tags of at most three characters)."""
    return tag.replace("_", " ") if len(tag) > 3 else tag
