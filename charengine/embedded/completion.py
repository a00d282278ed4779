"""Makes up what a prompt leaves out, or takes it from a picture, so that the sheet model is told one whole character.

A model this small mixes the colours of whatever it is left to choose. What the prompt names is kept; what it does not
name and every figure must have (skin, hair, clothes) is drawn from the seed; nothing else is added.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from charengine.embedded import grammar
from charengine.embedded.shades import PEOPLE
from charengine.embedded.traits import (
    HAIR_UNDER,
    NATURAL_SKINS,
    ONE_PIECE_TOPS,
    TRAITS,
    Traits,
    as_indices,
    from_indices,
    normalise,
)

HAIRLESS = ("robot", "skeleton", "alien")

USUAL = {
    "build": ("average",),
    "hair_style": ("short", "long", "ponytail", "bun", "braids", "curly"),
    "top": ("shirt", "coat", "tunic", "vest"),
    "pattern": ("plain",),
    "bottom": ("trousers", "trousers", "skirt", "shorts"),
    "footwear": ("boots", "shoes"),
    "headgear": ("none",),
    "right_item": ("none",),
    "left_item": ("none",),
    "tattoo": ("none",),
}
LOOKS_LIKE = {"dark": "brown"}  # a skin and the colour of clothes or hair
GROUND = "white"  # of a sheet: clothes made up in its colour would be taken for it, and the figure for a shorter one
PARTS = ("top", "bottom", "footwear", "headgear")
ABSENT = ("none", "bald", "barefoot", "plain")
HAIR_OF_PEOPLE = ("black", "brown", "blonde", "red")


class _Usual(random.Random):
    """Chooses the usual word and the usual order, for descriptions that people read."""

    def random(self) -> float:
        return 0.35

    def choice(self, seq: Any) -> Any:
        return seq[0]

    def shuffle(self, x: Any) -> None:
        return None


@dataclass(frozen=True)
class Completion:
    """A whole character in words, and what of it was made up, or taken from a picture."""

    text: str
    made_up: tuple[str, ...]


def complete_prompt(prompt: str, seed: int) -> Completion:
    """The prompt as it is when it names everything a figure must have, else the whole character described anew.

    Args:
        prompt: free text.
        seed: of the choices; the same prompt and seed make the same character.
    """
    named = grammar.parse_prompt(prompt)
    rng = random.Random(f"{seed} {prompt}")
    traits = _whole(named, rng)
    made_up = _made_up(traits, named)
    if not made_up:
        return Completion(prompt, ())
    return Completion(grammar.describe(traits, rng=rng, style="prompt"), made_up)


def described(seen: dict[str, str]) -> str:
    """A sentence about a character of which these traits are seen; tags where that is no whole character."""
    found = {name: value for name, value in seen.items() if name in TRAITS}
    whole = {name: _unsaid(name) for name in TRAITS} | found
    if not all(whole.values()):
        return grammar.tags_from_dict(found)
    traits = from_indices(normalise(as_indices([Traits.from_dict(whole)])))[0]
    return grammar.describe(traits, rng=_Usual(), style="prompt")


def _unsaid(name: str) -> str:
    """What it means that a trait is not told: nothing is there, or no one knows (""), as with hair under a hood."""
    return {"build": "average", "pattern": "plain"}.get(name, "none" if "none" in TRAITS[name] else "")


def filled_in(prompt: str, seen: str) -> Completion:
    """The prompt, and what it leaves out as a picture shows it; what it names stays, also where the picture shows otherwise.

    Args:
        prompt: free text.
        seen: what the picture shows, in the family's words.
    """
    named = {name: value for name, value in grammar.parse_prompt(prompt).items() if name in TRAITS}
    shown = {name: value for name, value in grammar.parse_prompt(seen).items() if name in TRAITS}
    taken = {name: value for name, value in shown.items() if name not in named and not _settled(name, named)}
    if not taken:
        return Completion(prompt, ())
    text = described({**taken, **named})
    return Completion(text, tuple(grammar.tags_from_dict(taken).split(", ")))


def _settled(name: str, named: dict[str, str]) -> bool:
    """Whether what the prompt names leaves no room for a trait: a robe is worn without trousers."""
    if name.startswith("bottom") and named.get("top") in ONE_PIECE_TOPS:
        return True
    part = name.removesuffix("_colour")
    return part != name and named.get(part) in ABSENT


def _whole(named: dict[str, str], rng: random.Random) -> Traits:
    """Every trait, in the order in which one decides about the next."""
    found = {name: value for name, value in named.items() if name in TRAITS}

    def choose(name: str, values: tuple[str, ...]) -> None:
        found.setdefault(name, rng.choice(values))

    choose("species", PEOPLE)
    species = found["species"]
    choose("skin", _apart(NATURAL_SKINS[species], _colours_of(found)))
    for name, values in USUAL.items():
        if name == "hair_style":
            fits = HAIR_UNDER.get(found.get("headgear", "none"), values)
            bald = species in HAIRLESS and "hair_colour" not in found
            values = ("bald",) if bald else tuple(style for style in fits if style != "bald")
        if name == "bottom" and found["top"] in ONE_PIECE_TOPS:
            values = ("none",)
        choose(name, values)
    hair = HAIR_OF_PEOPLE if species in PEOPLE else TRAITS["hair_colour"][1:]
    choose("hair_colour", _apart(hair, {found["skin"]}))
    for part in PARTS:
        taken = {"none", GROUND, found["skin"]} | _colours_of(found)
        choose(f"{part}_colour", _apart(TRAITS[f"{part}_colour"], taken))
    return from_indices(normalise(as_indices([Traits.from_dict(found)])))[0]


def _colours_of(found: dict[str, str]) -> set[str]:
    """Of the clothes that are decided."""
    return {found[f"{part}_colour"] for part in PARTS if f"{part}_colour" in found}


def _apart(colours: tuple[str, ...], taken: set[str]) -> tuple[str, ...]:
    """The colours that are not taken: a brown coat on brown skin or red shoes under red trousers cannot be made out."""
    alike = {LOOKS_LIKE.get(colour, colour) for colour in taken}
    return tuple(colour for colour in colours if LOOKS_LIKE.get(colour, colour) not in alike) or colours


def _made_up(traits: Traits, named: dict[str, str]) -> tuple[str, ...]:
    """Tags of what was not named; a plain pattern, an empty hand or a bare head is nothing made up."""
    whole = grammar.canonical_dict(traits, view=None)
    stated: dict[str, str] = {}
    for tag in (("species",), ("skin",), ("hair_style", "hair_colour"), *((part, f"{part}_colour") for part in PARTS)):
        shown = {name: whole[name] for name in tag if name in whole}
        if shown.keys() - named.keys():
            stated |= shown
    return tuple(grammar.tags_from_dict(stated).split(", ")) if stated else ()
