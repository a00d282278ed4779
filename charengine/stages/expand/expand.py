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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from charengine.config import Character, ExpandSettings
from charengine.embedded.shape import PICTURE_SIZE, VIEW_SIZE
from charengine.language.traits import colour_name
from charengine.likeness import metrics
from charengine.likeness.scoring import PLAIN_SHARE, border_colour, figure_mask
from charengine.models import Embedder, SheetEditor, reads_plain_words, untaught_by_editor
from charengine.pictures import open_image, padded, png
from charengine.records import ExpansionRecord, ExtraView, ViewsRecord
from charengine.store import Store

if TYPE_CHECKING:
    from PIL.Image import Image
from charengine.stages.expand.identity_rule import IdentityRule
from charengine.stages.expand.requests import PLAIN_REQUESTS, REQUESTS, ViewRequest

KINDS = frozenset(REQUESTS)
SIZE_STEP = 64  # sides of a picture are multiples of this, as SDXL's buckets are

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Task:
    """One more view that is wanted."""

    name: str
    kind: str
    request: ViewRequest


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
    rule = IdentityRule(views, embedder, store)
    missing, tried = tasks_of(settings, _requests(editor)), list[ExtraView]()
    for k in range(settings.candidates):
        drawn = [_draw(task, k, views, character, settings, editor, store) for task in missing]
        judged = [_judge(one, rule, settings, store) for one in drawn]
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
    untaught = untaught_by_editor(editor, character, "expand", settings)
    return ExpansionRecord(views=found, warnings=(*untaught, *_warnings(missing, settings, editor)))


def tasks_of(settings: ExpandSettings, requests: Mapping[str, tuple[ViewRequest, ...]] = REQUESTS) -> list[_Task]:
    """The kinds that there are requests of in turn, each with its next one, until there are enough."""
    kinds = [kind for kind in settings.kinds if kind in requests]
    tasks = []
    for i in range(settings.count if kinds else 0):
        turn, kind = i // len(kinds), kinds[i % len(kinds)]
        tasks.append(_Task(f"{kind}-{turn + 1}", kind, requests[kind][turn % len(requests[kind])]))
    return tasks


def _requests(editor: SheetEditor) -> Mapping[str, tuple[ViewRequest, ...]]:
    return PLAIN_REQUESTS if reads_plain_words(editor) else REQUESTS


def held_out_of(names: list[str], share: float, seed: int) -> frozenset[str]:
    """Which of the kept are never trained on: the share rounded, at least one of two or more, chosen by the seed."""
    if not share or len(names) < 2:
        return frozenset()
    order = sorted(names, key=lambda name: hashlib.sha256(f"hold out {seed} {name}".encode()).digest())
    return frozenset(order[: max(1, round(share * len(names)))])


def _draw(
    task: _Task,
    k: int,
    views: ViewsRecord,
    character: Character,
    settings: ExpandSettings,
    editor: SheetEditor,
    store: Store,
) -> _Drawn:
    view = next(view for view in views.views if view.view == task.request.source)
    picture = open_image(store.get(view.image)).convert("RGB")
    if reads_plain_words(editor):  # shown as it was cut, and drawn in a size that its diffusion model was taught
        source, size = padded(picture, VIEW_SIZE, views.background), PICTURE_SIZE
        instruction = _in_plain_words(task.request, character)
    else:
        side = max(SIZE_STEP, int(math.sqrt(view.width * view.height)) // SIZE_STEP * SIZE_STEP)
        source, size = padded(picture, (side, side), views.background), (side, side)
        instruction = _instruction(task.request, character, views.background)
    seed = int.from_bytes(hashlib.sha256(f"expand {character.seed} {task.name} {k}".encode()).digest()[:4], "big") >> 1
    image = editor.draw(
        source,
        instruction,
        negative_prompt=settings.negative_prompt,
        seed=seed,
        steps=settings.steps,
        guidance=settings.guidance,
        guided_above=settings.guided_above,
        conditioning="latents",
        size=size,
    )
    return _Drawn(task, instruction, seed, source, image)


def _instruction(request: ViewRequest, character: Character, background: tuple[int, int, int]) -> str:
    class_noun = character.class_noun
    ground = "" if request.scene else f" Plain {colour_name(background)} background."
    return (
        f"The same {class_noun} as in the picture: {request.words}. The character: {character.prompt.rstrip('. ')}. "
        "Face, hair, skin, outfit, colours and proportions stay exactly the same, and everything worn or held stays on the "
        f"same side of the body. One figure, no text.{ground}"
    )


def _in_plain_words(request: ViewRequest, character: Character) -> str:
    from charengine.embedded.grammar import edit_prompt, in_known_words

    return edit_prompt(in_known_words(character.prompt).text, character.class_noun, [request.words])


def _judge(drawn: _Drawn, rule: IdentityRule, settings: ExpandSettings, store: Store) -> ExtraView:
    """The picture measured and stored; kept unless it is less like the views than these are to each other."""
    task, image = drawn.task, drawn.image.convert("RGB")
    identity = rule.identity(image, task.request.framing)
    threshold = rule.least(task.request.framing) - settings.margin
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
        tags=task.request.tags,
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
    left_out = [kind for kind in settings.kinds if kind not in _requests(editor)]
    if left_out and set(settings.kinds) != KINDS:
        warnings.append(f"more views: the embedded edit model was not taught {', '.join(left_out)}")
    return tuple(warnings)
