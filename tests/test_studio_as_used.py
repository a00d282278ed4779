"""The Python face as programs use it: from several threads, with values of any type, copied, and after its files were deleted."""

from __future__ import annotations

import copy
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import python
from PIL import Image

import charengine as ce
from charengine.errors import ConfigError
from charengine.machine.home import Home

PROMPT = "an orc woman with red hair and a blue coat"

IN_THREADS = """
import sys, threading, charengine as ce
found = []
def make(number):
    who = ce.Studio().character("an orc woman", name=f"Aya {number}", sheet=sys.argv[1])
    found.append(len(who.caption().captions))
threads = [threading.Thread(target=make, args=(number,)) for number in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert found == [3, 3, 3], found
"""


def test_threads_of_one_program_take_turns_where_models_are_loaded(tmp_path: Path, drawn_sheet: Path) -> None:
    python(IN_THREADS.replace("sys.argv[1]", repr(str(drawn_sheet))), tmp_path)


@pytest.fixture
def who(home: Home, drawn_sheet: Path) -> Any:
    """A character with a sheet that is there."""
    return ce.Studio().character(PROMPT, name="Aya", sheet=drawn_sheet)


def test_a_step_whose_files_were_deleted_is_made_again(who: Any, home: Home) -> None:
    before = who.crop()
    shutil.rmtree(home.store)
    assert who.crop() == before and who.crop()._repr_html_().count("<img") == 4


def test_a_sheet_that_was_edited_between_two_steps_is_cut_anew_in_a_run_of_its_own(
    home: Home, drawn_sheet: Path, tmp_path: Path
) -> None:
    shutil.copy(drawn_sheet, sheet := tmp_path / "sheet.png")
    who = ce.Studio().character(PROMPT, name="Aya", sheet=sheet)
    before, key = who.crop().record, who.workspace.key
    with Image.open(sheet) as image:
        mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored.save(sheet)
    assert who.crop().record != before and who.workspace.key != key
    shutil.copy(drawn_sheet, sheet)
    assert who.crop().record == before and who.workspace.key == key


def test_one_that_was_used_is_copied_and_pickled_with_what_it_made(who: Any) -> None:
    views = who.crop()
    for again in (copy.deepcopy(who), pickle.loads(pickle.dumps(who))):
        assert again.crop().record == views.record and repr(again) == repr(who)
    assert pickle.loads(pickle.dumps(views))._repr_html_() == views._repr_html_()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"out": 3}, "out: got 3; give a path"),
        ({"out": b"runs/x"}, "out: got b'runs/x'; give a path"),
        ({"sheet": True}, "sheet: got True; give a path"),
        ({"reference": ["a.png"]}, "reference: got ['a.png']; give a path"),
        ({"refresh": 3}, "refresh: got 3; give the name of a stage"),
        ({"refresh": b"train"}, "refresh: got b'train'; give the name of a stage"),
        ({"refresh": [None]}, "refresh: got [None]; give the name of a stage"),
        ({"seed": True}, "seed: got True; give a whole number"),
    ],
)
def test_an_argument_of_another_type_is_refused_and_makes_no_folder_of_its_name(
    home: Home, given: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        ce.Studio().character(PROMPT, name="Aya", **given)
    assert told in str(refused.value)


def test_stages_to_make_again_may_come_as_one_name_several_or_nothing(home: Home) -> None:
    studio = ce.Studio()
    given = ["train", ("train", "sweep"), (name for name in ("train",)), None, ""]
    found = [studio.character(PROMPT, name="Aya", refresh=one)._checked.refresh for one in given]
    assert found == [{"train"}, {"train", "sweep"}, {"train"}, set(), set()]


def test_a_setting_that_cannot_be_written_down_is_refused_with_its_name() -> None:
    endless: list[Any] = []
    endless.append(endless)
    for value in (endless, 10**5000):
        with pytest.raises(ConfigError, match=r"^train.steps: got a (list|int) that cannot be written"):
            ce.Studio(train={"steps": value})
