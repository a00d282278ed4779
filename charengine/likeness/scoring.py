"""From pictures to scores: references on the picture's own background, figures cut out where the background is plain.

A character on white resembles any picture on white. So each picture is compared with the sheet's views pasted on the
picture's own border colour: a white background learned from the sheet then earns no identity by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from charengine.likeness import metrics
from charengine.likeness.metrics import CellScores
from charengine.likeness.prompts import SweepPrompt
from charengine.records import ExtraView, ViewName, ViewsRecord
from charengine.store import Store

if TYPE_CHECKING:
    from PIL.Image import Image

    from charengine.models import Embedder
from charengine.pictures import open_image

Colour = tuple[int, int, int]
MARGIN = 0.06  # of the figure's longer side, left around it
PLAIN_SHARE = 0.9  # of the border in one colour: the background is plain
SMALLEST_FIGURE = 0.02  # of the image; less is a speck, and nobody is there


class References:
    """The sheet's views as cut-outs, embedded on any background colour (each colour once).

    Args:
        views: the sheet's own, with their masks.
        embedder: identity embeddings and CLIP-T.
        store: where the views lie.
        extras: more views that were trained on: pictures may copy them too.
    """

    def __init__(
        self, views: ViewsRecord, embedder: Embedder, store: Store, extras: tuple[ExtraView, ...] = ()
    ) -> None:
        self.embedder = embedder
        self.background = views.background
        self.views: list[ViewName] = [view.view for view in views.views]
        self._images = [open_image(store.get(view.image)) for view in views.views]
        self._masks = [open_image(store.get(view.alpha), "L") for view in views.views]
        self._extras = [open_image(store.get(extra.image)) for extra in extras]
        self._embedded: dict[Colour, torch.Tensor] = {}

    def on(self, colour: Colour) -> torch.Tensor:
        """Embeddings (views, d) of the views pasted on a colour."""
        colour = self._nearest(colour)
        if colour not in self._embedded:
            self._embedded[colour] = self.embedder.embed_images(self.pictures(colour))
        return self._embedded[colour]

    def pictures(self, colour: Colour) -> list[Image]:
        """The views as squares on a colour, the figure filling them up to the margin."""
        pairs = zip(self._images, self._masks, strict=True)
        return [frame(paste(image, mask, colour), solid_box(mask), colour) for image, mask in pairs]

    def ceiling(self) -> float:
        """Mean cosine between the sheet's own views."""
        return metrics.ceiling(self.on(self.background))

    def thumbnails(self) -> torch.Tensor:
        """The training images as the copying metric sees them, (views, 3, side, side)."""
        whole = [(0, 0, *image.size) for image in self._images]
        pairs = zip(self._images, whole, strict=True)
        views = [frame(image, box, self.background, margin=0.0) for image, box in pairs]
        return metrics.thumbnails([*views, *(_square(extra) for extra in self._extras)])

    def allowed(self, view: ViewName | None) -> torch.Tensor:
        """(views,) bool: the view a prompt names, or all of them."""
        named = torch.tensor([name == view for name in self.views])
        return named if named.any() else torch.ones(len(self.views), dtype=torch.bool)

    def _nearest(self, colour: Colour) -> Colour:
        """Few distinct colours: the sheet's own when close to it, else the middle of a 16-level cell."""
        if max(abs(a - b) for a, b in zip(colour, self.background, strict=True)) <= metrics.NEAR_BACKGROUND:
            return self.background
        red, green, blue = (value // 16 * 16 + 8 for value in colour)
        return red, green, blue


def score_cell(
    images: Sequence[Sequence[Image]], prompts: Sequence[SweepPrompt], class_noun: str, references: References
) -> CellScores:
    """Score the images of one cell.

    Args:
        images: a row of seeds per prompt.
        prompts: what was asked for.
        class_noun: stands for the trigger when adherence is scored.
        references: the sheet's views.
    """
    shape = (len(prompts), len(images[0]))
    flat = [image for row in images for image in row]
    asked = [prompt for prompt, row in zip(prompts, images, strict=True) for _ in row]
    colours = [border_colour(image) for image in flat]
    figures = [figure(image, colour) for image, colour in zip(flat, colours, strict=True)]
    embedder = references.embedder
    embedded = embedder.embed_images(figures)
    on_same_colour = torch.stack([references.on(colour) for colour in colours])
    allowed = torch.stack([references.allowed(prompt.view) for prompt in asked])
    similar = metrics.identity(embedded, on_same_colour, allowed)
    small = metrics.thumbnails([_square(image) for image in flat])
    copied = metrics.copying(small, references.thumbnails())
    leaked = torch.tensor([metrics.background_leak(image, references.background) for image in flat])
    adherence, margin = match_all(flat, asked, prompts, class_noun, embedder)
    is_class = torch.tensor([prompt.kind == "class" for prompt in asked])
    is_view = torch.tensor([prompt.kind == "view" for prompt in asked])
    nan = torch.tensor(float("nan"))
    layout = torch.where(is_view[:, None, None, None], nan, small).reshape(*shape, *small.shape[1:])
    return CellScores(
        identity=torch.where(is_class, nan, similar).reshape(shape),
        adherence=adherence.reshape(shape),
        margin=margin.reshape(shape),
        diversity=metrics.diversity(layout),
        copying=torch.where(is_view, nan, copied).reshape(shape),
        leak=torch.where(is_view, nan, leaked).reshape(shape),
        class_identity=torch.where(is_class, similar, nan).reshape(shape),
        layout=layout,
    )


def match_all(
    images: Sequence[Image],
    asked: Sequence[SweepPrompt],
    prompts: Sequence[SweepPrompt],
    class_noun: str,
    embedder: Embedder,
) -> tuple[torch.Tensor, torch.Tensor]:
    """CLIP-T of each image with its own prompt, and that minus its mean with the other prompts; both (n,)."""
    texts = list(dict.fromkeys(prompt.to_score(class_noun) for prompt in prompts))
    own = torch.tensor([texts.index(prompt.to_score(class_noun)) for prompt in asked])
    grid = match_grid(images, texts, embedder)
    adherence = grid[torch.arange(len(images)), own]
    others = (grid.sum(dim=1) - adherence) / max(len(texts) - 1, 1)
    return adherence, adherence - others


def match_grid(images: Sequence[Image], texts: Sequence[str], embedder: Embedder) -> torch.Tensor:
    """CLIP-T of each image with each text, (images, texts)."""
    pairs = [(image, text) for image in images for text in texts]
    return embedder.match([image for image, _ in pairs], [text for _, text in pairs]).reshape(len(images), len(texts))


def border_colour(image: Image) -> Colour:
    """Per-channel median of the outer ring."""
    red, green, blue = (int(value) for value in metrics.border_pixels(image).median(dim=0).values)
    return red, green, blue


def figure(image: Image, background: Colour) -> Image:
    """The figure framed as the references are, if the background is plain; else the whole image, unchanged."""
    image = image.convert("RGB")
    box = figure_mask(image, background).getbbox()
    return image if box in (None, (0, 0, *image.size)) else frame(image, box, background)


def figure_mask(image: Image, background: Colour | None = None) -> Image:
    """L mask, 255 where the figure is: what differs from a plain background, or everything if the background is busy."""
    from PIL import Image as pil

    background = background or border_colour(image)
    ring = metrics.border_pixels(image)
    near = (ring - torch.tensor(background, dtype=torch.float32)).abs().amax(dim=1) <= metrics.NEAR_BACKGROUND
    if float(near.float().mean()) >= PLAIN_SHARE:
        mask = _difference(image, background)
        box = mask.getbbox()
        if box and (box[2] - box[0]) * (box[3] - box[1]) >= SMALLEST_FIGURE * image.width * image.height:
            return mask
    return pil.new("L", image.size, 255)


def paste(image: Image, mask: Image, colour: Colour) -> Image:
    """The masked figure on a flat colour."""
    from PIL import Image as pil

    return pil.composite(image, pil.new("RGB", image.size, colour), mask)


def frame(image: Image, box: tuple[int, int, int, int] | None, colour: Colour, margin: float = MARGIN) -> Image:
    """Cut a box out of an image and centre it on a square of the colour, `margin` of its longer side around it."""
    from PIL import Image as pil

    cut = image.crop(box) if box else image
    side = round(max(cut.size) * (1 + 2 * margin))
    square = pil.new("RGB", (side, side), colour)
    square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
    return square


def solid_box(mask: Image) -> tuple[int, int, int, int] | None:
    """Bounding box of what is more than half opaque."""
    return mask.point([255 * (level > 127) for level in range(256)]).getbbox()


def _square(image: Image) -> Image:
    return frame(image.convert("RGB"), None, border_colour(image), margin=0.0)


def _difference(image: Image, background: Colour) -> Image:
    """L mask: 255 where any channel is farther from the background than NEAR_BACKGROUND."""
    from PIL import Image as pil
    from PIL import ImageChops

    apart = ImageChops.difference(image.convert("RGB"), pil.new("RGB", image.size, background))
    red, green, blue = apart.split()
    most = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    return most.point([255 * (level > metrics.NEAR_BACKGROUND) for level in range(256)])
