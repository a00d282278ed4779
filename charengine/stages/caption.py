"""Captions the views: trigger, class noun, view, framing, tags; the character's own traits pruned so that the trigger means them."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image

from charengine.config import CaptionSettings, Character
from charengine.dataset.digest import dataset_digest
from charengine.language.traits import VIEW_TAGS, background_tags, content_words, is_side_bound, trait_kinds
from charengine.language.words import BACKGROUND_TAG, FRAMING_TAG, SCENE, VIEW_TAG
from charengine.models import Captioner, Description, describe_all
from charengine.records import CaptionRecord, DatasetRecord, ExtraView, ViewName, ViewRecord, ViewsRecord
from charengine.stage import Given, Stage
from charengine.store import Store

FRAMING = "full body"
CLIP_TOKENS = 75
COMMON_SHARE = 2 / 3  # of the views: a trait seen in fewer is not the character's own


@dataclass(frozen=True)
class _Traits:
    """What belongs to the character: words of its prompt, and kinds of trait that it or most views name."""

    words: frozenset[str]
    kinds: frozenset[str]
    keep: frozenset[str]

    def own(self, tag: str) -> bool:
        """Whether the tag states a trait that the trigger is to mean."""
        if tag in self.keep or SCENE.search(tag):
            return False
        said = content_words(tag)
        return bool(trait_kinds(tag) & self.kinds) or (bool(said) and said <= self.words)


def caption_views(
    views: ViewsRecord,
    character: Character,
    settings: CaptionSettings,
    captioner: Captioner,
    store: Store,
    extras: tuple[ExtraView, ...] = (),
) -> DatasetRecord:
    """Caption the three views and any more there are, and put them together as a dataset.

    What the character's own traits are is read off the sheet's views alone, so that more views change no other caption.
    """
    class_noun, trigger = character.class_noun, character.trigger

    def look(pictured: Sequence[ViewRecord | ExtraView]) -> list[Description]:
        images = [Image.open(io.BytesIO(store.get(view.image))).convert("RGB") for view in pictured]
        return describe_all(captioner, images, class_noun) if images else []

    seen = dict(zip([view.view for view in views.views], look(views.views), strict=True))
    traits = _own_traits(character.prompt, [seen[view].tags for view in seen], settings.keep)
    warnings: list[str] = []

    def caption(
        view: str, description: Description, shown: tuple[str, ...], backdrop: tuple[str, ...]
    ) -> CaptionRecord:
        kept, pruned = _sorted_out(description.tags, traits, settings, class_noun)
        head = [trigger, class_noun, *shown]
        tags = _shortened(head, kept[: settings.max_tags], backdrop, view, warnings)
        text = ", ".join([*head, *tags, *backdrop])
        return CaptionRecord(view=view, text=text, tags=description.tags, pruned=tuple(pruned))

    captions = []
    for view, description in seen.items():
        shown = (*VIEW_TAGS[view], FRAMING)
        captions.append(caption(view, description, shown, background_tags(views.background)))
        warnings += _contradiction(view, description)
    for extra, description in zip(extras, look(extras), strict=True):  # apart: more views change no other caption
        captions.append(caption(extra.view, description, _shown(extra, description), _backdrop(extra, description)))
    found = tuple(captions)
    warnings += _named_in_vain(settings, [tag for caption in found for tag in caption.tags])
    return DatasetRecord(
        trigger=trigger,
        class_noun=class_noun,
        views=views,
        captions=found,
        digest=dataset_digest(views, found, extras),
        side_bound=is_side_bound(character.prompt, seen.values()),
        warnings=tuple(warnings),
        extras=extras,
    )


def _own_traits(prompt: str, tags_by_view: list[tuple[str, ...]], keep: tuple[str, ...]) -> _Traits:
    needed = math.ceil(COMMON_SHARE * len(tags_by_view))
    kinds_by_view = [frozenset().union(*map(trait_kinds, tags)) for tags in tags_by_view]
    common = {kind for kinds in kinds_by_view for kind in kinds if sum(kind in one for one in kinds_by_view) >= needed}
    return _Traits(frozenset(content_words(prompt)), trait_kinds(prompt) | common, frozenset(map(_as_compared, keep)))


def _as_compared(tag: str) -> str:
    return tag.strip().lower()


def _named_in_vain(settings: CaptionSettings, tags: Iterable[str]) -> list[str]:
    """Tags to keep or to drop that no view has: misspelt, they would be passed over in silence."""
    known = set(map(_as_compared, tags))
    return [
        f"caption.{name}: no view has the tag {tag!r}, so nothing was changed by it"
        for name, given in (("keep", settings.keep), ("drop", settings.drop))
        for tag in given
        if _as_compared(tag) not in known
    ]


def _sorted_out(
    tags: tuple[str, ...], traits: _Traits, settings: CaptionSettings, class_noun: str
) -> tuple[list[str], list[str]]:
    """Tags to keep, and the character's own that were pruned; view, framing and background are written by us."""
    kept: list[str] = []
    pruned: list[str] = []
    dropped = {_as_compared(tag) for tag in settings.drop}
    for tag in dict.fromkeys(map(_as_compared, tags)):
        written_by_us = any(pattern.search(tag) for pattern in (VIEW_TAG, FRAMING_TAG, BACKGROUND_TAG))
        if not tag or written_by_us or tag in dropped or tag == class_noun:
            continue
        (pruned if settings.prune and traits.own(tag) else kept).append(tag)
    return kept, pruned


