"""A character that cannot be made, in Prefect: one sentence, and the same error for whoever called."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from charengine.errors import ConfigError
from flows.character import character


def test_a_mistake_in_the_form_is_one_sentence_on_the_page_and_an_error_for_the_caller(
    prefect: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked = {"prompt": "an orc woman", "overrides": ["train.rank"]}
    state = character(**asked, return_state=True)
    assert state.is_failed()
    assert state.message.startswith("overrides 'train.rank': write section.key=value")
    [file] = re.findall(r"\(the whole traceback: (.*)\)$", state.message)
    kept = Path(file).read_text(encoding="utf-8")
    assert kept.startswith("Traceback (most recent call last)") and "ConfigError: --set 'train.rank'" in kept
    assert "Traceback" not in caplog.text and not [record for record in caplog.records if record.exc_info]
    with pytest.raises(ConfigError, match="--set 'train.rank'"):
        character(**asked)
