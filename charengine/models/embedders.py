"""`Embedder`: CLIP for prompt adherence, CLIP or DINOv2 for identity. Pictures are prepared with Pillow alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from charengine import files
from charengine.errors import BadInput, MissingDependency, StageFailed
from charengine.models.classes import dino_class
from charengine.models.files import read_json, shards
from charengine.models.loading import Loaded, chunks

VARIANT = re.compile(r"^model\.(\w+?)(-\d+-of-\d+)?\.safetensors$")  # "fp16" of a folder that holds no other files
ROWS_PER_PASS = 8  # little memory, for pictures are scored while others are drawn


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes a model's input, from its `preprocessor_config.json`.

    Args:
        shortest: side the shorter edge is resized to; 0 = resize to `crop` outright.
        crop: width, height of the input.
        mean: per channel, of values in 0-1.
        std: per channel, of values in 0-1.
        resample: Pillow's number of the resize filter.
        letterbox: pad to a square with white first, so that nothing of a tall figure is cropped away.
    """

    shortest: int
    crop: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int
    letterbox: bool

    @classmethod
    def from_folder(cls, folder: Path, *, letterbox: bool) -> Preparation:
        """Read `preprocessor_config.json`.

        Raises:
            MissingDependency: it is not there.
        """
        file = folder / "preprocessor_config.json"
        if not files.is_file(file):
            raise MissingDependency(
                f"{folder} has no {file.name}: download the whole model folder, not only its weights"
            )
        config = read_json(file)
        size, crop = config.get("size", 224), config.get("crop_size", 224)
        crops = config.get("do_center_crop", True)
        return cls(
            shortest=_shortest(size) if crops else 0,
            crop=_sides(crop if crops else size),
            mean=tuple(config["image_mean"]),
            std=tuple(config["image_std"]),
            resample=config.get("resample", Image.Resampling.BICUBIC),
            letterbox=letterbox,
        )

    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """(n, 3, h, w) float32."""
        pixels = np.stack([np.asarray(self._fit(image.convert("RGB")), dtype=np.float32) for image in images]) / 255
        mean, std = np.array(self.mean, dtype=np.float32), np.array(self.std, dtype=np.float32)
        return torch.from_numpy((pixels - mean) / std).permute(0, 3, 1, 2)

    def _fit(self, image: Image.Image) -> Image.Image:
        filter_ = Image.Resampling(self.resample)
        if self.letterbox:
            return _square(image).resize(self.crop, filter_)
        if not self.shortest:
            return image.resize(self.crop, filter_)
        short, long = sorted(image.size)
        other = int(self.shortest * long / short)  # transformers cuts the fraction off
        size = (self.shortest, other) if image.width <= image.height else (other, self.shortest)
        left, top = (size[0] - self.crop[0]) // 2, (size[1] - self.crop[1]) // 2
        return image.resize(size, filter_).crop((left, top, left + self.crop[0], top + self.crop[1]))


class FolderEmbedder:
    """An embedder on a folder with config, safetensors weights, preprocessor_config.json, and tokenizer where there are words.

    Args:
        folder: of the model.
        device: where the model runs.
        dtype: of its weights.
        fingerprint: digest of the weights, for cache keys.
        letterbox: pad pictures to a square with white instead of cropping them: the usual centre crop would cut head and feet off
            a standing figure, and the embedded family was trained so.
    """

    def __init__(
        self, folder: Path, device: torch.device, dtype: torch.dtype, fingerprint: str, *, letterbox: bool = True
    ) -> None:
        self.folder, self.device, self.dtype, self.fingerprint = folder, device, dtype, fingerprint
        self.letterbox = letterbox
        self._loaded = Loaded()

    def unload(self) -> None:
        """Free all memory the weights take."""
        self._loaded.free()

    def _preparation(self) -> Preparation:
        return Preparation.from_folder(self.folder, letterbox=self.letterbox)


