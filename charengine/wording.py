"""Words that people and files give: trigger, class noun, name. Checked wherever they enter, before they are in a prompt, a caption or a path.

A trigger that this engine chooses or is asked for is one rare word. A foreign adapter's may be a phrase ("ohwx woman"): it goes into prompts
as it is, and into file names only through `file_stem`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from charengine.errors import HIDDEN

CONTROL = re.compile(rf"[\x00-\x1f{HIDDEN}]")

LONGEST_NOUN = 64
MOST_AXES = 6  # of a shape that is told; no layer has more than five
LONGEST_PHRASE = 80
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _-]{0,63}", re.ASCII)
TRIGGER_PATTERN = re.compile(r"[a-z][a-z0-9]{2,23}", re.ASCII)
NOUN_PATTERN = re.compile(rf"[^\W_](?:[\w '’.()&-]{{0,{LONGEST_NOUN - 2}}}[\w.)])?")
_UNFIT = frozenset('/\\<>:"|?*{}')  # separators, what file systems refuse, and the braces of prompt templates
_PLAIN: dict[int, int | str] = {
    **str.maketrans("øØłŁđĐðÐıħĦ", "oOlLdDdDihH"),
    **dict(zip(map(ord, "ßẞæÆœŒþÞ"), ("ss", "SS", "ae", "AE", "oe", "OE", "th", "TH"), strict=True)),
}
_DEVICES = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)  # no file may be called so on Windows


def composed(text: Any) -> Any:
    """Text with each accented letter as one character (Unicode's NFC), as keyboards write it: both ways look the same, and are. Other values as they are."""
    return unicodedata.normalize("NFC", text) if isinstance(text, str) else text


def shape_told(shape: Sequence[int]) -> str:
    """A tensor's shape for a message, as torch has it; a file may say hundreds of axes."""
    if len(shape) <= MOST_AXES:
        return str(tuple(shape))
    return f"({', '.join(map(str, shape[:MOST_AXES]))}, … of {len(shape)} axes)"


def shows(text: str) -> bool:
    """Whether there is anything to be read: letters without width and spaces show nothing."""
    return any(char.isprintable() and not char.isspace() for char in text)


def refuse_twice(name: str, values: Sequence[str]) -> None:
    """A `ValueError` that names what stands twice among the values."""
    if twice := [one for one in values if values.count(one) > 1]:
        raise ValueError(f"{name} has {twice[0]!r} twice: leave one")


def name_problem(text: str) -> str:
    """What is wrong with a character's name; empty when nothing is."""
    if NAME_PATTERN.fullmatch(text):
        return ""
    fits = f", such as {plain!r}" if NAME_PATTERN.fullmatch(plain := unaccented(text)) else ""
    return f"name {text[:80]!r} is not allowed: use 1-64 letters a to z, digits, spaces, '_' or '-', starting with a letter or digit{fits}"


def trigger_problem(text: str) -> str:
    """What is wrong with a trigger of our own."""
    if TRIGGER_PATTERN.fullmatch(text):
        return ""
    return f"trigger {text[:80]!r} is not allowed: 3-24 lower-case letters and digits, starting with a letter"


def noun_problem(text: str) -> str:
    """What is wrong with a class noun."""
    if NOUN_PATTERN.fullmatch(text) and not CONTROL.search(text):
        return ""
    return (
        f"class noun {text[:80]!r} is not allowed: 1-{LONGEST_NOUN} letters, digits, spaces, apostrophes and hyphens in one line, "
        "starting with a letter or digit, e.g. 'woman'"
    )


def phrase_problem(text: str) -> str:
    """What is wrong with a trigger that another program's file or folder uses: one line, nothing that could be read as a path."""
    fits = 0 < len(text) <= LONGEST_PHRASE and text.isprintable() and text == text.strip() and not CONTROL.search(text)
    if fits and not _UNFIT & set(text) and not text.startswith((".", ",")) and any(map(str.isalnum, text)):
        return ""
    return (
        f"trigger {text[:80]!r} is not allowed: 1-{LONGEST_PHRASE} characters in one line, none of {' '.join(sorted(_UNFIT))}, "
        "a letter or digit among them"
    )


def unaccented(text: str) -> str:
    """Latin letters without what is above, below or across them: Zoë is Zoe, Søren Soren, ß ss; others as they are."""
    return unmarked(text.translate(_PLAIN))


def unmarked(text: str) -> str:
    """Letters without the marks that Unicode can take off."""
    return "".join(mark for mark in unicodedata.normalize("NFKD", text) if not unicodedata.combining(mark))


def file_stem(text: str, otherwise: str = "adapter") -> str:
    """The text as a file name without its ending: letters, digits, '-' and '_' of ASCII alone, at most 64; never a path."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_-")[:64]
    return f"{stem}_" if is_device(stem) else stem or otherwise


def slug(name: str) -> str:
    """Lower-case letters, digits and dashes only, as Prefect's artifact keys and MLflow's model names want it, and every folder takes it."""
    plain = re.sub(r"[^a-z0-9]+", "-", unaccented(name).lower()).strip("-") or "character"
    return f"{plain}-1" if is_device(plain) else plain


def is_device(stem: str) -> bool:
    """Whether Windows has a device of this name, so that no file or folder may be called so."""
    return _DEVICES.fullmatch(stem) is not None


def holds_word(text: str, word: str) -> bool:
    """Whether a word or phrase stands in a text as words of their own: not inside a longer one, whatever the case."""
    return bool(word) and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def never_taught(words: Sequence[str], setting: str = "") -> tuple[str, ...]:
    """A warning that names words which a model of few words passes over; none where there are none. `setting`: whose text they stand in."""
    told = f"the model was never taught these words and ignores them: {', '.join(words)}"
    return (f"{setting}: {told}" if setting else told,) if words else ()
