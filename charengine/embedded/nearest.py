"""Everyday words that the embedded family never saw, as the nearest it knows; and what a prompt says is not there.

The family's vocabulary is closed. A raincoat is drawn as a coat of its colour, an astronaut as a man, and "no shoes" as barefoot:
the prompt is put into known words before it is read and before it is shown to the model, and what was changed is told.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from charengine.embedded.lexicon import (
    COLOUR_WORDS,
    GARMENT_WORDS,
    HEADGEAR_PHRASES,
    ITEM_PHRASES,
    ROLE_WORDS,
    SPECIES_WORDS,
)
from charengine.embedded.plainly import any_of, said_plainly
from charengine.embedded.shades import in_its_shades

_THINGS: dict[str, str] = {
    "coat": "raincoat, trench coat, trenchcoat, greatcoat, parka, anorak, hoodie, cardigan, blazer, tuxedo, suit, uniform, windbreaker",
    "shirt": "t shirt, tshirt, tee, polo, jumper, pullover, sweatshirt, turtleneck, hawaiian shirt",
    "vest": "tank top, bodice, corset, bikini, swimsuit",
    "robe": "cloak, cape, poncho, mantle, toga, kimono, cassock, bathrobe, shawl",
    "dress": "sundress, ballgown, nightgown, frock, sari",
    "armour": "chainmail, chain mail, cuirass, plate mail, spacesuit, space suit, exosuit",
    "tunic": "overalls, jumpsuit, doublet, apron, smock",
    "trousers": "leggings, slacks, sweatpants, tights, chinos, breeches, pantaloons",
    "skirt": "miniskirt, tutu, sarong",
    "shoes": "sandals, slippers, high heels, heels, loafers, trainers, clogs, moccasins, flats",
    "boots": "wellies, wellingtons",
    "hat": "top hat, cap, beret, fedora, beanie, bonnet, sombrero, turban, bandana, headband, bowler, straw hat",
    "hood": "cowl, veil, headscarf",
    "crown": "diadem, circlet, coronet",
    "horns": "antlers",
    "sword": "dagger, knife, katana, rapier, sabre, saber, scimitar, cutlass, machete",
    "staff": "wand, cane, spear, lance, pole, trident, pike, walking stick",
    "axe": "hatchet, tomahawk, hammer, mace",
    "lantern": "torch, flashlight, candle",
    "shield": "buckler",
    "barefoot": "shoeless, barefooted, bare footed",
    "bald": "bald headed, clean shaven head",
    "red haired": "redhead, red headed, redheaded, ginger haired, auburn haired",
    "brown haired": "brunette",
    "golden": "gold, gilded",
    "grey": "metallic, iron",
    "blue": "turquoise, teal, cyan, aqua, indigo, sapphire",
    "red": "maroon, burgundy, vermilion, ginger, auburn, cherry",
    "green": "khaki, mint, jade, moss",
    "brown": "beige, copper, tawny, hazel, mahogany, leather coloured, sandy",
    "yellow": "lemon, ochre",
    "purple": "lavender, mauve, plum",
    "pink": "coral, peach, salmon, fuchsia",
    "orange": "apricot, tangerine",
    "robot": "golem, mech, automaton, machine",
    "catfolk": "fox, wolf, tiger, lion, bear, rabbit, dog, beast, animal, werewolf, kitsune, furry",
    "goblin": "demon, devil, gnome, hobgoblin, kobold",
    "orc": "troll, giant, barbarian orc",
    "elf": "fairy, pixie, nymph, dryad",
    "skeleton": "zombie, ghost, mummy, lich",
    "alien": "lizard, dragon, frog, monster, creature",
    "woman": "nurse, nun, maid, waitress, geisha, empress, duchess, priestess, valkyrie, amazon, ballerina, mermaid, goddess, actress",
    "girl": "schoolgirl, toddler, teenager, youth",
    "stocky man": "dwarf",
    "man": (
        "astronaut, spaceman, soldier, samurai, ninja, cowboy, detective, doctor, chef, cook, baker, firefighter, fireman, policeman, "
        "officer, farmer, scientist, sailor, captain, thief, rogue, assassin, monk, priest, bard, gladiator, viking, hunter, archer, "
        "mage, warlock, sorcerer, druid, prince, lord, guard, mechanic, engineer, pilot, student, teacher, dancer, fisherman, "
        "merchant, blacksmith, barbarian, adventurer, vampire, clown, diver, human, person, somebody, explorer, musician, painter"
    ),
}  # fmt: skip
_SLEEVES = "gloves, mittens, gauntlets, scarf"  # worn where a shirt's sleeves or collar would be; drawn as one when no top is named
TAUGHT = ("gold", "person")  # in one phrase alone: gold crown, cat person
READING = "2"  # another one whenever a prompt is put into other words: sheets and adapters are made anew then
_NOTHING = {"footwear": "barefoot", "hair": "bald"}

_NEAREST = {word.strip(): known for known, words in _THINGS.items() for word in words.split(",")}
_TOPS = frozenset(
    word for value in ("shirt", "coat", "armour", "tunic", "vest", "robe", "dress") for word in GARMENT_WORDS[value]
)
_SPECIES = frozenset(word for words in SPECIES_WORDS.values() for word in words) | frozenset(ROLE_WORDS)
_KINDS = frozenset((*SPECIES_WORDS, "stocky man"))


@dataclass(frozen=True)
class KnownWords:
    """A prompt in words the family knows.

    Args:
        text: the prompt; as it was when nothing had to be changed.
        changed: "raincoat as coat", in order.
    """

    text: str
    changed: tuple[str, ...] = ()


def in_known_words(prompt: str) -> KnownWords:
    """The prompt with everyday words as the nearest known ones, and without what it says is not there."""
    changed: dict[str, None] = {}
    text = in_its_shades(_without_negated(_replaced(said_plainly(prompt, changed), changed), changed), changed)
    return KnownWords(text, tuple(changed)) if changed else KnownWords(prompt)


def _replaced(prompt: str, changed: dict[str, None]) -> str:
    words = set(re.findall(r"[a-z]+", prompt.lower()))
    species_named = bool(words & _SPECIES)

    def nearest(match: re.Match[str]) -> str:
        word = _key(match[0])
        known = _NEAREST.get(word) or _NEAREST[word.removesuffix("s")]
        if known in _KINDS and species_named:  # a woman who is an astronaut is drawn as a woman
            changed[f"{word} left out"] = None
            return ""
        changed[f"{word} as {known}"] = None
        return known

    text = _WORDS.sub(nearest, prompt)
    if match := _SLEEVE_WORDS.search(text):
        topped = bool(_TOPS & set(re.findall(r"[a-z]+", text.lower())))
        changed[f"{match[0].lower()} {'left out' if topped else 'as shirt'}"] = None
        text = _COLOURED_SLEEVES.sub("", text) if topped else _SLEEVE_WORDS.sub("shirt", text)
    return re.sub(r"\s+", " ", text).strip() if text != prompt else prompt


def _without_negated(text: str, changed: dict[str, None]) -> str:
    """The text without things that it says are not there; no shoes is barefoot, no hair is bald."""

    def gone(match: re.Match[str]) -> str:
        left = []
        for word in _NEGATED.findall(match["things"].lower()):
            kind = _NEGATABLE.get(word, "")
            changed[f"no {word}"] = None
            left += [_NOTHING[kind]] if kind in _NOTHING else []
        return f"{match['before'] if left else ''}{' and '.join(dict.fromkeys(left))}"

    if match := _NOT_BUT.search(text):
        changed[f"no {match['species'].lower()}"] = None
        text = _NOT_BUT.sub("", text)
    text = _NEGATION.sub(gone, _LESS.sub(r"no \1", text))
    return re.sub(r"\s+([,.;])", r"\1", re.sub(r"\s{2,}", " ", text)).strip(" ,;")


def _key(text: str) -> str:
    return re.sub(r"[\s-]+", " ", text.lower())


def _negatable() -> dict[str, str]:
    """What may be missing, and the part of the figure it belongs to."""
    words = {"footwear": "footwear", "hair": "hair", "headgear": "headgear", "weapon": "item", "weapons": "item"}
    words |= {"tattoo": "tattoo", "tattoos": "tattoo", "glowing tattoos": "tattoo", "runes": "tattoo"}
    for value in ("boots", "shoes"):
        words |= dict.fromkeys(GARMENT_WORDS[value], "footwear")
    for values in HEADGEAR_PHRASES.values():
        words |= dict.fromkeys(values, "headgear")
    for values in ITEM_PHRASES.values():
        words |= dict.fromkeys(values, "item")
    for value in ("coat", "armour", "vest", "shirt", "robe", "dress", "tunic", "trousers", "skirt", "shorts"):
        words |= dict.fromkeys(GARMENT_WORDS[value], "garment")
    words |= dict.fromkeys(
        ("ponytail", "pony tail", "mohawk", "bun", "topknot", "braids", "pigtails", "afro", "curls"), "style"
    )
    patterns = ("stripes", "dots", "polka dots", "spots", "checks")
    plural = {f"{word}s": kind for word, kind in words.items() if not word.endswith("s")}
    singular = {word.removesuffix("s"): kind for word, kind in words.items() if word in ("boots", "shoes", "horns")}
    return plural | singular | words | dict.fromkeys(patterns, "pattern")


_NEGATABLE = _negatable()
_NEGATED = re.compile(rf"\b(?:{any_of(list(_NEGATABLE))})\b")
_THING = (
    rf"(?:(?:an?|any|the|her|his|its)\s+)?(?:(?!no\b|with|and\b)[a-z]+[\s-]+){{0,3}}?(?:{any_of(list(_NEGATABLE))})\b"
)
_NEGATION = re.compile(
    r"(?P<before>\s?)(?:\b(?:and|but|with|has|have|wearing|wears|holding|carrying)\s+)*\b(?:no(?!-)|with\s?out|w/o|sans|neither|minus|lacks|lacking|"
    r"(?:not|never|isn['’]t|is not)\s+(?:wearing|holding|carrying|with)|(?:doesn['’]t|does not|never)\s+(?:wears?|have|has|holds?|carry|carries)|"
    r"never)\s+"
    rf"(?P<things>{_THING}(?:\s*,?\s*\b(?:or|nor)\s+{_THING})*)"
    r"(?:\s+(?:in|on)\s+(?:her|his|its|the)\s+(?:left|right)\s+(?:hand|arm|eye)\b)?",
    re.IGNORECASE,
)
_LESS = re.compile(rf"\b(?!hair)({any_of(list(_NEGATABLE))})less\b", re.IGNORECASE)
_NOT_BUT = re.compile(rf"\bnot\s+an?\s+(?P<species>{any_of(sorted(_SPECIES))})\s*,?\s*but\s+", re.IGNORECASE)
_WORDS = re.compile(
    rf"\b(?:(?:{any_of([word for word in _NEAREST if word not in TAUGHT])})s?|gold(?!\s+crown)|(?<!cat\s)persons?)\b",
    re.IGNORECASE,
)
_SLEEVE_WORDS = re.compile(rf"\b(?:{any_of([word.strip() for word in _SLEEVES.split(',')])})\b", re.IGNORECASE)
_COLOURED_SLEEVES = re.compile(
    rf"(?:\s*,|\s+and|\s+with)*(?:\s+(?:an?|long|short|{'|'.join(word for words in COLOUR_WORDS.values() for word in words)}))*\s+(?:{_SLEEVE_WORDS.pattern})",
    re.IGNORECASE,
)
