"""Turns a character's sentence into the full prompt of a sheet: each view told what it shows and hides, item by item."""

from __future__ import annotations

import re
from collections.abc import Iterable
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


def write_sheet_prompt(description: str, class_noun: str, items: tuple[SideItem, ...] = ()) -> str:
    """The full prompt for an edit model that reads plain English (Qwen-Image-Edit)."""
    who = class_noun or "character"
    text = [
        f"Fill the three boxes with a character turnaround sheet: three full-body views of the same {who}.",
        f"The character: {description.rstrip('. ')}.",
        "Left box: front view, facing the viewer, the face fully visible.",
        "Middle box: side view, a strict 90 degree profile facing the right edge of the picture, only one eye visible; "
        "the character's right side is towards the viewer and the left side is hidden.",
        "Right box: back view, seen from directly behind, no face visible; what is worn on the chest or the face is "
        "hidden, the back of the hair and of the clothes is shown.",
    ]
    text += [_placement(item) for item in items]
    text.append(
        "The character is physically rotated about the vertical axis; no panel is a flip or a copy of another. The same "
        "outfit, colours, proportions and height in all three views, head to feet inside each box with a margin, "
        "standing upright with the arms slightly away from the body whatever the description says of pose or place, nothing crossing into the next box. "
        "Plain pure white background, even light, no shadow on the floor, no text, no lines between the views."
    )
    return " ".join(text)


def without_scene(description: str, scenes: Iterable[str]) -> str:
    """The description without the poses and places it names: a clause of its own, or what follows a preposition.

    >>> without_scene("a robot in the forest, running, with a red hat", ["forest", "running"])
    'a robot, with a red hat'
    """
    any_scene = "|".join(re.escape(scene) for scene in sorted(scenes, key=len, reverse=True))
    ending = r"(?=\s*(?:$|[,.;]|\band\b|\bwith\b|\bin\b|\bat\b))"
    placed = rf"\s(?:in|on|at|under|by|near|through)(?: (?:a|an|the))? (?:{any_scene}){ending}"
    text = re.sub(rf"{placed}|\s(?:is )?(?:{any_scene}){placed}", "", description)
    clauses = [clause.strip() for clause in text.split(",")]
    alone = re.compile(rf"(?:(?:in|on|at|under|and|is) )?(?:(?:a|an|the) )?(?:{any_scene})")
    kept = [clause for clause in clauses if clause and not alone.fullmatch(clause)]
    return ", ".join(kept) or description


def _placement(item: SideItem) -> str:
    """Where a side-bound item appears in each view; left and right swap between the character and the picture."""
    place = f"the character's {item.side} {item.part}" if item.part else f"the character's {item.side} side"
    front, back = ("left", "right") if item.side == "right" else ("right", "left")
    side = "on the near side, fully visible" if item.side == "right" else "on the far side, hidden by the body"
    behind = "not visible" if item.part in FACE_PARTS else f"on the {back} of the picture"
    return (
        f"The {item.item} belongs to {place}: on the {front} of the picture in the front view, {side} in the side view, "
        f"{behind} in the back view, and never on the other side."
    )


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
