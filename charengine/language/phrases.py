"""A description taken apart into traits: short phrases in its own words, each of which could be said alone in a prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from charengine.embedded.plainly import said_plainly
from charengine.language.traits import content_words, trait_kinds
from charengine.language.words import COLOURS, SCENE

MOST_TOKENS = 45  # of CLIP's 75: the rest is for the scene

_SIDE = r"(?:(?:the|a|an|his|her|its|their|my) )?(?:left|right)\b"
_ENDS = re.compile(r"[,.;:()]| but | while ")
# Between two traits. "with" and "in" before a side belong to what is held: "a sword with the left hand".
_BETWEEN = re.compile(
    rf"(\b(?:and|plus)\b|\bwith (?!{_SIDE})|\bin (?!{_SIDE})|\b(?:who |that )?(?:has|have|having|wears|wearing)\b|"
    r"\b(?:dressed|clad) in\b|\b(?:who|that) (?:is|carries|holds)\b|\b(?=(?:carrying|holding|wielding|gripping)\b))"
)
_OPENING = re.compile(r"^(?:(?:a|an|the|his|her|its|their|some|a pair of|wearing|dressed in|is|in|with) )+")
_OWN_SIDE = re.compile(r"^(?:his|her|its|their|in|on) .*\b(?:left|right)\b")
_COMPOUND = re.compile(r"\w+-?(?:skinned|haired|eyed|headed|eared|legged|armed|bearded|clad|sized)$|^(?:skin|skinned)$")
_WITHOUT = re.compile(r"\bwithout (?:(?:any|an?) )?")
_SIDED = re.compile(r"\b(?:left|right)\b")
_ALSO = re.compile(r"\b(?:bare (?:feet|foot|chest|arms)|top ?knot)\b")  # of two words, or no captioner's
_SHADES = frozenset({"deep", "dark", "light", "pale", "bright"})
_LINKS = re.compile(r"\b(?:with|in|on|of|for|over|under|is|are)\b")
_HAVING = re.compile(r"\b(skin|hair|eye|ear|beard)n?e?d\b")
_HAIRSTYLES = frozenset({"ponytail", "braid", "bun", "twintail", "pigtail", "mohawk", "curl", "afro", "dreadlock"})


def trait_phrases(prompt: str, class_noun: str) -> tuple[str, ...]:
    """The traits that a description names, in its order and words, without the class noun, which every prompt says.

    >>> trait_phrases("a stocky orc woman with red hair, in a blue coat and boots, a hook for a right hand", "orc woman")
    ('stocky', 'red hair', 'blue coat', 'boots', 'hook for a right hand')
    """
    text, class_noun = said_plainly(" ".join(prompt.lower().replace("’", "'").split())), class_noun.lower()
    text = _WITHOUT.sub("with no ", text)
    found: list[str] = []
    head_seen = False
    for clause in _ENDS.split(text):
        pieces = _BETWEEN.split(clause)
        last = ""  # the phrase that a remark without a trait of its own ("with stripes") belongs to
        for link, piece in zip(["", *pieces[1::2]], pieces[::2], strict=True):
            words = _plain(piece)
            if not words:
                continue
            if not head_seen and _ends_with(words, class_noun):
                head_seen = True
                found += _adjectives(words.removesuffix(class_noun).split(), class_noun)
            elif _is_trait(words):
                found.append(words)
                last = words
            elif last and link.strip() in ("with", "in") and not SCENE.search(words):
                found[-1] = last = f"{last} {link.strip()} {words}"
    return tuple(dict.fromkeys(found))


def with_traits(prompt: str, added: Sequence[str]) -> str:
    """A description with traits that it does not say, as a sheet was told them.

    >>> with_traits("an orc woman in a blue coat.", ("green skin", "brown boots"))
    'an orc woman in a blue coat, green skin, brown boots'
    """
    return ", ".join([prompt.rstrip(" .,;"), *added]) if added else prompt


def fitting(
    phrases: Iterable[str], subject: str, count_tokens: Callable[[str], int], most: int = MOST_TOKENS
) -> list[str]:
    """Those of the phrases, the first ones first, that a prompt about the subject has room for in `most` tokens."""
    chosen: list[str] = []
    for words in phrases:
        if count_tokens(", ".join([subject, *chosen, words])) <= most:
            chosen.append(words)
    return chosen


def without_repeats(phrases: Sequence[str]) -> tuple[str, ...]:
    """The phrases but those that another of them says too; of two that say the same, the first stays.

    >>> without_repeats(("red hair", "green scarf", "curly red hair"))
    ('green scarf', 'curly red hair')
    """
    kept = list(dict.fromkeys(phrases))
    for words in reversed(tuple(kept)):
        if any(_says(other, words) for other in kept if other != words):
            kept.remove(words)
    return tuple(kept)


def _says(phrase: str, words: str) -> bool:
    """Whether a phrase names what the words name, with all that they say of it."""
    named = _things(words)
    return bool(named) and all(
        any(thing in names and about <= said for names, said in _things(phrase)) for (thing, _), about in named
    )


def _things(phrase: str) -> list[tuple[tuple[str, str], frozenset[str]]]:
    """The things that a phrase names, by the last word of each part (braids are hair too), and the words about them."""
    found = []
    for part in _LINKS.split(_HAVING.sub(r"\1", phrase.lower())):
        if said := content_words(part):
            last = next(word for one in reversed(re.findall(r"[a-z]+", part)) if (word := one.rstrip("s")) in said)
            found.append(((last, "hair" if last in _HAIRSTYLES else last), said - {last}))
    return found


def _plain(piece: str) -> str:
    """Without what opens it; a part that is named by its owner ("her right hand is a hook") keeps that."""
    words = " ".join(piece.split())
    return words if _OWN_SIDE.search(words) else _OPENING.sub("", f"{words} ").strip()


def _ends_with(words: str, class_noun: str) -> bool:
    return words == class_noun or words.endswith(f" {class_noun}")


def _is_trait(words: str) -> bool:
    """Whether it says how somebody looks; a pose or a place does not, a thing on one side does."""
    named = _SIDED.search(words) or _ALSO.search(words)
    return bool(named) or (bool(trait_kinds(words)) and not _only_scene(words))


def _only_scene(words: str) -> bool:
    return bool(SCENE.search(words)) and not trait_kinds(SCENE.sub(" ", words))


def _adjectives(words: list[str], class_noun: str) -> list[str]:
    """What stands before the class noun, one phrase each: "green skinned" stays together, a lone colour keeps its noun."""
    phrases: list[str] = []
    waiting: list[str] = []
    for word in words:
        if _COMPOUND.search(word):
            phrases.append(" ".join([*waiting, word]))
            waiting = []
            continue
        if not (waiting and waiting[-1] in _SHADES):
            phrases += _alone(waiting, class_noun)
            waiting = []
        waiting.append(word)
    return phrases + _alone(waiting, class_noun)


def _alone(words: list[str], class_noun: str) -> list[str]:
    if words and words[-1] in COLOURS:
        return [" ".join([*words, class_noun])]
    return [word for word in words if content_words(word)]
