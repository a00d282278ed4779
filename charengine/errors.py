"""Every error the engine raises on purpose.

EngineError
├── BadInput            the caller's prompt, file, setting or folder is wrong      exit status 2
│   ├── ConfigError     a setting or profile; carries every problem found at once
│   └── UnsafeFile      a file format that can carry code (pickle)
├── MissingDependency   a model file or Python package is not there                exit status 3
└── StageFailed         a stage could not do its work                              exit status 4
    ├── SheetRejected   the sheet has a missing, doubled or merged figure; carries a picture
    │                   (exit status 2 when the sheet is the caller's own)
    ├── OutOfBudget     the work does not fit the memory budget; carries what would fit
    ├── StoreCorrupt    a stored blob does not hash to its name
    └── Interrupted     asked to stop; what is done is kept, running it again continues

A message says what was received, what is allowed, and what to do.
"""

from __future__ import annotations

import re
from pathlib import Path

# part of a pattern: what a terminal obeys, what turns or hides the letters beside it, letters that show nothing, bytes that were no
# UTF-8; not the joiners (U+200C, U+200D) that Persian, Hindi and emoji are written with
HIDDEN = (
    r"\x7f-\x9f\xad\u061c\u115f\u1160\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164\ufeff\uffa0\ufff9-\ufffb"
    r"\U000e0000-\U000e007f\ud800-\udfff"
)
CONTROL = re.compile(rf"[\x00-\x08\x0b-\x1f{HIDDEN}]")


def printable(text: str) -> str:
    """Text in which what a terminal would obey, or nobody would see, is written out."""
    return CONTROL.sub(lambda found: f"{found[0]!a}"[1:-1], text)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device: Apple's says so only in its words."""
    named = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
    return named or (isinstance(error, RuntimeError) and "backend out of memory" in str(error))


class EngineError(Exception):
    """Base of all errors raised on purpose; `exit_status` is what the command line returns."""

    exit_status = 4

    def __str__(self) -> str:
        """The message as it may be printed: what a terminal would obey is written out."""
        return printable(super().__str__())


class BadInput(EngineError):
    """The caller gave something that cannot work; retrying will not help."""

    exit_status = 2


class ConfigError(BadInput):
    """One or more settings are wrong; `problems` lists them all."""

    def __init__(self, problems: list[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class UnsafeFile(BadInput):
    """A file format that may execute code when opened."""


class MissingDependency(EngineError):
    """A model file or a package is missing; the message says how to get it."""

    exit_status = 3


class StageFailed(EngineError):
    """A stage ran and could not produce its result."""


class SheetRejected(StageFailed):
    """The sheet does not hold exactly one front, side and back figure.

    Args:
        message: which box is wrong, and why.
        picture: an annotated copy of the sheet, if one was written.
        box: index of the offending box (0 front, 1 side, 2 back), if one is to blame.
        given: the sheet is the caller's own, so it is bad input and not a stage that failed.
    """

    def __init__(
        self, message: str, picture: Path | None = None, box: int | None = None, *, given: bool = False
    ) -> None:
        super().__init__(message + (f" (see {picture})" if picture else ""))
        if given:
            self.exit_status = BadInput.exit_status
        self.picture = picture
        self.box = box


class OutOfBudget(StageFailed):
    """The work does not fit; `smallest_gib` is the smallest budget that would."""

    def __init__(self, message: str, smallest_gib: float | None = None) -> None:
        super().__init__(message)
        self.smallest_gib = smallest_gib


class Interrupted(StageFailed):
    """A stage was asked to stop and did, between two units of work."""


class StoreCorrupt(StageFailed):
    """A stored blob is gone or changed; the stage that made it must run again."""
