"""A request keeps every word where it was said, on its way to a worker and once checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from charengine.machine.home import Home
from charengine.run.request import RunRequest, check


@pytest.fixture
def asked(tmp_path: Path, drawn_sheet: Path) -> RunRequest:
    return RunRequest(
        prompt="an orc in a blue coat",
        name="Grisha",
        class_noun="orc",
        trigger="zorgax",
        seed=7,
        profile="embedded",
        overrides=("train.steps=77",),
        sheet=str(drawn_sheet),
        out=str(tmp_path / "out"),
        refresh=("sweep",),
    )


def test_a_worker_is_told_what_was_asked(asked: RunRequest, tmp_path: Path, drawn_sheet: Path) -> None:
    told = asked.as_parameters()
    assert {
        "prompt": "an orc in a blue coat",
        "name": "Grisha",
        "class_noun": "orc",
        "trigger": "zorgax",
        "seed": 7,
        "profile": "embedded",
        "overrides": ["train.steps=77"],
        "sheet": str(drawn_sheet),
        "out": str(tmp_path / "out"),
        "refresh": ["sweep"],
    }.items() <= told.items()


def test_what_was_asked_is_what_is_checked(asked: RunRequest, tmp_path: Path, drawn_sheet: Path) -> None:
    checked = check(asked, Home(tmp_path / "home"))
    assert checked.character.model_dump() == {
        "name": "Grisha",
        "prompt": "an orc in a blue coat",
        "class_noun": "orc",
        "trigger": "zorgax",
        "seed": 7,
    }
    assert checked.profile.train.steps == 77
    assert (checked.sheet, checked.out) == (drawn_sheet, tmp_path / "out")
    assert checked.refresh == frozenset({"sweep"})
    assert checked.parameters() == asked.as_parameters()
