"""Captions the views: trigger, class noun, view, framing, tags; the character's own traits pruned so that the trigger means them."""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from PIL import Image

from charengine.config import TRIGGER_PATTERN, CaptionSettings, Character
from charengine.dataset import dataset_digest
from charengine.models import Captioner, Description, describe_all
from charengine.records import CaptionRecord, DatasetRecord, ExtraView, ViewName, ViewRecord, ViewsRecord
from charengine.sheet_prompt import find_side_items
from charengine.store import Store
from charengine.words import (
    BACKGROUND_TAG,
    COLOURS,
    COMMON_NAMES,
    FRAMING_TAG,
    KINDS,
    NAMED_ONE_BY_ONE,
    ONE_SIDED,
    PHRASE_ENDS,
    SCENE,
    TRAIT_WORDS,
    VIEW_TAG,
)

STAGE_VERSION = 1

VIEW_TAGS: dict[str, tuple[str, ...]] = {
    "front": ("front view",),
    "side": ("from side", "profile"),
    "back": ("from behind",),
    "three-quarter": ("three-quarter view",),
}
FRAMING = "full body"
CLIP_TOKENS = 75
COMMON_SHARE = 2 / 3  # of the views: a trait seen in fewer is not the character's own
_FILLER = re.compile(r"\b(?:a|an|the|with|and|of|his|her|its|their|on|in|is|holding|carrying|wearing)\b")
_SIDE_TAG = re.compile(r"\b(left|right)\b")
_AFTER_VOWEL = ("xo", "zix", "vox", "qul", "zuq", "xi")
_AFTER_CONSONANT = ("ix", "oz", "uxa", "yx", "azu", "oxi")


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
        said = _content(tag)
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
    class_noun = character.class_noun or derive_class_noun(character.prompt)
    trigger = character.trigger or derive_trigger(character.name)

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


# --- class noun and trigger -------------------------------------------------------------------------------------------


def derive_class_noun(prompt: str) -> str:
    """What kind of being the prompt is about: the end of its first noun phrase that names one, else "character".

    >>> derive_class_noun("an orc woman in a blue coat, her right hand is a hook")
    'orc woman'
    """
    phrase: list[str] = []
    for word in [*re.findall(r"[a-z][a-z'-]*|[,.;:()]", prompt.lower()), "."]:
        if word in PHRASE_ENDS or not word[0].isalpha():
            if noun := _last_kinds(phrase):
                return noun
            phrase = []
        else:
            phrase.append(word.removesuffix("'s"))
    return "character"


def _last_kinds(words: list[str]) -> str:
    """The last run of at most two neighbouring words that name a kind of being."""
    ends = [i for i, word in enumerate(words) if word in KINDS]
    if not ends:
        return ""
    last = ends[-1]
    return " ".join(words[last - 1 : last + 1]) if last and words[last - 1] in KINDS else words[last]


def derive_trigger(name: str, count_tokens: Callable[[str], int] | None = None) -> str:
    """A rare, pronounceable, lower-case word made from the name, the same for the same name everywhere.

    Args:
        name: the character's name.
        count_tokens: CLIP tokens of a text; the candidate with the fewest is taken.
    """
    letters = re.sub(r"[^a-z0-9]", "", name.lower()).lstrip("0123456789")
    letters = letters if len(letters) > 1 else f"{letters or 'ch'}ara"
    turn = hashlib.sha256(name.encode()).digest()[0]
    stems = dict.fromkeys(letters[:length] for length in (5, 4, 6, 3))
    words = [stem + ending for stem in stems for ending in _endings(stem, turn)]
    fit = [word for word in words if TRIGGER_PATTERN.match(word) and not _is_known_word(word)]
    if count_tokens is None:
        return fit[0]
    counts = {word: count_tokens(word) for word in fit}
    return min(fit, key=lambda word: counts[word])  # min keeps the first of equals


