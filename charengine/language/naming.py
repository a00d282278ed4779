"""Class noun and trigger of a character: derived here and nowhere else."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

from charengine.language.words import COLOURS, COMMON_NAMES, KINDS, PHRASE_ENDS, TRAIT_WORDS
from charengine.wording import TRIGGER_PATTERN

NO_NOUN = "character"  # of a prompt that names no kind of being
_AFTER_VOWEL = ("xo", "zix", "vox", "qul", "zuq", "xi")
_AFTER_CONSONANT = ("ix", "oz", "uxa", "yx", "azu", "oxi")


# --- class noun and trigger -------------------------------------------------------------------------------------------


def derive_class_noun(prompt: str) -> str:
    """What kind of being the prompt is about: the end of its first noun phrase that names one, else `NO_NOUN`.

    >>> derive_class_noun("an orc woman in a blue coat, her right hand is a hook")
    'orc woman'
    """
    phrase: list[str] = []
    for word in [*re.findall(r"[a-z][a-z'-]*|[,.;:()]", prompt.lower()), "."]:
        if word in PHRASE_ENDS or not word[0].isalpha():
            if noun := _last_kinds(phrase):
                return noun
            phrase = []
        else:
            phrase.append(word.removesuffix("'s"))
    return NO_NOUN


def _last_kinds(words: list[str]) -> str:
    """The last run of at most two neighbouring words that name a kind of being."""
    ends = [i for i, word in enumerate(words) if word in KINDS]
    if not ends:
        return ""
    last = ends[-1]
    return " ".join(words[last - 1 : last + 1]) if last and words[last - 1] in KINDS else words[last]


def derive_trigger(name: str, count_tokens: Callable[[str], int] | None = None) -> str:
    """A rare, pronounceable, lower-case word made from the name, the same for the same name everywhere.

    Args:
        name: the character's name.
        count_tokens: CLIP tokens of a text; the candidate with the fewest is taken.
    """
    letters = re.sub(r"[^a-z0-9]", "", name.lower()).lstrip("0123456789")
    letters = letters if len(letters) > 1 else f"{letters or 'ch'}ara"
    turn = hashlib.sha256(name.encode()).digest()[0]
    stems = dict.fromkeys(letters[:length] for length in (5, 4, 6, 3))
    words = [stem + ending for stem in stems for ending in _endings(stem, turn)]
    fit = [word for word in words if TRIGGER_PATTERN.fullmatch(word) and not _is_known_word(word)]
    if count_tokens is None:
        return fit[0]
    counts = {word: count_tokens(word) for word in fit}
    return min(fit, key=lambda word: counts[word])  # min keeps the first of equals


def known_word_warnings(trigger: str, count_tokens: Callable[[str], int]) -> tuple[str, ...]:
    """A warning where the base model's tokenizer has every word of the trigger whole, as it has those that it met often.

    Args:
        trigger: one word, or another program's phrase ("ohwx woman").
        count_tokens: CLIP tokens of a text.
    """
    if any(count_tokens(word) > 1 for word in trigger.split()):
        return ()
    rare = derive_trigger(trigger, count_tokens)
    return (
        f"the trigger {trigger!r} is a word that the base model knows: what it means mixes with the character. A rare word does not, "
        f"e.g. --trigger {rare}",
    )


def _endings(stem: str, turn: int) -> list[str]:
    """Rare endings that can be said after the stem, in an order of the name's own."""
    endings = _AFTER_VOWEL if stem[-1] in "aeiouy" else _AFTER_CONSONANT
    return [endings[(turn + i) % len(endings)] for i in range(len(endings))]


def _is_known_word(word: str) -> bool:
    """Whether a model may already know the word: names, words of our lists, the embedded family's vocabulary."""
    from charengine.embedded.lexicon import VOCABULARY

    lists = (KINDS, COLOURS, COMMON_NAMES, VOCABULARY, *TRAIT_WORDS.values())
    return any(word in words for words in lists)
