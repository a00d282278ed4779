"""What training reads, encoded once and resident on the device: latents, text, size conditioning, masks, by bucket.

A bucket holds the samples of one image size. Every choice made while training (which variant, which posterior sample,
dropped caption) is made on the device from what is kept here.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from charengine.config import TrainSettings
from charengine.dataset.reading import class_pictures
from charengine.errors import BadInput
from charengine.models import Diffusion, LatentPosterior, TextConditioning
from charengine.pictures import padded, read_picture
from charengine.records import DatasetRecord, ExtraView, ViewRecord
from charengine.stages.train.lessons import Lessons
from charengine.store import Store

log = logging.getLogger(__name__)

Picture = ViewRecord | ExtraView
BACKGROUNDS = 4  # colours a view is composited on, when random backgrounds are asked for


@dataclass(frozen=True)
class Bucket:
    """Samples of one size; n samples, v variants (backgrounds × flips; the first is the picture as it is).

    Args:
        names: view names, or file names of regularisation images.
        mean, std: (n, v, 4, h, w) scaled VAE posterior, float32.
        mask: (n, v, 1, h, w) loss weight of each latent pixel, mean 1.
        embeds, pooled: (n, tokens, d) and (n, p) of the captions.
        time_ids: (n, 6) original height and width, crop top and left, target height and width, pixels.
        weight: (n,) of a sample in the loss.
        flips, backgrounds: how many of each the variants hold, variant = background · flips + flip.
        regularisation: these are class images, not the character.
        square: these are the sheet's views in a square, as pictures are drawn.
    """

    names: tuple[str, ...]
    width: int
    height: int
    mean: Tensor
    std: Tensor
    mask: Tensor
    embeds: Tensor
    pooled: Tensor
    time_ids: Tensor
    weight: Tensor
    flips: int = 1
    backgrounds: int = 1
    regularisation: bool = False
    square: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: torch.device) -> Bucket:
        """The same bucket on another device."""
        moved = {
            f.name: getattr(self, f.name).to(device) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class TrainingData:
    """All buckets, the conditioning of an empty caption, and that of the trigger alone, for sample pictures.

    Args:
        buckets: what is trained on, the sheet's views first.
        empty_embeds, empty_pooled: of an empty caption.
        sample_prompt: of the trigger and class noun.
        sample_negative: of the base model's negative prompt; None = the empty caption.
        lessons: taken in turns with all of that; None = none.
        captions: view name → caption trained on.
        held_out: what is only validated with.
    """

    buckets: tuple[Bucket, ...]
    empty_embeds: Tensor
    empty_pooled: Tensor
    sample_prompt: TextConditioning
    captions: dict[str, str]
    held_out: tuple[Bucket, ...] = ()
    sample_negative: TextConditioning | None = None
    lessons: Lessons | None = None

    def to(self, device: torch.device) -> TrainingData:
        """The same data on another device."""
        return replace(
            self,
            buckets=tuple(bucket.to(device) for bucket in self.buckets),
            held_out=tuple(bucket.to(device) for bucket in self.held_out),
            empty_embeds=self.empty_embeds.to(device),
            empty_pooled=self.empty_pooled.to(device),
            lessons=self.lessons.to(device) if self.lessons else None,
        )

    @property
    def views(self) -> tuple[Bucket, ...]:
        """The buckets of the character's own views, as they were cut."""
        return tuple(bucket for bucket in self.buckets if not (bucket.regularisation or bucket.square))


