"""What people write in other ways, said as prompts say it: "hair: red", "her hair is red", "not blue but green", "who lost her shoes".

Only words of looks are turned: a lost look, a missing tooth and a hook instead of a hand stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from charengine.embedded.lexicon import ADJECTIVES, GARMENT_WORDS, HEADGEAR_PHRASES, ITEM_PHRASES

_MORE = "cloak cape suit raincoat hoodie cap gloves scarf glasses goggles mask belt socks sandals slippers weapon hair beard wig"
_KINDS = "straight wavy braided messy thick thin leather wool silk wooden"


def any_of(words: Iterable[str]) -> str:
    """The words as alternatives of a pattern, longest first; a space may be a hyphen."""
    ordered = sorted(words, key=lambda word: (-len(word), word))
    return "|".join(re.escape(word).replace(r"\ ", r"[\s-]+") for word in ordered)


_TABLES = (GARMENT_WORDS, HEADGEAR_PHRASES, ITEM_PHRASES)
_THING = rf"(?:{any_of({*_MORE.split(), *(word for table in _TABLES for words in table.values() for word in words)} - {'barefoot', 'bare feet'})})s?"
_LOOK = rf"(?:{any_of({*_KINDS.split(), *(word for word, (kind, _) in ADJECTIVES.items() if kind != 'build')})})"
_LOOKS = rf"{_LOOK}(?:(?:\s*,\s*|\s+and\s+|\s+|-){_LOOK})*"
_WHAT = rf"(?:{_LOOKS}(?:\s+(?:{_THING}|ones?|eyes|skin))?|{_THING}|{any_of({*ADJECTIVES})})"  # blue · blue coat · coat · tall
_A = r"(?:(?:in|with|an?|the|his|her|its|their)\s+)*"
_HIS = r"(?:his|her|its|their|both|all|the)"
_ON = r"(?:and|with|in|but|wearing|holding|who)\b"
_AFTER = rf"(?=\s*(?:[,.;)\n]|$)|\s+{_ON})"
_LOST = rf"(?P<lost>(?:{_LOOKS}\s+)?{_THING}(?:\s+and\s+(?:{_HIS}\s+)?(?:{_LOOKS}\s+)?{_THING})*)\b"

_RULES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # not blue but green eyes · a coat rather than a robe · green, not blue, eyes · a crown, not a hat
        rf"\bnot\s+{_A}{_WHAT}\s*,?\s+but\s+(?:rather\s+)?",
        rf",?\s*\b(?:rather\s+than|instead\s+of)\s+{_A}{_WHAT}{_AFTER}",
        rf"(?<=[a-z]),?\s+(?:and\s+)?not\s+{_LOOKS}\s*,?(?=\s+(?!{_ON})[a-z])",
        rf",?(?:\s+and)?\s+\bnot\s+{_A}{_WHAT}{_AFTER}",
        # lost her shoes · has taken off his hat · her shoes removed · whose helmet is gone
        rf"\b(?:(?:who|that|has|have|had|having|he|she|it)\s+)*(?:lost|lacks|misses|missing|dropped|removed|shed|left\s+behind|kicked\s+off|"
        rf"t(?:ook|aken|akes|aking)\s+off|no\s+longer\s+(?:has|wears|wearing|carries))\s+(?:{_HIS}\s+)+{_LOST}",
        rf"\b(?:(?:with|whose|{_HIS})\s+)*{_LOST}\s+(?:(?:is|are|was|were|has\s+been|have\s+been)\s+)?"
        rf"(?:removed|missing|gone|lost|off|taken\s+off|left\s+behind|stolen){_AFTER}",
        # hat: none · hair: red · hair colour: red and long · a coat that is green · outfit: blue coat
        rf"\b(?P<lost>{_THING})\s*[:=]\s*(?:none|no|nothing)\b",
        rf"\b(?P<thing>(?!colou?r|left|right|hand|arm|eye\b)[a-z]+)(?:\s+colou?r)?\s*[:=]\s*(?P<looks>{_LOOKS}){_AFTER}",
        rf"\b(?P<whose>whose\s+)?(?P<thing>{_THING}|eyes|skin)\s+(?:(?:that|which)\s+)?(?:is|are)\s+(?P<looks>{_LOOKS}){_AFTER}",
        r"\b(?:hair(?:\s?style)?|eyes|clothes|clothing|outfit|weapons?|headwear|footwear|species|race|character)\s*:\s*(?=[a-z])",
    )
)  # fmt: skip


def said_plainly(text: str, changed: dict[str, None] | None = None) -> str:
    """The prompt with labels, contrasts and losses turned into what is to be seen.

    Args:
        text: the prompt.
        changed: what was turned into what is added to its keys.

    >>> said_plainly("an elf who lost her hat, hair: long and red, not blue but green eyes")
    'an elf with no hat, long red hair, green eyes'
    """

    def plain(match: re.Match[str]) -> str:
        found, said = match.groupdict(), ""
        if lost := found.get("lost"):
            said = "with no " + re.sub(rf"\s+and\s+(?:{_HIS}\s+)?", " or ", lost)
        elif looks := found.get("looks"):
            said = re.sub(r"\s*,\s*|\s+and\s+", " ", looks) + f" {found['thing']}"
            said = f"with {said}" if found.get("whose") else said
        if changed is not None:
            changed[f"{match[0].strip(' ,')} as {said}" if said else f"{match[0].strip(' ,')} left out"] = None
        return said

    for pattern in _RULES:
        text = pattern.sub(plain, text)
    return text