class ClipEmbedder(FolderEmbedder):
    """`Embedder` on a CLIPModel folder: text-image match, and its image tower for identity."""

    def embed_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Projected image embeddings (n, d), L2-normalised float32 on the CPU."""
        model = self._model()
        return _embed(
            images,
            self.folder,
            self._preparation(),
            model,
            lambda pixels: model.get_image_features(pixels).pooler_output,
        )

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Projected text embeddings (n, d), L2-normalised float32 on the CPU; each distinct text is computed once."""
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            return torch.zeros(0, self._model().config.projection_dim)
        tokenizer = self._loaded.get("tokenizer", self._load_tokenizer)
        inputs = tokenizer(distinct, padding=True, truncation=True, return_tensors="pt").to(self.device)
        features = self._model().get_text_features(inputs.input_ids, attention_mask=inputs.attention_mask)
        rows = _normalised(features.pooler_output, self.folder)
        return rows[[distinct.index(text) for text in texts]]

    def match(self, images: Sequence[Image.Image], texts: Sequence[str]) -> torch.Tensor:
        """Cosine of each image with its own text (n,), float32: CLIP-T; an image given several times is seen once.

        Raises:
            BadInput: not one text an image.
        """
        if len(images) != len(texts):
            raise BadInput(f"match needs one text for each image; got {len(images)} images and {len(texts)} texts")
        distinct = {id(image): image for image in images}  # a sweep asks for every picture with every prompt
        places = {key: row for row, key in enumerate(distinct)}
        rows = self.embed_images(list(distinct.values()))[[places[id(image)] for image in images]]
        return (rows * self.embed_texts(texts)).sum(dim=-1)

    def _model(self) -> Any:
        from transformers import CLIPModel

        return self._loaded.get("model", lambda: _load(CLIPModel, self.folder, self.device, self.dtype))

    def _load_tokenizer(self) -> Any:
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(self.folder, local_files_only=True)


class DinoEmbedder(FolderEmbedder):
    """Identity embeddings of a DINOv2 folder: the class token after the last norm (DreamBench++'s DINO score)."""

    def embed_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Class-token embeddings (n, d), L2-normalised float32 on the CPU."""
        config = read_json(self.folder / "config.json")
        kind = dino_class(str(config.get("model_type")))[0]
        model = self._loaded.get("model", lambda: _load(kind, self.folder, self.device, self.dtype))
        return _embed(
            images, self.folder, self._preparation(), model, lambda pixels: model(pixels).last_hidden_state[:, 0]
        )


class IdentityEmbedder(Protocol):
    """Half an `Embedder`: knows who is in a picture."""

    fingerprint: str

    def embed_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Identity embeddings (n, d), L2-normalised float32 on the CPU."""
        ...

    def unload(self) -> None:
        """Free all memory the weights take."""
        ...


class PairEmbedder:
    """`Embedder` of two models: one for identity (DINOv2), one for prompt adherence (CLIP)."""

    def __init__(self, identity: IdentityEmbedder, adherence: ClipEmbedder) -> None:
        self.identity, self.adherence = identity, adherence
        self.fingerprint = f"{identity.fingerprint}+{adherence.fingerprint}"

    def embed_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Identity embeddings (n, d), L2-normalised float32 on the CPU."""
        return self.identity.embed_images(images)

    def match(self, images: Sequence[Image.Image], texts: Sequence[str]) -> torch.Tensor:
        """Cosine of each image with its own text (n,), float32: CLIP-T."""
        return self.adherence.match(images, texts)

    def unload(self) -> None:
        """Free all memory the weights take."""
        self.identity.unload()
        self.adherence.unload()


def _load(kind: Any, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    found = VARIANT.search(shards(folder)[0].name)
    variant = found.group(1) if found else None
    model = kind.from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True, variant=variant)
    return model.to(device).requires_grad_(False).eval()


@torch.no_grad()
def _embed(
    images: Sequence[Image.Image],
    folder: Path,
    preparation: Preparation,
    model: Any,
    features: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    def passes() -> Iterator[torch.Tensor]:
        for part in chunks(len(images), ROWS_PER_PASS):
            yield _normalised(features(preparation(images[part]).to(model.device, model.dtype)), folder)

    if not images:
        raise BadInput("no images were given to embed: give at least one")
    return torch.cat(list(passes()))


def _normalised(features: torch.Tensor, folder: Path) -> torch.Tensor:
    if not bool(features.isfinite().all()):  # every number of a sweep would be none
        raise StageFailed(
            f"{folder}: this model, which compares pictures, answered with NaN; its weights are damaged or too large for their "
            "number format: set models.clip or models.dino to another file of it"
        )
    return torch.nn.functional.normalize(features.float(), dim=-1).cpu()


def _square(image: Image.Image) -> Image.Image:
    """The image in the middle of a white square."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _shortest(size: Any) -> int:
    return int(size if isinstance(size, int) else size.get("shortest_edge") or min(size["height"], size["width"]))


def _sides(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if "shortest_edge" in size:
        return size["shortest_edge"], size["shortest_edge"]
    return size["width"], size["height"]
