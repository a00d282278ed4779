"""Identity, adherence, diversity, copying and background leak: pure functions over embeddings and images.

Sources: DreamBooth (2208.12242) for identity as cosine of image embeddings, CLIP-T and diversity within a prompt;
LyCORIS (2309.14859) for scoring checkpoints along several axes. What is ours: every axis has a measured zero and one
(strength 0, the sheet's own views, another prompt's text), so that scores mean the same for any embedder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from PIL.Image import Image

COPY_SIDE = 24  # pixels: coarse enough to forgive texture, fine enough to see pose and layout
NEAR_BACKGROUND = 24  # 0-255 per channel
MIN_SPAN = 0.02  # smallest cosine distance between a zero and a one that can be told from noise
READ = 0.7  # of the character's likeness is what a reader sees of its traits, the rest identity (lab notes, 2026-11-30)
MIN_READ = 0.1  # smallest distance between the base model's traits and the sheet's that a reader can be asked about


@dataclass(frozen=True)
class CellScores:
    """Scores of one cell, image by image.

    Attributes:
        identity: (prompts, seeds) cosine to the matching view of the sheet; NaN for class prompts.
        adherence: (prompts, seeds) CLIP-T of the prompt with the class noun for the trigger.
        margin: (prompts, seeds) adherence minus the image's mean CLIP-T with the other prompts; what a picture owes to
            the class noun, or to looking like the character, cancels out.
        diversity: (prompts,) mean pairwise 1 - correlation between the small pictures of a prompt's seeds; NaN with a single
            seed and for view prompts, which ask for the same picture every time.
        copying: (prompts, seeds) correlation with the most similar training view; NaN for view prompts.
        leak: (prompts, seeds) share of the border in the sheet's background colour; NaN for view prompts.
        class_identity: (prompts, seeds) identity of class prompts; NaN for the others.
        layout: (prompts, seeds, 3, side, side) small pictures, NaN for view prompts; None where variety is not asked for.
        shown: (prompts, seeds) share of the described traits that a reader sees, of those that the picture can tell; NaN for
            class prompts and where none can be told; None where nobody read them.
    """

    identity: torch.Tensor
    adherence: torch.Tensor
    margin: torch.Tensor
    diversity: torch.Tensor
    copying: torch.Tensor
    leak: torch.Tensor
    class_identity: torch.Tensor
    layout: torch.Tensor | None = None
    shown: torch.Tensor | None = None


@dataclass(frozen=True)
class Scale:
    """Where the axes begin and end.

    Attributes:
        base: strength 0.
        ceiling: mean cosine between the sheet's own views.
        sheet_shown: share of the described traits that a reader sees in these views; None where nobody read them.
    """

    base: CellScores
    ceiling: float
    sheet_shown: float | None = None


@dataclass(frozen=True)
class Relative:
    """A cell against the scale: `gain` (`progress`) 0 = base model, 1 = the sheet's own views; `kept` 0 = as fitting for any other
    prompt, 1 = strength 0's margin; `diversity` = share of strength 0's; `score` in 0..1."""

    gain: float
    kept: float
    diversity: float
    score: float


def identity(embeddings: torch.Tensor, references: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Cosine to the most similar allowed reference.

    Args:
        embeddings: (n, d), L2-normalised.
        references: (n, r, d), L2-normalised; each image has its own copy of the r references.
        allowed: (n, r) bool; a prompt that names a view is compared with that view alone.

    Returns:
        (n,) in -1..1.
    """
    cosine = torch.einsum("nd,nrd->nr", embeddings, references)
    return cosine.masked_fill(~allowed, -2.0).amax(dim=1)


def ceiling(references: torch.Tensor) -> float:
    """Mean cosine between different views of the sheet, (r, d): as alike as the character is to itself; 1 for one view."""
    count = len(references)
    if count < 2:
        return 1.0
    cosine = references @ references.T
    return float((cosine.sum() - cosine.diagonal().sum()) / (count * (count - 1)))


def diversity(images: torch.Tensor) -> torch.Tensor:
    """Mean pairwise 1 - Pearson correlation between the seeds of each prompt: variety of layout, as DreamBooth's DIV.

    On small pictures, not on identity embeddings: those of strength 0 differ because every seed draws somebody else, and
    an adapter that draws one character would be punished for having learned it.

    Args:
        images: (prompts, seeds, 3, side, side) in 0..1.

    Returns:
        (prompts,) in 0..2; NaN when there is a single seed.
    """
    prompts, seeds = images.shape[:2]
    if seeds < 2:
        return torch.full((prompts,), float("nan"))
    flat = standardise(images.flatten(0, 1)).reshape(prompts, seeds, -1)
    cosine = torch.einsum("psd,ptd->pst", flat, flat)
    others = cosine.sum(dim=(1, 2)) - cosine.diagonal(dim1=1, dim2=2).sum(dim=1)
    return 1.0 - others / (seeds * (seeds - 1))


