"""Colours that a part of the figure never had, as the nearest it has: grey hair is drawn white, a pink coat red.

Each part was taught colours of its own. Another one would vanish in the reading, and the part would get any colour at all.
"""

from __future__ import annotations

import re

from charengine.embedded.lexicon import COLOUR_WORDS, GARMENT_WORDS, HEADGEAR_PHRASES, SPECIES_WORDS
from charengine.embedded.plainly import any_of
from charengine.embedded.traits import COLOURED_HEADGEAR, TRAITS

_HAIR = ("hair", "haired", "hairdo", "haircut", "ponytail", "pony tail", "mohawk", "bun", "topknot", "braids", "pigtails", "afro", "curls")  # fmt: skip
# The first of these that a part has.
_LIKE = {
    "grey": ("white", "blue"),
    "purple": ("pink", "blue"),
    "yellow": ("blonde", "tan", "brown", "red"),
    "blonde": ("yellow", "tan", "brown", "red"),
    "orange": ("red",),
    "pink": ("pale", "red"),
    "green": ("blue",),
    "black": ("dark", "blue"),
    "brown": ("red",),
    "white": ("blue",),
}
_MEANS = {
    word: {value for value, words in COLOUR_WORDS.items() if word in words}
    for words in COLOUR_WORDS.values()
    for word in words
}
PEOPLE = ("woman", "man", "girl")
_OF_BEINGS = {"black", "blonde"}  # dark skin, and hair: the reading knows
_BEINGS = [word for kind, words in SPECIES_WORDS.items() if kind not in PEOPLE for word in words]
_WORN = {
    name: [word for value in TRAITS[name] for word in GARMENT_WORDS.get(value, ())]
    for name in ("top", "bottom", "footwear")
}
_PARTS = (
    (_HAIR, TRAITS["hair_colour"]),
    (["skin", "skinned"], TRAITS["skin"]),
    (["tattoo", "tattoos", "runes"], TRAITS["tattoo"]),
    ([word for value in COLOURED_HEADGEAR for word in HEADGEAR_PHRASES[value]], TRAITS["headgear_colour"]),
    *((words, TRAITS[f"{name}_colour"]) for name, words in _WORN.items()),
    (_BEINGS, TRAITS["skin"]),
)
_ENDS = ("and", "with", "in", "of", "on", "or", "a", "an", "the", "his", "her", "its", "their", "wearing", "wears", "has", "but", "who")  # fmt: skip
_NOT_BETWEEN = any_of({*_ENDS, *_MEANS, *(word for words, _ in _PARTS for word in words)})
_RULES = tuple(
    (
        re.compile(
            rf"\b(?P<colour>{any_of(_MEANS)})(?P<rest>(?:[\s-]+(?!(?:{_NOT_BETWEEN})\b)[a-z]+){{0,3}}[\s-]+(?P<thing>{any_of(words)}))\b",
            re.IGNORECASE,
        ),
        frozenset(colours) - {"none"},
    )
    for words, colours in _PARTS
)


def in_its_shades(text: str, changed: dict[str, None]) -> str:
    """The prompt with colours that the parts they are said of have.

    Args:
        text: the prompt, in known words.
        changed: "grey hair as white hair" is added to its keys for each.

    >>> in_its_shades("an elf with long silver hair in a pink coat", {})
    'an elf with long white hair in a red coat'
    """

    def shade(match: re.Match[str], colours: frozenset[str]) -> str:
        word, thing = match["colour"].lower(), match["thing"].lower()
        if _MEANS[word] & colours or (thing in _BEINGS and _MEANS[word] & _OF_BEINGS):
            return match[0]
        known = next(one for value in sorted(_MEANS[word]) for one in _LIKE[value] if one in colours)
        changed[f"{word} {thing} as {known} {thing}"] = None
        return known + match["rest"]

    for pattern, colours in _RULES:
        text = pattern.sub(lambda match, colours=colours: shade(match, colours), text)  # type: ignore[misc]
    return text
