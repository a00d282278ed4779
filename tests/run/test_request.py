"""A request keeps every word where it was said, on its way to a worker and once checked."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from charengine.dataset.folder import read_caption
from charengine.machine.home import Home
from charengine.run.claim import claim, identity_of, owner_of
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


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_letter_is_the_same_however_it_is_written(form: str, tmp_path: Path) -> None:
    said = unicodedata.normalize(form, "a café girl, 한복")
    home = Home(tmp_path / "home")
    first = claim(check(RunRequest("a café girl, 한복", out=str(tmp_path / "one")), home))
    asked = RunRequest(
        said, class_noun=unicodedata.normalize(form, "fée"), out=str(tmp_path / "one"),
        overrides=(unicodedata.normalize(form, 'caption.keep=["café"]'), unicodedata.normalize(form, 'sweep.prompts=["café {subject}"]')),
    )  # fmt: skip
    run = claim(check(asked, home))
    assert (run.character.prompt, run.character.name) == ("a café girl, 한복", first.character.name)
    assert (run.character.class_noun, run.profile.caption.keep) == ("fée", ("café",))
    assert run.profile.sweep.prompts == ("café {subject}",)
    caption = tmp_path / "front.txt"
    caption.write_text(unicodedata.normalize(form, "zorgax, fée"), encoding="utf-8")
    assert read_caption(caption) == "zorgax, fée"


def test_a_run_of_before_goes_on_where_its_prompt_was_written_the_other_way(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"name": "a", "prompt": "a cafe\\u0301 girl"}', encoding="utf-8")
    assert owner_of(tmp_path / "run") == identity_of("a", "a café girl")