def encode_dataset(
    dataset: DatasetRecord, settings: TrainSettings, diffusion: Diffusion, store: Store, *, with_squares: bool = True
) -> TrainingData:
    """Encode views, captions and regularisation images; the text encoders and the VAE are unloaded afterwards.

    Args:
        dataset: views and captions.
        settings: what is made of them.
        diffusion: the base model.
        store: where the pictures are.
        with_squares: views in squares too, where the settings ask for it; lessons make them needless.

    Raises:
        BadInput: a view has no caption, sizes are not multiples of 8, or the regularisation folder cannot be used.
    """
    captions: dict[str, str] = {caption.view: caption.text for caption in dataset.captions}
    trained: list[Picture] = [*dataset.views.views, *dataset.trained_extras]
    pictures: list[Picture] = [*trained, *dataset.held_out]
    missing = [view.view for view in pictures if view.view not in captions]
    if missing:
        raise BadInput(f"the dataset has no caption for its {', '.join(missing)} view; caption every view")
    flip = settings.flips == "on" or (settings.flips == "auto" and not dataset.side_bound)
    extra = _read_regularisation(settings.regularisation, dataset) if settings.regularisation else []
    texts = [captions[view.view] for view in pictures] + [text for _, _, text in extra]
    usage = diffusion.usage
    text = diffusion.encode_prompts([*texts, usage.prompt(f"{dataset.trigger}, {dataset.class_noun}"), ""])
    negative = diffusion.encode_prompts([usage.negative_prompt]) if usage.negative_prompt else None
    diffusion.unload("text_encoders")

    def encode(pictures: list[_Shown], flip: bool) -> Bucket:
        rows = [texts.index(captions[one.name]) for one in pictures]
        return _encode_views(pictures, settings, diffusion, flip, text.embeds[rows], text.pooled[rows])

    def by_size(views: Sequence[Picture]) -> list[list[_Shown]]:
        return [[_shown(view, store) for view in group] for group in _by_size(views).values()]

    buckets = [encode(group, flip) for group in by_size(trained)]
    held_out = [encode(group, flip=False) for group in by_size(dataset.held_out)]
    if settings.square and with_squares:
        squares = [
            _in_square(_shown(view, store), settings.square, dataset.views.background) for view in dataset.views.views
        ]
        buckets.append(replace(encode(squares, flip), square=True))
    singles = [
        _encode_class_image(name, image, settings, diffusion, text.embeds[row : row + 1], text.pooled[row : row + 1])
        for row, (name, image, _) in enumerate(extra, start=len(pictures))
    ]
    buckets += _joined(singles)
    diffusion.unload("vae")
    sample = TextConditioning(text.embeds[-2:-1], text.pooled[-2:-1])
    own = {view.view: captions[view.view] for view in trained}
    return TrainingData(tuple(buckets), text.embeds[-1:], text.pooled[-1:], sample, own, tuple(held_out), negative)


def _by_size(views: Sequence[Picture]) -> dict[tuple[int, int], list[Picture]]:
    sizes: dict[tuple[int, int], list[Picture]] = {}
    for view in views:
        if view.width % 8 or view.height % 8:
            raise BadInput(f"the {view.view} view is {view.width}x{view.height}; sides must be multiples of 8")
        sizes.setdefault((view.width, view.height), []).append(view)
    return sizes


@dataclass(frozen=True)
class _Shown:
    """A picture with what training reads of it: mode RGB, mode L (255 = figure), and SDXL's size conditioning."""

    name: str
    image: Image.Image
    alpha: Image.Image
    ids: tuple[int, int, int, int, int, int]


def _shown(view: Picture, store: Store) -> _Shown:
    image = Image.open(io.BytesIO(store.get(view.image))).convert("RGB")
    alpha = Image.open(io.BytesIO(store.get(view.alpha))).convert("L")
    return _Shown(view.view, image, alpha, time_ids(view))


def _in_square(shown: _Shown, side: int, background: tuple[int, int, int]) -> _Shown:
    """The whole view in the middle of a square of `side` pixels, the rest in the sheet's background colour."""
    size, smooth = (side, side), Image.Resampling.LANCZOS
    return replace(
        shown,
        image=padded(shown.image, size, background, smooth),
        alpha=padded(shown.alpha, size, 0, smooth),
        ids=(*size, 0, 0, *size),
    )


def _encode_views(
    views: list[_Shown], settings: TrainSettings, diffusion: Diffusion, flip: bool, embeds: Tensor, pooled: Tensor
) -> Bucket:
    """One bucket of pictures of one size."""
    backgrounds = 1 + (BACKGROUNDS if settings.random_backgrounds > 0 else 0)
    means, stds, masks = [], [], []
    for view in views:
        variants = [view.image, *_on_colours(view.image, view.alpha, backgrounds - 1)]
        if flip:
            variants = [turned for one in variants for turned in (one, ImageOps.mirror(one))]
        posterior = diffusion.encode_images(variants)
        mask = _loss_mask(view.alpha, settings.masked_loss)
        means.append(posterior.mean.float())
        stds.append(posterior.std.float())
        masks.append(torch.stack([mask, mask.flip(-1)][: 1 + flip] * backgrounds))
    _check_finite(means + stds, views[0].image.size)
    device = means[0].device
    ids = torch.tensor([view.ids for view in views], dtype=torch.float32, device=device)
    return Bucket(
        tuple(view.name for view in views),
        *views[0].image.size,
        torch.stack(means),
        torch.stack(stds),
        torch.stack(masks).to(device),
        embeds,
        pooled,
        ids,
        torch.ones(len(views), device=device),
        flips=1 + flip,
        backgrounds=backgrounds,
    )


