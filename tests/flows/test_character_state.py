"""How a character ends in Prefect: one sentence, and the same result or error for whoever called."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from charengine.errors import ConfigError
from flows import character as module
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


def test_the_end_of_a_character_says_the_pick_and_its_caller_has_the_result(
    prefect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = SimpleNamespace(checkpoint_step=300, strength=0.8, recommended_prompt="ohw orc")
    anything = SimpleNamespace(begin=lambda *_: None, character=None, out=Path(), tracker=None, alone=nullcontext)
    for name in ("showing", "claimed", "closing"):
        monkeypatch.setattr(module, name, lambda *_: nullcontext(anything))
    for name, given in (
        ("_prepare", (anything, anything)),
        ("check_run", None),
        ("track", None),
        ("foretell", None),
        ("make_character", made),
    ):
        monkeypatch.setattr(module, name, lambda *_, given=given: given)
    assert character(prompt="an orc", return_state=True).message == "step 300 at strength 0.8; say 'ohw orc'"
    assert character(prompt="an orc") == made


def test_a_file_of_the_users_ends_a_run_before_its_folder_is_claimed(
    prefect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ConfigError("adapters/zorgax.safetensors is not as Character Engine wrote it")

    anything = SimpleNamespace(begin=lambda *_: None, character=None, alone=nullcontext)
    monkeypatch.setattr(module, "showing", lambda *_: nullcontext(anything))
    monkeypatch.setattr(module, "_prepare", lambda *_: (anything, anything))
    monkeypatch.setattr(module, "check_run", refuse)
    monkeypatch.setattr(module, "claimed", lambda *_: pytest.fail("claimed"))
    with pytest.raises(ConfigError, match="zorgax"):
        character(prompt="an orc")
