"""The generated pages hold every setting and every command, and none without a description."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import reference_pages
from command_line import ROOT
from manual import command_names
from pydantic import Field

from charengine.config import CropSettings, Profile, Settings
from charengine.machine.environment import OURS
from charengine.profiles import listing
from charengine.profiles.loading import setting_names


def test_every_setting_says_what_it_does() -> None:
    assert reference_pages.undescribed_settings() == []


def test_every_command_argument_and_option_says_what_it_is_for() -> None:
    assert reference_pages.undescribed_options() == []


def test_the_page_of_settings_lists_them_all_with_limits_and_defaults() -> None:
    page = reference_pages.settings_page()
    assert [name for name in setting_names() if f">{name}</code>" not in page] == []
    row = next(line for line in page.splitlines() if ">crop.margin</code>" in line)
    assert "0.0 to 0.3" in row and "<code>0.05</code>" in row
    row = next(line for line in page.splitlines() if ">train.steps</code>" in line)
    assert "1 to 100,000" in row and "sdxl-12gb: <code>400</code>" in row


def test_every_variable_of_ours_that_is_read_is_known_and_in_the_manual() -> None:
    folders = [ROOT / folder for folder in ("charengine", "tasks", "flows", "deployments")]
    texts = [path.read_text() for folder in folders for path in folder.rglob("*.py")]
    assert {name for text in texts for name in re.findall(r"\bCHARENGINE_[A-Z_]+[A-Z]\b", text)} == set(OURS)
    page = (ROOT / "docs" / "reference" / "settings.md").read_text()
    assert [name for name in OURS if f"| `{name}` |" not in page] == []


def test_limits_inside_a_list_are_said() -> None:
    row = next(line for line in reference_pages.settings_page().splitlines() if ">sweep.strengths</code>" in line)
    assert "list: number" in row and "0 to 2" in row


def test_the_page_of_commands_lists_them_all() -> None:
    page = reference_pages.commands_page()
    assert [name for name in command_names() if f"## charengine {name}\n" not in page] == []
    assert "--refresh" in page and "repeatable" in page


class _Silent(Settings):
    """A section with a setting that says nothing."""

    told: int = Field(default=1, description="said")
    untold: int = 1


@pytest.fixture
def silent_section(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(listing, "sections", lambda: {"crop": CropSettings, "silent": _Silent})
    yield


def test_a_setting_without_a_description_stops_the_build(silent_section: None) -> None:
    with pytest.raises(reference_pages.ExtensionError, match=r"silent\.untold"):
        reference_pages.settings_page()


def test_an_option_without_a_help_text_stops_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: dict[str, Any] = reference_pages.commands()
    monkeypatch.setattr(commands["crop"].params[0], "help", "")
    monkeypatch.setattr(reference_pages, "commands", lambda: commands)
    with pytest.raises(reference_pages.ExtensionError, match="crop file"):
        reference_pages.commands_page()


def test_sections_are_those_of_a_profile() -> None:
    assert {"models", "train", "sweep"} <= set(listing.sections()) <= set(Profile.model_fields)
