"""Reads traits, scene and unknown words out of free prompts, by phrase matching."""

from __future__ import annotations

import re
import unicodedata

from charengine.embedded.lexicon import (
    ADJECTIVES,
    BACKGROUND_PHRASES,
    COLOUR_WORDS,
    GARMENT_WORDS,
    HAIR_PHRASES,
    HEADGEAR_PHRASES,
    ITEM_PHRASES,
    POSE_PHRASES,
    ROLE_WORDS,
    SPECIES_WORDS,
    VIEW_PHRASES,
    VOCABULARY,
)
from charengine.embedded.nearest import in_known_words
from charengine.embedded.shades import PEOPLE
from charengine.embedded.tags import SIDES
from charengine.embedded.traits import NATURAL_SKINS, TRAITS
from charengine.wording import composed

_STOP_WORDS = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "in",
        "on",
        "at",
        "and",
        "with",
        "his",
        "her",
        "its",
        "their",
        "as",
        "is",
        "are",
        "to",
        "for",
        "by",
        "from",
        "who",
        "has",
    ]
)
# what words are made of, and marks on it, by Unicode's categories; emoji; joiners, and emoji's shades of skin
_LETTERS = {"L": "w", "N": "w", "M": "+", "So": "s"}
_JOINED = frozenset("\u200c\u200d") | {chr(0x1F3FB + shade) for shade in range(5)}
_WORD = re.compile(r"w[w+]*|s[s+]*")
OF_SPECIES = "of the species"  # a colour that waits for whether the skin is named
_SPOKEN_OF_SPECIES = (*COLOUR_WORDS, *TRAITS["skin"])
_CLAUSE_END = re.compile(r"[,.;:]| and | with (?!the (?:left|right))| wearing | but ")
_PATTERN_SUFFIX = re.compile(r"\bwith ((?:polka )?(?:stripes|dots|spots|checks|squares)\b)")


def parse_prompt(prompt: str) -> dict[str, str]:
    """Traits, view, pose and background named in free text, by phrase matching; what is not named is absent."""
    text = _words_of(in_known_words(prompt).text)
    found: dict[str, str] = {}
    text = _PATTERN_SUFFIX.sub(r"\1", _take_phrases(text, found))
    for clause in _CLAUSE_END.split(text):
        _read_clause(clause.split(), found)
    _colour_as_skin(found, set(_words_of(prompt).split()))
    if "species" not in found:
        roles = [ROLE_WORDS[word] for word in text.split() if word in ROLE_WORDS]
        found |= {"species": roles[0]} if roles else {}
    if found.get("hair_style") == "bald":
        found.pop("hair_colour", None)
    return found


def _words_of(prompt: str) -> str:
    """A prompt in small letters: words, and the marks that end a clause, with one space between."""
    return " ".join(re.findall(r"[a-z0-9]+|[,.;:]", prompt.lower().replace("-", " ").replace("'s", "")))


def _colour_as_skin(found: dict[str, str], written: set[str]) -> None:
    """A colour said of a species is its skin's, unless the skin is named: a green orc, a white woman, a red demon.

    A black ninja is drawn as a man, and wears black: of people it counts only where the word itself was written.
    """
    species, colour = found.get("species", ""), found.pop(OF_SPECIES, "")
    people = species in PEOPLE and not written & {word for phrase in SPECIES_WORDS[species] for word in phrase.split()}
    if not colour or people:
        return
    if colour == "blonde" or written & {"ginger", "auburn"}:  # said of people's hair
        found.setdefault("hair_colour", colour)
        return
    colour = "dark" if colour == "black" else colour
    if colour == "white" and "pale" in NATURAL_SKINS.get(species, ()):
        colour = "pale"
    if colour in TRAITS["skin"]:
        found.setdefault("skin", colour)


def unknown_words(prompt: str, near: bool = True) -> tuple[str, ...]:
    """Words the embedded family never saw and has nothing near, in order, each once; stop words and punctuation do not count.

    Of any script, and emoji; letters and their marks are one word, however they are written.

    Args:
        prompt: of a user's.
        near: the text is put into known words before a model reads it, so what is near to one of them counts as known.
    """
    text = (in_known_words(composed(prompt)).text if near else composed(prompt)).lower().replace("'s", "")
    kinds = "".join(map(_kind, text))
    words = dict.fromkeys(text[found.start() : found.end()] for found in _WORD.finditer(kinds))
    return tuple(word for word in words if word not in VOCABULARY and word not in _STOP_WORDS)


def _kind(mark: str) -> str:
    """What a character is in a word, as a letter of `_WORD`; a space where it is in none."""
    category = unicodedata.category(mark)
    return "+" if mark in _JOINED else _LETTERS.get(category) or _LETTERS.get(category[0], " ")


def _phrase_pattern(phrase: str) -> re.Pattern[str]:
    return re.compile(rf"\b{re.escape(phrase)}\b")


def _take_phrases(text: str, found: dict[str, str]) -> str:
    """Find whole phrases (scenes first: "night sky" is no colour), blank them out, longest first."""
    for name, pattern, value in _PHRASES:
        if name not in found and pattern.search(text):
            found[name] = value
            text = pattern.sub(" , " if name in ("background", "pose", "view") else " ", text)
    return text


