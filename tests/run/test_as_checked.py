"""Files that a cast names, changed between its check and a character's turn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from charengine.run.as_checked import AsChecked
from charengine.run.request import RunRequest


def edited(folder: Path) -> None:
    (folder / "my.yaml").write_text("extends: base.yaml\ntrain: {steps: 14}\n")


def base_edited(folder: Path) -> None:
    (folder / "base.yaml").write_text("extends: embedded\nsweep: {steps: 3}\n")


def redrawn(folder: Path) -> None:
    (folder / "mine.png").write_bytes(b"another")


def added_to(folder: Path) -> None:
    (folder / "pics" / "two.png").write_bytes(b"two")


def commented(folder: Path) -> None:
    (folder / "my.yaml").write_text("# as before\nextends: base.yaml\ntrain: {steps: 10}\n")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (edited, "--profile {}/my.yaml"),
        (base_edited, "--profile {}/my.yaml"),
        (redrawn, "--reference {}/mine.png"),
        (added_to, "train.regularisation={}/pics"),
        (commented, ""),
        ((lambda folder: (folder / "mine.png").unlink()), ""),
    ],
)
def test_what_a_character_is_made_from_is_named_where_it_changed_after_the_cast_was_checked(
    tmp_path: Path, change: Callable[[Path], object], told: str
) -> None:
    (tmp_path / "base.yaml").write_text("extends: embedded\n")
    (tmp_path / "my.yaml").write_text("extends: base.yaml\ntrain: {steps: 10}\n")
    (tmp_path / "mine.png").write_bytes(b"picture")
    (tmp_path / "pics").mkdir()
    first = RunRequest("an orc", "Aya")
    second = RunRequest(
        "a robot",
        "Nix",
        profile=str(tmp_path / "my.yaml"),
        overrides=(f"train.regularisation={tmp_path / 'pics'}",),
        reference=str(tmp_path / "mine.png"),
    )
    checked = AsChecked([first.as_parameters(), second.as_parameters()])
    assert checked.changed(1) == []
    change(tmp_path)
    assert checked.changed(0) == []
    assert checked.changed(1) == ([told.format(tmp_path)] if told else [])
