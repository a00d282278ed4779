"""Types of fields that several settings have."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

from charengine.wording import composed

Text = Annotated[str, BeforeValidator(composed)]  # words that people write
