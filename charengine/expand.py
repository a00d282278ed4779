"""More views: the edit model shows the character closer, turned, with another expression, pose or background.

An edit model changes what it should keep as readily as what it is asked to change, so each picture is measured before it may
teach anything: its identity, taken as the sweep takes it (the figure, against the sheet's views pasted on the picture's own
background), must not be below that of the sheet's two least alike views. A close-up is compared with the heads of the
front and side view: the back of a head is too unlike its face to be a measure.
"""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from charengine.caption import VIEW_TAGS, colour_name, derive_class_noun
from charengine.config import Character, ExpandSettings
from charengine.crop import png
from charengine.evaluation import metrics
from charengine.evaluation.scoring import (
    PLAIN_SHARE,
    Colour,
    References,
    border_colour,
    figure,
    figure_mask,
    frame,
    open_image,
    paste,
    solid_box,
)
from charengine.models import Embedder, SheetEditor
from charengine.records import DatasetRecord, ExpansionRecord, ExtraView, ViewName, ViewsRecord
from charengine.store import Store

if TYPE_CHECKING:
    from PIL.Image import Image

STAGE_VERSION = 1

HEAD_SHARE = 0.3  # of a figure's height: head and shoulders
SIZE_STEP = 64  # sides of a picture are multiples of this, as SDXL's buckets are
FULL_BODY, CLOSE_UP = "full body", "close-up"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wish:
    """What to ask for.

    Args:
        words: in the instruction to the edit model.
        view: how its caption names the direction it is seen from.
        framing: "full body" or "close-up"; also what it is compared with.
        source: the view that is edited.
        scene: it has a background of its own, instead of the sheet's colour.
    """

    words: str
    view: tuple[str, ...] = VIEW_TAGS["front"]
    framing: str = FULL_BODY
    source: ViewName = "front"
    scene: bool = False

    @property
    def tags(self) -> tuple[str, ...]:
        """View and framing words of its caption."""
        return (*self.view, self.framing)


def _faces(*expressions: str) -> tuple[Wish, ...]:
    return tuple(Wish(f"close-up of the face, {words}, facing the viewer", framing=CLOSE_UP) for words in expressions)


THREE_QUARTER = VIEW_TAGS["three-quarter"]
WISHES: dict[str, tuple[Wish, ...]] = {
    "close-up": (
        Wish("close-up of the face, head and shoulders, facing the viewer", framing=CLOSE_UP),
        Wish("close-up of the face in profile, head and shoulders", VIEW_TAGS["side"], CLOSE_UP, "side"),
        Wish("close-up of the face in three-quarter view, head and shoulders", THREE_QUARTER, CLOSE_UP),
    ),
    "three-quarter": (
        Wish("full body from head to feet, turned halfway to one side: three-quarter view", THREE_QUARTER),
        Wish(
            "full body from head to feet, turned halfway away from the viewer: three-quarter view from behind",
            (*THREE_QUARTER, *VIEW_TAGS["back"]),
            source="back",
        ),
    ),
    "expression": _faces("smiling", "angry, frowning", "surprised, mouth open", "sad, looking down"),
    "pose": tuple(
        Wish(f"full body from head to feet, {words}")
        for words in ("walking", "both arms raised", "sitting", "running", "kneeling on one knee", "hands on hips")
    ),
    "background": tuple(
        Wish(f"full body from head to feet, standing {words}", scene=True)
        for words in ("in a forest", "in a city street at night", "on a beach", "in the hall of a castle")
    ),
}


@dataclass(frozen=True)
class _Task:
    """One more view that is wanted."""

    name: str
    kind: str
    wish: Wish


@dataclass(frozen=True)
class _Drawn:
    """What the edit model made of it."""

    task: _Task
    instruction: str
    seed: int
    source: Image
    image: Image


def expand_views(
    views: ViewsRecord,
    character: Character,
    settings: ExpandSettings,
    editor: SheetEditor,
    embedder: Embedder,
    store: Store,
) -> ExpansionRecord:
    """Draw more views of a character, and keep those that are the character.

    Args:
        views: the sheet's own, which are edited and compared with.
        character: its prompt says what to keep, its seed decides the noise and what is held out.
        settings: how many, of which kinds, and how alike they must be.
        editor: shown a view as VAE latents too, so that it can keep what it sees.
        embedder: the one that the sweep scores identity with.
        store: where every picture goes, the refused ones too.
    """
    yardstick = Yardstick(views, embedder, store)
    missing, tried = tasks_of(settings), list[ExtraView]()
    for k in range(settings.candidates):
        drawn = [_draw(task, k, views, character, settings, editor, store) for task in missing]
        judged = [_judge(one, yardstick, settings, store) for one in drawn]
        tried += judged
        missing = [task for task, view in zip(missing, judged, strict=True) if view.fate == "refused"]
        embedder.unload()  # the edit model needs the room
        if not missing:
            break
    held_out = held_out_of([view.view for view in tried if view.fate != "refused"], settings.holdout, character.seed)
    found = tuple(
        view.model_copy(update={"fate": "held out"}) if view.fate != "refused" and view.view in held_out else view
        for view in tried
    )
    return ExpansionRecord(views=found, warnings=_warnings(missing, settings, editor))