def copying(images: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
    """Pearson correlation of each small image with the training view it resembles most; 1 = the view itself.

    Args:
        images: (n, 3, side, side) in 0..1.
        views: (r, 3, side, side) in 0..1, padded to the same square.

    Returns:
        (n,) in -1..1.
    """
    return (standardise(images) @ standardise(views).T).amax(dim=1)


def thumbnails(images: Sequence[Image], side: int = COPY_SIDE) -> torch.Tensor:
    """Images as (n, 3, side, side) in 0..1, area-averaged."""
    from PIL import Image as pil

    small = [image.convert("RGB").resize((side, side), pil.Resampling.BOX) for image in images]
    return torch.stack([_pixels(image).permute(2, 0, 1) / 255 for image in small])


def background_leak(image: Image, background: tuple[int, int, int]) -> float:
    """Share of an image's border (a ring of 4 %) within NEAR_BACKGROUND of the sheet's background colour."""
    ring = border_pixels(image)
    near = (ring - torch.tensor(background, dtype=torch.float32)).abs().amax(dim=1) <= NEAR_BACKGROUND
    return float(near.float().mean())


def border_pixels(image: Image) -> torch.Tensor:
    """The outer ring, 4 % of the shorter side thick, as (n, 3) in 0..255."""
    import numpy as np

    pixels = np.asarray(image.convert("RGB"))
    ring = max(1, round(0.04 * min(pixels.shape[:2])))
    around = np.ones(pixels.shape[:2], dtype=bool)
    around[ring:-ring, ring:-ring] = False
    # the ring alone: turning the whole picture into floats takes six times as long
    return torch.from_numpy(pixels[around].astype(np.float32))


def relative(cell: CellScores, scale: Scale) -> Relative:
    """A cell on the scale."""
    base = scale.base
    gain = mean(progress(cell, scale))
    kept = mean(cell.margin) / max(mean(base.margin), MIN_SPAN)
    spread = mean(cell.diversity) / max(mean(base.diversity), 1e-6)
    return Relative(gain, kept, 1.0 if spread != spread else spread, score(gain, kept))


def progress(cell: CellScores, scale: Scale) -> torch.Tensor:
    """How far each picture is from the base model (0) to the sheet's own views (1), (prompts, seeds).

    Identity embeddings hardly see some traits (a pair of trousers, an item in a hand), a reader sees nothing but those that
    are described: where both were asked, it is a mean of both, `READ` of it the reader's.
    """
    alike = (cell.identity - mean(scale.base.identity)) / identity_span(scale)
    span = reading_span(scale)
    if span is None or cell.shown is None or scale.base.shown is None:
        return alike
    read = (cell.shown - mean(scale.base.shown)) / span
    return torch.where(read.isnan(), alike, (1 - READ) * alike + READ * read)


def reading_span(scale: Scale) -> float | None:
    """Distance from strength 0 to the sheet in described traits; None when nobody read them or they cannot be told apart."""
    if scale.sheet_shown is None or scale.base.shown is None:
        return None
    span = scale.sheet_shown - mean(scale.base.shown)
    return span if span >= MIN_READ else None


def identity_span(scale: Scale) -> float:
    """Distance from strength 0 to the ceiling; to a perfect match when the embedder sees none (see `blind`)."""
    zero = mean(scale.base.identity)
    return 1.0 - zero + 1e-6 if blind(scale) else scale.ceiling - zero


def blind(scale: Scale) -> bool:
    """Whether the embedder finds the sheet's views no more alike than the base model's images are to them."""
    return scale.ceiling - mean(scale.base.identity) < MIN_SPAN


def score(gain: float, kept: float) -> float:
    """Harmonic mean of identity gained and adherence kept, both clipped to 0..1: neither can make up for the other."""
    return float(scores(torch.tensor(gain, dtype=torch.float64), torch.tensor(kept, dtype=torch.float64)))


def scores(gain: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """`score` of many, shape by shape."""
    gain, kept = gain.clamp(0, 1), kept.clamp(0, 1)
    return torch.where(gain + kept > 0, 2 * gain * kept / (gain + kept).clamp_min(1e-12), 0.0)


def joined(parts: Sequence[CellScores]) -> CellScores:
    """One cell from scores of several of its seeds; variety is measured anew, between all of them."""
    if len(parts) == 1:
        return parts[0]
    layout, shown = _all_seeds([part.layout for part in parts]), _all_seeds([part.shown for part in parts])
    wide = {
        name: torch.cat([getattr(part, name) for part in parts], dim=1)
        for name in ("identity", "adherence", "margin", "copying", "leak", "class_identity")
    }
    spread = torch.full_like(parts[0].diversity, float("nan")) if layout is None else diversity(layout)
    return CellScores(diversity=spread, layout=layout, shown=shown, **wide)


def _all_seeds(parts: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """Parts (prompts, seeds, …) as one; None where one of them was not measured."""
    there = [part for part in parts if part is not None]
    return torch.cat(there, dim=1) if len(there) == len(parts) else None


def mean(values: torch.Tensor, missing: float = float("nan")) -> float:
    """Mean of what was measured (NaN is not); `missing` when nothing was."""
    found = float(torch.nanmean(values))
    return missing if found != found else found


def standardise(images: torch.Tensor) -> torch.Tensor:
    """Images flattened, with mean 0 and length 1: their dot products are Pearson correlations."""
    flat = images.flatten(1)
    flat = flat - flat.mean(dim=1, keepdim=True)
    unit: torch.Tensor = flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-6)
    return unit


def _pixels(image: Image) -> torch.Tensor:
    import numpy as np

    return torch.from_numpy(np.array(image, dtype=np.float32))
