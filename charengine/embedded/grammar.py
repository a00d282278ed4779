"""Exact descriptions of embedded characters: free prompts with synonyms, canonical tags, and the way back."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from charengine.embedded.lexicon import (
    ADJECTIVES,
    BACKGROUND_PHRASES,
    BUILD_PHRASES,
    COLOUR_WORDS,
    GARMENT_WORDS,
    HAIR_PHRASES,
    HEADGEAR_PHRASES,
    ITEM_PHRASES,
    PATTERN_WORDS,
    POSE_PHRASES,
    ROLE_WORDS,
    SIDE_ITEM_FORMS,
    SKIN_WORDS,
    SPECIES_WORDS,
    VIEW_PHRASES,
    VOCABULARY,
)
from charengine.embedded.traits import COLOURED_HEADGEAR, TRAITS, Traits, visible

if TYPE_CHECKING:
    import random

STYLES = ("prompt", "tags", "canonical", "sheet")
SIDES = ("right", "left")
_PRONOUN = {"woman": "her", "girl": "her", "man": "his", "robot": "its", "skeleton": "its", "alien": "its"}
_STOP_WORDS = frozenset("a an the of in on at and with his her its their as is are to for by from who has".split())
_WORD = re.compile(r"[a-z0-9]+")
_CLAUSE_END = re.compile(r"[,.;:]| and | with (?!the (?:left|right))| wearing | but ")
_PATTERN_SUFFIX = re.compile(r"\bwith ((?:polka )?(?:stripes|dots|spots|checks|squares)\b)")


def describe(
    traits: Traits,
    *,
    view: str | None = None,
    pose: str | None = None,
    background: str | None = None,
    rng: random.Random,
    style: str = "prompt",
    keep: float = 1.0,
) -> str:
    """Describe one picture of a character.

    Args:
        traits: the character.
        view: one of `VIEWS`; limits the description to what is visible from there. None: everything, no view named.
        pose: one of `POSES` or None to leave it out.
        background: one of `BACKGROUNDS` or None to leave it out.
        rng: chooses synonyms and word order.
        style: "prompt" (as people write), "tags" (shuffled comma tags), "canonical" (fixed order, no synonyms,
            inverted by `parse_tags`) or "sheet" (the edit model's prompt; takes no view, pose or background).
        keep: chance that each optional part is mentioned, in (0, 1].

    Returns:
        Lowercase text of at most about 60 words ("sheet": 120).
    """
    if style not in STYLES:
        raise ValueError(f"style is {style!r}; allowed: {', '.join(STYLES)}.")
    if style == "canonical":
        return canonical_tags(traits, view=view, pose=pose, background=background)
    if style == "sheet":
        text = _prompt(traits, None, None, None, rng, keep)
        items = {"right": traits.right_item, "left": traits.left_item}
        return sheet_prompt(text, traits.species, {side: item for side, item in items.items() if item != "none"})
    write = _prompt if style == "prompt" else _shuffled_tags
    return write(traits, view, pose, background, rng, keep)


def sheet_prompt(description: str, class_noun: str, items: dict[str, str] | None = None) -> str:
    """The full prompt of a three-view sheet.

    Args:
        description: the character in plain words.
        class_noun: what it is ("woman", "robot").
        items: side ("left", "right": the character's own) to the item bound to it.
    """
    text = (
        f"three views of the same {class_noun}: front view, side view, back view, full body, plain white background: "
    )
    parts = [description]
    for side in SIDES:
        item = (items or {}).get(side)
        if item:
            other = "left" if side == "right" else "right"
            hidden = "hidden" if item == "eye patch" else f"on the {side} of the picture"
            parts.append(
                f"the {side} {item} is on the {other} of the picture in the front view and {hidden} in the back view"
            )
    return text + ", ".join(parts)


def canonical_dict(
    traits: Traits, *, view: str | None, pose: str | None = None, background: str | None = None
) -> dict[str, str]:
    """What canonical tags state: every visible trait that is not "none" or plain, and view, pose, background if given."""
    stated = {"view": view, "pose": pose, "background": background}
    found = {name: value for name, value in stated.items() if value}
    for name, value in traits.to_dict().items():
        if value not in ("none", "plain") and visible(name, traits, view):
            found[name] = value
    return found


def canonical_tags(traits: Traits, *, view: str | None, pose: str | None = None, background: str | None = None) -> str:
    """Comma tags in a fixed order without synonyms, of what is visible from this side."""
    found = canonical_dict(traits, view=view, pose=pose, background=background)
    return tags_from_dict(found)


def tags_from_dict(found: dict[str, str]) -> str:
    """Write the tags of `canonical_dict`; inverse of `parse_tags`."""
    tags = [f"{found['view']} view"] if "view" in found else []
    tags += [found[name] for name in ("pose", "background", "species") if name in found]
    tags += [f"{found[name]} {name}" for name in ("build", "skin") if name in found]
    tags += _hair_tag(found.get("hair_style"), found.get("hair_colour"))
    if "top" in found:
        tags.append(_join(found.get("pattern"), found.get("top_colour"), found["top"]))
    for name in ("bottom", "footwear", "headgear"):
        if name in found:
            tags.append(_join(found.get(f"{name}_colour"), found[name]))
    tags += [_item_tag(side, found[f"{side}_item"]) for side in SIDES if f"{side}_item" in found]
    if "tattoo" in found:
        tags.append(f"glowing {found['tattoo']} tattoos")
    return ", ".join(tags)


def parse_tags(text: str) -> dict[str, str]:
    """Read canonical tags back; tags it does not know are ignored (a captioner may misspell)."""
    found: dict[str, str] = {}
    for tag in text.lower().split(","):
        for name, value in _TAG_MEANINGS.get(tag.strip(), ()):
            found.setdefault(name, value)
    return found


def parse_prompt(prompt: str) -> dict[str, str]:
    """Traits, view, pose and background named in free text, by phrase matching; what is not named is absent."""
    text = " ".join(re.findall(r"[a-z0-9]+|[,.;:]", prompt.lower().replace("-", " ").replace("'s", "")))
    found: dict[str, str] = {}
    text = _PATTERN_SUFFIX.sub(r"\1", _take_phrases(text, found))
    for clause in _CLAUSE_END.split(text):
        _read_clause(clause.split(), found)
    if "species" not in found:
        roles = [ROLE_WORDS[word] for word in text.split() if word in ROLE_WORDS]
        found |= {"species": roles[0]} if roles else {}
    if found.get("hair_style") == "bald":
        found.pop("hair_colour", None)
    return found


def unknown_words(prompt: str) -> tuple[str, ...]:
    """Words the embedded family never saw, in order, each once; stop words and punctuation do not count."""
    words = dict.fromkeys(_WORD.findall(prompt.lower().replace("'s", "")))
    return tuple(word for word in words if word not in VOCABULARY and word not in _STOP_WORDS)


# --- writing ---------------------------------------------------------------------------------------------------------


def _join(*words: str | None) -> str:
    return " ".join(word for word in words if word)


def _hair_tag(style: str | None, colour: str | None) -> list[str]:
    if style == "bald":
        return ["bald"]
    if style in ("short", "long", "curly"):
        return [_join(style, colour, "hair")]
    return [_join(colour, style or "hair")] if style or colour else []


def _item_tag(side: str, item: str) -> str:
    if item == "eye patch":
        return f"{side} eye patch"
    return f"{side} mechanical arm" if item == "mechanical arm" else f"{side} hand {item}"


def _colour(name: str | None, rng: random.Random) -> str:
    """A colour word: usually the plain one, sometimes a synonym."""
    if not name or name == "none":
        return ""
    return name if rng.random() < 0.7 else rng.choice(COLOUR_WORDS[name])


def _choose(words: tuple[str, ...], rng: random.Random) -> str:
    """The usual word half of the time, else any of them."""
    return words[0] if rng.random() < 0.5 else rng.choice(words)


def _hair_phrase(traits: Traits, view: str | None, rng: random.Random) -> str:
    sees_colour = visible("hair_colour", traits, view)
    colour = _colour(traits.hair_colour, rng) if sees_colour else ""
    if not visible("hair_style", traits, view):
        return f"{colour} hair" if colour else ""
    phrase = _choose(HAIR_PHRASES[traits.hair_style], rng)
    return _join(*phrase.replace("{c}", colour).split())


def _noun(species: str, rng: random.Random) -> str:
    roles = tuple(word for word, meant in ROLE_WORDS.items() if meant == species)
    return rng.choice(roles) if roles and rng.random() < 0.2 else _choose(SPECIES_WORDS[species], rng)


def _garment(colour: str, noun: str, pattern: str, rng: random.Random) -> str:
    noun = _choose(GARMENT_WORDS[noun], rng)
    if pattern == "plain":
        return _join(colour, noun)
    adjective, *suffixes = PATTERN_WORDS[pattern]
    if rng.random() < 0.3:
        return _join(colour, noun, "with", rng.choice(suffixes))
    return _join(adjective, colour, noun) if rng.random() < 0.6 else _join(colour, adjective, noun)


def _article(phrase: str) -> str:
    plural = phrase.split(" with ")[0].endswith(("s", "armour", "armor", "hair"))
    return phrase if plural and not phrase.endswith("dress") else f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _worn(traits: Traits, rng: random.Random, keep: float) -> list[str]:
    """Clothes, without articles."""
    parts = [_garment(_colour(traits.top_colour, rng), traits.top, traits.pattern, rng)]
    for name in ("bottom", "footwear", "headgear"):
        value = getattr(traits, name)
        if value in ("none", "barefoot") or rng.random() >= keep:
            continue
        words = HEADGEAR_PHRASES[value] if name == "headgear" else GARMENT_WORDS[value]
        coloured = name != "headgear" or value in COLOURED_HEADGEAR
        parts.append(_join(_colour(getattr(traits, f"{name}_colour"), rng) if coloured else "", _choose(words, rng)))
    return parts


def _item_phrases(traits: Traits, view: str | None, rng: random.Random, pronoun: str, keep: float) -> list[str]:
    phrases = []
    for side in SIDES:
        item = getattr(traits, f"{side}_item")
        if item == "none" or not visible(f"{side}_item", traits, view) or rng.random() >= (1 + keep) / 2:
            continue
        noun = _choose(ITEM_PHRASES[item], rng)
        form = rng.choice(SIDE_ITEM_FORMS.get(item, SIDE_ITEM_FORMS["held"]))
        phrases.append(form.format(noun=_article(noun), bare=noun, side=side, p=pronoun))
    return phrases


def _scene(view: str | None, pose: str | None, background: str | None, rng: random.Random, keep: float) -> list[str]:
    parts = [(view, VIEW_PHRASES), (pose, POSE_PHRASES), (background, BACKGROUND_PHRASES)]
    return [_choose(phrases[value], rng) for value, phrases in parts if value and rng.random() < keep]


def _tattoo_phrase(colour: str, rng: random.Random) -> str:
    return rng.choice(("glowing {c} tattoos", "{c} glowing tattoos", "glowing {c} runes", "{c} tattoos")).format(
        c=colour
    )


def _prompt(
    traits: Traits, view: str | None, pose: str | None, background: str | None, rng: random.Random, keep: float
) -> str:
    """A sentence-like prompt."""
    pronoun = _PRONOUN.get(traits.species, rng.choice(("his", "her")))
    noun = _noun(traits.species, rng)
    hair = _hair_phrase(traits, view, rng) if rng.random() < (1 + keep) / 2 else ""
    skin = _choose(SKIN_WORDS[traits.skin], rng) if rng.random() < keep else ""
    build = _choose(BUILD_PHRASES[traits.build], rng) if traits.build != "average" and rng.random() < keep else ""
    adjectives = [build] if build else []
    adjectives += [f"{skin} skinned"] if skin and rng.random() < 0.4 else []
    features = [f"{skin} skin"] if skin and len(adjectives) == bool(build) else []
    if hair.endswith("headed") or hair in ("bald", "hairless"):
        adjectives.append(hair)
    elif hair:
        features.append(_article(hair))
    rng.shuffle(adjectives)
    rng.shuffle(features)
    head = _article(" ".join([*adjectives, noun])) if rng.random() < 0.8 else " ".join([*adjectives, noun])
    head = f"{head} with {' and '.join(features)}" if features else head
    worn = [_article(part) for part in _worn(traits, rng, keep)]
    rng.shuffle(worn)
    clauses = [f"{rng.choice(('wearing', 'in', 'dressed in'))} {', '.join(worn[:-1])} and {worn[-1]}"]
    if len(worn) == 1:
        clauses = [f"wearing {worn[0]}"]
    if traits.footwear == "barefoot" and rng.random() < keep:
        clauses.append(_choose(GARMENT_WORDS["barefoot"], rng))
    clauses += _item_phrases(traits, view, rng, pronoun, keep)
    if traits.tattoo != "none" and rng.random() < (1 + keep) / 2:
        clauses.append(_tattoo_phrase(traits.tattoo, rng))
    if rng.random() < 0.3:
        rng.shuffle(clauses)
    scene = _scene(view, pose, background, rng, keep)
    if rng.random() < 0.25:
        rng.shuffle(scene)
        return ", ".join([*scene, head, *clauses])
    return ", ".join([head, *clauses, *scene])


def _shuffled_tags(
    traits: Traits, view: str | None, pose: str | None, background: str | None, rng: random.Random, keep: float
) -> str:
    """Comma tags in any order, the noun first."""
    tags = [_choose(SKIN_WORDS[traits.skin], rng) + " skin", f"{_choose(BUILD_PHRASES[traits.build], rng)} build"]
    tags += _worn(traits, rng, keep=1.0)
    tags += [_choose(GARMENT_WORDS["barefoot"], rng)] if traits.footwear == "barefoot" else []
    hair = _hair_phrase(traits, view, rng)
    tags += [hair] if hair else []
    if traits.tattoo != "none":
        tags.append(_tattoo_phrase(traits.tattoo, rng))
    tags = [tag for tag in tags if rng.random() < keep] or tags[:1]
    for side in SIDES:
        item = getattr(traits, f"{side}_item")
        if item != "none" and visible(f"{side}_item", traits, view) and rng.random() < (1 + keep) / 2:
            tags.append(_item_tag(side, item))
    tags += _scene(view, pose, background, rng, keep)
    rng.shuffle(tags)
    return ", ".join([_noun(traits.species, rng), *tags])


# --- reading ---------------------------------------------------------------------------------------------------------


def _tag_meanings() -> dict[str, tuple[tuple[str, str], ...]]:
    """Every canonical tag and what it states."""
    meanings: dict[str, tuple[tuple[str, str], ...]] = {}

    def add(found: dict[str, str]) -> None:
        meanings.setdefault(tags_from_dict(found), tuple(found.items()))

    for name, phrases in (("view", VIEW_PHRASES), ("pose", POSE_PHRASES), ("background", BACKGROUND_PHRASES)):
        for value in phrases:
            add({name: value})
    for name in ("species", "build", "skin", "right_item", "left_item", "tattoo"):
        for value in TRAITS[name]:
            add({name: value})
    for style in ("", *TRAITS["hair_style"]):
        for colour in TRAITS["hair_colour"]:  # "none" first: "bald" states no colour
            add(_stated(hair_style=style, hair_colour=colour))
    for pattern in ("", *TRAITS["pattern"][1:]):
        for colour in ("", *TRAITS["top_colour"]):
            for top in TRAITS["top"]:
                add(_stated(top=top, top_colour=colour, pattern=pattern))
    for name in ("bottom", "footwear", "headgear"):
        for value in TRAITS[name]:
            for colour in TRAITS[f"{name}_colour"]:
                add(_stated(**{name: value, f"{name}_colour": colour}))
    meanings.pop("", None)
    return meanings


def _stated(**values: str) -> dict[str, str]:
    return {name: value for name, value in values.items() if value not in ("", "none")}


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
        allowed, target = TRAITS["skin"], "skin"
        colour = pending.get("tone", colour)
    elif name == "tattoo":
        allowed, target, colour = TRAITS["tattoo"], "tattoo", colour or "blue"
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
    return [(_phrase_pattern(phrase), item) for phrase, item in rows]


_TAG_MEANINGS = _tag_meanings()
_PHRASES = _all_phrases()
_NOUNS = _all_nouns()
_ITEM_LOOKUP = _item_lookup()