def _shortened(head: list[str], tags: list[str], tail: tuple[str, ...], view: str, warnings: list[str]) -> list[str]:
    """As many tags as CLIP's 75 tokens hold, by a careful estimate."""
    kept = list(tags)
    while kept and _estimate_tokens(", ".join([*head, *kept, *tail])) > CLIP_TOKENS:
        kept.pop()
    if len(kept) < len(tags):
        warnings.append(
            f"the {view} caption was cut to {len(kept)} of {len(tags)} tags: CLIP reads {CLIP_TOKENS} tokens"
        )
    return kept


def _estimate_tokens(text: str) -> int:
    """CLIP tokens, rarely too few: one for a comma, one for each six letters of a word begun."""
    return sum(max(1, math.ceil(len(piece) / 6)) for piece in re.findall(r"\w+|[^\w\s]", text))


def _shown(extra: ExtraView, description: Description) -> tuple[str, ...]:
    """View and framing as asked for; where the captioner names another view, that one: the edit model may have its own mind."""
    seen = VIEW_TAGS.get(description.facts.get("view", ""))
    if seen is None or set(seen) & set(extra.tags):
        return extra.tags
    return (*seen, *(tag for tag in extra.tags if not VIEW_TAG.search(tag)))


def _backdrop(extra: ExtraView, description: Description) -> tuple[str, ...]:
    """A plain background by its measured colour; a scene as the captioner calls it, if it does."""
    if extra.background is not None:
        return background_tags(extra.background)
    said = description.facts.get("background", "")
    written = said in description.tags and not BACKGROUND_TAG.search(said)  # among the tags that are kept
    return (said,) if said and not written else ()


def _contradiction(view: ViewName, description: Description) -> list[str]:
    said = description.facts.get("view", "")
    if said in ("front", "side", "back") and said != view:
        return [f"the captioner takes the {view} view for a {said} view: look at the sheet"]
    return []


def _work(given: Given, views: ViewsRecord, *extras: ExtraView) -> DatasetRecord:
    return caption_views(views, given.character, given.settings, given.models.captioner, given.store, extras)


CAPTION = Stage(
    name="caption",
    version=2,
    makes=DatasetRecord,
    work=_work,
    settings="caption",
    character=("prompt", "class_noun", "trigger"),
    models=("captioner",),
    gpu=True,
)
