"""Turns a character's sentence into the full prompt of a sheet: each view told what it shows and hides, item by item."""

from __future__ import annotations

import re
from dataclasses import dataclass

FACE_PARTS = ("eye", "cheek", "ear", "brow", "eyebrow")
_PARTS = (
    "hand|arm|forearm|upper arm|shoulder|wrist|palm|fist|claw|paw|wing|hip|thigh|leg|knee|ankle|foot|horn|side|"
    + "|".join(FACE_PARTS)
)
_OWN = r"(?:his|her|its|their|the|a|an|one|my|whose)"
_SIDE = r"(?P<side>left|right)"
_PART = rf"(?P<part>{_PARTS})s?"
_ITEM = r"(?P<item>[a-z][a-z' -]*?)"
_STOP = (
    r"(?=$|[,.;:()]| and | with | wearing | holding | in (?:a|an|the|his|her|its|their) | but | while | who | that )"
)

# In order of trust. Text taken by one pattern is not read by the next.
_PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        # her right hand is a hook · his left arm has been replaced by a cannon
        rf"{_OWN} {_SIDE} {_PART} (?:is|was|has been|ends in|being)(?: (?:made|replaced|formed|covered))?"
        rf"(?: (?:of|by|with|in))?(?P<article> (?:a|an|the))? {_ITEM}{_STOP}",
        # a hook for a left hand · a blade instead of his right arm
        rf"{_ITEM} (?:for|instead of|in place of|as)(?: {_OWN})? {_SIDE} {_PART}\b",
        # in his left hand he carries a lantern · in her right hand a sword
        rf"(?:^|[,.;:] ?|\band )(?:in|on|over|with) (?:{_OWN} )?{_SIDE} {_PART},? (?:(?:he|she|it|they) )?"
        rf"(?:(?:is|holds|carries|has|wears|wields|grips|bears) )?(?:a|an|the) {_ITEM}{_STOP}",
        # eye patch on the left eye · carries a lantern in his left hand
        rf"{_ITEM} (?:on|in|over|across|around|at|through|under|below|covering|with)(?: {_OWN})? {_SIDE} {_PART}\b",
        # right hand hook · left eye patch
        rf"{_SIDE} {_PART} (?P<item>hook|sword|lantern|shield|staff|axe|patch|blade|claw|tattoo|scar|glove|gauntlet)\b",
        # a left mechanical arm · right robotic leg
        rf"{_SIDE} (?P<item>[a-z]+(?:ic|al|en|cyber|metal|steel|clockwork|prosthetic|missing|bionic) (?:{_PARTS}))\b",
        rf"{_SIDE} (?P<item>(?:cyber|metal|steel|clockwork|prosthetic|bionic|robot|stone|missing) (?:{_PARTS}))\b",
        rf"{_SIDE} (?P<item>eye ?patch|hook|monocle|pauldron|gauntlet|shoulder pad)\b",
    )
)
_BEFORE_ITEM = re.compile(
    r"^.*(?:[,.;:()]|\b(?:and|with|who|holding|holds|carrying|carries|wearing|wears|has|having|wielding|wields|gripping|"
    r"grips|bearing|bears|is|a|an|the|her|his|its|their|in|of|plus)\b)"
)
_LONGEST_ITEM = 4  # words


@dataclass(frozen=True)
class SideItem:
    """An item on the character's own left or right; `part` is the body part it belongs to, or ""."""

    side: str
    item: str
    part: str


def side_bound_items(prompt: str) -> dict[str, str]:
    """Side ("left", "right": the character's own) to the item bound to it, read from free text.

    >>> side_bound_items("an orc woman, her right hand is a hook")
    {'right': 'hook'}
    """
    found: dict[str, str] = {}
    for item in find_side_items(prompt):
        found[item.side] = f"{found[item.side]} and {item.item}" if item.side in found else item.item
    return found


def find_side_items(prompt: str) -> tuple[SideItem, ...]:
    """Every item the prompt binds to one side, in the order of the text."""
    text = " ".join(prompt.lower().replace("’", "'").replace("-", " ").split())
    found: list[tuple[int, SideItem]] = []
    for pattern in _PATTERNS:
        while match := pattern.search(text):
            item = _item(match)
            if item:
                found.append((match.start("item"), item))
                text = _blank(text, match.start("item"), match.end("item"))
            text = _blank(text, match.start("side"), match.end("side"))
    return tuple(item for _, item in sorted(found, key=lambda entry: entry[0]))


def _item(match: re.Match[str]) -> SideItem | None:
    """What one pattern found; "red" said of an eye is a red eye, a patch on an eye an eye patch."""
    groups = match.groupdict()
    noun, part = _noun_phrase(match["item"]), groups.get("part") or ""
    if not noun:
        return None
    if part and (noun == "patch" or ("article" in groups and not groups["article"])):
        noun = f"{part} {noun}" if noun == "patch" else f"{noun} {part}"
    last = noun.split()[-1]
    return SideItem(match["side"], noun, part or (last if last in _PARTS.split("|") else ""))


def _noun_phrase(text: str) -> str:
    """The noun phrase at the end of the text, without articles and verbs; empty when nothing is left."""
    words = _BEFORE_ITEM.sub("", f" {text} ").split()
    return " ".join(words[-_LONGEST_ITEM:]).strip(" '")


def _blank(text: str, start: int, end: int) -> str:
    return text[:start] + "#" * (end - start) + text[end:]