def _endings(stem: str, turn: int) -> list[str]:
    """Rare endings that can be said after the stem, in an order of the name's own."""
    endings = _AFTER_VOWEL if stem[-1] in "aeiouy" else _AFTER_CONSONANT
    return [endings[(turn + i) % len(endings)] for i in range(len(endings))]


def _is_known_word(word: str) -> bool:
    """Whether a model may already know the word: names, words of our lists, the embedded family's vocabulary."""
    from charengine.embedded.lexicon import VOCABULARY

    lists = (KINDS, COLOURS, COMMON_NAMES, VOCABULARY, *TRAIT_WORDS.values())
    return any(word in words for words in lists)


# --- tags -------------------------------------------------------------------------------------------------------------


def trait_kinds(tag: str) -> frozenset[str]:
    """Which kinds of trait a tag states: "hair", "marks", "outfit:coat"…; empty for a pose or a scene."""
    found = set()
    for word in re.findall(r"[a-z]+", tag.lower()):
        for kind, words in TRAIT_WORDS.items():
            if word in words:
                found.add(f"{kind}:{word.rstrip('s')}" if kind in NAMED_ONE_BY_ONE else kind)
    return frozenset(found)


def background_tags(colour: tuple[int, int, int]) -> tuple[str, str]:
    """What the padded background looks like, in tags."""
    return "simple background", f"{colour_name(colour)} background"


def colour_name(colour: tuple[int, int, int]) -> str:
    """A plain word for an RGB colour, 0-255."""
    high, low = max(colour), min(colour)
    if high - low < 28:
        return "white" if low > 225 else "black" if high < 50 else "grey"
    red, green, blue = colour
    if high == green:
        return "yellow" if red > 0.8 * green else "green"
    if high == blue:
        return "purple" if red > 0.6 * blue and red > green else "blue"
    return "yellow" if green > 0.8 * red else "orange" if green > 0.5 * red else "pink" if blue > 0.6 * red else "red"


def is_side_bound(prompt: str, seen: Iterable[Description] = ()) -> bool:
    """Whether mirroring would make another character: the prompt or a caption binds something to one side."""
    if find_side_items(prompt) or ONE_SIDED.search(prompt.lower()):
        return True
    tags = [tag for description in seen for tag in description.tags]
    return any(_SIDE_TAG.search(tag) and trait_kinds(tag) and not SCENE.search(tag) for tag in tags)


def _own_traits(prompt: str, tags_by_view: list[tuple[str, ...]], keep: tuple[str, ...]) -> _Traits:
    needed = math.ceil(COMMON_SHARE * len(tags_by_view))
    kinds_by_view = [frozenset().union(*map(trait_kinds, tags)) for tags in tags_by_view]
    common = {kind for kinds in kinds_by_view for kind in kinds if sum(kind in one for one in kinds_by_view) >= needed}
    return _Traits(
        frozenset(_content(prompt)), trait_kinds(prompt) | common, frozenset(tag.strip().lower() for tag in keep)
    )


def _sorted_out(
    tags: tuple[str, ...], traits: _Traits, settings: CaptionSettings, class_noun: str
) -> tuple[list[str], list[str]]:
    """Tags to keep, and the character's own that were pruned; view, framing and background are written by us."""
    kept: list[str] = []
    pruned: list[str] = []
    dropped = {tag.lower() for tag in settings.drop}
    for tag in dict.fromkeys(tag.strip().lower() for tag in tags):
        written_by_us = any(pattern.search(tag) for pattern in (VIEW_TAG, FRAMING_TAG, BACKGROUND_TAG))
        if not tag or written_by_us or tag in dropped or tag == class_noun:
            continue
        (pruned if settings.prune and traits.own(tag) else kept).append(tag)
    return kept, pruned


def _content(text: str) -> frozenset[str]:
    """Words that carry meaning, plural s removed."""
    return frozenset(word.rstrip("s") for word in re.findall(r"[a-z]+", _FILLER.sub(" ", text.lower())))


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