def time_ids(view: Picture) -> tuple[int, int, int, int, int, int]:
    """SDXL's size conditioning, truthful: the bucket as large as it was on the sheet, nothing cropped, bucket as target."""
    if isinstance(view, ExtraView):  # drawn at this size
        return (view.height, view.width, 0, 0, view.height, view.width)
    x0, y0, x1, y1 = view.source_box
    scale = view.scale or min(view.width / max(1, x1 - x0), view.height / max(1, y1 - y0))
    return (round(view.height / scale), round(view.width / scale), 0, 0, view.height, view.width)


def _on_colours(image: Image.Image, alpha: Image.Image, count: int) -> list[Image.Image]:
    """The figure on `count` plain colours, spread over the colour wheel, so that the sheet's white is not learnt."""
    colours = [Image.new("HSV", image.size, (256 * i // max(1, count), 90, 150)).convert("RGB") for i in range(count)]
    return [Image.composite(image, colour, alpha) for colour in colours]


def _loss_mask(alpha: Image.Image, amount: float) -> Tensor:
    """(1, h/8, w/8) weights of mean 1: the background counts 1 − amount of the figure."""
    small = alpha.resize((alpha.width // 8, alpha.height // 8), Image.Resampling.BOX)
    mask = torch.from_numpy(np.asarray(small, dtype=np.float32) / 255.0)
    mask = 1 - amount * (1 - mask)
    return (mask / mask.mean().clamp(min=1e-3)).unsqueeze(0)


def _check_finite(latents: list[Tensor], size: tuple[int, int]) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in latents):
        raise BadInput(
            f"the VAE made NaN latents from the {size[0]}x{size[1]} views; "
            "run it in float32 or set models.sdxl_vae to the fp16-fixed SDXL VAE"
        )


def _read_regularisation(folder: str, dataset: DatasetRecord) -> list[tuple[str, Image.Image, str]]:
    """(name, image, caption) of every class image; the caption is the .txt beside it, or the class noun."""
    return [
        (path.name, read_picture(path, "train.regularisation:").image, text or dataset.class_noun)
        for path, text in class_pictures(Path(folder))
    ]


def _encode_class_image(
    name: str, image: Image.Image, settings: TrainSettings, diffusion: Diffusion, embeds: Tensor, pooled: Tensor
) -> Bucket:
    width, height = class_bucket(image.size, diffusion.native_area)
    scale = min(width / image.width, height / image.height)
    canvas = padded(image, (width, height), "white", Image.Resampling.LANCZOS)
    alpha = padded(Image.new("L", image.size, 255), (width, height), 0)
    posterior: LatentPosterior = diffusion.encode_images([canvas])
    device = posterior.mean.device
    sizes = (round(height / scale), round(width / scale), 0, 0, height, width)
    return Bucket(
        (name,),
        width,
        height,
        posterior.mean.float().unsqueeze(0),
        posterior.std.float().unsqueeze(0),
        _loss_mask(alpha, 1.0)[None, None].to(device),
        embeds,
        pooled,
        torch.tensor([sizes], dtype=torch.float32, device=device),
        torch.full((1,), settings.regularisation_weight, device=device),
        regularisation=True,
    )


def _joined(singles: list[Bucket]) -> list[Bucket]:
    """Buckets of one sample each → one bucket a size."""
    sizes: dict[tuple[int, int], list[Bucket]] = {}
    for bucket in singles:
        sizes.setdefault((bucket.width, bucket.height), []).append(bucket)
    return [_join(group) for group in sizes.values()]


def _join(group: list[Bucket]) -> Bucket:
    tensors: dict[str, Any] = {
        f.name: torch.cat([getattr(bucket, f.name) for bucket in group]) for f in fields(Bucket) if f.type == "Tensor"
    }
    return replace(group[0], names=tuple(name for bucket in group for name in bucket.names), **tensors)


def class_bucket(size: tuple[int, int], area: int, step: int = 64) -> tuple[int, int]:
    """Width and height, multiples of `step` of about `area` pixels, nearest to the image's aspect."""
    wanted = size[0] / size[1]
    widths = range(step, 4 * int(area**0.5) + 1, step)
    options = [(width, max(step, int(area / width) // step * step)) for width in widths]
    return min(options, key=lambda option: abs(np.log(option[0] / option[1] / wanted)))
