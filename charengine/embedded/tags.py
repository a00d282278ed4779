"""Canonical tags: one fixed wording per trait, written and read back exactly; the captioner's language."""

from __future__ import annotations

from charengine.embedded.lexicon import BACKGROUND_PHRASES, POSE_PHRASES, VIEW_PHRASES
from charengine.embedded.traits import TRAITS, Traits, visible

SIDES = ("right", "left")


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
        tags.append(join(found.get("pattern"), found.get("top_colour"), found["top"]))
    for name in ("bottom", "footwear", "headgear"):
        if name in found:
            tags.append(join(found.get(f"{name}_colour"), found[name]))
    tags += [item_tag(side, found[f"{side}_item"]) for side in SIDES if f"{side}_item" in found]
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


def join(*words: str | None) -> str:
    """The words that are there."""
    return " ".join(word for word in words if word)


def _hair_tag(style: str | None, colour: str | None) -> list[str]:
    if style == "bald":
        return ["bald"]
    if style in ("short", "long", "curly"):
        return [join(style, colour, "hair")]
    return [join(colour, style or "hair")] if style or colour else []


def item_tag(side: str, item: str) -> str:
    """The tag of an item bound to a side."""
    if item == "eye patch":
        return f"{side} eye patch"
    return f"{side} mechanical arm" if item == "mechanical arm" else f"{side} hand {item}"


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


_TAG_MEANINGS = _tag_meanings()
