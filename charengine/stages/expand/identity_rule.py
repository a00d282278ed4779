"""How like the sheet's own views another picture must be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from charengine.likeness.scoring import Colour, References, border_colour, figure, frame, paste, solid_box
from charengine.models import Embedder
from charengine.records import ViewsRecord
from charengine.store import Store

if TYPE_CHECKING:
    from PIL.Image import Image
from charengine.stages.expand.requests import CLOSE_UP, FULL_BODY

HEAD_SHARE = 0.3  # of a figure's height: head and shoulders


class IdentityRule:
    """How alike the sheet's views are among themselves, in each framing.

    Args:
        views: the sheet's own.
        embedder: identity embeddings.
        store: where the views lie.
    """

    def __init__(self, views: ViewsRecord, embedder: Embedder, store: Store) -> None:
        faces = views.model_copy(update={"views": tuple(view for view in views.views if view.view != "back")})
        self._references = {FULL_BODY: References(views, embedder, store), CLOSE_UP: _Heads(faces, embedder, store)}
        self.embedder = embedder

    def least(self, framing: str) -> float:
        """Cosine of the two views that are least alike."""
        references = self._references[framing]
        rows = references.on(references.background)
        cosine = rows @ rows.T
        return float(min(cosine[i, j] for i in range(len(rows)) for j in range(i))) if len(rows) > 1 else 1.0

    def identity(self, image: Image, framing: str) -> float:
        """Cosine of a picture with the most similar view, pasted on the picture's own background."""
        references, colour = self._references[framing], border_colour(image)
        own = self.embedder.embed_images([figure(image, colour)])
        return float((own @ references.on(colour).T).max())


class _Heads(References):
    """The heads of the views that show a face, as close-ups are compared with."""

    def __init__(self, views: ViewsRecord, embedder: Embedder, store: Store) -> None:
        super().__init__(views, embedder, store)
        boxes = [head_box(mask) for mask in self._masks]
        self._images = [image.crop(box) for image, box in zip(self._images, boxes, strict=True)]
        self._masks = [mask.crop(box) for mask, box in zip(self._masks, boxes, strict=True)]

    def pictures(self, colour: Colour) -> list[Image]:
        """The heads on a colour, filling their squares as a close-up fills its picture."""
        pairs = zip(self._images, self._masks, strict=True)
        return [frame(paste(image, mask, colour), None, colour, margin=0.0) for image, mask in pairs]


def head_box(mask: Image) -> tuple[int, int, int, int]:
    """The square at the top of a figure, `HEAD_SHARE` of its height, centred on what is there; inside the mask."""
    x0, top, x1, bottom = solid_box(mask) or (0, 0, *mask.size)
    side = max(1, round(HEAD_SHARE * (bottom - top)))
    head = solid_box(mask.crop((x0, top, x1, top + side))) or (0, 0, x1 - x0, side)
    left = x0 + (head[0] + head[2] - side) // 2
    return max(0, left), top, min(mask.width, left + side), min(mask.height, top + side)
