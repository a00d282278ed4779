"""Types of fields that several settings have."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from charengine.wording import CONTROL, composed

MAX_PROMPT = 2000  # characters; Qwen-Image-Edit reads 512 tokens, so more would be cut silently; thousands fit no model


def _one_line(value: str) -> str:
    if found := CONTROL.search(value):
        raise ValueError(f"it holds the control character {found[0]!a}: write it in one line")
    return value


def without_sign(value: Any) -> Any:
    """-0 is 0, not another number to try, and so in a list."""
    if isinstance(value, tuple):
        return tuple(map(without_sign, value))
    return value or 0.0 if isinstance(value, float) else value


Text = Annotated[str, BeforeValidator(composed)]  # words that people write
Line = Annotated[Text, AfterValidator(_one_line)]
Words = Annotated[Text, Field(max_length=MAX_PROMPT)]  # those of a prompt, or in one
MaybeWords = Annotated[str | None, Field(max_length=MAX_PROMPT), BeforeValidator(composed)]
