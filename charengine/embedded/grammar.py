"""Exact descriptions of embedded characters: free prompts with synonyms, canonical tags, and the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from charengine.embedded.lexicon import (
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
from charengine.embedded.nearest import in_known_words
from charengine.embedded.reading import parse_prompt, unknown_words
from charengine.embedded.tags import SIDES, canonical_dict, canonical_tags, item_tag, join, parse_tags, tags_from_dict
from charengine.embedded.traits import COLOURED_HEADGEAR, Traits, visible

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

__all__ = [
    "STYLES",
    "VOCABULARY",
    "canonical_dict",
    "canonical_tags",
    "describe",
    "edit_prompt",
    "in_known_words",
    "parse_prompt",
    "parse_tags",
    "scene_phrases",
    "sheet_prompt",
    "tags_from_dict",
    "unknown_words",
]

Told = tuple["str | None", "str | None", "str | None"]  # view, pose, background: what is named of them
STYLES = ("prompt", "tags", "canonical", "sheet")
_PRONOUN = {"woman": "her", "girl": "her", "man": "his", "robot": "its", "skeleton": "its", "alien": "its"}


def describe(
    traits: Traits,
    *,
    view: str | None = None,
    pose: str | None = None,
    background: str | None = None,
    rng: random.Random,
    style: str = "prompt",
    keep: float = 1.0,
    say_view: bool = True,
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
        say_view: name the view; else it only limits the description.

    Returns:
        Lowercase text of at most about 60 words ("sheet": 120).
    """
    if style not in STYLES:
        raise ValueError(f"style is {style!r}; allowed: {', '.join(STYLES)}.")
    if style == "canonical":
        return canonical_tags(traits, view=view, pose=pose, background=background)
    if style == "sheet":
        text = _prompt(traits, None, (None, None, None), rng, keep)
        items = {"right": traits.right_item, "left": traits.left_item}
        return sheet_prompt(text, traits.species, {side: item for side, item in items.items() if item != "none"})
    write = _prompt if style == "prompt" else _shuffled_tags
    return write(traits, view, (view if say_view else None, pose, background), rng, keep)


def edit_prompt(description: str, class_noun: str, scene: Sequence[str]) -> str:
    """What the edit model is asked for beside a picture of a character: the same one, elsewhere.

    Args:
        description: the character in plain words, or nothing.
        class_noun: what it is.
        scene: view, pose, background and framing, in any order.
    """
    text = f"the same {class_noun} as in the picture: {', '.join(scene)}"
    return f"{text}: {description}" if description else text


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
    return join(*phrase.replace("{c}", colour).split())


def _noun(species: str, rng: random.Random) -> str:
    roles = tuple(word for word, meant in ROLE_WORDS.items() if meant == species)
    return rng.choice(roles) if roles and rng.random() < 0.2 else _choose(SPECIES_WORDS[species], rng)


def _garment(colour: str, noun: str, pattern: str, rng: random.Random) -> str:
    noun = _choose(GARMENT_WORDS[noun], rng)
    if pattern == "plain":
        return join(colour, noun)
    adjective, *suffixes = PATTERN_WORDS[pattern]
    if rng.random() < 0.3:
        return join(colour, noun, "with", rng.choice(suffixes))
    return join(adjective, colour, noun) if rng.random() < 0.6 else join(colour, adjective, noun)


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
        parts.append(join(_colour(getattr(traits, f"{name}_colour"), rng) if coloured else "", _choose(words, rng)))
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


def scene_phrases(view: str | None, pose: str | None, background: str | None, rng: random.Random) -> list[str]:
    """Words for a view, a pose and a background, each of which may be left out."""
    return _scene((view, pose, background), rng, 1.0)


def _scene(told: Told, rng: random.Random, keep: float) -> list[str]:
    parts = zip(told, (VIEW_PHRASES, POSE_PHRASES, BACKGROUND_PHRASES), strict=True)
    return [_choose(phrases[value], rng) for value, phrases in parts if value and rng.random() < keep]


def _tattoo_phrase(colour: str, rng: random.Random) -> str:
    return rng.choice(("glowing {c} tattoos", "{c} glowing tattoos", "glowing {c} runes", "{c} tattoos")).format(
        c=colour
    )


def _prompt(traits: Traits, view: str | None, told: Told, rng: random.Random, keep: float) -> str:
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
    scene = _scene(told, rng, keep)
    if rng.random() < 0.25:
        rng.shuffle(scene)
        return ", ".join([*scene, head, *clauses])
    return ", ".join([head, *clauses, *scene])


def _shuffled_tags(traits: Traits, view: str | None, told: Told, rng: random.Random, keep: float) -> str:
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
            tags.append(item_tag(side, item))
    tags += _scene(told, rng, keep)
    rng.shuffle(tags)
    return ", ".join([_noun(traits.species, rng), *tags])