def tasks_of(settings: ExpandSettings) -> list[_Task]:
    """The kinds in turn, each with its next wish, until there are enough."""
    tasks = []
    for i in range(settings.count):
        turn, kind = i // len(settings.kinds), settings.kinds[i % len(settings.kinds)]
        tasks.append(_Task(f"{kind}-{turn + 1}", kind, WISHES[kind][turn % len(WISHES[kind])]))
    return tasks


def held_out_of(names: list[str], share: float, seed: int) -> frozenset[str]:
    """Which of the kept are never trained on: the share rounded, at least one of two or more, chosen by the seed."""
    if not share or len(names) < 2:
        return frozenset()
    order = sorted(names, key=lambda name: hashlib.sha256(f"hold out {seed} {name}".encode()).digest())
    return frozenset(order[: max(1, round(share * len(names)))])


class Yardstick:
    """How alike the sheet's views are among themselves, in each framing.

    Args:
        views: the sheet's own.
        embedder: identity embeddings.
        store: where the views lie.
    """

    def __init__(self, views: ViewsRecord, embedder: Embedder, store: Store) -> None:
        bare = DatasetRecord(trigger="", class_noun="", views=views, captions=(), digest="")
        faces = views.model_copy(update={"views": tuple(view for view in views.views if view.view != "back")})
        self._references = {
            FULL_BODY: References(bare, embedder, store),
            CLOSE_UP: _Heads(bare.model_copy(update={"views": faces}), embedder, store),
        }
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

    def __init__(self, dataset: DatasetRecord, embedder: Embedder, store: Store) -> None:
        super().__init__(dataset, embedder, store)
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


def _draw(
    task: _Task,
    k: int,
    views: ViewsRecord,
    character: Character,
    settings: ExpandSettings,
    editor: SheetEditor,
    store: Store,
) -> _Drawn:
    view = next(view for view in views.views if view.view == task.wish.source)
    side = max(SIZE_STEP, int(math.sqrt(view.width * view.height)) // SIZE_STEP * SIZE_STEP)
    whole = frame(open_image(store.get(view.image)), None, views.background, margin=0.0)
    source = whole.resize((side, side))
    instruction = _instruction(task.wish, character, views.background)
    seed = int.from_bytes(hashlib.sha256(f"expand {character.seed} {task.name} {k}".encode()).digest()[:4], "big") >> 1
    image = editor.draw(
        source,
        instruction,
        negative_prompt=settings.negative_prompt,
        seed=seed,
        steps=settings.steps,
        guidance=settings.guidance,
        conditioning="latents",
    )
    return _Drawn(task, instruction, seed, source, image)


def _instruction(wish: Wish, character: Character, background: tuple[int, int, int]) -> str:
    class_noun = character.class_noun or derive_class_noun(character.prompt)
    ground = "" if wish.scene else f" Plain {colour_name(background)} background."
    return (
        f"The same {class_noun} as in the picture: {wish.words}. The character: {character.prompt.rstrip('. ')}. "
        "Face, hair, skin, outfit, colours and proportions stay exactly the same, and everything worn or held stays on the "
        f"same side of the body. One figure, no text.{ground}"
    )


def _judge(drawn: _Drawn, yardstick: Yardstick, settings: ExpandSettings, store: Store) -> ExtraView:
    """The picture measured and stored; kept unless it is less like the views than these are to each other."""
    task, image = drawn.task, drawn.image.convert("RGB")
    identity = yardstick.identity(image, task.wish.framing)
    threshold = yardstick.least(task.wish.framing) - settings.margin
    copied = metrics.copying(metrics.thumbnails([image]), metrics.thumbnails([drawn.source]))
    colour = border_colour(image)
    kept = identity >= threshold
    log.info(
        "%s, seed %d: identity %.3f, at least %.3f: %s",
        task.name, drawn.seed, identity, threshold, "kept" if kept else "refused",
    )  # fmt: skip
    return ExtraView(
        view=task.name,
        kind=task.kind,
        instruction=drawn.instruction,
        tags=task.wish.tags,
        seed=drawn.seed,
        fate="trained" if kept else "refused",
        identity=identity,
        threshold=threshold,
        copying=float(copied[0]),
        image=store.put(png(image), f"{task.name}.png"),
        alpha=store.put(png(figure_mask(image, colour)), f"{task.name}_mask.png"),
        width=image.width,
        height=image.height,
        background=colour if metrics.background_leak(image, colour) >= PLAIN_SHARE else None,
    )


def _warnings(missing: list[_Task], settings: ExpandSettings, editor: SheetEditor) -> tuple[str, ...]:
    warnings = []
    if missing:
        names = ", ".join(task.name for task in missing)
        warnings.append(
            f"{len(missing)} of {settings.count} more views were refused ({names}): they are less like the sheet's views than "
            "these are to each other"
        )
    if getattr(editor, "prompt_style", "rich") == "plain":
        warnings.append("more views: the embedded edit model was taught to draw sheets, not to change a picture")
    return tuple(warnings)