def _read_clause(words: list[str], found: dict[str, str]) -> None:
    """Bind the adjectives before each noun of one clause to it, and items to the side named nearby."""
    named_sides = [word for word in words if word in SIDES]
    joined = " ".join(words)
    for phrase, item in _ITEM_LOOKUP:
        if phrase.search(joined):
            free = [side for side in SIDES if f"{side}_item" not in found]
            found.setdefault(f"{(named_sides or free or SIDES)[0]}_item", item)
            joined = phrase.sub(" ", joined)
    pending: dict[str, str] = {}
    last: str | None = None
    for word in _known_chunks(joined.split()):
        if word in _NOUNS:
            last = _bind(_NOUNS[word], pending, found)
            pending = {}
        elif word in ADJECTIVES:
            kind, value = ADJECTIVES[word]
            if kind == "pattern" and last == "top":
                found.setdefault("pattern", value)
            if kind == "build":
                found.setdefault("build", value)
            pending[kind] = value
        elif word in ("hand", "arm", "eye", "eyes"):
            pending = {}
        elif (
            word.endswith("ed") or word == "clad"
        ):  # red headed, blue eyed, black clad: no skin, though a coat may be red and quilted
            pending["of a part"] = word


def _skin_word(pending: dict[str, str]) -> str | None:
    """Dark skin, and green skin, also where it is dark green; dark brown is dark."""
    tone, colour = pending.get("tone"), pending.get("colour")
    shade = tone and colour in TRAITS["skin"] and [*pending].index("tone") < [*pending].index("colour")
    return colour if shade and (tone, colour) != ("dark", "brown") else tone or colour


def _known_chunks(words: list[str]) -> list[str]:
    """The clause cut into known phrases of up to three words, longest first."""
    chunks, i = [], 0
    while i < len(words):
        phrases = (" ".join(words[i : i + size]) for size in (3, 2, 1))
        phrase = next((p for p in phrases if p in _NOUNS or p in ADJECTIVES), words[i])
        chunks.append(phrase)
        i += len(phrase.split())
    return chunks


def _bind(meaning: tuple[str, str], pending: dict[str, str], found: dict[str, str]) -> str:
    """State a noun and whatever adjectives wait for it; returns the trait it is."""
    name, value = meaning
    colour = pending.get("colour")
    if name == "hair_style":
        found.setdefault("hair_style", value or pending.get("length", ""))
        if not found["hair_style"]:
            del found["hair_style"]
        allowed, target = TRAITS["hair_colour"], "hair_colour"
    elif name == "skin":
        allowed, target, colour = TRAITS["skin"], "skin", _skin_word(pending)
    elif name == "tattoo":
        allowed, target, colour = TRAITS["tattoo"], "tattoo", colour or "blue"
    elif name == "species":
        found.setdefault("species", value)
        allowed, target = _SPOKEN_OF_SPECIES, OF_SPECIES
        colour = None if "of a part" in pending else _skin_word(pending)
    else:
        found.setdefault(name, value)
        allowed, target = TRAITS.get(f"{name}_colour", ()), f"{name}_colour"
    if colour == "yellow" and target == "hair_colour":
        colour = "blonde"
    if colour in allowed and colour != "none":
        found.setdefault(target, colour)
    if name == "top" and "pattern" in pending:
        found.setdefault("pattern", pending["pattern"])
    return name


def _all_phrases() -> list[tuple[str, re.Pattern[str], str]]:
    """Phrases that state one trait by themselves, longest first."""
    tables = (("background", BACKGROUND_PHRASES), ("view", VIEW_PHRASES), ("pose", POSE_PHRASES))
    rows = [(name, phrase, value) for name, table in tables for value, table_ in table.items() for phrase in table_]
    rows.sort(key=lambda row: -len(row[1]))
    return [(name, _phrase_pattern(phrase), value) for name, phrase, value in rows]


def _all_nouns() -> dict[str, tuple[str, str]]:
    nouns: dict[str, tuple[str, str]] = {"skin": ("skin", ""), "skinned": ("skin", ""), "hair": ("hair_style", "")}
    nouns |= dict.fromkeys(("haired", "hairdo", "haircut"), ("hair_style", ""))
    nouns |= dict.fromkeys(("tattoo", "tattoos", "runes"), ("tattoo", ""))
    for name in ("top", "bottom", "footwear"):
        for value in TRAITS[name]:
            nouns |= dict.fromkeys(GARMENT_WORDS.get(value, ()), (name, value))
    for value, words in HEADGEAR_PHRASES.items():
        nouns |= dict.fromkeys(words, ("headgear", value))
    for value, phrases in HAIR_PHRASES.items():
        for phrase in phrases:
            noun = phrase.replace("{c}", "").strip()
            if not noun.endswith("hair"):
                nouns[noun] = ("hair_style", value)
    return nouns | {word: ("species", value) for value, words in SPECIES_WORDS.items() for word in words}


def _item_lookup() -> list[tuple[re.Pattern[str], str]]:
    rows = [(phrase, item) for item, phrases in ITEM_PHRASES.items() for phrase in phrases]
    rows.sort(key=lambda row: -len(row[0]))
    return [(_item_pattern(phrase), item) for phrase, item in rows]


def _item_pattern(phrase: str) -> re.Pattern[str]:
    """The phrase; the side of an arm may stand inside it ("mechanical left arm")."""
    words = re.escape(phrase).replace(r"\ arm", rf"\ (?:(?:{'|'.join(SIDES)})\ )?arm")
    return re.compile(rf"\b{words}\b")


_PHRASES = _all_phrases()
_NOUNS = _all_nouns()
_ITEM_LOOKUP = _item_lookup()
