"""Which tags state a character's own traits, and what a view or a background is called."""

from __future__ import annotations

import re
from collections.abc import Iterable

from charengine.language.sides import find_side_items
from charengine.language.words import NAMED_ONE_BY_ONE, ONE_SIDED, SCENE, TRAIT_WORDS
from charengine.models import Description

VIEW_TAGS: dict[str, tuple[str, ...]] = {
    "front": ("front view",),
    "side": ("from side", "profile"),
    "back": ("from behind",),
    "three-quarter": ("three-quarter view",),
}
_FILLER = re.compile(r"\b(?:a|an|the|with|and|of|his|her|its|their|on|in|is|holding|carrying|wearing)\b")
_SIDE_TAG = re.compile(r"\b(left|right)\b")


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


def content_words(text: str) -> frozenset[str]:
    """Words that carry meaning, plural s removed."""
    return frozenset(word.rstrip("s") for word in re.findall(r"[a-z]+", _FILLER.sub(" ", text.lower())))
